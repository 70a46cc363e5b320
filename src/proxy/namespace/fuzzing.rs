//! For fuzz targets only: the rewriting of transactions and the keys in them, and a proxy with a namespace that is sent any
//! bytes.

use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;

use super::Namespace;
use crate::pb::etcdserverpb::{TxnRequest, TxnResponse, request_op, response_op};
use crate::pb::methods::{METHODS, MethodKind};
use crate::pb::mvccpb::KeyValue;

#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "the tests use all of it")]
#[path = "tests/lawful.rs"]
mod lawful;
#[allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used, reason = "the tests use all of it")]
#[path = "tests/upstream.rs"]
mod upstream;

use lawful::Law;
use upstream::{LIMIT, NAMESPACE, OWN_LEASE, Setup, frame, gzip, never};

/// A client's transaction as it goes upstream.
pub fn add_prefix_to_txn(namespace: &Namespace, mut txn: TxnRequest) -> TxnRequest {
    namespace.add_prefix_to_txn(&mut txn, &|lease| lease);
    txn
}

/// Every range that a transaction names.
pub fn each_range(txn: &TxnRequest, each: &mut dyn FnMut(&Bytes, &Bytes)) {
    for compare in &txn.compare {
        each(&compare.key, &compare.range_end);
    }
    for operation in txn.success.iter().chain(&txn.failure) {
        match &operation.request {
            Some(request_op::Request::RequestRange(range)) => each(&range.key, &range.range_end),
            Some(request_op::Request::RequestPut(put)) => each(&put.key, &Bytes::new()),
            Some(request_op::Request::RequestDeleteRange(delete)) => each(&delete.key, &delete.range_end),
            Some(request_op::Request::RequestTxn(txn)) => each_range(txn, each),
            None => {}
        }
    }
}

/// The answer to a transaction as the client gets it.
pub fn strip_prefix_in_txn(namespace: &Namespace, mut answer: TxnResponse) -> TxnResponse {
    namespace.strip_prefix_in_txn(&mut answer);
    answer
}

/// Every pair in the answer to a transaction.
pub fn each_pair(answer: &TxnResponse, each: &mut dyn FnMut(&KeyValue)) {
    for response in answer.responses.iter().filter_map(|response| response.response.as_ref()) {
        match response {
            response_op::Response::ResponseRange(range) => range.kvs.iter().for_each(&mut *each),
            response_op::Response::ResponsePut(put) => put.prev_kv.iter().for_each(&mut *each),
            response_op::Response::ResponseDeleteRange(delete) => delete.prev_kvs.iter().for_each(&mut *each),
            response_op::Response::ResponseTxn(txn) => each_pair(txn, each),
        }
    }
}

/// How a message is put into the body of a call.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// As gRPC says.
    Plain,
    /// Compressed.
    Gzip,
    /// With other bytes behind it: the rest of the input, from here on.
    Behind(usize),
    /// The bytes are the body.
    Raw,
}

/// A proxy with the namespace `t/`, in front of an upstream that records what it gets.
pub struct Proxy {
    runtime: Runtime,
    setup: Setup,
    law: Law,
}

impl Proxy {
    /// Starts both.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let setup = runtime.block_on(Setup::start());
        Self { runtime, setup, law: Law::new(NAMESPACE, [OWN_LEASE]) }
    }

    /// Calls a method, by its number in the list of all, with a body of these bytes.
    ///
    /// # Panics
    /// When something goes upstream that reaches beyond the namespace.
    pub fn call(&mut self, method: usize, shape: Shape, bytes: &[u8], piece_bytes: usize) {
        let method = &METHODS[method % METHODS.len()];
        let body = match shape {
            Shape::Plain => frame(0, bytes),
            Shape::Gzip => frame(1, &gzip(bytes)),
            Shape::Behind(at) => {
                let (message, behind) = bytes.split_at(at.min(bytes.len()));
                [&frame(0, message)[..], behind].concat()
            }
            Shape::Raw => bytes.to_vec(),
        };
        let headers: &[_] = if matches!(shape, Shape::Gzip) { &[("grpc-encoding", "gzip")] } else { &[] };
        let pieces: Vec<_> = body.chunks(piece_bytes.max(1)).map(Bytes::copy_from_slice).collect();
        // Streams and waiting recipes have no end of their own.
        let has_end = method.kind == MethodKind::Unary && !method.service.starts_with("v3");
        let limit = if has_end { LIMIT } else { Duration::from_millis(10) };
        self.runtime.block_on(self.setup.send(method.path, headers, &pieces, limit, never));
        if let Err(wrong) = self.law.check(&self.setup.calls()) {
            panic!("{wrong}");
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self::new()
    }
}
