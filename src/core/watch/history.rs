use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::api_error::ApiError;
use crate::core::mvcc::{self, MvccError, RevisionEvents, StoreReader};
use crate::eventlog::{EventKind, History, HistoryBatch, HistoryError, HistoryRequest, LogBatch, LogEvent};
use crate::types::Revision;

/// Rows of the store that one read looks at, so that a watcher of a rarely written range does not delay others.
const ROWS_PER_READ: usize = 10_000;

/// Events of the past, read from the store.
pub(super) struct StoreHistory {
    reader: StoreReader,
    /// Whether to read on the calling thread instead of a blocking one.
    inline: bool,
}

impl StoreHistory {
    pub fn new(reader: StoreReader) -> Self {
        Self { reader, inline: false }
    }

    pub fn inline(reader: StoreReader) -> Self {
        Self { reader, inline: true }
    }
}

impl History for StoreHistory {
    fn events(&self, request: HistoryRequest) -> BoxFuture<'static, Result<HistoryBatch, HistoryError>> {
        let reader = self.reader.clone();
        if self.inline {
            return futures::future::ready(read(&reader, &request)).boxed();
        }
        async move {
            // Old revisions come from the disk, and serving threads must not wait for it.
            tokio::task::spawn_blocking(move || read(&reader, &request)).await.unwrap_or_else(|_| Err(stopping()))
        }
        .boxed()
    }
}

fn read(reader: &StoreReader, request: &HistoryRequest) -> Result<HistoryBatch, HistoryError> {
    let found = reader.history(&mvcc::HistoryRequest {
        range: request.range.clone(),
        from: request.from,
        revisions_max: request.revisions_max,
        events_bytes_max: request.bytes_max,
        rows_max: ROWS_PER_READ,
        prev_kv: request.prev_kv,
    });
    match found {
        Ok(found) => Ok(HistoryBatch {
            batches: found.revisions.into_iter().map(|events| Arc::new(log_batch(events))).collect(),
            complete_to: Revision(found.next.0 - 1).min(request.up_to),
        }),
        Err(MvccError::Compacted { compacted, .. }) => Err(HistoryError::Compacted(compacted)),
        Err(error) => {
            tracing::error!(%error, from = %request.from, "history for a watcher could not be read");
            Err(HistoryError::Refused(ApiError::Corrupt.text().to_owned()))
        }
    }
}

/// A read that the end of the runtime cancelled; its stream is about to end as well.
fn stopping() -> HistoryError {
    HistoryError::Refused(ApiError::Stopped.text().to_owned())
}

/// The log's form of a revision; the bytes are shared.
pub(super) fn log_batch(events: RevisionEvents) -> LogBatch {
    let revision = events.revision;
    let events = events.events.into_iter().map(|event| {
        let kind = match event.kind {
            mvcc::EventKind::Put => EventKind::Put,
            mvcc::EventKind::Delete => EventKind::Delete,
        };
        LogEvent::new(kind, event.key, event.kv, event.prev_kv)
    });
    LogBatch::new(revision, events.collect())
}
