use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use parking_lot::Mutex;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::keys::Namespace;
use crate::client::Channel;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse, ResponseHeader};
use crate::proxy::lease::{LeaseOwnership, Owner};
use crate::types::KeyRange;

/// Keys the proxy keeps for itself. No namespace may begin with a zero byte, so no tenant reaches them.
const MARKERS: &[u8] = b"\0watershed/lease/";
/// A lease is taken for the tenant's without asking again for one to two of these.
const TRUST: Duration = Duration::from_secs(15);
/// Leases remembered, at most twice this.
const KNOWN_MAX: usize = 64 * 1024;

/// Which leases belong to a namespace. The cluster itself knows: each lease granted through the namespace holds a
/// marker key, `\0watershed/lease/<prefix in hex>/<id in hex>`, that goes when the lease goes. This keeps only what it
/// read a moment ago.
pub(super) struct Ownership {
    kv: KvClient<Channel>,
    markers: Bytes,
    known: Mutex<Known>,
}

/// Two generations: the older one is dropped whole, so nothing is remembered for longer than two turns.
struct Known {
    young: HashSet<i64>,
    old: HashSet<i64>,
    turned: Instant,
}

/// Whether a lease belongs to the namespace, and the header of the answer that showed it.
pub(super) struct Found {
    pub(super) own: bool,
    pub(super) header: ResponseHeader,
}

impl Ownership {
    pub(super) fn new(kv: KvClient<Channel>, namespace: &Namespace) -> Self {
        let mut markers = BytesMut::from(MARKERS);
        for byte in namespace.prefix() {
            markers.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        markers.extend_from_slice(b"/");
        let known = Known { young: HashSet::new(), old: HashSet::new(), turned: Instant::now() };
        Self { kv, markers: markers.freeze(), known: Mutex::new(known) }
    }

    /// Marks a lease that was just granted.
    pub(super) async fn mark(&self, id: i64, metadata: &MetadataMap) -> Result<(), Status> {
        let put = PutRequest { key: self.marker(id), lease: id, ..Default::default() };
        self.kv.clone().put(with(metadata, put)).await?;
        self.known.lock().add(id, Instant::now());
        Ok(())
    }

    /// Asks the cluster whether the lease belongs to the namespace.
    pub(super) async fn look(&self, id: i64, metadata: &MetadataMap) -> Result<Found, Status> {
        let range = RangeRequest { key: self.marker(id), keys_only: true, ..Default::default() };
        let answer = self.kv.clone().range(with(metadata, range)).await?.into_inner();
        let own = !answer.kvs.is_empty();
        let mut known = self.known.lock();
        if own {
            known.add(id, Instant::now());
        } else {
            known.forget(id);
        }
        Ok(Found { own, header: answer.header.unwrap_or_default() })
    }

    /// As [`look`](Self::look), but satisfied with what was read a moment ago.
    pub(super) async fn is_own(&self, id: i64, metadata: &MetadataMap) -> Result<bool, Status> {
        if self.is_known(id) {
            return Ok(true);
        }
        Ok(self.look(id, metadata).await?.own)
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

    pub(super) fn forget(&self, id: i64) {
        self.known.lock().forget(id);
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
pub(super) struct OwnLeases(pub(super) std::sync::Arc<Ownership>);

impl LeaseOwnership for OwnLeases {
    fn is_known(&self, id: i64) -> bool {
        self.0.is_known(id)
    }

    fn check(&self, id: i64, metadata: HeaderMap) -> Pin<Box<dyn Future<Output = Result<Owner, Status>> + Send>> {
        let ownership = self.0.clone();
        Box::pin(async move {
            let found = ownership.look(id, &MetadataMap::from_headers(metadata)).await?;
            Ok(if found.own { Owner::Tenant } else { Owner::Other(found.header) })
        })
    }
}

impl Ownership {
    fn is_known(&self, id: i64) -> bool {
        self.known.lock().has(id, Instant::now())
    }
}

impl Known {
    fn add(&mut self, id: i64, now: Instant) {
        self.turn(now);
        self.young.insert(id);
    }

    fn has(&mut self, id: i64, now: Instant) -> bool {
        self.turn(now);
        self.young.contains(&id) || self.old.contains(&id)
    }

    fn forget(&mut self, id: i64) {
        self.young.remove(&id);
        self.old.remove(&id);
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.turned);
        if age >= TRUST || self.young.len() >= KNOWN_MAX {
            self.old = std::mem::take(&mut self.young);
            if age >= 2 * TRUST {
                self.old.clear();
            }
            self.turned = now;
        }
    }
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
    use super::*;

    #[test]
    fn trust_ends_and_memory_is_bounded() {
        let start = Instant::now();
        let mut known = Known { young: HashSet::new(), old: HashSet::new(), turned: start };
        known.add(1, start);
        assert!(known.has(1, start + TRUST));
        assert!(!known.has(1, start + TRUST * 2), "two turns later it is asked for again");
        known.add(2, start + TRUST * 2);
        assert!(!known.has(2, start + TRUST * 9), "a long pause counts as two turns");
        for id in 0..10 * KNOWN_MAX as i64 {
            known.add(id, start + TRUST * 9);
        }
        assert!(known.young.len() + known.old.len() <= 2 * KNOWN_MAX);
        known.forget(5);
        assert!(!known.has(5, start + TRUST * 9));
    }
}
