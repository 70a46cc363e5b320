use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use crate::api_error::ApiError;

/// Bytes of unfinished requests on one connection. A client with a hundred of the largest requests on their way has 150 MB.
pub(super) const CONNECTION_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of unfinished requests on all connections of a listener; beyond, requests are refused.
pub(super) const ALL_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// Bytes of the requests of one connection that have not come whole.
#[derive(Debug)]
pub(super) struct UnfinishedBytes {
    connection: AtomicUsize,
    /// On all connections.
    all: Arc<AtomicUsize>,
}

impl UnfinishedBytes {
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { connection: AtomicUsize::new(0), all }
    }

    pub(super) fn take(&self, bytes: usize) -> Result<(), Status> {
        let connection = self.connection.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if connection <= CONNECTION_BYTES_MAX && all <= ALL_BYTES_MAX {
            return Ok(());
        }
        self.give_back(bytes);
        Err(refusal())
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.connection.fetch_sub(bytes, Ordering::Relaxed);
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether requests may soon be refused.
    pub(super) fn are_many(&self) -> bool {
        self.all.load(Ordering::Relaxed) > ALL_BYTES_MAX / 2
    }
}

pub(super) fn refusal() -> Status {
    Status::resource_exhausted(ApiError::TooManyRequests.text())
}
