use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame::{Batch, ConnectionError, Kind};
use super::outgoing::Source;

/// Which messages stay when a queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// What waits; an append without those before it is useless.
    Oldest,
    /// What comes; a heartbeat or vote is worth more than an older one.
    Newest,
}

/// Messages that wait for the connection of one lane. Filled by raft's thread, emptied by the transport's.
#[derive(Debug)]
pub(super) struct LaneQueue {
    waiting: Mutex<Waiting>,
    ready: Notify,
    bounds: QueueBounds,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct QueueBounds {
    pub(super) keep: Keep,
    pub(super) messages_max: usize,
    pub(super) bytes_max: usize,
    pub(super) message_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// The last message did not fit.
    dropping: bool,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pushed {
    /// Messages that were dropped, this one or older ones.
    pub(super) dropped: u64,
    /// This message is the first of a run that did not fit.
    pub(super) began_dropping: bool,
    /// It is longer than a frame, and would be dropped again.
    pub(super) too_long: bool,
}

impl LaneQueue {
    pub(super) fn new(bounds: QueueBounds) -> Self {
        Self { waiting: Mutex::default(), ready: Notify::new(), bounds }
    }

    /// Adds a message, or drops what does not fit. Never waits.
    pub(super) fn push(&self, message: Bytes) -> Pushed {
        let bounds = self.bounds;
        let mut waiting = self.waiting.lock();
        let full = |waiting: &Waiting| {
            !waiting.messages.is_empty()
                && (waiting.messages.len() >= bounds.messages_max || waiting.bytes + message.len() > bounds.bytes_max)
        };
        let mut dropped = 0;
        let too_long = message.len() > bounds.message_bytes_max;
        if bounds.keep == Keep::Newest && !too_long {
            while full(&waiting) {
                waiting.pop();
                dropped += 1;
            }
        }
        if too_long || full(&waiting) {
            let began_dropping = !std::mem::replace(&mut waiting.dropping, true);
            return Pushed { dropped: dropped + 1, began_dropping, too_long };
        }
        waiting.dropping = false;
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        if waiting.messages.len() == 1 {
            self.ready.notify_one();
        }
        Pushed { dropped, began_dropping: false, too_long: false }
    }

    /// Bytes that can be added without a drop; none when nearly as many messages wait as may.
    pub(super) fn room(&self) -> usize {
        let bounds = self.bounds;
        let waiting = self.waiting.lock();
        let few = waiting.messages.len() < bounds.messages_max - bounds.messages_max / 8;
        if few { bounds.bytes_max.saturating_sub(waiting.bytes) } else { 0 }
    }

    /// Drops what waits; returns how many messages that was.
    pub(super) fn clear(&self) -> usize {
        std::mem::take(&mut *self.waiting.lock()).messages.len()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.waiting.lock().bytes
    }

    /// Moves what fits into the batch; returns whether there was anything.
    fn drain_into(&self, batch: &mut Batch, batch_bytes_max: usize) -> bool {
        let mut waiting = self.waiting.lock();
        let mut any = false;
        while batch.bytes() < batch_bytes_max {
            let Some(message) = waiting.pop() else { break };
            batch.push(Kind::Message, &[], &message);
            any = true;
        }
        any
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Bytes> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }
}

/// A queue as the source of a connection.
pub(super) struct Messages<'a> {
    pub(super) queue: &'a LaneQueue,
    pub(super) batch_bytes_max: usize,
}

impl Source for Messages<'_> {
    async fn fill(&mut self, batch: &mut Batch) -> Result<(), ConnectionError> {
        while !self.queue.drain_into(batch, self.batch_bytes_max) {
            self.queue.ready.notified().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(keep: Keep) -> LaneQueue {
        LaneQueue::new(QueueBounds { keep, messages_max: 3, bytes_max: 10, message_bytes_max: 50 })
    }

    fn check(keep: Keep, lengths: &[usize], left: &[usize]) {
        let queue = queue(keep);
        for &length in lengths {
            queue.push(Bytes::from(vec![0; length]));
        }
        let kept: Vec<usize> = queue.waiting.lock().messages.iter().map(Bytes::len).collect();
        assert_eq!(kept, left, "{keep:?} of {lengths:?}");
        assert_eq!(queue.bytes(), left.iter().sum::<usize>());
    }

    #[test]
    fn a_full_queue_keeps_what_its_lane_needs() {
        check(Keep::Oldest, &[1, 2, 3, 4], &[1, 2, 3]);
        check(Keep::Newest, &[1, 2, 3, 4], &[2, 3, 4]);
        check(Keep::Oldest, &[5, 5, 1], &[5, 5]);
        check(Keep::Newest, &[5, 5, 1], &[5, 1]);
        // Alone, a message may be longer than the queue, but never than a frame.
        check(Keep::Oldest, &[20, 1], &[20]);
        check(Keep::Newest, &[1, 20], &[20]);
        check(Keep::Newest, &[1, 51], &[1]);
    }

    #[test]
    fn a_run_of_drops_is_told_once() {
        let queue = queue(Keep::Oldest);
        let push = |length| queue.push(Bytes::from(vec![0; length])).began_dropping;
        assert_eq!([push(10), push(1), push(1)], [false, true, false]);
        queue.clear();
        assert_eq!([push(10), push(1)], [false, true]);
    }

    #[test]
    fn room_is_what_fits_without_a_drop() {
        let queue = queue(Keep::Oldest);
        for (length, room) in [(0, 10), (4, 6), (1, 0)] {
            let pushed = queue.push(Bytes::from(vec![0; length]));
            assert_eq!((pushed.dropped, queue.room()), (0, room), "after {length}");
        }
        queue.clear();
        queue.push(Bytes::from(vec![0; 20]));
        assert_eq!(queue.room(), 0);
    }

    #[test]
    fn a_message_longer_than_a_frame_is_told() {
        for keep in [Keep::Oldest, Keep::Newest] {
            let told = [10, 1, 51, 50].map(|length| queue(keep).push(Bytes::from(vec![0; length])).too_long);
            assert_eq!(told, [false, false, true, false]);
        }
    }
}
