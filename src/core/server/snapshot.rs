use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
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

type Answer = Result<SnapshotResponse, Status>;

/// Streams one consistent state as a db snapshot of etcd's database, and its SHA-256 last.
///
/// The db snapshot is written while the client takes it; a slow client keeps the state in memory, and delays nothing else.
/// `room` is held for as long.
pub(super) fn stream(backend: Backend, room: Room) -> impl Stream<Item = Answer> {
    let (answers, stream) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = send(&backend, &answers) {
            // When the client is gone, so is the receiver.
            let _ = answers.blocking_send(Err(Status::unknown(format!("{:#}", anyhow::Error::from(error)))));
        }
        drop(room);
    });
    ReceiverStream::new(stream)
}

fn send(backend: &Backend, answers: &mpsc::Sender<Answer>) -> Result<(), BackendError> {
    let db_snapshot = backend.db_snapshot()?;
    let remaining = db_snapshot.summary().bytes;
    let mut out = Chunks { answers, remaining, buffer: BytesMut::new(), digest: Sha256::new() };
    db_snapshot.write(&mut out)?;
    out.finish();
    Ok(())
}

/// Divides what is written into messages.
struct Chunks<'a> {
    answers: &'a mpsc::Sender<Answer>,
    remaining: u64,
    buffer: BytesMut,
    digest: Sha256,
}

impl Chunks<'_> {
    fn send(&mut self, blob: Bytes) -> io::Result<()> {
        self.digest.update(&blob);
        self.remaining = self.remaining.saturating_sub(blob.len() as u64);
        let answer = message(self.remaining, blob);
        self.answers.blocking_send(Ok(answer)).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "client is gone"))
    }

    fn finish(mut self) {
        if !self.buffer.is_empty() {
            let rest = self.buffer.split().freeze();
            if self.send(rest).is_err() {
                return;
            }
        }
        let digest = Bytes::copy_from_slice(&self.digest.clone().finalize());
        let _ = self.answers.blocking_send(Ok(message(0, digest)));
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
