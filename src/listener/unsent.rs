use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

/// Unsent bytes of answers on one connection; beyond, calls on it are refused, and answers wait to be read.
pub(super) const CONNECTION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The same on all connections of a listener.
pub(super) const ALL_BYTES_MAX: usize = 512 * 1024 * 1024;
/// What a connection may have when the bound on all connections is reached.
pub(super) const CONNECTION_BYTES_MIN: usize = 256 * 1024;
/// While more than half of the bound on all connections is used, a connection of which nothing is sent for so long is closed.
pub(super) const STALL: Duration = Duration::from_secs(10);
/// What a connection has is counted among all in these units: most have less than one, and share nothing then.
pub(super) const UNIT_BYTES: usize = 64 * 1024;

/// Bytes of answers of one connection that are not written to its socket.
///
/// The HTTP/2 library reads a piece of each answer before it looks at the window of the stream, and keeps as much as the send
/// buffer of the stream takes: a client that opens many streams and takes nothing would make it keep any amount.
#[derive(Debug)]
pub(super) struct UnsentBytes {
    /// Bytes of answers, and what open calls count for.
    pub(super) connection: AtomicUsize,
    /// Bytes of answers alone: they are given back when they are sent, while a watch counts as an open call until it ends.
    answers: AtomicUsize,
    /// On all connections.
    all: Arc<AtomicUsize>,
    /// Answers that HTTP/2 does not poll for more until the client has taken what was sent.
    pub(super) not_taken: AtomicUsize,
    /// Counts what was sent or dropped: pieces of answers, and calls.
    pub(super) moved: AtomicUsize,
    /// Answers that wait until there is less.
    pub(super) waiting: Mutex<Vec<Waker>>,
}

impl UnsentBytes {
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        let count = || AtomicUsize::new(0);
        let (connection, answers, not_taken, moved) = (count(), count(), count(), count());
        Self { connection, answers, all, not_taken, moved, waiting: Mutex::default() }
    }

    /// Whether another call may begin.
    pub(super) fn has_room(&self) -> bool {
        let connection = self.connection.load(Ordering::Relaxed);
        connection < CONNECTION_BYTES_MIN
            || connection < CONNECTION_BYTES_MAX && self.all.load(Ordering::Relaxed) < ALL_BYTES_MAX
    }

    /// Whether more of an answer may be read. Open calls, however many, leave the least that a connection may have to its answers:
    /// who waits for room knows then that at least so much of answers will be given back.
    fn has_room_for_answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed) < CONNECTION_BYTES_MIN || self.has_room()
    }

    pub(super) fn take_answer(&self, bytes: usize) {
        self.answers.fetch_add(bytes, Ordering::Relaxed);
        self.take(bytes);
    }

    pub(super) fn give_back_answer(&self, bytes: usize) {
        let before = self.answers.fetch_sub(bytes, Ordering::Relaxed);
        let left = before - bytes;
        self.give_back(bytes);
        // Whoever waits found more than a unit.
        if before / UNIT_BYTES != left / UNIT_BYTES {
            self.wake_below(left);
        }
    }

    pub(super) fn take(&self, bytes: usize) {
        let before = self.connection.fetch_add(bytes, Ordering::Relaxed);
        let units = (before + bytes) / UNIT_BYTES - before / UNIT_BYTES;
        if units > 0 {
            self.all.fetch_add(units * UNIT_BYTES, Ordering::Relaxed);
        }
    }

    pub(super) fn give_back(&self, bytes: usize) {
        let before = self.connection.fetch_sub(bytes, Ordering::Relaxed);
        let left = before - bytes;
        let units = before / UNIT_BYTES - left / UNIT_BYTES;
        if units > 0 {
            self.all.fetch_sub(units * UNIT_BYTES, Ordering::Relaxed);
            self.wake_below(left);
        }
    }

    /// Wakes all who wait once half of the bound is free, and not one after the other for each piece.
    fn wake_below(&self, left: usize) {
        let all_are_many = self.all.load(Ordering::Relaxed) >= ALL_BYTES_MAX;
        if left <= if all_are_many { CONNECTION_BYTES_MIN / 2 } else { CONNECTION_BYTES_MAX / 2 } {
            self.wake();
        }
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether there is anything that the client has to take. A watch without events has nothing.
    fn waits_for_client(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0 || self.not_taken.load(Ordering::Relaxed) > 0
    }

    /// Ready when more of an answer may be read.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room_for_answers() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock();
        // It may have come free since.
        if self.has_room_for_answers() {
            return Poll::Ready(());
        }
        waiting.push(cx.waker().clone());
        Poll::Pending
    }
}

/// Notices that the answers of a connection are not taken while others have no room.
#[derive(Default)]
pub(super) struct StallWatch {
    timer: Option<Pin<Box<Sleep>>>,
    /// What had moved at the last look, if something waited for the client then.
    last: Option<usize>,
}

impl StallWatch {
    /// Ready when the connection is to be closed. To be polled whenever the connection is.
    pub(super) fn poll(&mut self, unsent: &UnsentBytes, cx: &mut Context<'_>) -> Poll<()> {
        if unsent.connection.load(Ordering::Relaxed) == 0 {
            // A timer that is left runs out for nothing, which costs less than one for each answer.
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        while timer.as_mut().poll(cx).is_ready() {
            let now = unsent.waits_for_client().then(|| unsent.moved.load(Ordering::Relaxed));
            let stalls = now.is_some() && now == self.last;
            if stalls && unsent.all.load(Ordering::Relaxed) > ALL_BYTES_MAX / 2 {
                return Poll::Ready(());
            }
            self.last = now;
            timer.as_mut().reset(Instant::now() + STALL);
            // Other connections may have given back what was missing, and they wake nobody here.
            if unsent.has_room_for_answers() {
                unsent.wake();
            }
        }
        Poll::Pending
    }
}
