use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::calls::CallQueue;
use super::config::PeerConfig;
use super::outgoing::Counts;
use super::queue::{Keep, LaneQueue, Pushed, QueueBounds};
use crate::telemetry::PeerMetrics;
use crate::types::MemberId;

/// What waits for one peer, and how the way there is.
pub(super) struct Link {
    pub(super) peer: MemberId,
    pub(super) urls: ArcSwap<Vec<String>>,
    /// Dialling is worth another try: the URLs changed, or the peer has dialled us.
    pub(super) redial: Notify,
    pub(super) control: LaneQueue,
    pub(super) append: LaneQueue,
    pub(super) calls: Arc<CallQueue>,
    pub(super) snapshot_on_its_way: AtomicBool,
    /// Not a peer any more.
    pub(super) ended: CancellationToken,
    pub(super) counts: Counts,
    pub(super) sent_failures: IntCounter,
    active_since: Mutex<Option<Instant>>,
    active: IntGauge,
    known: IntGauge,
    disconnected: IntCounter,
}

impl Link {
    pub(super) fn new(peer: MemberId, urls: Vec<String>, config: &PeerConfig, metrics: &PeerMetrics) -> Self {
        let limits = &config.limits;
        let bounds = |keep, bytes_max| QueueBounds {
            keep,
            bytes_max,
            messages_max: limits.lane_messages_max,
            // One byte of a frame is its kind.
            message_bytes_max: limits.frame_bytes_max - 1,
        };
        let (local, remote) = (config.member.to_string(), peer.to_string());
        let pair = [local.as_str(), remote.as_str()];
        let known = metrics.known.with_label_values(&pair);
        known.set(1);
        Self {
            peer,
            urls: ArcSwap::from_pointee(urls),
            redial: Notify::new(),
            control: LaneQueue::new(bounds(Keep::Newest, limits.control_bytes_max)),
            append: LaneQueue::new(bounds(Keep::Oldest, limits.append_bytes_max)),
            calls: Arc::new(CallQueue::new(peer, limits)),
            snapshot_on_its_way: AtomicBool::new(false),
            ended: CancellationToken::new(),
            counts: Counts {
                sent_bytes: metrics.sent_bytes.with_label_values(&[&remote]),
                received_bytes: metrics.received_bytes.with_label_values(&[&remote]),
                round_trip: Some(metrics.round_trip.with_label_values(&[&remote])),
            },
            sent_failures: metrics.sent_failures.with_label_values(&[&remote]),
            active_since: Mutex::new(None),
            active: metrics.active.with_label_values(&pair),
            known,
            disconnected: metrics.disconnected.with_label_values(&pair),
        }
    }

    /// Queues a message for one lane, and counts what was dropped for it.
    pub(super) fn push(&self, lane: &LaneQueue, message: Bytes) -> Pushed {
        let bytes = message.len();
        let pushed = lane.push(message);
        self.sent_failures.inc_by(pushed.dropped);
        if pushed.too_long {
            // Consensus would send it again without end.
            tracing::error!(peer = %self.peer, bytes, "message to a peer is longer than a frame and was dropped");
        }
        pushed
    }

    pub(super) fn active_since(&self) -> Option<Instant> {
        *self.active_since.lock()
    }

    /// The control lane is connected until the guard goes.
    pub(super) fn activate(&self) -> Active<'_> {
        *self.active_since.lock() = Some(Instant::now());
        self.active.set(1);
        Active(self)
    }

    /// Ends every connection to the peer.
    pub(super) fn end(&self) {
        self.ended.cancel();
        self.calls.close();
        self.control.clear();
        self.append.clear();
        self.known.set(0);
    }
}

pub(super) struct Active<'a>(&'a Link);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        *self.0.active_since.lock() = None;
        self.0.active.set(0);
        self.0.disconnected.inc();
    }
}
