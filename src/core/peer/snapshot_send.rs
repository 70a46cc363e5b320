//! Sends a db snapshot to a peer, over as many connections as it takes, up to a bound.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::dial::dial_any;
use super::frame::{Batch, ConnectionError, Frame, Kind};
use super::hello::Purpose;
use super::link::Link;
use super::outgoing::{Next, Source, pump};
use super::snapshot::{Offer, Refused, SnapshotId, digest};
use super::transport::Shared;
use crate::net::Backoff;

/// Starts a transfer to a peer unless one is in progress: when that one ends, raft asks again.
pub(super) fn start(shared: &Arc<Shared>, link: &Arc<Link>, message: Bytes) {
    if link.snapshot_on_its_way.swap(true, Ordering::AcqRel) {
        return;
    }
    let (owner, link) = (shared.clone(), link.clone());
    shared.spawn(async move {
        let sent = send(&owner, &link, message).await;
        link.snapshot_on_its_way.store(false, Ordering::Release);
        owner.receiver.snapshot_sent(link.peer, sent);
    });
}

async fn send(shared: &Shared, link: &Link, message: Bytes) -> bool {
    // Never closed; each peer waits here with one transfer at most.
    let _permit = shared.snapshots_out.acquire().await;
    let (metrics, to) = (&shared.metrics, link.peer.to_string());
    let inflight = metrics.snapshot_send_inflights.with_label_values(&[&to]);
    let began = Instant::now();
    inflight.inc();
    let outcome = link.ended.run_until_cancelled(transfer(shared, link, message)).await;
    inflight.dec();
    match outcome.unwrap_or_else(|| Err("peer left the member list".into())) {
        Ok(bytes) => {
            info!(peer = %link.peer, bytes, took = ?began.elapsed(), "sent database snapshot");
            metrics.snapshot_send_success.with_label_values(&[&to]).inc();
            metrics.snapshot_send_duration.with_label_values(&[&to]).observe(began.elapsed().as_secs_f64());
            true
        }
        Err(reason) => {
            warn!(peer = %link.peer, reason, "snapshot could not be sent");
            metrics.snapshot_send_failures.with_label_values(&[&to]).inc();
            false
        }
    }
}

async fn transfer(shared: &Shared, link: &Link, message: Bytes) -> Result<u64, String> {
    let limits = &shared.config.limits;
    let source = shared.receiver.snapshot_source(link.peer, message).await?;
    let db_snapshot = Arc::new(source.db_snapshot);
    let (file, size_bytes) = (db_snapshot.clone(), source.size_bytes);
    let digest = tokio::task::spawn_blocking(move || digest(&file, size_bytes))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("read db snapshot: {error}"))?;
    let offer = Offer {
        transfer: fastrand::u64(..),
        db_snapshot: SnapshotId { position: source.position, size_bytes, digest },
        message: source.message,
    };
    let mut backoff = Backoff::new(limits.backoff.0, limits.backoff.1);
    let mut last = String::new();
    let (mut attempts, mut resumed_at) = (0, 0);
    while attempts < limits.snapshot_attempts {
        attempts += 1;
        let before = resumed_at;
        match attempt(shared, link, &offer, &db_snapshot, &mut resumed_at).await {
            Ok(()) => return Ok(size_bytes),
            Err(Failed::ForGood(reason)) => return Err(reason),
            Err(Failed::ThisTime(reason)) => last = reason,
        }
        if resumed_at > before {
            // The connections before this one brought something: only those after it count.
            attempts = 1;
            backoff.reset();
        }
        tokio::time::sleep(backoff.pause()).await;
    }
    Err(format!("given up after {attempts} attempts without progress, the last one: {last}"))
}

enum Failed {
    ThisTime(String),
    ForGood(String),
}

/// One connection. Raises `resumed_at` to the offset that the receiver asks for, if that is further than ever before.
async fn attempt(
    shared: &Shared,
    link: &Link,
    offer: &Offer,
    db_snapshot: &Arc<File>,
    resumed_at: &mut u64,
) -> Result<(), Failed> {
    let limits = &shared.config.limits;
    let urls = link.urls.load_full();
    let hello = shared.hello(link.peer, Purpose::Snapshot);
    let dialed = dial_any(&urls, hello, &shared.config.dialer, limits.handshake_timeout)
        .await
        .map_err(|error| Failed::ThisTime(error.to_string()))?;
    let (wanted, from) = watch::channel(None);
    let source = OutgoingFile {
        offer: Some(offer.clone()),
        db_snapshot: db_snapshot.clone(),
        from,
        at: 0,
        began: None,
        ended: false,
        size_bytes: offer.db_snapshot.size_bytes,
        chunk_bytes: limits.snapshot_chunk_bytes,
        rate: limits.snapshot_rate,
    };
    let mut refused = None;
    let mut counts = link.counts.clone();
    counts.round_trip = None;
    let on_frame = |frame: Frame| {
        match frame.kind {
            Kind::Resume if wanted.borrow().is_none() => {
                let mut payload = &frame.payload[..];
                let at = payload.try_get_u64_le().map_err(|_| ConnectionError::Length(frame.payload.len()))?;
                wanted.send_replace(Some(at));
            }
            Kind::Done => return Ok(Next::Finish),
            Kind::Refuse => {
                refused = Some(Refused::parse(&frame.payload));
                return Ok(Next::Finish);
            }
            kind => return Err(ConnectionError::Unexpected(kind)),
        }
        Ok(Next::Read)
    };
    let ended = pump(dialed, source, limits, &counts, on_frame).await;
    *resumed_at = (*resumed_at).max(wanted.borrow().unwrap_or_default());
    match (ended.outcome, refused) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(Refused { may_retry: true, reason })) => Err(Failed::ThisTime(reason)),
        (Ok(()), Some(Refused { may_retry: false, reason })) => Err(Failed::ForGood(reason)),
        (Err(error @ ConnectionError::Source(_)), _) => Err(Failed::ForGood(error.to_string())),
        (Err(error), _) => Err(Failed::ThisTime(error.to_string())),
    }
}

/// A db snapshot as the source of a connection: the offer, then what the receiver has not yet, then the end.
struct OutgoingFile {
    offer: Option<Offer>,
    db_snapshot: Arc<File>,
    /// The offset from which the receiver wants it, once it has answered.
    from: watch::Receiver<Option<u64>>,
    at: u64,
    /// When the first byte was sent, and which one it was.
    began: Option<(Instant, u64)>,
    ended: bool,
    size_bytes: u64,
    chunk_bytes: usize,
    rate: Option<u64>,
}

impl Source for OutgoingFile {
    async fn fill(&mut self, batch: &mut Batch) -> Result<(), ConnectionError> {
        if let Some(offer) = self.offer.take() {
            offer.push(batch);
            return Ok(());
        }
        let (began, first) = match self.began {
            Some(began) => began,
            None => {
                let wanted = self.from.wait_for(Option::is_some).await.map_err(|_| ConnectionError::Closed)?;
                self.at = wanted.unwrap_or_default().min(self.size_bytes);
                *self.began.insert((Instant::now(), self.at))
            }
        };
        if self.at >= self.size_bytes {
            if std::mem::replace(&mut self.ended, true) {
                // The receiver works; only pings go out now.
                return std::future::pending().await;
            }
            batch.push(Kind::End, &[], &Bytes::new());
            return Ok(());
        }
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64((self.at - first) as f64 / rate.max(1) as f64);
            tokio::time::sleep_until(began + due).await;
        }
        let (db_snapshot, at) = (self.db_snapshot.clone(), self.at);
        let length = (self.size_bytes - at).min(self.chunk_bytes as u64) as usize;
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; length];
            db_snapshot.read_exact_at(&mut chunk, at).map(|()| Bytes::from(chunk))
        });
        let chunk = read.await.map_err(|error| ConnectionError::Source(error.to_string()))?;
        let chunk = chunk.map_err(|error| ConnectionError::Source(error.to_string()))?;
        batch.push(Kind::Chunk, &at.to_le_bytes(), &chunk);
        self.at += length as u64;
        Ok(())
    }
}
