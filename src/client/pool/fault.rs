use h2::Reason;
use tonic::{Code, Status};

use super::connection::Connection;
use crate::client::Endpoint;

/// What became of a request that got no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The member has provably not executed it: any request may be sent again.
    NotExecuted(Status),
    /// It may have been executed: only repeatable requests may be sent again.
    Unknown(Status),
    /// The read was left alone, because another member is likely to answer sooner.
    Limited(Status),
    /// Another attempt would end in the same way: the request is not sent again.
    Final(Status),
}

impl Fault {
    /// Reads why [`Connection::start`] opened no stream.
    pub(super) fn from_start(error: &h2::Error, connection: &Connection, endpoint: &Endpoint) -> Self {
        if connection.is_closed() {
            return Self::NotExecuted(Status::unavailable(format!("upstream {endpoint}: {error}")));
        }
        Self::Final(Status::internal(format!("HTTP/2 cannot carry the request: {error}")))
    }

    /// Reads an HTTP/2 error of one stream.
    ///
    /// A remote GOAWAY reaches only streams above the last one the member processed, and a refused stream was never
    /// looked at (RFC 9113, 6.8 and 8.7).
    pub(super) fn from_stream(error: &h2::Error, endpoint: &Endpoint) -> Self {
        let unseen = error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
        let status = status_of(error, endpoint);
        if unseen { Self::NotExecuted(status) } else { Self::Unknown(status) }
    }

    pub(super) fn into_status(self) -> Status {
        match self {
            Self::NotExecuted(status) | Self::Unknown(status) | Self::Limited(status) | Self::Final(status) => status,
        }
    }
}

/// The gRPC status of a broken stream, by the table of the gRPC-over-HTTP/2 specification.
pub(super) fn status_of(error: &h2::Error, endpoint: &Endpoint) -> Status {
    let code = match error.reason() {
        Some(Reason::CANCEL) if error.is_reset() && error.is_remote() => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) if error.is_reset() => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) if error.is_reset() => Code::PermissionDenied,
        Some(Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(_) if error.is_reset() => Code::Internal,
        _ => Code::Unavailable,
    };
    Status::new(code, format!("upstream {endpoint}: {error}"))
}
