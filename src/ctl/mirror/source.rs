use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::super::failure::{Failure, status_text};
use crate::api_error::ApiError;
use crate::client::Client;
use crate::net::Backoff;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse};
use crate::pb::mvccpb::{Event, KeyValue};
use crate::types::KeyRange;

/// Pairs of one page of the first copy.
const PAGE: i64 = 1000;
/// Pauses between tries while the cluster does not answer.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A call to a cluster that may be away for a time, and how long it has been.
pub(super) struct Patience {
    who: &'static str,
    backoff: Backoff,
    waiting: bool,
}

impl Patience {
    pub(super) fn new(who: &'static str) -> Self {
        Self { who, backoff: Backoff::new(PAUSE_FIRST, PAUSE_MAX), waiting: false }
    }

    pub(super) fn answered(&mut self) {
        self.waiting = false;
        self.backoff.reset();
    }

    /// Waits a while after an error that may pass, and says so once.
    ///
    /// # Errors
    /// An error that stays.
    pub(super) async fn bear(&mut self, status: &Status) -> Result<(), Failure> {
        let passes = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Internal | Code::Unknown | Code::Cancelled => true,
            _ => ApiError::from_text(status.message()) == Some(ApiError::TooManyRequests),
        };
        if !passes {
            return Err(Failure::call(status));
        }
        if !self.waiting {
            eprintln!("{} does not answer, trying again ({})", self.who, status_text(status));
            self.waiting = true;
        }
        tokio::time::sleep(self.backoff.pause()).await;
        Ok(())
    }
}

/// The cluster that is copied: its keys at one revision, then its changes.
pub(super) struct Source {
    client: Client,
    key: Bytes,
    range_end: Bytes,
    /// The oldest revision whose events have not been taken. It moves on only after they were written, so that a new
    /// stream leaves none out.
    next: i64,
    /// Dropping the sender ends the stream.
    stream: Option<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>)>,
    patience: Patience,
}

impl Source {
    /// Changes begin at `next`.
    pub(super) fn new(client: Client, prefix: Bytes, next: i64) -> Self {
        let (key, range_end) = KeyRange::prefix(prefix).to_wire();
        Self { client, key, range_end, next, stream: None, patience: Patience::new("source") }
    }

    /// The revision to copy the keys at. Changes begin right after it.
    pub(super) async fn fix_revision(&mut self) -> Result<i64, Failure> {
        let request = RangeRequest { key: self.key.clone(), count_only: true, ..Default::default() };
        let answer = self.range(request).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        self.next = revision + 1;
        Ok(revision)
    }

    /// The pairs of the next page at `revision`, and where the page after it begins.
    pub(super) async fn page(
        &mut self,
        from: &Bytes,
        revision: i64,
    ) -> Result<(Vec<KeyValue>, Option<Bytes>), Failure> {
        let key = if from.is_empty() { self.key.clone() } else { from.clone() };
        let range_end = self.range_end.clone();
        let request = RangeRequest { key, range_end, limit: PAGE, revision, ..Default::default() };
        let answer = self.range(request).await?;
        let last = answer.kvs.last().filter(|_| answer.more);
        // The first key after the last one of this page.
        let from = last.map(|last| Bytes::from([&last.key, &b"\0"[..]].concat()));
        Ok((answer.kvs, from))
    }

    async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, Failure> {
        loop {
            match self.client.kv().range(request.clone()).await {
                Ok(answer) => {
                    self.patience.answered();
                    return Ok(answer.into_inner());
                }
                Err(status) => self.patience.bear(&status).await?,
            }
        }
    }

    /// The next events, whole revisions in order. The caller calls [`taken`](Self::taken) once they are written.
    ///
    /// # Errors
    /// When the events are gone through a compaction, or the cluster refuses the watch.
    pub(super) async fn events(&mut self) -> Result<Vec<Event>, Failure> {
        loop {
            match self.answer().await {
                Ok(answer) if answer.compact_revision != 0 => {
                    return Err(Failure::call(&Status::from(ApiError::Compacted)));
                }
                Ok(answer) if answer.canceled => {
                    self.stream = None;
                    if !self.client.logs_in_after(&answer.cancel_reason) {
                        return Err(Failure::call(&Status::failed_precondition(answer.cancel_reason)));
                    }
                }
                Ok(answer) if !answer.events.is_empty() => {
                    self.patience.answered();
                    return Ok(answer.events);
                }
                Ok(answer) => {
                    self.patience.answered();
                    // Progress: nothing happened up to here. Whoever resumes here outlives more compactions.
                    if !answer.created {
                        self.taken(answer.header.map_or(0, |header| header.revision));
                    }
                }
                Err(status) => {
                    self.stream = None;
                    if !self.client.logs_in_after(status.message()) {
                        self.patience.bear(&status).await?;
                    }
                }
            }
        }
    }

    /// Every event up to this revision is written.
    pub(super) fn taken(&mut self, revision: i64) {
        self.next = self.next.max(revision + 1);
    }

    async fn answer(&mut self) -> Result<WatchResponse, Status> {
        if self.stream.is_none() {
            self.stream = Some(self.open().await?);
        }
        let (_, answers) = self.stream.as_mut().expect("opened above");
        answers.message().await?.ok_or_else(|| Status::unavailable("watch stream ended"))
    }

    async fn open(&self) -> Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Status> {
        let create = WatchCreateRequest {
            key: self.key.clone(),
            range_end: self.range_end.clone(),
            start_revision: self.next,
            progress_notify: true,
            ..Default::default()
        };
        let (sender, requests) = mpsc::channel(1);
        // Members send no headers before their first answer, so the request has to be there first.
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        sender.try_send(request).map_err(|_| Status::internal("an empty queue has room"))?;
        let mut request = tonic::Request::new(ReceiverStream::new(requests));
        request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        Ok((sender, self.client.watch().watch(request).await?.into_inner()))
    }
}
