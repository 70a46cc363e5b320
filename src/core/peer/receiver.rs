use std::fs::File;
use std::path::PathBuf;

use bytes::Bytes;
use futures::future::BoxFuture;
use tonic::Code;

use crate::types::{LogPosition, MemberId};

/// What arrives from peers goes here. Runs on the transport's thread: nothing here may block, long work goes elsewhere.
pub trait PeerReceiver: Send + Sync + 'static {
    /// A raft message of a peer whose identity is established.
    ///
    /// # Errors
    /// The message is malformed or forged: the connection is closed.
    fn message(&self, from: MemberId, bytes: Bytes) -> Result<(), String>;

    /// What was sent to this peer on the append lane may be lost. Also called on the thread that sends.
    fn unreachable(&self, peer: MemberId);

    /// The peer `by` answered that this member was removed from the cluster.
    fn removed(&self, by: MemberId);

    /// A request of a peer. The future is dropped when the connection breaks, and may then have had its effect or not.
    fn call(&self, from: MemberId, method: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, CallFailure>>;

    /// The db snapshot that goes with a raft snapshot message.
    fn snapshot_source(&self, to: MemberId, message: Bytes) -> BoxFuture<'static, Result<SnapshotSource, String>>;

    /// Directory for db snapshots being received. Files in it that end in `.part` or `.snap` belong to the transport, which
    /// removes leftovers at its start.
    fn snapshot_dir(&self) -> PathBuf;

    /// A whole db snapshot arrived, durable and with the right digest. The file may be moved away; what is still there
    /// afterwards is removed.
    fn snapshot_received(
        &self,
        from: MemberId,
        message: Bytes,
        file: PathBuf,
    ) -> BoxFuture<'static, Result<(), String>>;

    /// The transfer that a snapshot message began has ended: the receiver took the db snapshot, or it was given up.
    fn snapshot_sent(&self, to: MemberId, ok: bool);
}

/// A db snapshot of the state and the raft message that announces it.
#[derive(Debug)]
pub struct SnapshotSource {
    /// The raft message, with the position of this very db snapshot.
    pub message: Bytes,
    /// The position of the db snapshot in the log.
    pub position: LogPosition,
    /// The db snapshot; read from its beginning, and closed at the end of the transfer.
    pub db_snapshot: File,
    /// Its length.
    pub size_bytes: u64,
}

/// Why a call was answered with an error; travels to the caller unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CallFailure {
    /// The gRPC code.
    pub code: Code,
    /// The text, as clients see it.
    pub text: String,
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer answered with an error.
    #[error(transparent)]
    Failed(#[from] CallFailure),
    /// Not in the list of peers.
    #[error("member {0} is no peer of this member")]
    UnknownPeer(MemberId),
    /// Too many calls to this peer wait for their answer, or the request is too long.
    #[error("call to member {0} is refused: too many or too large")]
    Refused(MemberId),
    /// No connection came about in time; the call was not made.
    #[error("member {0} cannot be reached")]
    Unreachable(MemberId),
    /// The connection broke, or the time ran out, after the call was sent: it may have had its effect.
    #[error("connection to member {0} was lost during the call")]
    Lost(MemberId),
    /// The transport has stopped.
    #[error("peer transport has stopped")]
    Stopped,
}

impl CallError {
    /// The gRPC code to answer a client with; that of the peer when it answered.
    pub fn code(&self) -> Code {
        match self {
            Self::Failed(failure) => failure.code,
            Self::Refused(_) => Code::ResourceExhausted,
            Self::UnknownPeer(_) | Self::Unreachable(_) | Self::Lost(_) | Self::Stopped => Code::Unavailable,
        }
    }

    /// Whether the peer has certainly not seen the call, so that making it again is safe.
    pub fn is_unsent(&self) -> bool {
        matches!(self, Self::UnknownPeer(_) | Self::Refused(_) | Self::Unreachable(_))
    }
}
