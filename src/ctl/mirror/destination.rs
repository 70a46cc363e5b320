use std::time::Duration;

use super::super::failure::Failure;
use super::super::session::within;
use super::source::Patience;
use crate::client::Client;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{RequestOp, TxnRequest};

/// Keys and values of one transaction stay below this, where they are several: a member takes 1.5 MiB.
const TXN_BYTES_MAX: usize = 512 * 1024;

/// The cluster that receives the copy.
pub(super) struct Destination {
    client: Client,
    ops_max: usize,
    /// How long one try may take before it is repeated.
    limit: Duration,
    ops: Vec<RequestOp>,
    bytes: usize,
    patience: Patience,
}

impl Destination {
    pub(super) fn new(client: Client, ops_max: usize, limit: Duration) -> Self {
        let patience = Patience::new("destination");
        Self { client, ops_max: ops_max.max(1), limit, ops: Vec::new(), bytes: 0, patience }
    }

    /// Adds an operation to the transaction, and writes it first when it is full.
    pub(super) async fn add(&mut self, request: Request) -> Result<(), Failure> {
        let bytes = match &request {
            Request::RequestPut(put) => put.key.len() + put.value.len(),
            Request::RequestDeleteRange(delete) => delete.key.len(),
            Request::RequestRange(_) | Request::RequestTxn(_) => 0,
        };
        if self.ops.len() == self.ops_max || (self.bytes + bytes > TXN_BYTES_MAX && !self.ops.is_empty()) {
            self.commit().await?;
        }
        self.bytes += bytes;
        self.ops.push(RequestOp { request: Some(request) });
        Ok(())
    }

    /// Writes the transaction. A try whose outcome is unknown is repeated: the operations are the same, and nobody but
    /// this mirror writes after them.
    pub(super) async fn commit(&mut self) -> Result<(), Failure> {
        self.bytes = 0;
        let success = std::mem::take(&mut self.ops);
        if success.is_empty() {
            return Ok(());
        }
        let request = TxnRequest { success, ..Default::default() };
        loop {
            match within(self.limit, self.client.kv().txn(request.clone())).await {
                Ok(_) => {
                    self.patience.answered();
                    return Ok(());
                }
                Err(status) => self.patience.bear(&status).await?,
            }
        }
    }
}
