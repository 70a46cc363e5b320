use std::collections::BTreeMap;

use super::history::{Body, Compare, CompareTarget, Comparison, Kv, RangeQuery, Request};

/// What one revision did to one key; none is a delete.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The key afterwards.
    pub kv: Option<Kv>,
}

/// What a request does to the store.
#[derive(Debug)]
pub struct Effect {
    /// In the order done; empty when nothing changes, then no revision is used.
    pub changes: Vec<Change>,
    /// The answer.
    pub body: Body,
}

/// A sequential store with all its history, which can be undone one revision at a time.
#[derive(Clone, Debug)]
pub struct Store {
    revision: i64,
    keys: BTreeMap<String, Vec<(i64, Option<Kv>)>>,
    /// The keys each revision touched, oldest first.
    touched: Vec<Vec<String>>,
}

impl Default for Store {
    fn default() -> Self {
        Self { revision: 1, keys: BTreeMap::new(), touched: Vec::new() }
    }
}

/// Whether `key` lies in a range as on the wire.
pub(super) fn covers(start: &str, range_end: &str, key: &str) -> bool {
    match range_end {
        "" => key == start,
        "\0" => key >= start,
        end => key >= start && key < end,
    }
}

impl Store {
    /// Newest revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The key as it was at a revision.
    pub fn get(&self, key: &str, revision: i64) -> Option<&Kv> {
        let versions = self.keys.get(key)?;
        let at = versions.partition_point(|(written, _)| *written <= revision);
        versions.get(at.checked_sub(1)?)?.1.as_ref()
    }

    /// The keys of a range as they were at a revision.
    pub fn range<'a>(&'a self, start: &str, range_end: &str, revision: i64) -> impl Iterator<Item = &'a Kv> {
        let (start, range_end) = (start.to_owned(), range_end.to_owned());
        self.keys
            .range(start.clone()..)
            .map(|(key, _)| key)
            .take_while(move |key| covers(&start, &range_end, key))
            .filter_map(move |key| self.get(key, revision))
    }

    /// The keys attached to a lease now.
    pub fn attached(&self, lease: i64) -> Vec<String> {
        self.range("", "\0", self.revision).filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect()
    }

    /// The leases that have keys now.
    pub fn leases(&self) -> Vec<i64> {
        let mut leases: Vec<i64> =
            self.range("", "\0", self.revision).map(|kv| kv.lease).filter(|&id| id != 0).collect();
        leases.sort_unstable();
        leases.dedup();
        leases
    }

    /// What a lease's end does.
    pub fn end_of_lease(&self, lease: i64) -> Vec<Change> {
        self.attached(lease).into_iter().map(|key| Change { key, kv: None }).collect()
    }

    /// Takes the next revision.
    pub fn apply(&mut self, changes: &[Change]) {
        self.revision += 1;
        for change in changes {
            self.keys.entry(change.key.clone()).or_default().push((self.revision, change.kv.clone()));
        }
        self.touched.push(changes.iter().map(|change| change.key.clone()).collect());
    }

    /// Takes the newest revision back.
    pub fn undo(&mut self) {
        for key in self.touched.pop().unwrap_or_default() {
            if let Some(versions) = self.keys.get_mut(&key) {
                versions.pop();
            }
        }
        self.revision -= 1;
    }

    /// What a request would do and answer now. Requests about leases and compactions change nothing here.
    pub fn execute(&self, request: &Request) -> Effect {
        let mut run = Run { store: self, changes: Vec::new() };
        let body = run.run(request);
        Effect { changes: run.changes, body }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.get(&compare.key, self.revision);
        let ordering = match &compare.target {
            CompareTarget::Version(wanted) => kv.map_or(0, |kv| kv.version).cmp(wanted),
            CompareTarget::Create(wanted) => kv.map_or(0, |kv| kv.create_revision).cmp(wanted),
            CompareTarget::Mod(wanted) => kv.map_or(0, |kv| kv.mod_revision).cmp(wanted),
            CompareTarget::Value(wanted) => match kv {
                Some(kv) => kv.value.cmp(wanted),
                None => return false,
            },
        };
        match compare.comparison {
            Comparison::Equal => ordering.is_eq(),
            Comparison::NotEqual => ordering.is_ne(),
            Comparison::Greater => ordering.is_gt(),
            Comparison::Less => ordering.is_lt(),
        }
    }
}

/// One request in execution: the store, and what the request changed so far.
struct Run<'a> {
    store: &'a Store,
    changes: Vec<Change>,
}

impl Run<'_> {
    /// The key as the request sees it now.
    fn get(&self, key: &str) -> Option<&Kv> {
        match self.changes.iter().rev().find(|change| change.key == key) {
            Some(change) => change.kv.as_ref(),
            None => self.store.get(key, self.store.revision),
        }
    }

    fn range(&self, start: &str, range_end: &str) -> Vec<Kv> {
        let mut kvs: BTreeMap<&str, &Kv> =
            self.store.range(start, range_end, self.store.revision).map(|kv| (kv.key.as_str(), kv)).collect();
        for change in self.changes.iter().filter(|change| covers(start, range_end, &change.key)) {
            match &change.kv {
                Some(kv) => kvs.insert(&change.key, kv),
                None => kvs.remove(change.key.as_str()),
            };
        }
        kvs.into_values().cloned().collect()
    }

    fn run(&mut self, request: &Request) -> Body {
        match request {
            Request::Put { key, value, lease, prev_kv } => {
                let before = self.get(key).cloned();
                let revision = self.store.revision + 1;
                let kv = Kv {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
                    mod_revision: revision,
                    version: before.as_ref().map_or(1, |kv| kv.version + 1),
                    lease: *lease,
                };
                self.changes.push(Change { key: key.clone(), kv: Some(kv) });
                Body::Put { previous: before.filter(|_| *prev_kv) }
            }
            Request::Delete { key, range_end, prev_kv } => {
                let gone = self.range(key, range_end);
                self.changes.extend(gone.iter().map(|kv| Change { key: kv.key.clone(), kv: None }));
                Body::Delete { deleted: gone.len() as i64, previous: if *prev_kv { gone } else { Vec::new() } }
            }
            Request::Txn { compares, success, failure } => {
                let succeeded = compares.iter().all(|compare| self.store.holds(compare));
                let branch = if succeeded { success } else { failure };
                Body::Txn { succeeded, bodies: branch.iter().map(|request| self.run(request)).collect() }
            }
            Request::Range(query) => self.read(query),
            Request::Grant { id, ttl } => Body::Granted { id: *id, ttl: *ttl },
            Request::Revoke { .. } => Body::Revoked,
            Request::KeepAlive { .. } => Body::KeptAlive { ttl: 0 },
            Request::TimeToLive { .. } => Body::TimeToLive { ttl: 0 },
            Request::Compact { .. } => Body::Compacted,
        }
    }

    fn read(&self, query: &RangeQuery) -> Body {
        let mut kvs = if query.revision > 0 {
            self.store.range(&query.key, &query.range_end, query.revision).cloned().collect()
        } else {
            self.range(&query.key, &query.range_end)
        };
        let count = kvs.len();
        if query.limit > 0 {
            kvs.truncate(query.limit as usize);
        }
        Body::Range { more: kvs.len() < count, count: count as i64, kvs }
    }
}
