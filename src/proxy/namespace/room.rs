use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};

use super::ownership::{has_too_many_operations, with};
use super::view::View;
use crate::pb::etcdserverpb::{
    PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op, response_op,
};
use crate::proxy::limits::{Growth, NoRoom, Stored};

/// Keys of one request that are looked at where there is no room for what it adds at most; those behind them are taken for new
/// ones. Members take no more in one transaction unless they are told to; where they take fewer, fewer are looked at.
const LOOKED_AT_MAX: usize = 128;
/// How long a put waits for a count that is as new as what was looked at, and for the outcomes of other puts.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// How long a put waits until what is stored was counted.
const COUNT_WAIT: Duration = Duration::from_secs(5);

/// Bytes of keys and values that are there, by the keys.
type Present = HashMap<Bytes, i64>;

impl View {
    /// Takes room for a put. Nothing is taken where what is stored has no limit.
    ///
    /// # Errors
    /// For the client: the limit that leaves no room.
    pub(super) async fn room_for_put(
        &self,
        put: &PutRequest,
        metadata: &MetadataMap,
    ) -> Result<Option<Growth>, Status> {
        self.room(metadata, |present| of_put(put, present), |keys| keys.push(put.key.clone())).await
    }

    /// The same for a transaction.
    pub(super) async fn room_for_txn(
        &self,
        txn: &TxnRequest,
        metadata: &MetadataMap,
    ) -> Result<Option<Growth>, Status> {
        self.room(metadata, |present| of_txn(txn, present), |keys| keys_put(txn, keys)).await
    }

    async fn room(
        &self,
        metadata: &MetadataMap,
        growth: impl Fn(&Present) -> Stored,
        keys_of: impl FnOnce(&mut Vec<Bytes>),
    ) -> Result<Option<Growth>, Status> {
        if !self.limits.counts_stored() {
            return Ok(None);
        }
        let most = growth(&Present::new());
        if most == Stored::default() {
            return Ok(None);
        }
        self.limits.stored_known(COUNT_WAIT).await.map_err(|reason| uncounted(&reason))?;
        if let Some(taken) = self.limits.take_room(most) {
            return Ok(Some(taken));
        }
        let mut keys = Vec::new();
        keys_of(&mut keys);
        keys.truncate(LOOKED_AT_MAX);
        let (present, revision) = self.present(keys, metadata).await?;
        match self.limits.take_room_in_turn(growth(&present), revision, ROOM_WAIT).await {
            Ok(taken) => Ok(Some(taken)),
            Err(NoRoom::Full(full)) => Err(self.limits.refuse_full(full)),
            Err(NoRoom::Unknown) => Err(uncounted("the count has not come to the revision of the cluster")),
        }
    }

    /// What these keys, as the client names them, hold, and at which revision.
    async fn present(&self, mut keys: Vec<Bytes>, metadata: &MetadataMap) -> Result<(Present, i64), Status> {
        let look = |key: &Bytes| {
            let range = RangeRequest { key: self.namespace.add_prefix(key), ..RangeRequest::default() };
            RequestOp { request: Some(request_op::Request::RequestRange(range)) }
        };
        let (seen, answer) = loop {
            let txn = TxnRequest { success: keys.iter().map(look).collect(), ..TxnRequest::default() };
            let seen = self.limits.stored_seen();
            match self.own_kv.clone().txn(with(metadata, txn)).await {
                Err(status) if has_too_many_operations(&status) && keys.len() > 1 => keys.truncate(keys.len() / 2),
                answer => break (seen, answer?.into_inner()),
            }
        };
        let revision = answer.header.ok_or_else(|| Status::internal("answer without a header"))?.revision;
        if revision < seen {
            self.limits.stored_went_back();
        }
        let mut present = Present::new();
        for (key, ResponseOp { response }) in keys.into_iter().zip(answer.responses) {
            if let Some(response_op::Response::ResponseRange(range)) = response
                && let Some(kv) = range.kvs.first()
            {
                let bytes = bytes(key.len() + kv.value.len());
                present.insert(key, bytes);
            }
        }
        Ok((present, revision))
    }
}

fn uncounted(reason: &str) -> Status {
    Status::unavailable(format!("what the tenant stores is not counted: {reason}"))
}

/// Settles what was taken for a request. `put_at` is the revision at which the answer says that something was put.
pub(super) fn settle<T>(
    growth: Option<Growth>,
    answer: &Result<Response<T>, Status>,
    put_at: impl FnOnce(&T) -> Option<i64>,
) {
    let Some(growth) = growth else { return };
    match answer {
        Ok(answer) => match put_at(answer.get_ref()) {
            Some(revision) => growth.executed(revision),
            None => growth.not_executed(),
        },
        Err(status) if is_refusal(status.code()) => growth.not_executed(),
        Err(_) => drop(growth),
    }
}

/// The revision of a transaction that has put something.
pub(super) fn txn_put_at(answer: &TxnResponse) -> Option<i64> {
    has_put(&answer.responses).then_some(answer.header.as_ref()?.revision)
}

fn has_put(responses: &[ResponseOp]) -> bool {
    responses.iter().any(|ResponseOp { response }| match response {
        Some(response_op::Response::ResponsePut(_)) => true,
        Some(response_op::Response::ResponseTxn(txn)) => has_put(&txn.responses),
        Some(response_op::Response::ResponseRange(_) | response_op::Response::ResponseDeleteRange(_)) | None => false,
    })
}

/// Whether a member that answers so has executed nothing. `ResourceExhausted` is not here: an answer that is too long is refused
/// by the proxy, when the request has been executed.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}

/// What a put adds to what is there; the most it can where that is empty.
fn of_put(put: &PutRequest, present: &Present) -> Stored {
    if put.ignore_value {
        return Stored::default();
    }
    let new = bytes(put.key.len() + put.value.len());
    match present.get(&put.key) {
        Some(old) => Stored { keys: 0, bytes: new - old },
        None => Stored { keys: 1, bytes: new },
    }
}

/// What a transaction adds: the larger of its branches.
fn of_txn(txn: &TxnRequest, present: &Present) -> Stored {
    let branch = |operations: &[RequestOp]| {
        let mut all = Stored::default();
        for RequestOp { request } in operations {
            match request {
                Some(request_op::Request::RequestPut(put)) => all += of_put(put, present),
                Some(request_op::Request::RequestTxn(txn)) => all += of_txn(txn, present),
                Some(request_op::Request::RequestRange(_) | request_op::Request::RequestDeleteRange(_)) | None => {}
            }
        }
        all
    };
    let (success, failure) = (branch(&txn.success), branch(&txn.failure));
    Stored { keys: success.keys.max(failure.keys), bytes: success.bytes.max(failure.bytes) }
}

fn keys_put(txn: &TxnRequest, keys: &mut Vec<Bytes>) {
    for RequestOp { request } in txn.success.iter().chain(&txn.failure) {
        match request {
            Some(request_op::Request::RequestPut(put)) => keys.push(put.key.clone()),
            Some(request_op::Request::RequestTxn(txn)) => keys_put(txn, keys),
            Some(request_op::Request::RequestRange(_) | request_op::Request::RequestDeleteRange(_)) | None => {}
        }
    }
}

fn bytes(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;

    use super::super::keys::Namespace;
    use super::super::ownership::KnownLeases;
    use super::super::response_memory::ResponseMemory;
    use super::super::view::Rights;
    use super::*;
    use crate::api_error::ApiError;
    use crate::client::testing::{FakeMember, Reply};
    use crate::client::{Channel, Pool, PoolConfig, framed};
    use crate::pb::etcdserverpb::{RangeResponse, ResponseHeader};
    use crate::pb::frame::PREFIX_BYTES;
    use crate::pb::mvccpb::KeyValue;
    use crate::shutdown::Tasks;

    fn put(key: &'static str, value: &'static str) -> RequestOp {
        let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    }

    #[test]
    fn a_transaction_adds_its_larger_branch() {
        let nested = TxnRequest { success: vec![put("n", "12345")], failure: vec![put("m", "")], compare: Vec::new() };
        let nested = RequestOp { request: Some(request_op::Request::RequestTxn(nested)) };
        let success = vec![put("a", "1"), put("b", "1"), nested];
        let txn = TxnRequest { success, failure: vec![put("c", "1234567890")], compare: Vec::new() };
        assert_eq!(of_txn(&txn, &Present::new()), Stored { keys: 3, bytes: 11 });
        let present = Present::from([("a".into(), 9), ("b".into(), 2), ("n".into(), 6)]);
        assert_eq!(of_txn(&txn, &present), Stored { keys: 1, bytes: 11 });
        let mut keys = Vec::new();
        keys_put(&txn, &mut keys);
        assert_eq!(keys, ["a", "b", "n", "m", "c"]);
        let kept = PutRequest { key: "a".into(), ignore_value: true, ..PutRequest::default() };
        assert_eq!(of_put(&kept, &Present::new()), Stored::default());
    }

    /// Cause: where members take fewer operations in a transaction than keys were looked at in one, a transaction of a tenant near its limit
    /// was refused for having too many of them itself.
    #[tokio::test]
    async fn keys_are_looked_at_as_many_at_once_as_members_take() {
        let member = FakeMember::start(|received| {
            let txn = TxnRequest::decode(&received.body[PREFIX_BYTES..]).expect("a transaction");
            if txn.success.len() > 20 {
                return Reply::Status(3, ApiError::TooManyOps.text());
            }
            let header = Some(ResponseHeader { revision: 7, ..ResponseHeader::default() });
            let kv = KeyValue { key: "t/k".into(), value: "v".into(), ..KeyValue::default() };
            let range = RangeResponse { kvs: vec![kv], ..RangeResponse::default() };
            let response = Some(response_op::Response::ResponseRange(range));
            let responses = vec![ResponseOp { response }; txn.success.len()];
            Reply::Message(framed(&TxnResponse { header, responses, ..TxnResponse::default() }).to_vec())
        })
        .await;
        let tasks = Tasks::new();
        let view = View::new(
            &Namespace::new("t/"),
            Rights::default(),
            Arc::default(),
            Channel::new(Pool::new(PoolConfig::new(vec![member.endpoint.clone()]), &tasks)),
            ResponseMemory::new(1 << 20),
            KnownLeases::default(),
            &tasks,
        );
        let keys = (0..64).map(|number| Bytes::from(format!("{number:02}"))).collect();
        let (present, revision) = view.present(keys, &MetadataMap::new()).await.expect("an answer");
        // One of 64 and one of 32 are refused.
        assert_eq!((present.len(), revision, member.received().len()), (16, 7, 3));
        member.stop();
    }

    #[test]
    fn only_an_answer_with_a_put_has_put_something() {
        let op = |response| ResponseOp { response: Some(response) };
        let header = Some(ResponseHeader { revision: 7, ..ResponseHeader::default() });
        let range = op(response_op::Response::ResponseRange(Default::default()));
        let put = op(response_op::Response::ResponsePut(Default::default()));
        let answer = |responses| TxnResponse { header, responses, ..TxnResponse::default() };
        assert_eq!(txn_put_at(&answer(vec![range.clone()])), None);
        assert_eq!(txn_put_at(&answer(vec![range, put.clone()])), Some(7));
        assert_eq!(txn_put_at(&answer(vec![op(response_op::Response::ResponseTxn(answer(vec![put])))])), Some(7));
    }
}
