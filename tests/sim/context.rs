//! What every part of a simulation shares: time, randomness, the event queue, the reference state, and counters.

use std::collections::BTreeMap;

use watershed::core::raft::PlantedFault;
use watershed::types::MemberId;

use super::client::{Answer, OpId};
use super::network::Message;
use super::truth::Truth;

/// Microseconds since the simulation began.
pub type Micros = u64;
pub const MILLI: Micros = 1000;
pub const SECOND: Micros = 1_000_000;

/// Something that happens at a moment.
#[derive(Clone, Debug)]
pub enum Event {
    /// A process starts on this member's disk.
    Start(usize),
    /// Work of a process; nothing happens if that process is gone.
    Process { member: usize, boot: u32, work: Work },
    /// A message reaches the member it is for.
    Deliver(Box<Message>),
    /// A member learns what became of the db snapshot it sent.
    SnapshotSent { member: usize, boot: u32, to: MemberId, delivered: bool },
    /// A member learns that nobody answers where it sends to.
    Unreachable { member: usize, boot: u32, to: MemberId },
    /// A member that was removed ends.
    Retire(usize),
    /// A question of another member arrives.
    Call { number: u64, to: usize, method: &'static str, body: bytes::Bytes },
    /// Its answer arrives, or none in time.
    CallAnswer(u64, Option<bytes::Bytes>),
    /// A client's request reaches a member.
    Request(OpId),
    /// An answer reaches its client.
    Answer(OpId, Answer),
    /// A client waits no longer.
    GiveUp(OpId),
    /// A client does its next operation.
    Next(usize),
    /// A watching client reads what its member has for it.
    Watch(usize),
    /// A fault is caused, or repaired.
    Nemesis,
}

/// Work of one process.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    Tick,
    /// The raft thread wakes up.
    Raft,
    /// The disk has done what the log writer waits for.
    Written,
    Apply,
    Checkpoint,
    CompactionSlice,
    /// The leader compares the members' states.
    Compare,
    /// The process ends because it cannot write its log.
    End,
}

/// Planted faults, to show that the checks can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The disk answers "synced" and keeps nothing.
    DiskLies,
    /// A linearizable read takes the newest state of its member without asking.
    ReadWithoutIndex,
    /// A linearizable read does not wait until its index is applied.
    ReadBeforeApplied,
    /// One committed entry in a hundred is not applied.
    SkipEntry,
    /// Deadlines run at twice the speed.
    HastyLessor,
    /// A lessor is never told that its member leads.
    SleepyLessor,
    /// Watchers are not told of one batch in fifty.
    LostEvents,
    /// A member that leads no more keeps its deadlines, and has others put what it decides into the log.
    LessorStays,
    /// Consensus is told that no member joins.
    DeafConsensus,
    /// Watchers are not told that a snapshot replaced the state.
    NoJump,
    /// A message in two hundred comes back to its sender.
    WrongMember,
    /// A request counts as lost as soon as its member hears of a later term.
    HastyRetry,
    /// One that the drivers of the program have.
    InDriver(PlantedFault),
}

/// How a simulation is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    pub seed: u64,
    pub members: usize,
    pub clients: usize,
    pub watchers: usize,
    /// How long faults happen.
    pub faulty: Micros,
    /// Whether the faults end then, and the cluster has to recover.
    pub healthy: bool,
    pub mutation: Option<Mutation>,
    /// Whether everything that clients see is kept.
    pub recorded: bool,
}

macro_rules! counts {
    ($($name:ident),*) => {
        /// What happened in one or many simulations.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            pub simulated: Micros,
            $(pub $name: u64,)*
        }

        impl std::ops::AddAssign for Counts {
            fn add_assign(&mut self, other: Self) {
                self.simulated += other.simulated;
                $(self.$name += other.$name;)*
            }
        }

        impl std::fmt::Display for Counts {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:.1} simulated hours", self.simulated as f64 / 3.6e9)?;
                $(write!(f, ", {} {}", self.$name, stringify!($name).replace('_', " "))?;)*
                Ok(())
            }
        }
    };
}

counts!(
    simulations,
    crashes,
    pauses,
    partitions,
    disk_faults,
    torn_tails,
    leader_changes,
    proposed_again,
    snapshots,
    unknown_peers,
    members_changed,
    double_changes,
    transfers,
    operations,
    acknowledged,
    unknown,
    unanswered_probes,
    reads,
    events,
    streams,
    expired_leases,
    expiries_watched,
    renewals,
    compactions,
    checkpoints,
    comparisons,
    accused,
    messages
);

/// Shared by members, clients and faults.
pub struct Context {
    pub now: Micros,
    pub random: fastrand::Rng,
    pub settings: Settings,
    pub counts: Counts,
    pub truth: Truth,
    /// Faults still happen.
    pub faulty: bool,
    /// Hash over everything that happened, in order.
    pub trace: u64,
    verbose: bool,
    queue: BTreeMap<(Micros, u64), Event>,
    scheduled: u64,
}

impl Context {
    pub fn new(settings: Settings) -> Self {
        Self {
            now: 0,
            random: fastrand::Rng::with_seed(settings.seed),
            settings,
            counts: Counts::default(),
            truth: Truth::default(),
            faulty: true,
            trace: 0xcbf2_9ce4_8422_2325,
            verbose: std::env::var_os("WATERSHED_SIM_TRACE").is_some(),
            queue: BTreeMap::new(),
            scheduled: 0,
        }
    }

    /// Lets something happen later; what is scheduled for one moment happens in the order of the calls.
    pub fn after(&mut self, delay: Micros, event: Event) {
        self.scheduled += 1;
        self.queue.insert((self.now + delay, self.scheduled), event);
    }

    /// The next event up to a moment; time moves to it.
    pub fn next(&mut self, until: Micros) -> Option<Event> {
        let (&(at, _), _) = self.queue.first_key_value()?;
        if at > until {
            self.now = until;
            return None;
        }
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = at;
        Some(event)
    }

    /// Adds an event to the trace.
    pub fn note(&mut self, what: &'static str, numbers: [u64; 3]) {
        let mut mix = |number: u64| self.trace = (self.trace ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        mix(self.now);
        what.bytes().for_each(|byte| mix(u64::from(byte)));
        numbers.into_iter().for_each(mix);
        if self.verbose {
            eprintln!("{:>12} {what} {numbers:x?}", self.now);
        }
    }

    /// Printed with WATERSHED_SIM_TRACE only.
    pub fn whisper(&self, what: std::fmt::Arguments<'_>) {
        if self.verbose {
            eprintln!("{:>12}   {what}", self.now);
        }
    }

    /// One in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.random.u64(..times) == 0
    }

    pub fn mutated(&self, mutation: Mutation) -> bool {
        self.settings.mutation == Some(mutation)
    }

    pub fn planted(&self, fault: PlantedFault) -> bool {
        self.mutated(Mutation::InDriver(fault))
    }

    /// Ends the simulation: a check failed.
    #[track_caller]
    pub fn fail(&self, what: std::fmt::Arguments<'_>) -> ! {
        panic!("seed {} at {} µs: {what}", self.settings.seed, self.now)
    }
}

/// Fails the simulation unless the condition holds.
macro_rules! must {
    ($context:expr, $holds:expr, $($what:tt)*) => {
        if !$holds {
            $context.fail(format_args!($($what)*));
        }
    };
}
pub(crate) use must;
