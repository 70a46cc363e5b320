use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use moka::sync::Cache;
use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use super::keys::Namespace;
use super::response_memory::BoundedChannel;
use crate::api_error::ApiError;
use crate::client::Channel;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::{
    LeaseGrantResponse, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, request_op,
    response_op,
};
use crate::proxy::lease::{LeaseOwnership, Owner};
use crate::types::KeyRange;

/// Keys the proxy keeps for itself. No namespace may begin with a zero byte, so no tenant reaches them.
const MARKERS: &[u8] = b"\0watershed/lease/";
/// How long a lease is taken for the tenant's without asking again; its TTL, if that is less.
const TRUST: Duration = Duration::from_secs(30);
/// Memory for the leases that are remembered, of all namespaces; the least recently used ones give way, and are asked for again.
const KNOWN_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Leases that one transaction looks for: not more operations than members take unless they are told to take even fewer.
const LOOKED_FOR_AT_ONCE: usize = 64;
/// Leases of one request that are looked for; for more, those of the namespace are read if they are fewer. A transaction may name
/// many more leases than any member takes operations, and is refused only after this.
const LOOKED_FOR_MAX: usize = 16 * LOOKED_FOR_AT_ONCE;
/// After which time the owner of a lease is asked for again where too many requests wait.
const CHECK_AGAIN_MS: RangeInclusive<u64> = 50..=150;
/// What one takes besides the text of its namespace.
const ENTRY_BYTES: usize = 192;

/// Which leases belong to a namespace. The cluster itself knows: each lease granted through the namespace holds a
/// marker key, `\0watershed/lease/<prefix in hex>/<id in hex>`, that goes when the lease goes; its value is the TTL in decimal. Only
/// what was read a moment ago is kept here.
pub(super) struct Ownership {
    kv: KvClient<BoundedChannel>,
    /// For markers of leases that were just granted, which took a turn: refused for want of another one, a lease would have no owner.
    marking: KvClient<Channel>,
    markers: Bytes,
    known: KnownLeases,
}

/// The leases of which it was read a moment ago that they belong to a namespace, of all namespaces and threads, and until when
/// that is trusted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KnownLeases(Cache<(Bytes, i64), Instant>);

impl Default for KnownLeases {
    fn default() -> Self {
        Self::bounded(TRUST, KNOWN_BYTES_MAX)
    }
}

impl KnownLeases {
    fn bounded(trust: Duration, bytes_max: u64) -> Self {
        let bytes =
            |(markers, _): &(Bytes, i64), _: &Instant| u32::try_from(ENTRY_BYTES + markers.len()).unwrap_or(u32::MAX);
        Self(Cache::builder().time_to_live(trust).max_capacity(bytes_max).weigher(bytes).build())
    }
}

/// Whether a lease belongs to the namespace, and the header of the answer that showed it.
pub(super) struct Found {
    pub(super) own: bool,
    pub(super) header: ResponseHeader,
}

impl Ownership {
    pub(super) fn new(
        kv: KvClient<BoundedChannel>,
        marking: KvClient<Channel>,
        namespace: &Namespace,
        known: KnownLeases,
    ) -> Self {
        let mut markers = BytesMut::from(MARKERS);
        for byte in namespace.prefix() {
            markers.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        markers.extend_from_slice(b"/");
        Self { kv, marking, markers: markers.freeze(), known }
    }

    /// Marks a lease that was granted after this moment.
    pub(super) async fn mark(
        &self,
        granted: &LeaseGrantResponse,
        after: Instant,
        metadata: &MetadataMap,
    ) -> Result<(), Status> {
        let LeaseGrantResponse { id, ttl, .. } = *granted;
        let value = Bytes::from(ttl.to_string());
        let until = after + trust_of(&value);
        let put = PutRequest { key: self.marker(id), value, lease: id, ..Default::default() };
        self.marking.clone().put(with(metadata, put)).await?;
        self.trust(id, until);
        Ok(())
    }

    /// Asks the cluster whether the lease belongs to the namespace.
    pub(super) async fn look(&self, id: i64, metadata: &MetadataMap) -> Result<Found, Status> {
        let (asked_at, range) = (Instant::now(), RangeRequest { key: self.marker(id), ..Default::default() });
        let answer = self.kv.clone().range(with(metadata, range)).await?.into_inner();
        let marker = answer.kvs.first();
        match marker {
            Some(marker) => self.trust(id, asked_at + trust_of(&marker.value)),
            None => self.forget(id),
        }
        let own = marker.is_some();
        Ok(Found { own, header: answer.header.unwrap_or_default() })
    }

    /// As [`look`](Self::look), but satisfied with what was read a moment ago.
    pub(super) async fn is_own(&self, id: i64, metadata: &MetadataMap) -> Result<bool, Status> {
        if self.is_known(id) {
            return Ok(true);
        }
        Ok(self.look(id, metadata).await?.own)
    }

    /// Those of the leases that belong to the namespace, satisfied with what was read a moment ago.
    pub(super) async fn own_of(
        &self,
        ids: impl Iterator<Item = i64>,
        metadata: &MetadataMap,
    ) -> Result<HashSet<i64>, Status> {
        let (known, unknown): (Vec<i64>, Vec<i64>) = ids.partition(|id| self.is_known(*id));
        let mut own: HashSet<i64> = known.into_iter().collect();
        if unknown.len() > LOOKED_FOR_MAX && self.count(metadata).await? <= unknown.len() as u64 {
            let all = self.all(metadata).await?;
            own.extend(unknown.into_iter().filter(|id| all.contains(id)));
            return Ok(own);
        }
        let (mut left, mut at_once) = (&unknown[..], LOOKED_FOR_AT_ONCE);
        while !left.is_empty() {
            let (ids, rest) = left.split_at(at_once.min(left.len()));
            if let [id] = ids {
                own.extend(self.look(*id, metadata).await?.own.then_some(*id));
                left = rest;
                continue;
            }
            let look = |id: &i64| {
                let range = RangeRequest { key: self.marker(*id), ..Default::default() };
                RequestOp { request: Some(request_op::Request::RequestRange(range)) }
            };
            let txn = TxnRequest { success: ids.iter().map(look).collect(), ..Default::default() };
            let asked_at = Instant::now();
            let answer = match self.kv.clone().txn(with(metadata, txn)).await {
                Err(status) if has_too_many_operations(&status) => {
                    at_once = ids.len() / 2;
                    continue;
                }
                answer => answer?.into_inner(),
            };
            left = rest;
            let found = answer.responses.into_iter().flat_map(|answer| match answer.response {
                Some(response_op::Response::ResponseRange(range)) => range.kvs,
                _ => Vec::new(),
            });
            let found: HashMap<i64, Duration> =
                found.filter_map(|kv| Some((self.id_of(&kv.key)?, trust_of(&kv.value)))).collect();
            for id in ids {
                match found.get(id) {
                    Some(trust) => self.trust(*id, asked_at + *trust),
                    None => self.forget(*id),
                }
            }
            own.extend(found.into_keys());
        }
        Ok(own)
    }

    /// All leases of the namespace.
    pub(super) async fn all(&self, metadata: &MetadataMap) -> Result<HashSet<i64>, Status> {
        let (key, range_end) = KeyRange::prefix(self.markers.clone()).to_wire();
        let range = RangeRequest { key, range_end, keys_only: true, ..Default::default() };
        let answer: RangeResponse = self.kv.clone().range(with(metadata, range)).await?.into_inner();
        Ok(answer.kvs.iter().filter_map(|kv| self.id_of(&kv.key)).collect())
    }

    /// How many leases the namespace has.
    pub(super) async fn count(&self, metadata: &MetadataMap) -> Result<u64, Status> {
        let (key, range_end) = KeyRange::prefix(self.markers.clone()).to_wire();
        let range = RangeRequest { key, range_end, count_only: true, ..Default::default() };
        let answer = self.kv.clone().range(with(metadata, range)).await?.into_inner();
        Ok(answer.count.unsigned_abs())
    }

    /// Takes the lease for the tenant's until then, for [`TRUST`] at most.
    fn trust(&self, id: i64, until: Instant) {
        self.known.0.insert((self.markers.clone(), id), until);
    }

    fn is_known(&self, id: i64) -> bool {
        self.known.0.get(&(self.markers.clone(), id)).is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn forget(&self, id: i64) {
        self.known.0.invalidate(&(self.markers.clone(), id));
    }

    fn marker(&self, id: i64) -> Bytes {
        let mut key = BytesMut::from(&self.markers[..]);
        key.extend_from_slice(format!("{id:016x}").as_bytes());
        key.freeze()
    }

    fn id_of(&self, marker: &[u8]) -> Option<i64> {
        let digits = std::str::from_utf8(marker.strip_prefix(&self.markers[..])?).ok()?;
        u64::from_str_radix(digits, 16).ok().map(u64::cast_signed)
    }
}

/// Lets the keep-alive streams ask.
pub(super) struct OwnLeases(pub(super) Arc<Ownership>);

impl LeaseOwnership for OwnLeases {
    fn is_known(&self, id: i64) -> bool {
        self.0.is_known(id)
    }

    fn check(&self, id: i64, metadata: HeaderMap) -> Pin<Box<dyn Future<Output = Result<Owner, Status>> + Send>> {
        let ownership = self.0.clone();
        Box::pin(async move {
            let metadata = MetadataMap::from_headers(metadata);
            loop {
                match ownership.look(id, &metadata).await {
                    // Too many requests of the tenant wait: it is no reason to end the stream, and with it leases.
                    Err(status) if status.code() == Code::ResourceExhausted => {
                        sleep(Duration::from_millis(fastrand::u64(CHECK_AGAIN_MS))).await;
                    }
                    found => {
                        let Found { own, header } = found?;
                        return Ok(if own { Owner::Tenant } else { Owner::Other(header) });
                    }
                }
            }
        })
    }
}

/// How long a lease with this value of its marker is trusted: another namespace may choose its id once it has ended.
fn trust_of(marker: &[u8]) -> Duration {
    let ttl = std::str::from_utf8(marker).ok().and_then(|ttl| ttl.parse::<u64>().ok());
    // Markers of before have no value.
    ttl.map_or(TRUST, |seconds| TRUST.min(Duration::from_secs(seconds)))
}

/// Whether a member takes fewer operations in one transaction, as its `--max-txn-ops` says.
pub(super) fn has_too_many_operations(refusal: &Status) -> bool {
    ApiError::from_text(refusal.message()) == Some(ApiError::TooManyOps)
}

/// A request with the caller's credentials.
pub(super) fn with<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = metadata.clone();
    request
}

/// A lease id that no lease has: etcd picks positive ids, and a client that picked this one guessed 62 random bits.
/// Sent in place of a foreign lease, it makes the member refuse exactly as if that lease did not exist.
pub(super) fn nobodys_lease() -> i64 {
    -fastrand::i64((1 << 62)..i64::MAX)
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use prost::Message;

    use super::super::response_memory::ResponseMemory;
    use super::*;
    use crate::client::testing::{FakeMember, Reply};
    use crate::client::{Endpoint, Pool, PoolConfig, framed};
    use crate::config::TenantLimits;
    use crate::pb::etcdserverpb::{ResponseOp, TxnResponse};
    use crate::pb::frame::PREFIX_BYTES;
    use crate::pb::mvccpb::KeyValue;
    use crate::proxy::limits::{Limits, TenantMetrics, Turns};
    use crate::shutdown::Tasks;
    use crate::telemetry::Metrics;

    /// Of a namespace, in front of nobody.
    fn ownership(namespace: &'static str, known: &KnownLeases) -> Ownership {
        limited(namespace, known, Arc::default())
    }

    fn limited(namespace: &'static str, known: &KnownLeases, limits: Arc<Limits>) -> Ownership {
        before(Vec::new(), namespace, known, limits)
    }

    fn before(
        endpoints: Vec<Endpoint>,
        namespace: &'static str,
        known: &KnownLeases,
        limits: Arc<Limits>,
    ) -> Ownership {
        let channel = Channel::new(Pool::new(PoolConfig::new(endpoints), &Tasks::new()));
        let bounded = BoundedChannel::new(channel.clone(), ResponseMemory::new(1 << 20), limits);
        let (kv, marking) = (KvClient::new(bounded), KvClient::new(channel));
        Ownership::new(kv, marking, &Namespace::new(namespace), known.clone())
    }

    /// Cause: what was asked about leases took no turn, so that one tenant could have any number of requests at the member.
    #[tokio::test(start_paused = true)]
    async fn a_check_takes_a_turn_and_waits_where_too_many_do() {
        let metrics = TenantMetrics::register(&Metrics::new(), Turns::new(1));
        let limits = Arc::new(metrics.limits("a", TenantLimits::default()));
        let turn = limits.turn().await.expect("the only one");
        let own = OwnLeases(Arc::new(limited("a/", &KnownLeases::default(), limits.clone())));
        // More than may wait: some are refused.
        let mut waiting = Box::pin(join_all((0..2000).map(|_| limits.turn())));
        assert!(futures::poll!(tokio::task::unconstrained(waiting.as_mut())).is_pending());
        let mut check = own.check(7, HeaderMap::new());
        assert!(futures::poll!(check.as_mut()).is_pending(), "it is not refused");
        assert!(tokio::time::timeout(Duration::from_secs(1), check.as_mut()).await.is_err(), "nor made");
        drop((turn, waiting));
        // There is no member.
        assert_eq!(check.await.expect_err("unanswered").code(), Code::Unavailable);
    }

    /// Causes: a transaction could name 64k leases, which no member takes, and each 64 of them cost a request to the cluster; then the
    /// millions of leases of a namespace were read for a thousand that one named.
    #[tokio::test]
    async fn leases_are_looked_for_or_those_of_the_namespace_read_whichever_are_fewer() {
        // One that counts and one that reads.
        assert_eq!(looked_for(64 * 1024, 1, 128).await, (HashSet::from([7]), 2));
        let (found, requests) = looked_for(2000, 1_000_000, 128).await;
        assert_eq!((found, requests), (HashSet::from([7]), 1 + 2000_usize.div_ceil(LOOKED_FOR_AT_ONCE)));
    }

    /// Cause: where members take fewer operations in a transaction than were sent in one, a transaction that replaced many keys with leases
    /// was refused for having too many of them itself.
    #[tokio::test]
    async fn leases_are_looked_for_as_many_at_once_as_members_take() {
        // One of 64 and one of 32 are refused, seven of 16 are not.
        assert_eq!(looked_for(100, 1, 20).await, (HashSet::from([7]), 2 + 7));
        assert_eq!(looked_for(3, 1, 1).await.1, 1 + 3);
    }

    /// Which of the leases from 1 to `leases` are found in a namespace with `count`, and what it costs, at a member that takes `ops_max`
    /// operations in a transaction.
    async fn looked_for(leases: i64, count: i64, ops_max: usize) -> (HashSet<i64>, usize) {
        const MARKER: &str = "\0watershed/lease/612f/0000000000000007";
        let asks_for_it = |op: &RequestOp| match &op.request {
            Some(request_op::Request::RequestRange(range)) => range.key == MARKER,
            _ => false,
        };
        let member = FakeMember::start(move |received| {
            let found = RangeResponse {
                kvs: vec![KeyValue { key: MARKER.into(), ..Default::default() }],
                count,
                ..Default::default()
            };
            if received.path == "/etcdserverpb.KV/Range" {
                return Reply::Message(framed(&found).to_vec());
            }
            let txn = TxnRequest::decode(&received.body[PREFIX_BYTES..]).expect("a transaction");
            if txn.success.len() > ops_max {
                return Reply::Status(3, ApiError::TooManyOps.text());
            }
            let response = Some(response_op::Response::ResponseRange(found));
            let found = txn.success.iter().any(asks_for_it).then_some(ResponseOp { response });
            let answer = TxnResponse { responses: found.into_iter().collect(), ..Default::default() };
            Reply::Message(framed(&answer).to_vec())
        })
        .await;
        let own = before(vec![member.endpoint.clone()], "a/", &KnownLeases::default(), Arc::default());
        let found = own.own_of(1..=leases, &MetadataMap::new()).await.expect("an answer");
        let requests = member.received().len();
        member.stop();
        (found, requests)
    }

    #[tokio::test]
    async fn what_is_known_of_a_namespace_is_known_on_all_threads_and_of_no_other() {
        let known = KnownLeases::default();
        let [one, same, other] = ["a/", "a/", "b/"].map(|namespace| ownership(namespace, &known));
        one.trust(1, Instant::now() + TRUST);
        assert!(one.is_known(1) && same.is_known(1));
        assert!(!one.is_known(2) && !other.is_known(1));
        same.forget(1);
        assert!(!one.is_known(1));
    }

    /// Cause: a lease was trusted for 30 s whatever its TTL, so that one that had ended, and whose id another namespace had chosen for a
    /// lease of its own, was still taken for the first one's.
    #[tokio::test(start_paused = true)]
    async fn a_lease_is_not_trusted_beyond_its_ttl() {
        let known = KnownLeases::default();
        let [one, other] = ["a/", "b/"].map(|namespace| ownership(namespace, &known));
        one.trust(100, Instant::now() + trust_of(b"1"));
        tokio::time::advance(Duration::from_millis(999)).await;
        assert!(one.is_known(100) && !other.is_known(100));
        tokio::time::advance(Duration::from_millis(1)).await;
        other.trust(100, Instant::now() + trust_of(b"1"));
        assert!(!one.is_known(100) && other.is_known(100));
        for (marker, seconds) in [("0", 0), ("29", 29), ("9000000000", 30), ("", 30), ("-1", 30)] {
            assert_eq!(trust_of(marker.as_bytes()).as_secs(), seconds, "{marker:?}");
        }
    }

    #[tokio::test]
    async fn trust_ends_and_memory_is_bounded() {
        let brief = ownership("a/", &KnownLeases::bounded(Duration::from_millis(1), KNOWN_BYTES_MAX));
        brief.trust(1, Instant::now() + TRUST);
        while brief.is_known(1) {
            std::thread::yield_now();
        }
        let entry_bytes = (ENTRY_BYTES + brief.markers.len()) as u64;
        let full = ownership("a/", &KnownLeases::bounded(TRUST, 100 * entry_bytes));
        for id in 0..10_000 {
            full.trust(id, Instant::now() + TRUST);
        }
        full.known.0.run_pending_tasks();
        assert!(full.known.0.weighted_size() <= 100 * entry_bytes);
        assert!((0..10_000).filter(|id| full.is_known(*id)).count() <= 100);
    }
}
