//! Maintenance, members, health.

use sha2::{Digest, Sha256};
use tonic::Code;
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::downgrade_request::DowngradeAction;
use watershed::pb::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest, DowngradeRequest, HashKvRequest,
    HashRequest, MemberListRequest, PutRequest, RangeRequest, RequestOp, SnapshotRequest, StatusRequest,
    StatusResponse, TxnRequest, request_op,
};
use watershed::pb::healthpb::HealthCheckRequest;
use watershed::pb::healthpb::health_check_response::ServingStatus;

use crate::harness::{Deployment, Target, client, is_stock, refused, run, until};
use crate::on_every_target;

on_every_target! {
    status_tells_where_the_member_is,
    hashes_are_etcds,
    a_hash_survives_a_restart,
    a_snapshot_carries_its_checksum,
    alarms_are_raised_and_taken_back,
    defragmenting_loses_nothing,
    the_member_lists_itself,
    health_is_served,
}

on_every_target! {
    flags = ["--quota-backend-bytes=4194304"];
    a_full_store_refuses_what_grows_it,
}

async fn status(deployment: &Deployment) -> StatusResponse {
    deployment.client.maintenance().status(StatusRequest {}).await.expect("status").into_inner()
}

async fn status_tells_where_the_member_is(deployment: &mut Deployment) {
    let before = status(deployment).await;
    let header = before.header.expect("header");
    assert_eq!(before.leader, header.member_id, "a single member leads");
    assert!(before.version.starts_with("3.7."), "{}", before.version);
    assert_eq!(before.storage_version, "3.7.0");
    assert!(before.db_size > 0 && before.db_size_in_use > 0 && before.db_size_in_use <= before.db_size);
    assert_eq!(before.db_size_quota, 2_147_483_648);
    assert!(before.errors.is_empty() && !before.is_learner);
    assert!(!before.downgrade_info.expect("always there").enabled);
    deployment.put("k", "v").await;
    let after = status(deployment).await;
    assert_eq!(after.header.expect("header").revision, 2);
    assert!(after.raft_index > before.raft_index);
    assert!(after.raft_applied_index <= after.raft_index);
    assert_eq!((after.raft_term, header.raft_term), (before.raft_term, before.raft_term));
}

async fn hash(deployment: &Deployment, revision: i64) -> (u32, i64, i64) {
    let answer = deployment.client.maintenance().hash_kv(HashKvRequest { revision }).await.expect("hash").into_inner();
    (answer.hash, answer.compact_revision, answer.hash_revision)
}

async fn hashes_are_etcds(deployment: &mut Deployment) {
    assert_eq!(hash(deployment, 0).await, (1_084_519_789, -1, 1));
    deployment.put("foo", "bar").await;
    assert_eq!(hash(deployment, 0).await, (3_305_255_506, -1, 2));
    deployment.put("foo", "baz").await;
    assert_eq!(hash(deployment, 0).await, (2_020_292_994, -1, 3));
    deployment.delete("foo").await;
    assert_eq!(hash(deployment, 0).await, (3_153_096_970, -1, 4));
    deployment.put("a", "1").await;
    assert_eq!(hash(deployment, 0).await, (1_967_179_850, -1, 5));
    assert_eq!(hash(deployment, 3).await, (2_020_292_994, -1, 3), "any revision of history");
    deployment.compact(4).await;
    assert_eq!(hash(deployment, 5).await, (2_007_788_419, 4, 5));
    let request = CompactionRequest { revision: 5, physical: true };
    deployment.client.kv().compact(request).await.expect("compaction");
    assert_eq!(hash(deployment, 5).await, (2_007_788_419, 4, 5), "what the compaction itself computed");
    let mut maintenance = deployment.client.maintenance();
    let future = maintenance.hash_kv(HashKvRequest { revision: 6 }).await;
    refused(future, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    let compacted = maintenance.hash_kv(HashKvRequest { revision: 3 }).await;
    refused(compacted, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
    let first = maintenance.hash(HashRequest {}).await.expect("hash").into_inner().hash;
    let again = maintenance.hash(HashRequest {}).await.expect("hash").into_inner().hash;
    assert_eq!(first, again, "the same state has the same hash");
}

async fn a_hash_survives_a_restart(deployment: &mut Deployment) {
    for number in 0..20 {
        deployment.put(format!("k{}", number % 3), number.to_string()).await;
    }
    deployment.delete("k1").await;
    let before = hash(deployment, 0).await;
    let middle = hash(deployment, 11).await;
    deployment.crash_and_restart().await;
    assert_eq!(hash(deployment, 0).await, before);
    assert_eq!(hash(deployment, 11).await, middle);
}

async fn a_snapshot_carries_its_checksum(deployment: &mut Deployment) {
    for number in 0..50 {
        deployment.put(format!("k{number}"), vec![b'x'; 1000]).await;
    }
    let mut stream = deployment.client.maintenance().snapshot(SnapshotRequest {}).await.expect("stream").into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.expect("a chunk") {
        assert_eq!(message.header, None);
        assert_eq!(message.version, "3.7.0");
        messages.push(message);
    }
    let checksum = messages.pop().expect("the last message");
    assert_eq!((checksum.remaining_bytes, checksum.blob.len()), (0, 32));
    let size: usize = messages.iter().map(|message| message.blob.len()).sum();
    assert!(size > 50_000 && size.is_multiple_of(512), "{size}");
    let (mut digest, mut sent) = (Sha256::new(), 0);
    for message in &messages {
        digest.update(&message.blob);
        sent += message.blob.len();
        assert_eq!(message.remaining_bytes as usize, size - sent);
    }
    assert_eq!(digest.finalize().as_slice(), checksum.blob.as_ref());
}

async fn alarms_are_raised_and_taken_back(deployment: &mut Deployment) {
    let alarm = |action: AlarmAction, member_id, alarm: AlarmType| AlarmRequest {
        action: action.into(),
        member_id,
        alarm: alarm.into(),
    };
    let mut maintenance = deployment.client.maintenance();
    let mut ask = async |request| maintenance.alarm(request).await.expect("alarm").into_inner().alarms;
    assert!(ask(alarm(AlarmAction::Get, 0, AlarmType::None)).await.is_empty());
    assert!(ask(alarm(AlarmAction::Activate, 5, AlarmType::None)).await.is_empty());
    let raised = ask(alarm(AlarmAction::Activate, 5, AlarmType::Nospace)).await;
    assert_eq!((raised.len(), raised[0].member_id, raised[0].alarm()), (1, 5, AlarmType::Nospace));
    assert_eq!(ask(alarm(AlarmAction::Get, 0, AlarmType::None)).await, raised);
    assert!(ask(alarm(AlarmAction::Get, 0, AlarmType::Corrupt)).await.is_empty());

    let mut kv = deployment.client.kv();
    let full = "etcdserver: mvcc: database space exceeded";
    let put = PutRequest { key: "k".into(), ..Default::default() };
    refused(kv.put(put.clone()).await, Code::ResourceExhausted, full);
    deployment.get("k").await;
    assert!(ask(alarm(AlarmAction::Deactivate, 0, AlarmType::Nospace)).await.is_empty(), "0 is no wildcard");
    assert_eq!(ask(alarm(AlarmAction::Deactivate, 5, AlarmType::Nospace)).await, raised);
    kv.put(put.clone()).await.expect("writable again");

    ask(alarm(AlarmAction::Activate, 5, AlarmType::Corrupt)).await;
    let corrupt = "etcdserver: corrupt cluster";
    refused(kv.put(put).await, Code::DataLoss, corrupt);
    let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
    refused(kv.delete_range(delete).await, Code::DataLoss, corrupt);
    assert_eq!(deployment.get("k").await.count, 1, "reads go on");
    ask(alarm(AlarmAction::Deactivate, 5, AlarmType::Corrupt)).await;
}

async fn a_full_store_refuses_what_grows_it(deployment: &mut Deployment) {
    let mut kv = deployment.client.kv();
    let full = "etcdserver: mvcc: database space exceeded";
    let put = |number: usize| PutRequest {
        key: format!("k{number}").into(),
        value: vec![b'x'; 200_000].into(),
        ..Default::default()
    };
    let mut written = 0;
    let status = loop {
        match kv.put(put(written)).await {
            Ok(_) => written += 1,
            Err(status) => break status,
        }
        assert!(written < 100, "4 MiB are full after 20 MB");
    };
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, full));
    assert!(written > 5, "full after {written} writes of 200 kB");
    refused(kv.put(PutRequest { key: "tiny".into(), ..Default::default() }).await, Code::ResourceExhausted, full);
    let op = RequestOp { request: Some(request_op::Request::RequestPut(put(0))) };
    let answer = kv.txn(TxnRequest { success: vec![op], ..Default::default() }).await;
    refused(answer, Code::ResourceExhausted, full);

    // The way out that etcd documents: delete, compact, defragment, take the alarm back.
    let everything = DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let answer = kv.delete_range(everything).await.expect("deleting is allowed").into_inner();
    deployment.compact(answer.header.expect("header").revision).await;
    let mut maintenance = deployment.client.maintenance();
    maintenance.defragment(DefragmentRequest {}).await.expect("defragment");
    let get = AlarmRequest { action: AlarmAction::Get.into(), ..Default::default() };
    let alarms = maintenance.alarm(get).await.expect("alarms").into_inner().alarms;
    assert_eq!(alarms.len(), 1);
    for raised in alarms {
        let member_id = raised.member_id;
        let request = AlarmRequest { action: AlarmAction::Deactivate.into(), member_id, alarm: raised.alarm };
        maintenance.alarm(request).await.expect("deactivate");
    }
    kv.put(put(0)).await.expect("there is room again");
}

async fn defragmenting_loses_nothing(deployment: &mut Deployment) {
    for number in 0..200 {
        deployment.put(format!("k{}", number % 20), vec![b'x'; 1000]).await;
    }
    let before = hash(deployment, 0).await;
    let answer =
        deployment.client.maintenance().defragment(DefragmentRequest {}).await.expect("defragment").into_inner();
    assert_eq!(answer.header, None);
    assert_eq!(hash(deployment, 0).await, before);
    assert_eq!(deployment.put("k", "after").await, 202);
}

async fn the_member_lists_itself(deployment: &mut Deployment) {
    for linearizable in [false, true] {
        let answer =
            deployment.client.cluster().member_list(MemberListRequest { linearizable }).await.expect("members");
        let answer = answer.into_inner();
        assert_eq!(answer.members.len(), 1);
        let member = &answer.members[0];
        if deployment.target == Target::Proxy {
            // As etcd's proxy, so that clients which follow the list stay behind it.
            assert_eq!((member.id, answer.header), (0, None));
            assert_eq!(member.client_ur_ls, [format!("http://{}", deployment.endpoint)], "where it listens");
            let listed = client(&member.client_ur_ls[0]);
            listed.kv().range(RangeRequest { key: "k".into(), ..Default::default() }).await.expect("a URL to dial");
            continue;
        }
        let header = answer.header.expect("header");
        assert_eq!(header.revision, 0, "membership has no revision");
        assert_eq!((member.id, member.name.as_str(), member.is_learner), (header.member_id, "m1", false));
        assert_eq!(member.client_ur_ls, [format!("http://{}", deployment.member)]);
        assert_eq!(member.peer_ur_ls.len(), 1);
    }
}

async fn health_is_served(deployment: &mut Deployment) {
    let mut health = deployment.client.health();
    // A proxy tells it once it has looked itself, which may be after the first answers of the cluster.
    until("a health service that serves", async || {
        let answer =
            health.clone().check(HealthCheckRequest { service: String::new() }).await.expect("health").into_inner();
        (answer.status() == ServingStatus::Serving).then_some(())
    })
    .await;
    let answer = health.check(HealthCheckRequest { service: "nothing".into() }).await;
    refused(answer, Code::NotFound, "unknown service");
}

#[test]
fn a_corrupt_member_gives_no_data() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        if is_stock() {
            return;
        }
        deployment.put("k", "v").await;
        let mut maintenance = deployment.client.maintenance();
        let status = maintenance.status(StatusRequest {}).await.expect("status").into_inner();
        let member_id = status.header.expect("header").member_id;
        let alarm =
            |action: AlarmAction| AlarmRequest { action: action.into(), member_id, alarm: AlarmType::Corrupt.into() };
        maintenance.alarm(alarm(AlarmAction::Activate)).await.expect("alarm");
        let corrupt = "etcdserver: corrupt cluster";
        let range = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
        refused(deployment.client.kv().range(range).await, Code::DataLoss, corrupt);
        refused(maintenance.snapshot(SnapshotRequest {}).await, Code::DataLoss, corrupt);
        // What an operator needs still works.
        let status = maintenance.status(StatusRequest {}).await.expect("status").into_inner();
        assert!(status.errors.iter().any(|error| error.ends_with("alarm:CORRUPT")), "{:?}", status.errors);
        maintenance.hash_kv(HashKvRequest { revision: 0 }).await.expect("hash");
        maintenance.alarm(alarm(AlarmAction::Deactivate)).await.expect("alarm");
        assert_eq!(deployment.get("k").await.kvs[0].value, "v");
    });
}

// The answers of etcd 3.7.1, on which this runs as well.
#[test]
fn a_downgrade_is_checked_enabled_and_cancelled() {
    use DowngradeAction::{Cancel, Enable, Validate};
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let client = deployment.client.clone();
        let ask = async |action: DowngradeAction, version: &str| {
            let request = DowngradeRequest { action: action as i32, version: version.to_owned() };
            client.maintenance().downgrade(request).await
        };
        let cluster_is = async |version: &str| {
            until(version, async || (ask(Cancel, "").await.ok()?.into_inner().version == version).then_some(())).await;
        };
        cluster_is("3.7").await;
        for wrong in ["", "3", "x.y"] {
            let text = "etcdserver: wrong downgrade target version format";
            refused(ask(Validate, wrong).await, Code::InvalidArgument, text);
        }
        for wrong in ["3.5", "3.7.0", "3.8", "2.6"] {
            refused(ask(Enable, wrong).await, Code::InvalidArgument, "etcdserver: invalid downgrade target version");
        }
        assert_eq!(ask(Validate, "3.6").await.expect("fine").into_inner().version, "3.7");
        ask(Validate, "3.6.1").await.expect("the patch does not count");
        ask(Enable, "3.6.0").await.expect("fine");
        let info = status(deployment).await.downgrade_info.expect("always there");
        assert_eq!((info.enabled, info.target_version.as_str()), (true, "3.6.0"));
        // Once the version is that of the target the same one is no target any more.
        let second = ask(Enable, "3.6").await.expect_err("refused");
        let texts =
            ["etcdserver: cluster has a downgrade job in progress", "etcdserver: invalid downgrade target version"];
        assert!(texts.contains(&second.message()), "{second:?}");
        ask(Cancel, "").await.expect("fine");
        assert!(!status(deployment).await.downgrade_info.expect("always there").enabled);
        cluster_is("3.7").await;
        let request = DowngradeRequest { action: 7, version: "3.6".into() };
        refused(client.maintenance().downgrade(request).await, Code::Unknown, "etcdserver: unknown method");
    });
}
