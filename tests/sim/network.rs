//! The network between members: each direction of each pair is a link of its own.

use std::sync::Arc;

use watershed::core::raft::{Lane, Outbound};
use watershed::types::MemberId;

use super::context::{Context, Event, MILLI, Micros, SECOND};
use super::process::Process;

/// One direction between two members.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// Nothing gets through before this.
    cut_until: Micros,
    /// Until then messages are lost, doubled and late.
    bad_until: Micros,
}

/// A message under way.
#[derive(Clone, Debug)]
pub struct Message {
    pub from: usize,
    pub sender: MemberId,
    /// The run of the sender.
    pub boot: u32,
    pub to: usize,
    /// What it travels on; lost with it.
    pub connection: u64,
    pub outbound: Outbound,
    /// What goes with the announcement of a state.
    pub db_snapshot: Option<Arc<Vec<u8>>>,
}

#[derive(Default)]
pub struct Network {
    links: Vec<Vec<Link>>,
}

impl Network {
    pub fn grow(&mut self, members: usize) {
        self.links.resize(members, Vec::new());
        self.links.iter_mut().for_each(|row| row.resize(members, Link::default()));
    }

    pub fn cut(&mut self, from: usize, to: usize, until: Micros) {
        self.links[from][to].cut_until = until;
    }

    pub fn worsen(&mut self, from: usize, to: usize, until: Micros) {
        self.links[from][to].bad_until = until;
    }

    pub fn heal(&mut self) {
        for link in self.links.iter_mut().flatten() {
            (link.cut_until, link.bad_until) = (0, 0);
        }
    }

    pub fn is_cut(&self, context: &Context, from: usize, to: usize) -> bool {
        self.links[from][to].cut_until > context.now
    }

    /// Sends a message on its way, or loses it.
    pub fn send(&self, context: &mut Context, sender: &Process, to: usize, outbound: Outbound, connection: u64) {
        let from = sender.index;
        let link = self.links[from][to];
        if link.cut_until > context.now {
            return;
        }
        let bad = link.bad_until > context.now;
        if bad && context.one_in(5) {
            return;
        }
        // A connection never doubles a message by itself, and nobody sends a proposal twice.
        let doubled = bad && context.one_in(10) && !is_proposal(&outbound);
        for _ in 0..=usize::from(doubled) {
            let delay = match bad {
                true => context.random.u64(MILLI..400 * MILLI),
                false => context.random.u64(MILLI / 5..3 * MILLI),
            };
            deliver(context, sender, to, delay, outbound.clone(), connection, None);
        }
    }

    /// Sends a db snapshot, which takes its time.
    pub fn send_snapshot(
        &self,
        context: &mut Context,
        sender: &Process,
        to: usize,
        outbound: Outbound,
        connection: u64,
        db_snapshot: Vec<u8>,
    ) {
        let delay = context.random.u64(10 * MILLI..2 * SECOND);
        deliver(context, sender, to, delay, outbound, connection, Some(Arc::new(db_snapshot)));
    }
}

fn deliver(
    context: &mut Context,
    sender: &Process,
    to: usize,
    delay: Micros,
    outbound: Outbound,
    connection: u64,
    db_snapshot: Option<Arc<Vec<u8>>>,
) {
    let (from, boot, sender) = (sender.index, sender.boot, sender.member);
    let message = Message { from, sender, boot, to, connection, outbound, db_snapshot };
    context.counts.messages += 1;
    context.after(delay, Event::Deliver(Box::new(message)));
}

fn is_proposal(outbound: &Outbound) -> bool {
    // Field 1 of the message is its type, and 2 stands for a proposal.
    outbound.lane == Lane::Append && outbound.bytes.starts_with(&[0x08, 0x02])
}
