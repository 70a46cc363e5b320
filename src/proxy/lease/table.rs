use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Entries below which nothing is forgotten.
const SWEEP_FROM: usize = 1024;
/// Ids to send below which none is taken out.
const QUEUE_SWEEP_FROM: usize = 64 * 1024;

/// Who waits for which lease, what was sent and what comes next.
///
/// An id is in flight at most once. A request that arrives while its id is in flight waits for the *next* round: the
/// answer in progress may be that of a renewal from before the request.
#[derive(Debug)]
pub(super) struct Table<W> {
    leases: HashMap<i64, Lease<W>>,
    /// Ids to send, oldest wish first.
    queue: VecDeque<i64>,
    /// Ids sent and not answered, in the order they were sent, which is the order of the answers.
    flight: VecDeque<i64>,
    start: Instant,
    sweep_at: usize,
    queue_sweep_at: usize,
}

/// Some 50 bytes for each lease, its key included.
#[derive(Debug)]
struct Lease<W> {
    queued: Waiters<W>,
    sent: Waiters<W>,
    /// When it ends unless renewed, in milliseconds since the table began; 0 is unknown.
    deadline_ms: u64,
}

#[derive(Debug)]
enum Waiters<W> {
    None,
    One(W),
    Many(Box<Many<W>>),
}

#[derive(Debug)]
struct Many<W> {
    list: Vec<W>,
}

impl<W> Table<W> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            leases: HashMap::new(),
            queue: VecDeque::new(),
            flight: VecDeque::new(),
            start: now,
            sweep_at: SWEEP_FROM,
            queue_sweep_at: QUEUE_SWEEP_FROM,
        }
    }

    /// Notes that somebody wants the lease kept alive.
    pub(super) fn ask(&mut self, id: i64, waiter: W, now: Instant) {
        if self.leases.len() >= self.sweep_at {
            self.sweep(now);
        }
        let lease =
            self.leases.entry(id).or_insert(Lease { queued: Waiters::None, sent: Waiters::None, deadline_ms: 0 });
        if lease.queued.is_empty() && lease.sent.is_empty() {
            self.queue.push_back(id);
        }
        lease.queued.push(waiter);
    }

    /// Whether so many ids wait to be sent that [`forget_abandoned`](Self::forget_abandoned) is due.
    pub(super) fn is_long(&self) -> bool {
        self.queue.len() >= self.queue_sweep_at
    }

    /// Takes out the ids to send whose waiters are all gone: clients that open streams, ask and leave may be faster than the member.
    pub(super) fn forget_abandoned(&mut self, is_gone: impl Fn(&W) -> bool) {
        let leases = &mut self.leases;
        self.queue.retain(|id| {
            let Some(lease) = leases.get_mut(id) else { return false };
            if !lease.queued.are_all(&is_gone) {
                return true;
            }
            lease.queued = Waiters::None;
            if lease.deadline_ms == 0 {
                leases.remove(id);
            }
            false
        });
        self.queue_sweep_at = (self.queue.len() * 2).max(QUEUE_SWEEP_FROM);
    }

    /// Takes ids to send now, as long as no more than `flight_max` are unanswered.
    pub(super) fn send(&mut self, flight_max: usize, mut each: impl FnMut(i64)) {
        while self.flight.len() < flight_max {
            let Some(id) = self.queue.pop_front() else { return };
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            lease.sent = lease.queued.take();
            self.flight.push_back(id);
            each(id);
        }
    }

    /// Takes the waiters of an answered id.
    pub(super) fn answered(&mut self, id: i64, ttl: i64, now: Instant, mut each: impl FnMut(W)) {
        let Some(at) = self.flight.iter().position(|&sent| sent == id) else { return };
        self.flight.remove(at);
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.sent.take().for_each(&mut each);
        if !lease.queued.is_empty() {
            self.queue.push_back(id);
        }
        if ttl > 0 {
            let end = now.saturating_duration_since(self.start) + Duration::from_secs(ttl.unsigned_abs());
            lease.deadline_ms = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
        } else if lease.queued.is_empty() {
            self.leases.remove(&id);
        }
    }

    /// The stream broke: everything unanswered is to be sent again, the lease that ends first before the others.
    pub(super) fn lost(&mut self) {
        for id in self.flight.drain(..) {
            if let Some(lease) = self.leases.get_mut(&id) {
                let mut waiters = lease.sent.take();
                lease.queued.take().for_each(|waiter| waiters.push(waiter));
                lease.queued = waiters;
                self.queue.push_back(id);
            }
        }
        let leases = &self.leases;
        let deadline = |id: &i64| leases.get(id).map_or(0, |lease| lease.deadline_ms);
        self.queue.make_contiguous().sort_by_key(deadline);
    }

    /// Takes the waiters of the id whose answer was due: a member answers in order, so an error instead of an answer
    /// is about that one.
    pub(super) fn refused(&mut self, mut each: impl FnMut(W)) {
        let Some(id) = self.flight.pop_front() else { return };
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.sent.take().for_each(&mut each);
        if !lease.queued.is_empty() {
            self.queue.push_back(id);
        }
    }

    /// Takes all waiters and forgets what they wait for.
    pub(super) fn give_up(&mut self, mut each: impl FnMut(W)) {
        for id in self.flight.drain(..).chain(self.queue.drain(..)) {
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.sent.take().for_each(&mut each);
                lease.queued.take().for_each(&mut each);
            }
        }
    }

    pub(super) fn has_to_send(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn is_unanswered(&self) -> bool {
        !self.flight.is_empty()
    }

    /// Forgets leases that nobody waits for and that must have ended.
    fn sweep(&mut self, now: Instant) {
        let now_ms = u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX);
        self.leases.retain(|_, lease| !lease.queued.is_empty() || !lease.sent.is_empty() || lease.deadline_ms > now_ms);
        self.sweep_at = (self.leases.len() * 2).max(SWEEP_FROM);
    }
}

impl<W> Waiters<W> {
    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::None)
    }

    fn push(&mut self, waiter: W) {
        *self = match self.take() {
            Self::None => Self::One(waiter),
            Self::One(first) => Self::Many(Box::new(Many { list: vec![first, waiter] })),
            Self::Many(mut many) => {
                many.list.push(waiter);
                Self::Many(many)
            }
        };
    }

    fn are_all(&self, what: impl Fn(&W) -> bool) -> bool {
        match self {
            Self::None => true,
            Self::One(waiter) => what(waiter),
            Self::Many(many) => many.list.iter().all(what),
        }
    }

    fn for_each(self, mut each: impl FnMut(W)) {
        match self {
            Self::None => {}
            Self::One(waiter) => each(waiter),
            Self::Many(many) => many.list.into_iter().for_each(each),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script of words and writes down what left the table.
    ///
    /// `1a` asks for lease 1 on behalf of a; `send` sends; `1=5` answers lease 1 with TTL 5; `lost`, `refused` and
    /// `give-up` are those calls.
    fn check(script: &str, expected: &str) {
        let now = Instant::now();
        let mut table = Table::new(now);
        let mut log = Vec::new();
        for word in script.split_whitespace() {
            match word {
                "send" => table.send(100, |id| log.push(format!(">{id}"))),
                "lost" => table.lost(),
                "refused" => table.refused(|waiter: char| log.push(format!("{waiter}!"))),
                "give-up" => table.give_up(|waiter| log.push(format!("{waiter}!"))),
                word => match word.split_once('=') {
                    Some((id, ttl)) => {
                        table.answered(id.parse().unwrap(), ttl.parse().unwrap(), now, |waiter| {
                            log.push(format!("{waiter}{ttl}"));
                        });
                    }
                    None => {
                        let (id, waiter) = word.split_at(word.len() - 1);
                        table.ask(id.parse().unwrap(), waiter.chars().next().unwrap(), now);
                    }
                },
            }
        }
        assert_eq!(log.join(" "), expected, "{script}");
    }

    #[test]
    fn one_request_for_all_that_wait() {
        check("1a 1b 2c send 1=5 2=7", ">1 >2 a5 b5 c7");
    }

    #[test]
    fn each_request_gets_its_answer() {
        check("1a 1a send 1=5", ">1 a5 a5");
    }

    #[test]
    fn a_request_during_flight_waits_for_the_next_round() {
        check("1a send 1b send 1=5 send 1=6", ">1 a5 >1 b6");
    }

    #[test]
    fn an_unknown_lease_is_told_to_all() {
        check("1a 1b send 1=0 1c send", ">1 a0 b0 >1");
    }

    #[test]
    fn a_lost_stream_sends_again_what_ends_first() {
        check("1a 2b 3c send 1=9 2=3 3=6 1a 2b send 3c lost send 1=9 2=3", ">1 >2 >3 a9 b3 c6 >1 >2 >2 >3 >1 a9 b3");
    }

    /// Cause: deadlines were milliseconds since the table began in 32 bits, and all the same after 49 days.
    #[test]
    fn what_ends_first_is_sent_first_however_old_the_table_is() {
        let start = Instant::now();
        let (mut table, now) = (Table::new(start), start + Duration::from_secs(60 * 24 * 3600));
        for (id, ttl) in [(1, 9), (2, 3), (3, 6)] {
            table.ask(id, (), now);
            table.send(100, |_| {});
            table.answered(id, ttl, now, |()| {});
        }
        (1..=3).for_each(|id| table.ask(id, (), now));
        table.lost();
        let mut sent = Vec::new();
        table.send(100, |id| sent.push(id));
        assert_eq!(sent, [2, 3, 1]);
    }

    #[test]
    fn waiters_of_both_rounds_survive_a_lost_stream() {
        check("1a send 1b lost send 1=4", ">1 >1 a4 b4");
    }

    #[test]
    fn an_error_is_about_the_answer_that_was_due() {
        check("1a 2b send refused lost send 2=3", ">1 >2 a! >2 b3");
    }

    #[test]
    fn giving_up_reaches_everybody() {
        check("1a send 1b 2c give-up 1a send", ">1 a! b! c! >1");
    }

    #[test]
    fn a_stray_answer_is_nobodys() {
        check("7=5 1a 1=5 send 1=5 1=5", ">1 a5");
    }

    #[test]
    fn ended_leases_are_forgotten() {
        let now = Instant::now();
        let mut table = Table::new(now);
        for id in 0..10_000 {
            table.ask(id, (), now);
            table.send(1, |_| {});
            table.answered(id, 1, now, |()| {});
        }
        assert_eq!(table.leases.len(), 10_000, "all may still live");
        let later = now + Duration::from_secs(2);
        for id in 10_000..30_000 {
            table.ask(id, (), later);
            table.send(1, |_| {});
            table.answered(id, 1, later, |()| {});
        }
        assert_eq!(table.leases.len(), 20_000, "the ended ones are gone");
    }

    /// Cause: of a client that opened streams, asked for leases that do not exist and left, all stayed in the queue until the member had
    /// answered them.
    #[test]
    fn what_nobody_waits_for_leaves_a_long_queue() {
        let now = Instant::now();
        let mut table = Table::new(now);
        // The first is in flight, and asked for again.
        table.ask(-1, 'g', now);
        table.send(1, |_| {});
        table.ask(-1, 'g', now);
        let present = [-2, -3];
        present.into_iter().for_each(|id| table.ask(id, 'p', now));
        table.ask(-2, 'g', now);
        for id in 0..1_000_000 {
            table.ask(id, 'g', now);
            if table.is_long() {
                table.forget_abandoned(|waiter| *waiter == 'g');
            }
        }
        assert!(table.queue.len() <= QUEUE_SWEEP_FROM && table.leases.len() <= QUEUE_SWEEP_FROM + 1);
        table.forget_abandoned(|waiter| *waiter == 'g');
        let mut answered = Vec::new();
        table.answered(-1, 5, now, |waiter| answered.push((-1, waiter)));
        let mut sent = Vec::new();
        table.send(100, |id| sent.push(id));
        assert_eq!(sent, [-2, -3, -1]);
        sent.iter().for_each(|id| table.answered(*id, 5, now, |waiter| answered.push((*id, waiter))));
        assert_eq!(answered, [(-1, 'g'), (-2, 'p'), (-2, 'g'), (-3, 'p'), (-1, 'g')]);
        table.ask(7, 'p', now);
        table.send(100, |id| sent.push(id));
        assert_eq!(sent.last(), Some(&7), "what was taken out can be asked for again");
    }

    #[test]
    fn a_lease_costs_less_than_a_hundred_bytes() {
        assert!(size_of::<(i64, Lease<std::sync::Arc<()>>)>() <= 48);
    }
}
