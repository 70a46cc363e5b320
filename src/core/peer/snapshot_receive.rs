//! Receives db snapshots: into a part file, verified, handed on whole.
//!
//! A connection that breaks leaves its part for a while, so that the sender can go on where it stopped. A part belongs
//! to one peer; an offer of another db snapshot replaces it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use prometheus::Histogram;
use tokio::io::AsyncWrite;
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{info, warn};

use super::dial::Dialed;
use super::frame::{Batch, ConnectionError, Frame, FrameReader, Kind};
use super::incoming::{Pulse, push_pong};
use super::outgoing::send;
use super::snapshot::{Offer, Refused, SnapshotId, digest};
use super::transport::Shared;
use crate::net::ByteStream;
use crate::telemetry::Counted;
use crate::types::MemberId;

/// Written bytes after which the part is made durable, so that no sync has much to do: one of the log on the same disk waits for it.
const SYNC_EVERY_BYTES: u64 = 4 * 1024 * 1024;

/// Longest wait for the disk, per frame; a connection that waits longer is given up, and the part stays.
const WORK_MAX: Duration = Duration::from_secs(60);

/// What is kept of the db snapshots of one peer.
#[derive(Default)]
pub(super) struct Slot {
    part: Option<Part>,
    /// Outcome of the last transfer, for a sender whose connection broke before the answer.
    finished: Option<(u64, Result<(), Refused>)>,
    /// Connections so far: more than one when the sender came back.
    connections: u64,
}

/// A db snapshot that has not arrived completely.
struct Part {
    db_snapshot: SnapshotId,
    file: Arc<File>,
    path: PathBuf,
    syncs: bool,
    /// Bytes whose checksums were right and which were written.
    verified_bytes: u64,
    synced_bytes: u64,
    began: Instant,
}

impl Drop for Part {
    fn drop(&mut self) {
        // Gone already when the db snapshot was handed on.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Names of files that a process leaves when it is killed during a transfer; earlier versions wrote `.image`.
const LEFTOVERS: [&str; 3] = ["part", "snap", "image"];

/// Removes what an earlier process left.
pub(super) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| LEFTOVERS.iter().any(|leftover| extension == *leftover)) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Takes one connection of a transfer.
pub(super) async fn receive(shared: &Arc<Shared>, from: MemberId, dialed: Dialed) -> Result<(), ConnectionError> {
    let limits = &shared.config.limits;
    let mut connection = Connection {
        shared,
        from,
        io: dialed.io,
        frames: FrameReader::new(&dialed.first, limits.frame_bytes_max),
        batch: Batch::default(),
    };
    let offer = match connection.next().await? {
        Frame { kind: Kind::Offer, payload } => Offer::parse(payload)?,
        Frame { kind, .. } => return Err(ConnectionError::Unexpected(kind)),
    };
    let Ok(_permit) = shared.snapshots_in.try_acquire() else {
        return connection.refuse(&Refused { may_retry: true, reason: "too many snapshots arrive".into() }).await;
    };
    if offer.db_snapshot.size_bytes > limits.snapshot_bytes_max {
        let reason = format!(
            "db snapshot of {} bytes is larger than {}",
            offer.db_snapshot.size_bytes, limits.snapshot_bytes_max
        );
        return connection.refuse(&Refused { may_retry: false, reason }).await;
    }
    let inflight = shared.metrics.snapshot_receive_inflights.with_label_values(&[&from.to_string()]);
    let _counted = Counted::new(inflight);
    let slot = shared.slot(from);
    // An earlier connection of this peer may still be closing, or its db snapshot still arriving.
    let mut held = connection.while_alive(slot.clone().lock_owned()).await?;
    held.connections += 1;
    let number = held.connections;
    let outcome = connection.transfer(held, offer).await;
    if outcome.is_err() {
        shared.metrics.snapshot_receive_failures.with_label_values(&[&from.to_string()]).inc();
    }
    // Also when it is refused: nothing is left then, and nothing is removed.
    let window = limits.snapshot_resume_window;
    shared.spawn(async move {
        sleep(window).await;
        let mut held = slot.lock().await;
        if held.connections == number {
            held.part = None;
        }
    });
    outcome
}

struct Connection<'a> {
    shared: &'a Arc<Shared>,
    from: MemberId,
    io: Box<dyn ByteStream>,
    frames: FrameReader,
    batch: Batch,
}

impl Connection<'_> {
    /// From the offer to the last answer.
    async fn transfer(&mut self, mut slot: OwnedMutexGuard<Slot>, offer: Offer) -> Result<(), ConnectionError> {
        match &slot.finished {
            Some((transfer, Ok(()))) if *transfer == offer.transfer => return self.done().await,
            Some((transfer, Err(refused))) if *transfer == offer.transfer => {
                let refused = refused.clone();
                return self.refuse(&refused).await;
            }
            _ => {}
        }
        if slot.part.as_ref().is_none_or(|part| part.db_snapshot != offer.db_snapshot) {
            slot.part = None;
            let config = &self.shared.config;
            match Part::create(
                &self.shared.receiver.snapshot_dir(),
                self.from,
                offer.db_snapshot,
                config.syncs_db_snapshots,
            ) {
                Ok(part) => slot.part = Some(part),
                Err(error) => return self.unwritable(&error).await,
            }
        }
        let Some(part) = &mut slot.part else { return Err(ConnectionError::Closed) };
        self.batch.push(Kind::Resume, &part.verified_bytes.to_le_bytes(), &Bytes::new());
        loop {
            let frame = self.next().await?;
            match frame.kind {
                Kind::Chunk => {
                    let mut payload = frame.payload;
                    let at = payload.try_get_u64_le().map_err(|_| ConnectionError::Length(0))?;
                    let fits = part.verified_bytes + payload.len() as u64 <= part.db_snapshot.size_bytes;
                    if at != part.verified_bytes || !fits {
                        return Err(ConnectionError::Unexpected(Kind::Chunk));
                    }
                    let written = self.alive_while(part.write(payload)).await?;
                    if let Err(error) = written {
                        slot.part = None;
                        return self.unwritable(&error).await;
                    }
                }
                Kind::End if part.verified_bytes == part.db_snapshot.size_bytes => break,
                kind => return Err(ConnectionError::Unexpected(kind)),
            }
        }
        // From here on in a task that is never dropped: the db snapshot may take effect.
        let (shared, from) = (self.shared.clone(), self.from);
        let finish = self.shared.spawn(async move { finish(&shared, from, &mut slot, offer).await });
        match self.while_alive(finish).await?.unwrap_or_else(|_| Err(stopped())) {
            Ok(()) => self.done().await,
            Err(refused) => self.refuse(&refused).await,
        }
    }

    /// The next frame that is not about the connection itself.
    async fn next(&mut self) -> Result<Frame, ConnectionError> {
        self.frame_or(std::future::pending::<std::convert::Infallible>()).await.map(|next| match next {
            Heard::Frame(frame) => frame,
            Heard::Ended(never) => match never {},
        })
    }

    /// Waits for local work, and sends signs of progress meanwhile.
    async fn while_alive<F: Future>(&mut self, work: F) -> Result<F::Output, ConnectionError> {
        match self.frame_or(work).await? {
            Heard::Ended(output) => Ok(output),
            Heard::Frame(frame) => Err(ConnectionError::Unexpected(frame.kind)),
        }
    }

    /// As [`alive_while`], on this connection.
    async fn alive_while<F: Future>(&mut self, work: F) -> Result<F::Output, ConnectionError> {
        alive_while(&mut self.batch, &mut self.io, self.shared.config.limits.silence_max, work).await
    }

    async fn frame_or<F: Future>(&mut self, work: F) -> Result<Heard<F::Output>, ConnectionError> {
        let silence_max = self.shared.config.limits.silence_max;
        let received = self.shared.metrics.received_bytes.with_label_values(&[&self.from.to_string()]);
        let mut work = std::pin::pin!(work);
        let mut ticks = interval(silence_max / 8);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pulse = Pulse::new();
        loop {
            while let Some(frame) = self.frames.take()? {
                if frame.kind != Kind::Ping {
                    return Ok(Heard::Frame(frame));
                }
                push_pong(&mut self.batch, &frame)?;
            }
            if self.batch.bytes() > 0 {
                send(&mut self.batch, &mut self.io, silence_max).await?;
            }
            tokio::select! {
                output = &mut work => return Ok(Heard::Ended(output)),
                count = self.frames.fill(&mut self.io) => received.inc_by(count? as u64),
                _ = ticks.tick() => {
                    if !pulse.is_due(self.frames.received_bytes()) && pulse.silence() > silence_max * 2 {
                        return Err(ConnectionError::Silent);
                    }
                    self.batch.push(Kind::Alive, &[], &Bytes::new());
                }
            }
        }
    }

    async fn done(&mut self) -> Result<(), ConnectionError> {
        self.batch.push(Kind::Done, &[], &Bytes::new());
        send(&mut self.batch, &mut self.io, self.shared.config.limits.silence_max).await
    }

    async fn refuse(&mut self, refused: &Refused) -> Result<(), ConnectionError> {
        refused.push(&mut self.batch);
        send(&mut self.batch, &mut self.io, self.shared.config.limits.silence_max).await
    }

    async fn unwritable(&mut self, error: &io::Error) -> Result<(), ConnectionError> {
        warn!(peer = %self.from, %error, "snapshot cannot be written");
        self.refuse(&Refused { may_retry: false, reason: format!("write db snapshot: {error}") }).await
    }
}

/// Waits for the disk, and sends signs of life meanwhile. Reads nothing: what arrives next is in order after `work`.
///
/// # Errors
/// The connection breaks, or the work takes longer than [`WORK_MAX`].
async fn alive_while<F: Future>(
    batch: &mut Batch,
    io: &mut (impl AsyncWrite + Unpin),
    silence_max: Duration,
    work: F,
) -> Result<F::Output, ConnectionError> {
    let mut work = std::pin::pin!(work);
    let give_up = tokio::time::Instant::now() + WORK_MAX;
    loop {
        tokio::select! {
            output = &mut work => return Ok(output),
            () = sleep(silence_max / 8) => {}
            () = sleep_until(give_up) => return Err(ConnectionError::Silent),
        }
        batch.push(Kind::Alive, &[], &Bytes::new());
        send(batch, io, silence_max).await?;
    }
}

enum Heard<T> {
    Frame(Frame),
    Ended(T),
}

impl Part {
    fn create(dir: &Path, from: MemberId, db_snapshot: SnapshotId, syncs: bool) -> io::Result<Self> {
        let path = dir.join(format!("{from}-{}-{}.part", db_snapshot.position.index, db_snapshot.position.term));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        let (file, began) = (Arc::new(file), Instant::now());
        Ok(Self { db_snapshot, file, path, syncs, verified_bytes: 0, synced_bytes: 0, began })
    }

    /// Adds bytes. When the future is dropped, the same bytes are written again to the same offset.
    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let (file, at) = (self.file.clone(), self.verified_bytes);
        let end = at + bytes.len() as u64;
        let sync = self.syncs && end - self.synced_bytes >= SYNC_EVERY_BYTES;
        let write = move || {
            file.write_all_at(&bytes, at)?;
            if sync { file.sync_data() } else { Ok(()) }
        };
        spawn_blocking(write).await.map_err(io::Error::other)??;
        self.verified_bytes = end;
        if sync {
            self.synced_bytes = end;
        }
        Ok(())
    }

    /// Makes the whole db snapshot durable under its last name, if what is on disk has the right digest.
    fn seal(&self, sync_seconds: &Histogram) -> io::Result<Option<PathBuf>> {
        if self.syncs {
            let began = Instant::now();
            self.file.sync_all()?;
            sync_seconds.observe(began.elapsed().as_secs_f64());
        }
        if digest(&self.file, self.db_snapshot.size_bytes)? != self.db_snapshot.digest {
            return Ok(None);
        }
        let whole = self.path.with_extension("snap");
        std::fs::rename(&self.path, &whole)?;
        if let Some(dir) = whole.parent().filter(|_| self.syncs) {
            File::open(dir)?.sync_all()?;
        }
        Ok(Some(whole))
    }
}

/// Verifies the db snapshot and hands it on. Runs to its end even when the connection breaks.
async fn finish(shared: &Shared, from: MemberId, slot: &mut Slot, offer: Offer) -> Result<(), Refused> {
    let transfer = offer.transfer;
    let began = slot.part.as_ref().map(|part| part.began);
    let outcome = hand_over(shared, from, slot, offer).await;
    let label = from.to_string();
    match &outcome {
        Ok(()) => {
            shared.metrics.snapshot_receive_success.with_label_values(&[&label]).inc();
            if let Some(began) = began {
                let took = began.elapsed().as_secs_f64();
                shared.metrics.snapshot_receive_duration.with_label_values(&[&label]).observe(took);
            }
        }
        Err(refused) => {
            warn!(peer = %from, reason = refused.reason, "snapshot was not taken");
            shared.metrics.snapshot_receive_failures.with_label_values(&[&label]).inc();
        }
    }
    slot.finished = Some((transfer, outcome.clone()));
    outcome
}

async fn hand_over(shared: &Shared, from: MemberId, slot: &mut Slot, offer: Offer) -> Result<(), Refused> {
    let for_good = |reason| Refused { may_retry: false, reason };
    let Some(part) = slot.part.take() else { return Err(stopped()) };
    let synced = shared.metrics.snap_db_fsync.clone();
    let (sealed, part) = spawn_blocking(move || (part.seal(&synced), part)).await.map_err(|_| stopped())?;
    shared.metrics.snap_db_save.observe(part.began.elapsed().as_secs_f64());
    let size_bytes = part.db_snapshot.size_bytes;
    let file = match sealed {
        Ok(Some(file)) => file,
        Ok(None) => return Err(for_good("digest of the db snapshot is wrong".into())),
        Err(error) => return Err(for_good(format!("write db snapshot: {error}"))),
    };
    let taken = shared.receiver.snapshot_received(from, offer.message, file.clone()).await;
    // Moved away, as a rule.
    let _ = std::fs::remove_file(&file);
    taken.map_err(for_good)?;
    info!(peer = %from, bytes = size_bytes, index = %offer.db_snapshot.position.index, "received and saved database snapshot");
    Ok(())
}

fn stopped() -> Refused {
    Refused { may_retry: true, reason: "member is stopping".into() }
}

#[cfg(test)]
mod tests {
    use super::super::outgoing::receive;
    use super::*;

    const SILENCE_MAX: Duration = Duration::from_secs(2);

    // Cause: nothing was sent while a part was written and synced, so that the sender of a db snapshot gave up the
    // connection to a member whose disk took longer than the silence allowed.
    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_does_not_look_like_a_silent_peer() {
        let (mut near, mut far) = tokio::io::duplex(4096);
        let mut batch = Batch::default();
        let work = alive_while(&mut batch, &mut near, SILENCE_MAX, sleep(Duration::from_secs(30)));
        let sender = async {
            let mut frames = FrameReader::new(&[], 1024);
            loop {
                while let Some(frame) = frames.take().expect("well formed") {
                    assert_eq!(frame.kind, Kind::Alive);
                }
                if let Err(error) = receive(&mut frames, &mut far, SILENCE_MAX).await {
                    return error;
                }
            }
        };
        tokio::select! {
            done = work => done.expect("written"),
            error = sender => panic!("{error}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_ends_the_connection() {
        let (mut near, _far) = tokio::io::duplex(1 << 20);
        let work = alive_while(&mut Batch::default(), &mut near, SILENCE_MAX, std::future::pending::<()>()).await;
        assert!(matches!(work, Err(ConnectionError::Silent)), "{work:?}");
    }
}
