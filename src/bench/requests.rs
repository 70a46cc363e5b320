use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::args::{Common, Consistency, KeyArgs, MixedArgs, PutArgs, RangeArgs, TxnPutArgs};
use super::wire::{CallError, Route, frame};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::types::KeyRange;

/// Where the requests of a run come from.
pub(super) trait Source: Send + Sync + 'static {
    /// Request number `index`, ready to send.
    fn request(&self, index: u64, random: &mut fastrand::Rng) -> (Route, Bytes);

    /// Hears whether request number `index` was answered well.
    fn ended(&self, _index: u64, _well: bool) {}
}

/// Keys of a run: decimal numbers, filled up with zeros in front.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    size: usize,
    space: u64,
    sequential: bool,
    value: Bytes,
}

impl Keys {
    pub(super) fn new(args: &KeyArgs) -> Result<Self, CallError> {
        let size = args.key_size as usize;
        let digits = (args.key_space_size - 1).checked_ilog10().map_or(1, |log| log as usize + 1);
        if digits > size {
            let text = format!(
                "--key-size {size} is too short for --key-space-size {}: keys are numbers and need {digits} bytes",
                args.key_space_size
            );
            return Err(CallError(text));
        }
        let mut value = vec![0; args.val_size as usize];
        fastrand::Rng::with_seed(1).fill(&mut value);
        Ok(Self { size, space: args.key_space_size, sequential: args.sequential_keys, value: value.into() })
    }

    fn key(&self, index: u64, random: &mut fastrand::Rng) -> Bytes {
        let number = if self.sequential { index % self.space } else { random.u64(0..self.space) };
        self.numbered(number)
    }

    fn numbered(&self, number: u64) -> Bytes {
        format!("{number:0width$}", width = self.size).into()
    }

    fn put(&self, key: Bytes) -> PutRequest {
        PutRequest { key, value: self.value.clone(), ..Default::default() }
    }
}

/// `put`.
pub(super) struct Puts(Keys);

impl Puts {
    pub(super) fn new(args: &PutArgs) -> Result<Self, CallError> {
        Ok(Self(Keys::new(&args.keys)?))
    }
}

impl Source for Puts {
    fn request(&self, index: u64, random: &mut fastrand::Rng) -> (Route, Bytes) {
        (Route::Put, frame(&self.0.put(self.0.key(index, random))))
    }
}

/// `range`: the same bytes every time.
pub(super) struct Ranges(Bytes);

impl Ranges {
    pub(super) fn new(args: &RangeArgs) -> Self {
        let key = Bytes::from(args.key.clone());
        let range = match &args.end_range {
            _ if args.prefix => KeyRange::prefix(key),
            Some(end) => KeyRange::from_wire(key, end.clone().into()),
            None => KeyRange::One(key),
        };
        let (key, range_end) = range.to_wire();
        Self(frame(&RangeRequest {
            key,
            range_end,
            limit: args.limit,
            serializable: args.consistency == Consistency::Serializable,
            keys_only: args.keys_only,
            count_only: args.count_only,
            ..Default::default()
        }))
    }
}

impl Source for Ranges {
    fn request(&self, _: u64, _: &mut fastrand::Rng) -> (Route, Bytes) {
        (Route::Range, self.0.clone())
    }
}

/// `txn-put`: keys in turns, so that none is written twice in a transaction.
pub(super) struct TxnPuts {
    keys: Keys,
    ops: u64,
}

impl TxnPuts {
    pub(super) fn new(args: &TxnPutArgs) -> Result<Self, CallError> {
        let keys = Keys::new(&args.keys)?;
        let ops = u64::from(args.txn_ops);
        if ops > keys.space {
            let text = format!(
                "--txn-ops {ops} needs --key-space-size {ops} at least: a transaction may write a key only once"
            );
            return Err(CallError(text));
        }
        Ok(Self { keys, ops })
    }
}

impl Source for TxnPuts {
    fn request(&self, index: u64, _: &mut fastrand::Rng) -> (Route, Bytes) {
        let first = index.wrapping_mul(self.ops);
        let put = |at| self.keys.put(self.keys.numbered(first.wrapping_add(at) % self.keys.space));
        let op = |at| RequestOp { request: Some(Request::RequestPut(put(at))) };
        (Route::Txn, frame(&TxnRequest { success: (0..self.ops).map(op).collect(), ..Default::default() }))
    }
}

/// `mixed`: reads and writes of single keys.
pub(super) struct Mixed {
    keys: Keys,
    /// Share of reads.
    reads: f64,
    serializable: bool,
}

impl Mixed {
    pub(super) fn new(args: &MixedArgs) -> Result<Self, CallError> {
        Ok(Self {
            keys: Keys::new(&args.keys)?,
            reads: args.rw_ratio / (1.0 + args.rw_ratio),
            serializable: args.consistency == Consistency::Serializable,
        })
    }
}

impl Source for Mixed {
    fn request(&self, index: u64, random: &mut fastrand::Rng) -> (Route, Bytes) {
        let key = self.keys.key(index, random);
        if random.f64() < self.reads {
            (Route::Range, frame(&RangeRequest { key, serializable: self.serializable, ..Default::default() }))
        } else {
            (Route::Put, frame(&self.keys.put(key)))
        }
    }
}

/// What a closed or open loop of single requests needs.
pub(super) struct Job {
    pub(super) source: Arc<dyn Source>,
    pub(super) clients: u32,
    pub(super) total: u64,
    pub(super) limit: Option<Duration>,
    pub(super) rate: Option<f64>,
}

impl Job {
    pub(super) fn new(common: &Common, source: impl Source) -> Self {
        Self {
            source: Arc::new(source),
            clients: common.clients,
            total: common.total,
            limit: common.limit(),
            rate: common.rate(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn keys(key_size: u32, key_space_size: u64, sequential_keys: bool) -> Result<Keys, CallError> {
        Keys::new(&KeyArgs { key_size, val_size: 4, key_space_size, sequential_keys })
    }

    #[test]
    fn keys_have_their_size_and_stay_in_their_space() {
        let mut random = fastrand::Rng::with_seed(7);
        let turns = keys(8, 3, true).unwrap();
        let found: Vec<Bytes> = (0..4).map(|index| turns.key(index, &mut random)).collect();
        assert_eq!(found, ["00000000", "00000001", "00000002", "00000000"]);
        let any = keys(3, 1000, false).unwrap();
        for index in 0..100 {
            assert_eq!(any.key(index, &mut random).len(), 3);
        }
        assert!(keys(3, 1001, false).unwrap_err().0.starts_with("--key-size 3 is too short"));
        assert!(keys(1, 1, false).is_ok());
    }

    #[test]
    fn a_transaction_never_writes_a_key_twice() {
        let puts = TxnPuts { keys: keys(2, 4, false).unwrap(), ops: 3 };
        for index in [0, 1, u64::MAX] {
            let (route, wire) = puts.request(index, &mut fastrand::Rng::with_seed(1));
            let txn = TxnRequest::decode(wire.slice(5..)).unwrap();
            let mut keys: Vec<Bytes> = txn
                .success
                .into_iter()
                .map(|op| match op.request {
                    Some(Request::RequestPut(put)) => put.key,
                    other => panic!("{other:?}"),
                })
                .collect();
            keys.sort();
            keys.dedup();
            assert_eq!((route, keys.len()), (Route::Txn, 3));
        }
    }

    #[test]
    fn the_ratio_of_reads_and_writes_holds() {
        let mixed = Mixed { keys: keys(8, 100, false).unwrap(), reads: 0.75, serializable: false };
        let mut random = fastrand::Rng::with_seed(3);
        let reads = (0..10_000).filter(|&index| mixed.request(index, &mut random).0 == Route::Range).count();
        assert!((7_300..7_700).contains(&reads), "{reads}");
    }
}
