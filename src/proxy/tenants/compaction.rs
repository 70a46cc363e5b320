use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::{debug, info};

use crate::api_error::ApiError;
use crate::client::{Channel, Head, Method, framed, unframed};
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, Compare, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse, request_op,
};
use crate::proxy::namespace::Namespace;
use crate::types::{KeyRange, Revision};

/// Keys the proxy keeps for itself: no namespace may begin with a zero byte.
const WISHES: &[u8] = b"\0watershed/compaction/";
/// How long a tenant counts as active after its last request.
const ACTIVE: Duration = Duration::from_secs(3600);
/// A tenant that goes on is noted as active again after this.
const NOTED_AGAIN: Duration = Duration::from_secs(1200);
/// The same where the cluster has refused it.
const NOTED_AFTER_REFUSAL: Duration = Duration::from_secs(60);
/// Wishes of one tenant within this time share a lease.
const LEASE_SHARED: Duration = Duration::from_secs(60);

/// The part of one tenant in the agreement at which revision the cluster is compacted.
///
/// The cluster has a key for each tenant that was active in the last hour, `\0watershed/compaction/<prefix in hex>`, with
/// the newest revision at which that tenant wanted the cluster compacted, or 0. A lease ends it an hour after the last request, so that
/// no clock is compared. The cluster is compacted at the lowest of these revisions: never above what a tenant that is there has
/// agreed to.
#[derive(Debug)]
pub struct AgreedCompaction {
    key: Bytes,
    /// When the tenant has to be noted as active again.
    note_at: parking_lot::Mutex<Option<Instant>>,
    /// The newest lease, and when it was asked for.
    lease: parking_lot::Mutex<Option<(i64, Instant)>>,
}

/// What a tenant's key says.
#[derive(Clone, Copy, Debug)]
enum Note {
    /// The tenant is active; what it wished is kept.
    Active,
    /// It wants the cluster compacted at this revision.
    Wish(i64),
}

/// The requests of an agreement, with the credentials of a caller or of the proxy.
pub(super) struct Agreement {
    pub channel: Channel,
    pub metadata: HeaderMap,
}

impl AgreedCompaction {
    /// The part of the tenant with this namespace.
    pub fn new(namespace: &Namespace) -> Self {
        let digits: String = namespace.prefix().iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            key: [WISHES, digits.as_bytes()].concat().into(),
            note_at: parking_lot::Mutex::default(),
            lease: parking_lot::Mutex::default(),
        }
    }

    /// Whether the tenant has to be noted as active again; whoever is told so does it.
    pub(in crate::proxy) fn is_due(&self, now: Instant) -> bool {
        let mut note_at = self.note_at.lock();
        let due = note_at.is_none_or(|at| now >= at);
        if due {
            *note_at = Some(now + NOTED_AGAIN);
        }
        due
    }

    /// Notes that the tenant is active, and keeps what it wished.
    pub(super) async fn note_active(&self, agreement: &Agreement) {
        if let Err(status) = self.under_lease(agreement, Note::Active).await {
            debug!(%status, "tenant is not noted as active");
            *self.note_at.lock() = Some(Instant::now() + NOTED_AFTER_REFUSAL);
        }
    }

    /// Keeps the wish of the tenant, and compacts the cluster at the lowest wish there is; `before` is called first. Answers with
    /// the revision at which it was compacted, if it was.
    pub(super) async fn wish(
        &self,
        request: CompactionRequest,
        agreement: &Agreement,
        before: impl Future<Output = ()>,
    ) -> Result<(CompactionResponse, Option<Revision>), Status> {
        if request.revision <= 0 {
            return Err(ApiError::Compacted.into());
        }
        // A revision that is compacted or of the future is refused as by a member.
        let look = RangeRequest {
            key: self.key.clone(),
            revision: request.revision,
            count_only: true,
            ..RangeRequest::default()
        };
        agreement.send::<RangeResponse>("/etcdserverpb.KV/Range", framed(&look)).await?;
        self.under_lease(agreement, Note::Wish(request.revision)).await?;
        *self.note_at.lock() = Some(Instant::now() + NOTED_AGAIN);
        let (key, range_end) = KeyRange::prefix(Bytes::from_static(WISHES)).to_wire();
        let all = RangeRequest { key, range_end, ..RangeRequest::default() };
        let all: RangeResponse = agreement.send("/etcdserverpb.KV/Range", framed(&all)).await?;
        let header = all.header;
        match lowest(all.kvs.iter().map(|kv| &kv.value[..])) {
            None => Ok((CompactionResponse { header }, None)),
            Some(Revision(revision)) => {
                before.await;
                let compact = CompactionRequest { revision, physical: request.physical };
                agreement.compact(compact, header).await
            }
        }
    }
}

impl AgreedCompaction {
    /// Writes the key under a lease that lasts for as long as the tenant counts as active.
    async fn under_lease(&self, agreement: &Agreement, note: Note) -> Result<(), Status> {
        let now = Instant::now();
        let shared = self.lease.lock().filter(|(_, granted)| now < *granted + LEASE_SHARED);
        if let Some((lease, _)) = shared {
            let written = self.write(agreement, note, lease).await;
            let Err(status) = written else { return Ok(()) };
            *self.lease.lock() = None;
            if ApiError::from_text(status.message()) != Some(ApiError::LeaseNotFound) {
                return Err(status);
            }
            // Gone before its time, as after a restore: nothing was written.
        }
        let lease = agreement.grant(ACTIVE + LEASE_SHARED).await?;
        let written = self.write(agreement, note, lease).await;
        match &written {
            Ok(()) => *self.lease.lock() = Some((lease, now)),
            // Only where nothing was written for certain: the key would go with the lease.
            Err(status) if matches!(status.code(), Code::PermissionDenied | Code::InvalidArgument) => {
                if let Err(status) = agreement.revoke(lease).await {
                    debug!(%status, "lease of an agreement on compactions is left to expire");
                }
            }
            Err(_) => {}
        }
        written
    }

    async fn write(&self, agreement: &Agreement, note: Note, lease: i64) -> Result<(), Status> {
        let put = PutRequest { key: self.key.clone(), lease, ..PutRequest::default() };
        match note {
            Note::Active => {
                let is_there = Compare::exists(self.key.clone());
                let operation = |put| vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }];
                let keep = operation(PutRequest { ignore_value: true, ..put.clone() });
                let none = operation(PutRequest { value: "0".into(), ..put });
                let frame = framed(&TxnRequest { compare: vec![is_there], success: keep, failure: none });
                agreement.send::<TxnResponse>("/etcdserverpb.KV/Txn", frame).await.map(drop)
            }
            Note::Wish(revision) => {
                let frame = framed(&PutRequest { value: revision.to_string().into(), ..put });
                agreement.send::<PutResponse>("/etcdserverpb.KV/Put", frame).await.map(drop)
            }
        }
    }
}

impl Agreement {
    async fn grant(&self, ttl: Duration) -> Result<i64, Status> {
        let grant = LeaseGrantRequest { ttl: ttl.as_secs().cast_signed(), id: 0 };
        let granted: LeaseGrantResponse = self.send("/etcdserverpb.Lease/LeaseGrant", framed(&grant)).await?;
        Ok(granted.id)
    }

    async fn revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Status> {
        self.send("/etcdserverpb.Lease/LeaseRevoke", framed(&LeaseRevokeRequest { id })).await
    }

    async fn compact(
        &self,
        request: CompactionRequest,
        header: Option<ResponseHeader>,
    ) -> Result<(CompactionResponse, Option<Revision>), Status> {
        match self.send("/etcdserverpb.KV/Compact", framed(&request)).await {
            Ok(answer) => {
                info!(revision = request.revision, "cluster is compacted at the lowest wish of its active tenants");
                Ok((answer, Some(Revision(request.revision))))
            }
            // Another tenant has not gone on since the last time.
            Err(status) if ApiError::from_text(status.message()) == Some(ApiError::Compacted) => {
                Ok((CompactionResponse { header }, None))
            }
            Err(status) => Err(status),
        }
    }

    async fn send<M: prost::Message + Default + 'static>(&self, path: &'static str, frame: Bytes) -> Result<M, Status> {
        let head = Head::grpc(path, self.metadata.clone());
        unframed(self.channel.exchange(Method::of(path), &head, frame).await).await
    }
}

/// The lowest wish; none while a tenant that is active has none.
fn lowest<'v>(wishes: impl Iterator<Item = &'v [u8]>) -> Option<Revision> {
    let read = |wish: &[u8]| std::str::from_utf8(wish).ok()?.parse::<i64>().ok().filter(|revision| *revision > 0);
    let all: Option<Vec<i64>> = wishes.map(read).collect();
    all?.into_iter().min().map(Revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_wish_counts_and_none_blocks() {
        let lowest = |wishes: &[&str]| super::lowest(wishes.iter().map(|wish| wish.as_bytes()));
        assert_eq!(lowest(&["7", "5", "9"]), Some(Revision(5)));
        assert_eq!(lowest(&["7", "0"]), None);
        assert_eq!(lowest(&["7", "what"]), None);
        assert_eq!(lowest(&[]), None);
    }

    #[test]
    fn a_tenant_is_noted_three_times_an_hour() {
        let compaction = AgreedCompaction::new(&Namespace::new("t/"));
        assert_eq!(compaction.key, "\0watershed/compaction/742f");
        let start = Instant::now();
        assert!(compaction.is_due(start));
        assert!(!compaction.is_due(start + NOTED_AGAIN / 2));
        assert!(compaction.is_due(start + NOTED_AGAIN));
        assert!(!compaction.is_due(start + NOTED_AGAIN));
    }
}
