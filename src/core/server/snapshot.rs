use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::long_answer::Room;
use crate::core::backend::{Backend, BackendError};
use crate::core::cluster::STORAGE_VERSION;
use crate::pb::etcdserverpb::SnapshotResponse;

/// Bytes per message.
const CHUNK_BYTES: usize = 32 * 1024;
/// Messages written ahead of the client.
const CHUNKS_AHEAD: usize = 32;

/// How long a client may take no message before its snapshot ends: others may be waiting for its place.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(120);

type Answer = Result<SnapshotResponse, Status>;

/// Streams one consistent state as a db snapshot of etcd's database, and its SHA-256 last.
///
/// The db snapshot is written while the client takes it; a slow client keeps the state in memory, and delays nothing else.
/// One that takes nothing for `silence_max` gets an error instead of the rest. `room` is held for as long.
pub(super) fn stream(backend: Backend, room: Room, silence_max: Duration) -> impl Stream<Item = Answer> {
    let (answers, stream) = mpsc::channel(CHUNKS_AHEAD);
    // Not by the channel, which may be full.
    let (fail, failed) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        if let Err(status) = send(&backend, &answers, silence_max) {
            // When the client is gone, so is the receiver.
            let _ = fail.send(status);
        }
        drop(room);
    });
    let failed = futures::stream::once(failed).filter_map(|failed| std::future::ready(failed.ok().map(Err)));
    ReceiverStream::new(stream).chain(failed)
}

fn send(backend: &Backend, answers: &mpsc::Sender<Answer>, silence_max: Duration) -> Result<(), Status> {
    let unreadable = |error: BackendError| Status::unknown(format!("{:#}", anyhow::Error::from(error)));
    let db_snapshot = backend.db_snapshot().map_err(unreadable)?;
    let remaining = db_snapshot.summary().bytes;
    let mut out =
        Chunks { answers, silence_max, is_late: false, remaining, buffer: BytesMut::new(), digest: Sha256::new() };
    let written = db_snapshot.write(&mut out).map_err(unreadable);
    let written = written.and_then(|()| out.finish().map_err(|error| Status::unknown(error.to_string())));
    if out.is_late { Err(Status::resource_exhausted(NOT_TAKEN)) } else { written }
}

const NOT_TAKEN: &str = "snapshot was not taken for too long";

/// Divides what is written into messages.
struct Chunks<'a> {
    answers: &'a mpsc::Sender<Answer>,
    silence_max: Duration,
    /// The client took nothing for too long.
    is_late: bool,
    remaining: u64,
    buffer: BytesMut,
    digest: Sha256,
}

impl Chunks<'_> {
    fn send(&mut self, blob: Bytes) -> io::Result<()> {
        self.digest.update(&blob);
        self.remaining = self.remaining.saturating_sub(blob.len() as u64);
        self.hand_over(message(self.remaining, blob))
    }

    fn hand_over(&mut self, answer: SnapshotResponse) -> io::Result<()> {
        let free = wait_on_thread(self.answers.reserve(), self.silence_max);
        self.is_late = free.is_none();
        match free {
            Some(Ok(place)) => {
                place.send(Ok(answer));
                Ok(())
            }
            Some(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "client is gone")),
            None => Err(io::Error::new(io::ErrorKind::TimedOut, NOT_TAKEN)),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let rest = self.buffer.split().freeze();
            self.send(rest)?;
        }
        let digest = Bytes::copy_from_slice(&self.digest.clone().finalize());
        self.hand_over(message(0, digest))
    }
}

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread, for so long at most. Needs no timer of a runtime, which may end before the thread does.
fn wait_on_thread<F: Future>(work: F, max: Duration) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut work = pin!(work);
    let began = Instant::now();
    loop {
        if let Poll::Ready(output) = work.as_mut().poll(&mut context) {
            return Some(output);
        }
        let left = max.checked_sub(began.elapsed()).filter(|left| !left.is_zero())?;
        thread::park_timeout(left);
    }
}

impl Write for Chunks<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        while self.buffer.len() >= CHUNK_BYTES {
            let chunk = self.buffer.split_to(CHUNK_BYTES).freeze();
            self.send(chunk)?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn message(remaining_bytes: u64, blob: Bytes) -> SnapshotResponse {
    SnapshotResponse { header: None, remaining_bytes, blob, version: STORAGE_VERSION.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::long_answer::AnswerMemory;
    use super::*;
    use crate::core::backend::{Change, ChangeSet, Table};

    // Cause: clients that took nothing more of their snapshots kept all places, and the pages of the state, for ever.
    #[tokio::test]
    async fn a_client_that_takes_nothing_loses_its_place() {
        let backend = Backend::in_memory().expect("a backend");
        let row = |number: u8| Change::put(Table::Lease, Bytes::from(vec![number; 8]), vec![number; 64 * 1024]);
        backend.submit(ChangeSet { changes: (0..64).map(row).collect(), ..Default::default() });
        let answers = AnswerMemory::new(1 << 20);
        let room = answers.snapshot().await.expect("a place");
        let stalled = stream(backend, room, Duration::from_millis(20));
        let mut places = Vec::new();
        // All others, and the one that is given back: a request waits 5 s for it.
        for _ in 0..16 {
            places.push(answers.snapshot().await.expect("a place"));
        }
        let taken: Vec<_> = stalled.collect().await;
        let (last, before) = taken.split_last().expect("an answer");
        assert!(before.len() == CHUNKS_AHEAD && before.iter().all(Result::is_ok), "{} messages", before.len());
        let status = last.as_ref().expect_err("the rest was not taken");
        assert_eq!((status.code(), status.message()), (tonic::Code::ResourceExhausted, NOT_TAKEN));
    }

    #[tokio::test]
    async fn a_client_that_takes_all_gets_the_digest_last() {
        let backend = Backend::in_memory().expect("a backend");
        let answers = AnswerMemory::new(1 << 20);
        let room = answers.snapshot().await.expect("a place");
        let taken: Vec<_> = stream(backend, room, SILENCE_MAX).collect().await;
        let blobs: Vec<_> = taken.into_iter().map(|answer| answer.expect("whole").blob).collect();
        let (digest, pieces) = blobs.split_last().expect("a digest");
        let mut hasher = Sha256::new();
        pieces.iter().for_each(|piece| hasher.update(piece));
        assert_eq!(*digest, Bytes::copy_from_slice(&hasher.finalize()));
    }
}
