//! Bounds what is sent to one member and not confirmed by it. The library bounds the messages that are sent and not yet confirmed, not
//! their bytes: 512 messages of 512 KiB, all of which it produces at once for a member that comes back.

use raft::eraftpb::{Entry, Message, MessageType};
use raft::util::entry_approximate_size;
use raft::{INVALID_INDEX, ProgressState};

use super::RaftNode;

/// Bytes of entries sent to one member and not confirmed by it. Past it nothing more is sent until it confirms some; the
/// message that crosses the bound still goes, so that an entry of any size does. With a round trip of 100 ms it leaves
/// 80 MB/s to one member.
pub(in super::super) const IN_FLIGHT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Bytes of entries in one message, unless a single entry is larger.
pub(in super::super) const MESSAGE_BYTES_MAX: u64 = 512 * 1024;
/// Messages with entries sent to one member and not confirmed by it.
pub(super) const IN_FLIGHT_MESSAGES_MAX: usize = 512;

/// How many of the first entries one message holds.
pub(super) fn message_entries(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fits = entries.iter().take_while(|entry| {
        let is_first = bytes == 0;
        bytes += entry_approximate_size(entry) as u64;
        is_first || bytes <= MESSAGE_BYTES_MAX
    });
    fits.count()
}

/// What may be sent to one member now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// All there is to send.
    Open,
    /// One message, then this is to be asked again.
    One,
    /// Nothing: too much is unconfirmed.
    Full,
}

impl RaftNode {
    /// Bounds what the library may send in its next call. To be called before every call that makes it send entries.
    pub(super) fn bound_sending(&mut self) {
        if !self.is_leader() {
            return;
        }
        let mut windows = std::mem::take(&mut self.windows);
        windows.extend(self.peers().map(|peer| (peer, self.window(peer))));
        for (peer, window) in windows.drain(..) {
            let Some(progress) = self.raw.raft.mut_prs().get_mut(peer) else { continue };
            let sent = &mut progress.ins;
            sent.set_cap(match window {
                Window::Open => IN_FLIGHT_MESSAGES_MAX,
                Window::One => IN_FLIGHT_MESSAGES_MAX.min(sent.count() + 1),
                Window::Full => 0,
            });
        }
        self.windows = windows;
    }

    /// Sends what the bound held back and now allows.
    pub(super) fn fill_windows(&mut self) {
        if !self.is_leader() {
            return;
        }
        self.bound_sending();
        let mut peers = std::mem::take(&mut self.unsent);
        peers.extend(self.peers().filter(|peer| self.next_unsent(*peer).is_some()));
        for peer in peers.drain(..) {
            // Without a step forward nothing more can be sent now: the library wants to send a state, and has none.
            let mut before = None;
            while let Some(next) = self.next_unsent(peer).filter(|next| before < Some(*next)) {
                before = Some(next);
                self.raw.raft.send_append(peer);
                self.bound_sending();
            }
        }
        self.unsent = peers;
    }

    /// Probes a member to which nothing more may be sent: it may have dropped some of what was sent, and no later entries
    /// follow that would show it. Called when it answered a heartbeat.
    pub(super) fn ask_about_sent(&mut self, peer: u64) {
        let raft = &self.raw.raft;
        let Some(progress) = raft.prs().get(peer) else { return };
        if !self.is_leader() || progress.state != ProgressState::Replicate || self.window(peer) != Window::Full {
            return;
        }
        let last_sent = progress.next_idx - 1;
        let Some(log_term) = raft.raft_log.term(last_sent).ok().filter(|term| *term > 0) else {
            // No longer in the log: it needs a state if it does not have these.
            return self.raw.report_unreachable(peer);
        };
        let mut message =
            Message { to: peer, from: raft.id, term: raft.term, index: last_sent, log_term, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.commit = raft.raft_log.committed;
        // Behind what the library has not handed out yet.
        self.raw.raft.msgs.push(message);
    }

    fn peers(&self) -> impl Iterator<Item = u64> {
        let own = self.member.0;
        self.raw.raft.prs().iter().map(|(id, _)| *id).filter(move |id| *id != own)
    }

    /// The first entry that was not sent to `peer`, if it gets entries and there are any.
    fn next_unsent(&self, peer: u64) -> Option<u64> {
        let progress = self.raw.raft.prs().get(peer)?;
        let sends = progress.state == ProgressState::Replicate && progress.pending_request_snapshot == INVALID_INDEX;
        (sends && progress.next_idx <= self.raw.raft.raft_log.last_index() && !progress.ins.full())
            .then_some(progress.next_idx)
    }

    fn window(&self, peer: u64) -> Window {
        let raft = &self.raw.raft;
        let Some(progress) = raft.prs().get(peer) else { return Window::Open };
        if progress.state != ProgressState::Replicate {
            // One message asks where its log ends; its answer must not make the library send all the rest.
            return Window::One;
        }
        let store = raft.store();
        let Some(confirmed) = store.bytes_upto(progress.matched) else {
            // The log in memory begins behind what it confirmed: how much is unconfirmed is unknown.
            return if progress.next_idx > progress.matched + 1 { Window::Full } else { Window::One };
        };
        let unstable = &raft.raft_log.unstable;
        if store.bytes() - confirmed + unstable.entries_size as u64 <= IN_FLIGHT_BYTES_MAX {
            return Window::Open;
        }
        let fresh = progress.next_idx.saturating_sub(unstable.offset) as usize;
        let mut in_flight = store.bytes_upto(progress.next_idx - 1).unwrap_or(store.bytes()).saturating_sub(confirmed);
        for entry in unstable.entries.iter().take(fresh) {
            if in_flight >= IN_FLIGHT_BYTES_MAX {
                break;
            }
            in_flight += entry_approximate_size(entry) as u64;
        }
        if in_flight >= IN_FLIGHT_BYTES_MAX { Window::Full } else { Window::One }
    }
}
