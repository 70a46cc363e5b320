use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use prost::Message;

use super::LeaseError;
use crate::core::backend::{Backend, Change, Table};
use crate::pb::leasepb;
use crate::types::{Key, LeaseId};

/// Longest time to live that may be granted.
pub const TTL_MAX_SECONDS: i64 = 9_000_000_000;

/// One lease as all members know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// Seconds granted, at least the member's minimum.
    pub granted_ttl: i64,
    /// Seconds that were left at the last checkpoint; 0 when there was none since the last renewal.
    pub remaining_ttl: i64,
}

/// The result of a grant.
#[derive(Debug)]
pub struct Granted {
    /// The new lease.
    pub lease: Lease,
    /// Its row.
    pub change: Change,
}

/// The result of a revocation.
#[derive(Debug)]
pub struct Revoked {
    /// Keys that were attached to the lease, in ascending order; apply deletes them in one revision.
    pub keys: Vec<Key>,
    /// The row's deletion.
    pub change: Change,
}

/// The leases and their keys; owned by apply.
///
/// The maps are unordered for speed; no result depends on their order.
#[derive(Debug, Default)]
pub struct LeaseStore {
    leases: HashMap<LeaseId, Entry>,
    min_ttl: i64,
}

#[derive(Debug)]
struct Entry {
    granted_ttl: i64,
    remaining_ttl: i64,
    /// Most leases of a large fleet hold few keys or none. Copies, so that no key keeps a value alive.
    #[expect(clippy::box_collection, reason = "an empty lease pays 8 bytes instead of 48")]
    keys: Option<Box<HashSet<Box<[u8]>>>>,
}

impl LeaseStore {
    /// No leases. Shorter times to live are raised to `min_ttl_seconds`: one and a half election timeouts, rounded up.
    pub fn new(min_ttl_seconds: i64) -> Self {
        Self { leases: HashMap::new(), min_ttl: min_ttl_seconds }
    }

    /// Reads the stored leases. Their keys are not stored with them: the caller attaches every live key that names a
    /// lease, with [`attach`](Self::attach).
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn open(backend: &Backend, min_ttl_seconds: i64) -> Result<Self, LeaseError> {
        let mut store = Self::new(min_ttl_seconds);
        for (row, value) in backend.rows(Table::Lease)? {
            let Ok(stored) = leasepb::Lease::decode(value) else {
                return Err(LeaseError::Corrupt { row: row.to_vec() });
            };
            let entry =
                Entry { granted_ttl: stored.ttl.max(min_ttl_seconds), remaining_ttl: stored.remaining_ttl, keys: None };
            store.leases.insert(LeaseId(stored.id), entry);
        }
        Ok(store)
    }

    /// What shorter times to live are raised to.
    pub fn min_ttl(&self) -> i64 {
        self.min_ttl
    }

    /// What a request for this time to live is proposed with, so that every member grants what the client is told.
    pub fn ttl_to_propose(&self, ttl_seconds: i64) -> i64 {
        ttl_seconds.max(self.min_ttl)
    }

    /// Adds a lease. The server has picked an id before proposing if the client left that to it.
    ///
    /// A time to live below the minimum comes from a member with a shorter election timeout, or from one of an older version,
    /// which proposed what the client asked for and told it the minimum. Entries of the two cannot be told apart, so it is
    /// raised: a lease may last longer than its client was told, but never ends earlier.
    ///
    /// # Errors
    /// In this order: id 0, a time to live above [`TTL_MAX_SECONDS`], an id in use.
    pub fn grant(&mut self, id: LeaseId, ttl_seconds: i64) -> Result<Granted, LeaseError> {
        if id == LeaseId(0) {
            return Err(LeaseError::NotFound { lease: id });
        }
        if ttl_seconds > TTL_MAX_SECONDS {
            return Err(LeaseError::TtlTooLarge { ttl_seconds });
        }
        if self.exists(id) {
            return Err(LeaseError::Exists { lease: id });
        }
        let lease = Lease { id, granted_ttl: ttl_seconds.max(self.min_ttl), remaining_ttl: 0 };
        self.leases.insert(id, Entry { granted_ttl: lease.granted_ttl, remaining_ttl: 0, keys: None });
        Ok(Granted { lease, change: row(&lease) })
    }

    /// Removes a lease.
    ///
    /// # Errors
    /// No such lease.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Revoked, LeaseError> {
        let entry = self.leases.remove(&id).ok_or(LeaseError::NotFound { lease: id })?;
        let mut keys: Vec<Key> = entry.keys.into_iter().flat_map(|keys| *keys).map(Key::from).collect();
        keys.sort_unstable();
        Ok(Revoked { keys, change: Change::delete(Table::Lease, row_key(id)) })
    }

    /// Records the remaining time of a lease, for the next leader; 0 after a renewal. Ignores an unknown lease: it was
    /// revoked meanwhile.
    pub fn checkpoint(&mut self, id: LeaseId, remaining_ttl_seconds: i64) -> Option<Change> {
        let entry = self.leases.get_mut(&id)?;
        entry.remaining_ttl = remaining_ttl_seconds;
        Some(row(&Lease { id, granted_ttl: entry.granted_ttl, remaining_ttl: remaining_ttl_seconds }))
    }

    /// Moves a key from one lease to another; id 0 stands for none, and leases that do not exist are ignored.
    pub fn move_key(&mut self, key: &[u8], from: LeaseId, to: LeaseId) {
        if let Some(entry) = self.leases.get_mut(&from)
            && let Some(keys) = &mut entry.keys
        {
            keys.remove(key);
            if keys.is_empty() {
                entry.keys = None;
            }
        }
        self.attach(key, to);
    }

    /// Attaches a key to a lease, if that exists.
    pub fn attach(&mut self, key: &[u8], to: LeaseId) {
        if let Some(entry) = self.leases.get_mut(&to) {
            entry.keys.get_or_insert_default().insert(key.into());
        }
    }

    /// Whether the lease was granted and not revoked.
    pub fn exists(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// Looks a lease up.
    pub fn get(&self, id: LeaseId) -> Option<Lease> {
        let entry = self.leases.get(&id)?;
        Some(Lease { id, granted_ttl: entry.granted_ttl, remaining_ttl: entry.remaining_ttl })
    }

    /// The keys of a lease, in no order; nothing for a lease that does not exist.
    pub fn keys(&self, id: LeaseId) -> impl Iterator<Item = &[u8]> {
        let keys = self.leases.get(&id).and_then(|entry| entry.keys.as_ref());
        keys.into_iter().flat_map(|keys| keys.iter().map(Box::as_ref))
    }

    /// How many keys a lease has; 0 for a lease that does not exist.
    pub fn key_count(&self, id: LeaseId) -> usize {
        self.leases.get(&id).and_then(|entry| entry.keys.as_ref()).map_or(0, |keys| keys.len())
    }

    /// The leases that have keys, in no order.
    pub fn with_keys(&self) -> Vec<LeaseId> {
        self.leases.iter().filter(|(_, entry)| entry.keys.is_some()).map(|(&id, _)| id).collect()
    }

    /// All leases by ascending id.
    pub fn all(&self) -> Vec<Lease> {
        let mut all: Vec<Lease> = self.leases.keys().filter_map(|&id| self.get(id)).collect();
        all.sort_unstable_by_key(|lease| lease.id);
        all
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

fn row(lease: &Lease) -> Change {
    let stored = leasepb::Lease { id: lease.id.0, ttl: lease.granted_ttl, remaining_ttl: lease.remaining_ttl };
    Change::put(Table::Lease, row_key(lease.id), stored.encode_to_vec())
}

fn row_key(id: LeaseId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backend::ChangeSet;

    #[test]
    fn grants_are_checked_in_etcds_order() {
        let mut store = LeaseStore::new(2);
        assert!(matches!(store.grant(LeaseId(0), TTL_MAX_SECONDS + 1), Err(LeaseError::NotFound { .. })));
        for (id, ttl, granted) in [(1, 60, 60), (-1, 0, 2), (i64::MIN, -5, 2), (7, TTL_MAX_SECONDS, TTL_MAX_SECONDS)] {
            assert_eq!(store.grant(LeaseId(id), ttl).unwrap().lease.granted_ttl, granted);
        }
        assert!(matches!(store.grant(LeaseId(1), TTL_MAX_SECONDS + 1), Err(LeaseError::TtlTooLarge { .. })));
        assert!(matches!(store.grant(LeaseId(1), 1), Err(LeaseError::Exists { lease: LeaseId(1) })));
        assert!(matches!(store.revoke(LeaseId(2)), Err(LeaseError::NotFound { .. })));
        assert_eq!(store.all().iter().map(|lease| lease.id.0).collect::<Vec<_>>(), [i64::MIN, -1, 1, 7]);
    }

    // The members raised the time to live when they applied the entry, each to its own minimum: a client of the one with the
    // longer election timeout was told 15 s, and the leader ended its lease after 5.
    #[test]
    fn the_minimum_of_the_member_that_was_asked_counts() {
        let (mut asked, mut leader) = (LeaseStore::new(15), LeaseStore::new(2));
        for (id, ttl, granted) in [(1, 5, 15), (2, 60, 60), (3, TTL_MAX_SECONDS, TTL_MAX_SECONDS)] {
            let proposed = asked.ttl_to_propose(ttl);
            for store in [&mut asked, &mut leader] {
                assert_eq!(store.grant(LeaseId(id), proposed).unwrap().lease.granted_ttl, granted);
            }
        }
    }

    #[test]
    fn a_key_hangs_on_one_lease_and_goes_with_it() {
        let mut store = LeaseStore::new(2);
        store.grant(LeaseId(1), 10).unwrap();
        store.grant(LeaseId(2), 10).unwrap();
        for key in ["b", "a", "c"] {
            store.move_key(key.as_bytes(), LeaseId(0), LeaseId(1));
        }
        store.move_key(b"a", LeaseId(1), LeaseId(2));
        store.move_key(b"x", LeaseId(2), LeaseId(9));
        assert_eq!([1, 2, 9].map(|id| store.key_count(LeaseId(id))), [2, 1, 0]);
        assert_eq!(store.keys(LeaseId(2)).collect::<Vec<_>>(), [b"a"]);
        let revoked = store.revoke(LeaseId(1)).unwrap();
        assert_eq!(revoked.keys, ["b", "c"]);
        store.move_key(b"b", LeaseId(1), LeaseId(0));
        store.move_key(b"a", LeaseId(2), LeaseId(0));
        assert_eq!(store.keys(LeaseId(2)).count() + store.keys(LeaseId(1)).count(), 0);
        assert!(store.revoke(LeaseId(2)).unwrap().keys.is_empty());
    }

    #[test]
    fn leases_come_back_from_their_rows() {
        let backend = Backend::in_memory().unwrap();
        let mut store = LeaseStore::new(2);
        let mut changes = Vec::new();
        for id in [-3, 4, 5] {
            changes.push(store.grant(LeaseId(id), 300).unwrap().change);
        }
        changes.push(store.checkpoint(LeaseId(4), 120).unwrap());
        changes.push(store.revoke(LeaseId(5)).unwrap().change);
        assert!(store.checkpoint(LeaseId(5), 1).is_none());
        backend.submit(ChangeSet { changes, ..Default::default() });
        let mut again = LeaseStore::open(&backend, 200).unwrap();
        assert_eq!(again.all(), store.all());
        again.attach(b"k", LeaseId(4));
        assert_eq!(again.revoke(LeaseId(4)).unwrap().keys, ["k"]);
        let stricter = LeaseStore::open(&backend, 400).unwrap();
        assert_eq!(stricter.get(LeaseId(-3)).unwrap().granted_ttl, 400);
    }
}
