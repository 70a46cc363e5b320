//! An answer over encoded parts as a list of pieces, so that a long one is never copied as a whole.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::encoded::response_op::Response;
use super::encoded::{DeleteRangeResponse, RangeResponse, ResponseHeader, ResponseOp, TxnResponse};
use super::etcdserverpb::LeaseLeasesResponse;

/// Parts up to this length are copied, which costs less than sharing them.
const COPIED_BYTES_MAX: usize = 128;

/// The encoding of a message, cut where a shared part begins and ends.
#[derive(Debug, Default)]
pub struct Pieces {
    done: VecDeque<Bytes>,
    /// What stands between shared parts.
    between: BytesMut,
}

/// A message that can be cut into pieces.
pub trait IntoPieces {
    /// Appends the protobuf encoding.
    fn cut(self, out: &mut Pieces);
}

/// Cuts a message; the pieces in order are its encoding.
pub fn pieces(message: impl IntoPieces) -> VecDeque<Bytes> {
    let mut out = Pieces::default();
    message.cut(&mut out);
    out.close();
    out.done
}

impl Pieces {
    fn close(&mut self) {
        if !self.between.is_empty() {
            self.done.push_back(self.between.split().freeze());
        }
    }

    fn bytes(&mut self, tag: u32, bytes: Bytes) {
        self.open(tag, bytes.len());
        if bytes.len() <= COPIED_BYTES_MAX {
            self.between.put_slice(&bytes);
        } else {
            self.close();
            self.done.push_back(bytes);
        }
    }

    fn header(&mut self, header: Option<ResponseHeader>) {
        if let Some(header) = header {
            prost::encoding::message::encode(1, &header, &mut self.between);
        }
    }

    /// Begins a field of `len` bytes.
    fn open(&mut self, tag: u32, len: usize) {
        encode_key(tag, WireType::LengthDelimited, &mut self.between);
        encode_varint(len as u64, &mut self.between);
    }
}

impl IntoPieces for RangeResponse {
    fn cut(self, out: &mut Pieces) {
        out.header(self.header);
        for kv in self.kvs {
            out.bytes(2, kv);
        }
        let rest = RangeResponse { more: self.more, count: self.count, ..Default::default() };
        rest.encode_raw(&mut out.between);
    }
}

impl IntoPieces for DeleteRangeResponse {
    fn cut(self, out: &mut Pieces) {
        out.header(self.header);
        let deleted = DeleteRangeResponse { deleted: self.deleted, ..Default::default() };
        deleted.encode_raw(&mut out.between);
        for kv in self.prev_kvs {
            out.bytes(3, kv);
        }
    }
}

impl IntoPieces for LeaseLeasesResponse {
    fn cut(self, out: &mut Pieces) {
        self.encode_raw(&mut out.between);
    }
}

impl IntoPieces for TxnResponse {
    fn cut(self, out: &mut Pieces) {
        out.header(self.header);
        TxnResponse { succeeded: self.succeeded, ..Default::default() }.encode_raw(&mut out.between);
        for ResponseOp { response } in self.responses {
            let Some(response) = response else {
                out.open(3, 0);
                continue;
            };
            let (tag, len) = match &response {
                Response::ResponseRange(range) => (1, range.encoded_len()),
                Response::ResponsePut(put) => (2, put.encoded_len()),
                Response::ResponseDeleteRange(delete) => (3, delete.encoded_len()),
                Response::ResponseTxn(txn) => (4, txn.encoded_len()),
            };
            out.open(3, key_len(tag) + encoded_len_varint(len as u64) + len);
            out.open(tag, len);
            match response {
                Response::ResponseRange(range) => range.cut(out),
                Response::ResponsePut(put) => {
                    out.header(put.header);
                    if let Some(previous) = put.prev_kv {
                        out.bytes(2, previous);
                    }
                }
                Response::ResponseDeleteRange(delete) => delete.cut(out),
                Response::ResponseTxn(txn) => txn.cut(out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::encoded::PutResponse;

    #[test]
    fn pieces_in_order_are_the_encoding() {
        let kv = |len: usize| Bytes::from(vec![b'v'; len]);
        let header = Some(ResponseHeader { revision: 300, member_id: u64::MAX, ..Default::default() });
        let range =
            RangeResponse { header, kvs: vec![kv(0), kv(127), kv(128), kv(129), kv(70_000)], more: true, count: 9 };
        let delete = DeleteRangeResponse { header: None, deleted: 2, prev_kvs: vec![kv(200), kv(3)] };
        let put = PutResponse { header, prev_kv: Some(kv(1000)) };
        let op = |response| ResponseOp { response };
        let inner = TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded: false,
            responses: vec![op(Some(Response::ResponseRange(range.clone()))), op(None)],
        };
        let txn = TxnResponse {
            header,
            succeeded: true,
            responses: vec![
                op(Some(Response::ResponseDeleteRange(delete.clone()))),
                op(Some(Response::ResponseTxn(inner))),
                op(Some(Response::ResponsePut(put))),
                op(Some(Response::ResponseRange(RangeResponse::default()))),
            ],
        };
        assert_eq!(Vec::from(pieces(range.clone())).concat(), range.encode_to_vec());
        assert_eq!(Vec::from(pieces(delete.clone())).concat(), delete.encode_to_vec());
        assert_eq!(Vec::from(pieces(txn.clone())).concat(), txn.encode_to_vec());
        assert!(pieces(txn).iter().any(|piece| piece.len() == 70_000), "long parts stay in one piece");
    }
}
