use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;

use super::header::PeekedHeader;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{RequestOp, TxnRequest};
use crate::pb::frame::{self, Prefix};

const RANGE: &str = "/etcdserverpb.KV/Range";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
const TXN: &str = "/etcdserverpb.KV/Txn";

/// The newest revision that one client was shown. Cheap to clone; in the extensions of a request it says that an answer
/// from keys must not be older.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<PeekedHeader>>);

impl Seen {
    /// Takes note of an answer's header. A header of another cluster replaces what is known.
    pub fn show(&self, header: PeekedHeader) {
        let mut newest = self.0.lock();
        if header.cluster_id != newest.cluster_id || header.revision > newest.revision {
            *newest = header;
        }
    }

    /// The header of the newest answer; zeros before the first.
    pub fn newest(&self) -> PeekedHeader {
        *self.0.lock()
    }
}

/// The one field of a `RangeRequest` that matters here.
#[derive(Clone, PartialEq, Message)]
struct Serializable {
    #[prost(bool, tag = "7")]
    serializable: bool,
}

/// What a request reads, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// From whatever the member has; the header is this many fields deep in the answer.
    SerializableRange {
        /// Whether answers are of RangeStream, which wraps what Range answers.
        stream: bool,
    },
    /// Perhaps from whatever the member has.
    Txn,
    /// Nothing that could be old.
    Other,
}

impl Reads {
    /// A compressed request is not looked into.
    pub(super) fn of(path: &str, framed: &Bytes) -> Self {
        let stream = path == RANGE_STREAM;
        if path == TXN {
            return Self::Txn;
        }
        let is_serializable = || {
            message_of(framed).is_some_and(|range| Serializable::decode(range).is_ok_and(|range| range.serializable))
        };
        if (stream || path == RANGE) && is_serializable() { Self::SerializableRange { stream } } else { Self::Other }
    }

    /// The same request with an answer that is never old; none when its answer never was.
    pub(super) fn linearizable(self, framed: &Bytes) -> Option<Bytes> {
        let message = message_of(framed)?;
        match self {
            Self::SerializableRange { .. } => {
                // The last value of a field counts.
                let linearizable: &[u8] = &[7 << 3, 0];
                let mut out = BytesMut::with_capacity(framed.len() + linearizable.len());
                out.put_slice(&Prefix::plain(message.len() + linearizable.len()));
                out.put_slice(message);
                out.put_slice(linearizable);
                Some(out.freeze())
            }
            Self::Txn => {
                let mut txn = TxnRequest::decode(message).ok()?;
                make_linearizable(&mut txn).then(|| frame::framed(&txn))
            }
            Self::Other => None,
        }
    }
}

fn message_of(framed: &Bytes) -> Option<&[u8]> {
    Prefix::split(framed).filter(|(prefix, _)| prefix.is_plain()).map(|(_, message)| message)
}

/// Whether it only reads, and now reads what everybody agrees on.
fn make_linearizable(txn: &mut TxnRequest) -> bool {
    txn.success.iter_mut().chain(&mut txn.failure).all(|RequestOp { request }| match request {
        Some(Request::RequestRange(range)) => {
            range.serializable = false;
            true
        }
        Some(Request::RequestTxn(txn)) => make_linearizable(txn),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => false,
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::framed;
    use crate::pb::etcdserverpb::{PutRequest, RangeRequest};

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    #[test]
    fn a_serializable_range_becomes_a_linearizable_one() {
        let range = RangeRequest { key: "k".into(), limit: 3, serializable: true, ..Default::default() };
        let request = framed(&range);
        for (path, stream) in [(RANGE, false), (RANGE_STREAM, true)] {
            let reads = Reads::of(path, &request);
            assert_eq!(reads, Reads::SerializableRange { stream });
            let again = reads.linearizable(&request).unwrap();
            assert_eq!(Reads::of(path, &again), Reads::Other);
            let decoded = RangeRequest::decode(message_of(&again).unwrap()).unwrap();
            assert_eq!(decoded, RangeRequest { serializable: false, ..range.clone() });
        }
        assert_eq!(Reads::of("/etcdserverpb.KV/Put", &request), Reads::Other);
    }

    #[test]
    fn a_transaction_that_only_reads_becomes_linearizable_and_no_other_is_sent_again() {
        let range = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
        let inner = TxnRequest { failure: vec![op(Request::RequestRange(range.clone()))], ..Default::default() };
        let reads = TxnRequest { success: vec![op(Request::RequestTxn(inner))], ..Default::default() };
        let again = Reads::Txn.linearizable(&framed(&reads)).unwrap();
        assert!(!format!("{:?}", TxnRequest::decode(&again[5..]).unwrap()).contains("serializable: true"));
        let put = op(Request::RequestPut(PutRequest::default()));
        let writes = TxnRequest { success: vec![op(Request::RequestRange(range)), put], ..Default::default() };
        assert_eq!(Reads::Txn.linearizable(&framed(&writes)), None);
    }

    #[test]
    fn a_rebuilt_cluster_begins_anew() {
        let seen = Seen::default();
        let header = |cluster_id, revision| PeekedHeader { cluster_id, revision };
        seen.show(header(1, 9));
        seen.show(header(1, 4));
        assert_eq!(seen.newest(), header(1, 9));
        seen.show(header(2, 3));
        assert_eq!(seen.newest(), header(2, 3));
    }
}
