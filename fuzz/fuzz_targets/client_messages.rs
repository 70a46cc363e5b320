//! Messages of clients: the first byte chooses the message, the rest is its body. Decoding, the checks before a request goes
//! on, what it costs and how it is described must not panic; what is encoded again is the same message.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use watershed::core::apply::{
    Operation, Proposable, describe_range, describe_request, describe_txn, put_cost, txn_cost,
};
use watershed::core::mvcc::{
    check_delete_range, check_put, check_range, check_range_stream, check_txn, is_read_only, is_serializable,
};
use watershed::pb::etcdserverpb::*;
use watershed::pb::selection::has_own_order;
use watershed::pb::{v3electionpb, v3lockpb};
use watershed::types::KeyRange;

fn decoded<T: Message + Default + PartialEq + Clone>(body: &Bytes) -> Option<T> {
    let message = T::decode(body.clone()).ok()?;
    let again = T::decode(message.encode_to_vec().as_slice()).expect("what was encoded is decoded");
    assert!(again == message, "encoded again it is another message");
    Some(message)
}

/// As the request goes into the log and comes out of it.
fn logged<R: Proposable>(request: R) {
    let entry = Bytes::from(request.into_entry(7).encode_to_vec());
    let (id, _, operation) = Operation::decode(entry).expect("an entry of ours");
    assert_eq!(id, 7);
    let _ = (operation.kind(), operation.cost_bytes(), operation.is_write(), describe_request(id, &operation));
}

fn txn(body: &Bytes) {
    let Some(request) = decoded::<TxnRequest>(body) else { return };
    if check_txn(&request, 128).is_ok() {
        let _ = (is_read_only(&request), is_serializable(&request), txn_cost(&request), describe_txn(&request));
        logged(request);
    }
}

fn range(body: &Bytes) {
    let Some(request) = decoded::<RangeRequest>(body) else { return };
    let _ = (check_range(&request), check_range_stream(&request), has_own_order(&request), describe_range(&request));
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    let _ = range.contains(&request.key);
    let (key, range_end) = range.to_wire();
    let _ = KeyRange::from_wire(key, range_end);
}

macro_rules! others {
    ($number:expr, $body:expr, [$($message:ty),* $(,)?]) => {{
        let decoders: &[fn(&Bytes)] = &[$(|body| {
            let _ = decoded::<$message>(body);
        }),*];
        decoders[usize::from($number) % decoders.len()]($body);
    }};
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else { return };
    let body = Bytes::copy_from_slice(body);
    match kind {
        0..32 => range(&body),
        32..64 => {
            if let Some(put) = decoded::<PutRequest>(&body)
                && check_put(&put).is_ok()
            {
                let _ = put_cost(&put);
                logged(put);
            }
        }
        64..80 => {
            if let Some(delete) = decoded::<DeleteRangeRequest>(&body)
                && check_delete_range(&delete).is_ok()
            {
                logged(delete);
            }
        }
        80..144 => txn(&body),
        144..160 => drop(Operation::decode(body)),
        160..168 => drop(decoded::<CompactionRequest>(&body).map(logged)),
        168..176 => drop(decoded::<LeaseGrantRequest>(&body).map(logged)),
        176..184 => drop(decoded::<LeaseRevokeRequest>(&body).map(logged)),
        184..192 => drop(decoded::<AlarmRequest>(&body).map(logged)),
        number => others!(
            number,
            &body,
            [
                WatchRequest,
                LeaseKeepAliveRequest,
                LeaseTimeToLiveRequest,
                LeaseLeasesRequest,
                LeaseCheckpointRequest,
                MemberAddRequest,
                MemberRemoveRequest,
                MemberUpdateRequest,
                MemberListRequest,
                MemberPromoteRequest,
                StatusRequest,
                DefragmentRequest,
                HashRequest,
                HashKvRequest,
                SnapshotRequest,
                MoveLeaderRequest,
                DowngradeRequest,
                AuthEnableRequest,
                AuthDisableRequest,
                AuthStatusRequest,
                AuthenticateRequest,
                AuthUserAddRequest,
                AuthUserGetRequest,
                AuthUserListRequest,
                AuthUserDeleteRequest,
                AuthUserChangePasswordRequest,
                AuthUserGrantRoleRequest,
                AuthUserRevokeRoleRequest,
                AuthRoleAddRequest,
                AuthRoleGetRequest,
                AuthRoleListRequest,
                AuthRoleDeleteRequest,
                AuthRoleGrantPermissionRequest,
                AuthRoleRevokePermissionRequest,
                v3lockpb::LockRequest,
                v3lockpb::UnlockRequest,
                v3electionpb::CampaignRequest,
                v3electionpb::ProclaimRequest,
                v3electionpb::LeaderRequest,
                v3electionpb::ResignRequest,
            ]
        ),
    }
});
