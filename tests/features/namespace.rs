//! `grpc-proxy start --namespace`: a tenant sees its own keys, under the names it gave them, and nothing else.

use prost::Message;
use tonic::Code;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    AlarmRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, WatchCreateRequest, compare, request_op, response_op,
};
use watershed::pb::v3electionpb::{CampaignRequest, LeaderRequest};
use watershed::pb::v3lockpb::{LockRequest, UnlockRequest};

use crate::harness::{Deployment, Process, Target, Watching, client, in_words, raw_body, run};

async fn tenant(deployment: &Deployment) -> (Process, Client) {
    for key in ["outside", "t", "u/k", "zz"] {
        deployment.put(key, "not theirs").await;
    }
    let (proxy, endpoint) = deployment.also_front("grpc-proxy", &["--namespace=t/"]).await;
    (proxy, client(&endpoint))
}

fn all() -> RangeRequest {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

async fn keys(client: &Client, request: RangeRequest) -> Vec<String> {
    let answer = client.kv().range(request).await.expect("range").into_inner();
    assert_eq!(answer.count as usize, answer.kvs.len());
    answer.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

#[test]
fn keys_are_prefixed_and_ranges_end_with_the_namespace() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (_proxy, tenant) = tenant(deployment).await;
        let mut kv = tenant.kv();
        for key in ["a", "b", "\u{7f}last"] {
            kv.put(PutRequest { key: key.into(), value: key.into(), ..Default::default() }).await.expect("put");
        }
        assert_eq!(deployment.get("t/a").await.kvs[0].value, "a", "stored under the prefix");
        assert_eq!(keys(&tenant, all()).await, ["a", "b", "\u{7f}last"]);
        let from = RangeRequest { key: "b".into(), range_end: "\0".into(), ..Default::default() };
        assert_eq!(keys(&tenant, from).await, ["b", "\u{7f}last"]);
        let previous = PutRequest { key: "a".into(), prev_kv: true, ..Default::default() };
        let previous = kv.put(previous).await.expect("put").into_inner().prev_kv.expect("before");
        assert_eq!(previous.key, "a");
        let wipe = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true };
        let wiped = kv.delete_range(wipe).await.expect("delete").into_inner();
        assert_eq!((wiped.deleted, wiped.prev_kvs[1].key.as_ref()), (3, b"b".as_ref()));
        assert_eq!(keys(&deployment.client, all()).await, ["outside", "t", "u/k", "zz"], "nothing else was touched");
    });
}

#[test]
fn transactions_stay_inside() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (_proxy, tenant) = tenant(deployment).await;
        let op = |request| RequestOp { request: Some(request) };
        let put = op(request_op::Request::RequestPut(PutRequest { key: "k".into(), ..Default::default() }));
        let get = op(request_op::Request::RequestRange(all()));
        let nested = TxnRequest { success: vec![put, get], ..Default::default() };
        let nothing_there = Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Version.into(),
            key: "\0".into(),
            range_end: "\0".into(),
            target_union: Some(compare::TargetUnion::Version(0)),
        };
        let request = TxnRequest {
            compare: vec![nothing_there],
            success: vec![op(request_op::Request::RequestTxn(nested))],
            failure: Vec::new(),
        };
        let answer = tenant.kv().txn(request).await.expect("txn").into_inner();
        assert!(answer.succeeded, "the tenant's deployment was empty");
        let Some(response_op::Response::ResponseTxn(inner)) = &answer.responses[0].response else {
            panic!("{answer:?}")
        };
        let Some(response_op::Response::ResponseRange(range)) = &inner.responses[1].response else {
            panic!("{answer:?}")
        };
        assert_eq!((range.count, range.kvs[0].key.as_ref()), (1, b"k".as_ref()));
        assert_eq!(deployment.get("t/k").await.count, 1);
    });
}

#[test]
fn watches_leases_and_recipes_stay_inside() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (_proxy, tenant) = tenant(deployment).await;
        let request =
            WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true, ..Default::default() };
        let (mut watching, _) = Watching::create(&tenant, request).await;
        deployment.put("zz", "outside").await;
        let revision = deployment.put("t/seen", "1").await;
        let answer = watching.next().await;
        assert_eq!(in_words(&answer), [format!("+seen=1@{revision}")]);

        let lease = tenant.lease().lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("grant").into_inner();
        let put = PutRequest { key: "leased".into(), lease: lease.id, ..Default::default() };
        tenant.kv().put(put).await.expect("put");
        let request = LeaseTimeToLiveRequest { id: lease.id, keys: true };
        let answer = tenant.lease().lease_time_to_live(request).await.expect("time to live").into_inner();
        assert_eq!(answer.keys, ["leased"]);

        let lock = tenant.lock().lock(LockRequest { name: "L".into(), lease: lease.id }).await.expect("lock");
        let lock = lock.into_inner();
        assert_eq!(lock.key, format!("L/{:x}", lease.id));
        assert_eq!(deployment.get(format!("t/L/{:x}", lease.id)).await.count, 1);
        tenant.lock().unlock(UnlockRequest { key: lock.key }).await.expect("unlock");
        assert_eq!(deployment.get(format!("t/L/{:x}", lease.id)).await.count, 0);

        let campaign = CampaignRequest { name: "E".into(), lease: lease.id, value: "me".into() };
        let won = tenant.election().campaign(campaign).await.expect("campaign").into_inner().leader.expect("leader");
        assert_eq!(won.key, format!("E/{:x}", lease.id));
        let leader = tenant.election().leader(LeaderRequest { name: "E".into() }).await.expect("leader").into_inner();
        assert_eq!(leader.kv.expect("kv").key, won.key);
    });
}

/// A frame of any flag around any bytes.
fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

#[test]
fn a_tenant_raises_no_alarm_and_hides_no_second_message() {
    // Cause: the proxy read all that stood behind the prefix and sent the body as it came, a member reads as many bytes
    // as the prefix announces: `ACTIVATE NOSPACE` for the member, `GET` for the proxy.
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (_proxy, proxy) = deployment.also_front("grpc-proxy", &["--namespace=t/"]).await;
        let alarm = "/etcdserverpb.Maintenance/Alarm";
        let put = "/etcdserverpb.KV/Put";
        let (activate, get) = (&[8, 1, 24, 1][..], &[8, 0][..]);
        let plain = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() }.encode_to_vec();
        // `08 01 18 01` as gzip.
        let squeezed: &[u8] =
            &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3, 0xe3, 0x60, 0x94, 0x60, 4, 0, 0x0b, 0x35, 0x2e, 0x10, 4, 0, 0, 0];
        let gzip = &[("grpc-encoding", "gzip")][..];
        for (what, path, headers, body, code) in [
            ("GET behind ACTIVATE", alarm, &[][..], [&frame(0, activate)[..], get].concat(), Code::Internal),
            ("two frames", alarm, &[], [frame(0, get), frame(0, activate)].concat(), Code::Internal),
            ("ACTIVATE", alarm, &[], frame(0, activate), Code::PermissionDenied),
            ("ACTIVATE last", alarm, &[], frame(0, &[get, activate].concat()), Code::PermissionDenied),
            ("ACTIVATE compressed", alarm, gzip, frame(1, squeezed), Code::PermissionDenied),
            ("ACTIVATE compressed in secret", alarm, &[], frame(1, squeezed), Code::Internal),
            ("cut short", alarm, &[], frame(0, get)[..6].to_vec(), Code::Internal),
            ("GET last", alarm, &[], frame(0, &[activate, get].concat()), Code::Ok),
            ("a put and a put", put, &[], [frame(0, &plain), frame(0, &plain)].concat(), Code::Internal),
            ("a put and a byte", put, &[], [frame(0, &plain), vec![0]].concat(), Code::Internal),
        ] {
            let (answered, text) = raw_body(&proxy, path, headers, &body).await;
            assert_eq!(answered, code, "{what}: {text}");
            let alarms =
                deployment.client.maintenance().alarm(AlarmRequest::default()).await.expect("alarms").into_inner();
            assert_eq!(alarms.alarms, [], "{what}");
        }
        assert_eq!(deployment.get("t/k").await.count, 0, "no refused put was made");
    });
}
