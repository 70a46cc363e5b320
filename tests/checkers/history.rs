use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Time of the one clock of a history, in nanoseconds from any start.
pub type Nanos = u64;

/// What clients asked and saw. The store was empty, at revision 1, when it began.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// Seed, scenario and whatever else helps to run it again.
    pub notes: BTreeMap<String, String>,
    /// In any order.
    pub operations: Vec<Operation>,
    /// One entry per watch; a resumed watch is an entry of its own.
    pub watches: Vec<WatchRecord>,
}

impl History {
    /// Writes it as JSON.
    ///
    /// # Errors
    /// As writing a file.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// As reading a file, and when it is no history.
    pub fn load(path: &Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }
}

/// One request of a client and what became of it. A client has one at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked.
    pub client: u32,
    /// Which member was asked; for reading the history only.
    pub member: u32,
    /// When the request was sent.
    pub invoked: Nanos,
    /// When the answer arrived, or the client gave up.
    pub returned: Nanos,
    /// What was asked.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Writes one key.
    Put {
        key: String,
        /// Its value, unique within a history: it identifies the write.
        value: String,
        /// Lease to attach; 0 is none.
        lease: i64,
        /// Whether the answer holds what was there before.
        prev_kv: bool,
    },
    /// Deletes keys.
    Delete {
        /// First key.
        key: String,
        /// As on the wire: empty for one key, one zero byte for "to the end".
        range_end: String,
        /// Whether the answer holds what was there before.
        prev_kv: bool,
    },
    /// All or nothing. The operations are puts, deletes, ranges and transactions.
    Txn {
        /// All must hold for `success`.
        compares: Vec<Compare>,
        /// Done when they hold.
        success: Vec<Request>,
        /// Done when one does not.
        failure: Vec<Request>,
    },
    /// Reads.
    Range(RangeQuery),
    /// Grants a lease.
    Grant {
        /// Wanted id; 0 lets the server choose.
        id: i64,
        ttl: i64,
    },
    /// Ends a lease and deletes its keys.
    Revoke { id: i64 },
    /// Renews a lease.
    KeepAlive { id: i64 },
    /// Asks how long a lease has.
    TimeToLive { id: i64 },
    /// Compacts.
    Compact {
        /// Oldest revision kept.
        revision: i64,
    },
}

/// A read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RangeQuery {
    /// First key.
    pub key: String,
    /// As on the wire.
    pub range_end: String,
    /// Revision to read at; 0 is the newest.
    pub revision: i64,
    /// Most keys wanted; 0 is all.
    pub limit: i64,
    /// Whether any state the member had will do.
    pub serializable: bool,
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    pub key: String,
    /// What of it, and with what to compare.
    pub target: CompareTarget,
    /// What must hold.
    pub comparison: Comparison,
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CompareTarget {
    /// Writes since its creation.
    Version(i64),
    /// Revision of its creation.
    Create(i64),
    /// Revision of its last write.
    Mod(i64),
    /// The value; never holds for a missing key.
    Value(String),
}

/// How a condition compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `<`
    Less,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was answered.
    Done {
        /// The revision in the header.
        revision: i64,
        /// The rest.
        body: Body,
    },
    /// It was refused and has no effect, now or later.
    Refused {
        /// Code and text.
        reason: String,
    },
    /// Nobody knows: it may take effect at any time after it was sent, or never.
    Unknown,
}

/// The part of an answer after the header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Of a put.
    Put {
        /// What was there before, when asked for.
        previous: Option<Kv>,
    },
    /// Of a delete.
    Delete {
        /// Number of keys deleted.
        deleted: i64,
        /// What was there before, when asked for.
        previous: Vec<Kv>,
    },
    /// Of a transaction.
    Txn {
        /// Whether the conditions held.
        succeeded: bool,
        /// One for each operation done.
        bodies: Vec<Body>,
    },
    /// Of a read.
    Range {
        /// The keys, in order.
        kvs: Vec<Kv>,
        /// How many there are without the limit.
        count: i64,
        /// Whether the limit cut some off.
        more: bool,
    },
    /// Of a grant.
    Granted {
        id: i64,
        /// Seconds granted.
        ttl: i64,
    },
    /// Of a revoke.
    Revoked,
    /// Of a keep-alive.
    KeptAlive {
        /// Seconds it has again; 0 or less when the lease is gone.
        ttl: i64,
    },
    /// Of a question about a lease.
    TimeToLive {
        /// Seconds left; negative when the lease is gone.
        ttl: i64,
    },
    /// Of a compaction.
    Compacted,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Kv {
    pub key: String,
    /// Its value.
    pub value: String,
    /// Revision of its creation.
    pub create_revision: i64,
    /// Revision of its last write.
    pub mod_revision: i64,
    /// Writes since its creation.
    pub version: i64,
    /// Lease attached; 0 is none.
    pub lease: i64,
}

/// One watch on one stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WatchRecord {
    /// Who watched.
    pub client: u32,
    /// Which member was asked; for reading the history only.
    pub member: u32,
    /// First key.
    pub key: String,
    /// As on the wire.
    pub range_end: String,
    /// First revision wanted; 0 is "from now".
    pub start_revision: i64,
    /// Whether this goes on where another watch broke off.
    pub resumes: bool,
    /// Whether events carry what was there before.
    pub prev_kv: bool,
    /// Whether puts are left out.
    pub no_put: bool,
    /// Whether deletes are left out.
    pub no_delete: bool,
    /// Whether the events of one revision may come in pieces.
    pub fragment: bool,
    /// The watch was left running until it must have seen everything up to this revision.
    pub complete_to: Option<i64>,
    /// What arrived, in order.
    pub answers: Vec<WatchAnswer>,
}

/// One answer of a watch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WatchAnswer {
    /// When it arrived.
    pub received: Nanos,
    /// The revision in the header.
    pub revision: i64,
    /// The rest.
    pub message: WatchMessage,
}

/// What a watch was told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WatchMessage {
    /// The watch exists.
    Created,
    /// Something happened.
    Events {
        /// What.
        events: Vec<Event>,
        /// Whether the rest of the revision follows in the next answer.
        fragment: bool,
    },
    /// Nothing more up to the revision in the header.
    Progress,
    /// The watch has ended.
    Cancelled {
        /// Set when what it wants was compacted.
        compact_revision: i64,
        /// In words.
        reason: String,
    },
}

/// A change of one key as a watch sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Whether the key was deleted; `kv` holds only key and revision then.
    pub deleted: bool,
    /// The key after the change.
    pub kv: Kv,
    /// The key before the change, when asked for.
    pub previous: Option<Kv>,
}
