//! The operations of a transaction, which may be transactions again.
//!
//! Written by hand for one reason: the decoder stops at 100 messages within one another, that is 48 transactions, and
//! etcd takes as many as `max-txn-ops` allows. Each operation starts that count anew, up to [`LEVELS`] operations
//! within one another, so that no message can use up the stack.

use std::cell::Cell;

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};

use super::etcdserverpb::Compare;
use super::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};

/// Transactions within one another that are decoded for certain; the decoder's own limit ends it some 50 further.
///
/// Above what any check lets through, so that a check refuses it in its own words.
pub const LEVELS: usize = 130;

thread_local! {
    /// Operations that are being decoded on this thread, each within the one before.
    static OPEN: Cell<usize> = const { Cell::new(0) };
}

/// Decodes something of one operation.
fn within<T>(context: DecodeContext, decode: impl FnOnce(DecodeContext) -> T) -> T {
    struct Leave(usize);
    impl Drop for Leave {
        fn drop(&mut self) {
            OPEN.set(self.0);
        }
    }
    let open = OPEN.get();
    let _leave = Leave(open);
    OPEN.set(open + 1);
    decode(if open < LEVELS { DecodeContext::default() } else { context })
}

/// Compares and operations of an encoded transaction, those of transactions within it included. Counting ends above `enough`, and
/// where the decoder will fail.
///
/// An operation of two bytes takes a hundred times as much memory once it is decoded, so they are counted before.
pub fn operations(transaction: &[u8], enough: usize) -> usize {
    let (mut count, mut left) = (0, vec![(true, transaction)]);
    while let Some((is_transaction, mut from)) = left.pop() {
        while !from.is_empty() && count <= enough {
            let Ok((tag, wire_type)) = decode_key(&mut from) else { return count };
            let counts = is_transaction && matches!(tag, 1..=3);
            if wire_type != WireType::LengthDelimited || !(counts || tag == 4 && !is_transaction) {
                if skip_field(wire_type, tag, &mut from, DecodeContext::default()).is_err() {
                    return count;
                }
                continue;
            }
            let length = decode_varint(&mut from).ok().and_then(|length| usize::try_from(length).ok());
            let Some((field, rest)) = length.and_then(|length| from.split_at_checked(length)) else { return count };
            from = rest;
            count += usize::from(counts);
            // A compare has none; an operation may be a transaction.
            if tag != 1 {
                left.push((!is_transaction, field));
            }
        }
    }
    count
}

impl Compare {
    /// Holds when the key was created at this revision.
    pub fn created_at(key: impl Into<Bytes>, revision: i64) -> Self {
        Self::created(key, CompareResult::Equal, revision)
    }

    /// Holds when the key does not exist.
    pub fn absent(key: impl Into<Bytes>) -> Self {
        Self::created_at(key, 0)
    }

    /// Holds when the key exists.
    pub fn exists(key: impl Into<Bytes>) -> Self {
        Self::created(key, CompareResult::Greater, 0)
    }

    fn created(key: impl Into<Bytes>, result: CompareResult, revision: i64) -> Self {
        Self {
            result: result.into(),
            target: CompareTarget::Create.into(),
            key: key.into(),
            target_union: Some(TargetUnion::CreateRevision(revision)),
            range_end: Bytes::new(),
        }
    }
}

macro_rules! operation {
    ($(#[$doc:meta])* $name:ident, $field:ident, $module:ident, $kind:ident, $($tag:literal $case:ident $message:ident),*) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            /// Which one it is.
            pub $field: Option<$module::$kind>,
        }

        #[allow(missing_docs)]
        pub mod $module {
            use crate::pb::etcdserverpb::*;

            #[derive(Clone, PartialEq, prost::Oneof)]
            pub enum $kind {
                $(#[prost(message, tag = $tag)] $case($message),)*
            }
        }

        impl Message for $name {
            fn encode_raw(&self, out: &mut impl BufMut) {
                if let Some(one) = &self.$field {
                    one.encode(out);
                }
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                from: &mut impl Buf,
                context: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    1..=4 => {
                        within(context, |context| $module::$kind::merge(&mut self.$field, tag, wire_type, from, context))
                    }
                    _ => skip_field(wire_type, tag, from, context),
                }
            }

            fn encoded_len(&self) -> usize {
                self.$field.as_ref().map_or(0, |one| one.encoded_len())
            }

            fn clear(&mut self) {
                self.$field = None;
            }
        }
    };
}

operation!(
    /// One operation of a transaction.
    RequestOp, request, request_op, Request,
    "1" RequestRange RangeRequest, "2" RequestPut PutRequest, "3" RequestDeleteRange DeleteRangeRequest,
    "4" RequestTxn TxnRequest
);
operation!(
    /// The answer to one operation of a transaction.
    ResponseOp, response, response_op, Response,
    "1" ResponseRange RangeResponse, "2" ResponsePut PutResponse, "3" ResponseDeleteRange DeleteRangeResponse,
    "4" ResponseTxn TxnResponse
);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::encoding::encode_varint;

    use super::*;
    use crate::pb::etcdserverpb::{InternalRaftRequest, PutRequest, TxnRequest, TxnResponse};

    /// A message whose field `outer` holds a message whose field `inner` holds the next, so many times.
    fn nested(levels: usize, outer: u8, inner: u8) -> Bytes {
        let mut bytes = Vec::new();
        for tag in [inner, outer].iter().cycle().take(2 * levels) {
            let mut around = vec![tag << 3 | 2];
            encode_varint(bytes.len() as u64, &mut around);
            around.append(&mut bytes);
            bytes = around;
        }
        bytes.into()
    }

    // Cause: the decoder's limit of 100 messages within one another, two for each transaction.
    #[test]
    fn transactions_are_decoded_as_deep_as_they_are_checked() {
        // Less stack than any thread of ours has.
        let small = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
            for levels in [1, 48, 49, 101, LEVELS] {
                let request = TxnRequest::decode(nested(levels, 2, 4)).expect("a transaction");
                assert_eq!(request.encode_to_vec(), nested(levels, 2, 4));
                let entry = InternalRaftRequest { txn: Some(request), ..Default::default() }.encode_to_vec();
                InternalRaftRequest::decode(entry.as_slice()).expect("what is proposed can be applied");
                TxnResponse::decode(nested(levels, 3, 4)).expect("an answer");
            }
            for levels in [300, 5_000, 100_000] {
                assert!(TxnRequest::decode(nested(levels, 2, 4)).is_err());
                assert!(TxnResponse::decode(nested(levels, 3, 4)).is_err());
            }
            TxnRequest::decode(nested(LEVELS, 2, 4)).expect("a refusal leaves nothing behind");
        });
        small.expect("a thread").join().expect("no overflow");
    }

    #[test]
    fn operations_are_counted_before_they_are_decoded() {
        let put = || RequestOp { request: Some(request_op::Request::RequestPut(PutRequest::default())) };
        let inner = TxnRequest { success: vec![put(); 3], ..Default::default() };
        let within = RequestOp { request: Some(request_op::Request::RequestTxn(inner)) };
        let compare = vec![Compare::absent("k"), Compare::exists("l")];
        let request = TxnRequest { compare, success: vec![put(), within.clone()], failure: vec![within, put()] };
        let bytes = request.encode_to_vec();
        assert_eq!(operations(&bytes, 100), 2 + 4 + 6);
        assert!((6..=7).contains(&operations(&bytes, 5)), "it stops soon above");
        assert_eq!(operations(&[0x12, 0].repeat(1_000), 10_000), 1_000, "empty ones, too");
        // A group that no field has, before them.
        assert_eq!(operations(&[&[0x7b, 0x7c][..], &[0x12, 0].repeat(7)].concat(), 100), 7);
        assert_eq!(operations(&[0x12, 0, 0x12, 9, 1], 100), 1, "the rest is cut short");
        assert_eq!(operations(&nested(LEVELS, 2, 4), 10_000), LEVELS);
        // The second field of one operation is added to the first.
        let twice = [&[0x12, 8][..], &[0x22, 2, 0x12, 0].repeat(2)].concat();
        assert_eq!(operations(&twice, 100), 3);
    }

    #[test]
    fn unknown_fields_of_an_operation_are_passed_over() {
        let op = RequestOp::decode(&[0x28, 1, 0x0a, 3, 0x0a, 1, b'k', 0x32, 1, b'x'][..]).expect("decodes");
        let Some(request_op::Request::RequestRange(range)) = &op.request else { panic!("{op:?}") };
        assert_eq!(range.key, "k");
        assert!(RequestOp::decode(&[0x08, 1][..]).is_err(), "a number is no message");
    }
}
