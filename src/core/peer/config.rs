use std::net::IpAddr;
use std::time::Duration;

use crate::net::{ClientTls, ServerTls};
use crate::types::{ClusterId, MemberId};

/// A member as the others dial it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: MemberId,
    /// Its peer URLs; each is tried in turn.
    pub urls: Vec<String>,
}

/// TLS between members, in which both sides show a certificate.
#[derive(Clone, Debug)]
pub struct PeerTls {
    /// For the listener of the peer port.
    pub accepting: ServerTls,
    /// For connections to other members. As a rule it shows the same certificate.
    pub dialling: ClientTls,
}

/// How other members are dialled: in plain text, from an address that the system chooses, unless said otherwise.
#[derive(Clone, Debug, Default)]
pub struct PeerDialer {
    /// For URLs that begin with https or unixs; there are none without it.
    pub tls: Option<PeerTls>,
    /// The address of this host that connections come from.
    pub local_address: Option<IpAddr>,
}

/// Who this member is, and what its peers may make it hold.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// The cluster; peers of any other are refused.
    pub cluster: ClusterId,
    /// This member.
    pub member: MemberId,
    /// How the others are dialled.
    pub dialer: PeerDialer,
    /// Whether db snapshots that arrive are made durable before they are confirmed.
    pub syncs_db_snapshots: bool,
    /// Bounds and deadlines.
    pub limits: PeerLimits,
}

impl PeerConfig {
    /// The usual limits and dialler.
    pub fn new(cluster: ClusterId, member: MemberId) -> Self {
        Self { cluster, member, dialer: PeerDialer::default(), syncs_db_snapshots: true, limits: PeerLimits::default() }
    }
}

/// Bounds and deadlines of the transport.
#[derive(Clone, Debug)]
pub struct PeerLimits {
    /// Longest frame, and with it the longest raft message and call.
    pub frame_bytes_max: usize,
    /// Messages that may wait on one lane; a longer queue drops (appends the newest, control the oldest).
    pub lane_messages_max: usize,
    /// Bytes that may wait on the append lane of one peer. One message is taken even when it alone is larger.
    pub append_bytes_max: usize,
    /// Bytes that may wait on the control lane of one peer.
    pub control_bytes_max: usize,
    /// Bytes that go into one write.
    pub batch_bytes_max: usize,
    /// Time from the first packet to the answer of the handshake.
    pub handshake_timeout: Duration,
    /// Pause between two pings on a connection.
    pub ping_interval: Duration,
    /// A dialled connection without a byte from the peer for this long is given up; an accepted one after twice as long.
    pub silence_max: Duration,
    /// First and longest pause between two attempts to connect; each is shortened by chance, to a half at most.
    pub backoff: (Duration, Duration),
    /// Calls to one peer that may wait for their answer; more are refused.
    pub calls_max: usize,
    /// Calls of one peer that may run here; more are refused.
    pub calls_served_max: usize,
    /// Wait for a connection before a call is given up unsent.
    pub call_connect_timeout: Duration,
    /// Longest wait for the answer to a call.
    pub call_timeout: Duration,
    /// Snapshots that may be on their way out at once; there is never more than one to each peer.
    pub snapshots_out_max: usize,
    /// Snapshots that may be on their way in at once.
    pub snapshots_in_max: usize,
    /// Largest db snapshot that is taken.
    pub snapshot_bytes_max: u64,
    /// Bytes of the db snapshot in one frame.
    pub snapshot_chunk_bytes: usize,
    /// Connections in a row that bring a transfer no further before it is given up.
    pub snapshot_attempts: u32,
    /// Time for which the part that arrived is kept for the sender to come back.
    pub snapshot_resume_window: Duration,
    /// Bytes per second of one transfer, so that the other lanes get their share of a slow link.
    pub snapshot_rate: Option<u64>,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 64 * 1024 * 1024,
            lane_messages_max: 4096,
            append_bytes_max: 64 * 1024 * 1024,
            control_bytes_max: 4 * 1024 * 1024,
            batch_bytes_max: 1024 * 1024,
            handshake_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_millis(500),
            silence_max: Duration::from_secs(2),
            backoff: (Duration::from_millis(20), Duration::from_secs(1)),
            calls_max: 4096,
            calls_served_max: 1024,
            call_connect_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(5),
            snapshots_out_max: 2,
            snapshots_in_max: 2,
            snapshot_bytes_max: 64 * 1024 * 1024 * 1024,
            snapshot_chunk_bytes: 256 * 1024,
            snapshot_attempts: 8,
            snapshot_resume_window: Duration::from_secs(30),
            snapshot_rate: None,
        }
    }
}
