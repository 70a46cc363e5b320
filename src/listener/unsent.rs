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
    pub(super) connection: AtomicUsize,
    /// On all connections.
    all: Arc<AtomicUsize>,
    /// Counts the pieces that were sent or dropped.
    pub(super) moved: AtomicUsize,
    /// Answers that wait until there is less.
    pub(super) waiting: Mutex<Vec<Waker>>,
}

impl UnsentBytes {
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { connection: AtomicUsize::new(0), all, moved: AtomicUsize::new(0), waiting: Mutex::default() }
    }

    /// Whether another call may begin, and more of an answer be read.
    pub(super) fn has_room(&self) -> bool {
        let connection = self.connection.load(Ordering::Relaxed);
        connection < CONNECTION_BYTES_MIN
            || connection < CONNECTION_BYTES_MAX && self.all.load(Ordering::Relaxed) < ALL_BYTES_MAX
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
        if units == 0 {
            // Whoever waits found more than a unit.
            return;
        }
        self.all.fetch_sub(units * UNIT_BYTES, Ordering::Relaxed);
        // Whoever waits found more than the least here, which comes back by this way. All are woken once half of it is
        // free, and not one after the other for each piece.
        let all_are_many = self.all.load(Ordering::Relaxed) >= ALL_BYTES_MAX;
        if left <= if all_are_many { CONNECTION_BYTES_MIN / 2 } else { CONNECTION_BYTES_MAX / 2 } {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Ready when more of an answer may be read.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock();
        // It may have come free since.
        if self.has_room() {
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
    moved: usize,
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
            let moved = unsent.moved.load(Ordering::Relaxed);
            if moved == self.moved && unsent.all.load(Ordering::Relaxed) > ALL_BYTES_MAX / 2 {
                return Poll::Ready(());
            }
            self.moved = moved;
            timer.as_mut().reset(Instant::now() + STALL);
        }
        Poll::Pending
    }
}
