//! What etcdctl 3.7.1 printed for the same answers, byte for byte.

use std::time::Duration;

use super::*;
use crate::pb::etcdserverpb::*;
use crate::pb::mvccpb::{Event, KeyValue};

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 5211519669624808227, member_id: 10444118659846891551, revision, raft_term: 2 })
}

fn foo() -> KeyValue {
    KeyValue {
        key: "foo".into(),
        value: "bar2".into(),
        create_revision: 2,
        mod_revision: 3,
        version: 2,
        ..Default::default()
    }
}

fn print(format: &str, text: impl Fn(&Printer) -> Result<Vec<u8>, super::super::failure::Failure>) -> String {
    let (format, hex) = format.strip_suffix(" hex").map_or((format, false), |format| (format, true));
    let printer = Printer::new(Format::read(format).unwrap(), hex);
    match text(&printer) {
        Ok(bytes) => String::from_utf8(bytes).unwrap(),
        Err(failure) => format!("{} (exit {})", failure.text, failure.code),
    }
}

const HEADER_JSON: &str =
    r#"{"cluster_id":5211519669624808227,"member_id":10444118659846891551,"revision":3,"raft_term":2}"#;
const HEADER_FIELDS: &str =
    "\"ClusterID\" : 5211519669624808227\n\"MemberID\" : 10444118659846891551\n\"Revision\" : 3\n\"RaftTerm\" : 2\n";

#[test]
fn a_get_in_every_format() {
    let answer = RangeResponse { header: header(3), kvs: vec![foo()], more: false, count: 1 };
    let show = |format| print(format, |printer| printer.range(&answer));
    assert_eq!(show("simple"), "foo\nbar2\n");
    assert_eq!(show("simple hex"), "\\x66\\x6f\\x6f\n\\x62\\x61\\x72\\x32\n");
    assert_eq!(
        show("json"),
        format!(
            "{{\"header\":{HEADER_JSON},\"kvs\":[{{\"key\":\"Zm9v\",\"create_revision\":2,\"mod_revision\":3,\
             \"version\":2,\"value\":\"YmFyMg==\"}}],\"count\":1}}\n"
        )
    );
    assert_eq!(
        show("fields"),
        format!(
            "{HEADER_FIELDS}\"Key\" : \"foo\"\n\"CreateRevision\" : 2\n\"ModRevision\" : 3\n\"Version\" : 2\n\
             \"Value\" : \"bar2\"\n\"Lease\" : 0\n\"More\" : false\n\"Count\" : 1\n"
        )
    );
    assert_eq!(show("table"), "table not supported as output format (exit 4)");
}

#[test]
fn a_put_shows_the_old_pair_when_there_is_one() {
    let fresh = PutResponse { header: header(3), prev_kv: None };
    assert_eq!(print("simple", |printer| printer.put(&fresh)), "OK\n");
    assert_eq!(print("json", |printer| printer.put(&fresh)), format!("{{\"header\":{HEADER_JSON}}}\n"));
    let changed = PutResponse { header: header(3), prev_kv: Some(foo()) };
    assert_eq!(print("simple", |printer| printer.put(&changed)), "OK\nfoo\nbar2\n");
}

#[test]
fn a_transaction_shows_each_operation() {
    let inner = Some(ResponseHeader { revision: 7, ..Default::default() });
    let op = |response| ResponseOp { response: Some(response) };
    let answer = TxnResponse {
        header: header(7),
        succeeded: true,
        responses: vec![
            op(response_op::Response::ResponsePut(PutResponse { header: inner, prev_kv: None })),
            op(response_op::Response::ResponseRange(RangeResponse {
                header: inner,
                kvs: vec![foo()],
                more: false,
                count: 1,
            })),
            op(response_op::Response::ResponseDeleteRange(DeleteRangeResponse {
                header: inner,
                deleted: 0,
                prev_kvs: vec![],
            })),
        ],
    };
    assert_eq!(print("simple", |printer| printer.txn(&answer)), "SUCCESS\n\nOK\n\nfoo\nbar2\n\n0\n");
    assert_eq!(
        print("json", |printer| printer.txn(&answer)),
        concat!(
            r#"{"header":{"cluster_id":5211519669624808227,"member_id":10444118659846891551,"revision":7,"#,
            r#""raft_term":2},"succeeded":true,"responses":[{"Response":{"response_put":{"header":{"revision":7}}}},"#,
            r#"{"Response":{"response_range":{"header":{"revision":7},"kvs":[{"key":"Zm9v","create_revision":2,"#,
            r#""mod_revision":3,"version":2,"value":"YmFyMg=="}],"count":1}}},"#,
            r#"{"Response":{"response_delete_range":{"header":{"revision":7}}}}]}"#,
            "\n"
        )
    );
    let fields = print("fields", |printer| printer.txn(&answer));
    assert!(
        fields.contains(
            "\"Succeeded\" : true\n\"ClusterID\" : 0\n\"MemberID\" : 0\n\"Revision\" : 7\n\"RaftTerm\" : 0\n"
        )
    );
}

#[test]
fn a_watch_shows_type_old_and_new_pair() {
    let old = KeyValue { value: "bar".into(), mod_revision: 2, version: 1, ..foo() };
    let answer = WatchResponse {
        header: header(5),
        events: vec![Event { kv: Some(foo()), prev_kv: Some(old), ..Default::default() }],
        ..Default::default()
    };
    assert_eq!(print("simple", |printer| printer.watch(&answer)), "PUT\nfoo\nbar\nfoo\nbar2\n");
    let deleted = WatchResponse {
        events: vec![Event {
            r#type: 1,
            kv: Some(KeyValue { key: "foo".into(), mod_revision: 9, ..Default::default() }),
            prev_kv: None,
        }],
        ..answer.clone()
    };
    assert_eq!(print("simple", |printer| printer.watch(&deleted)), "DELETE\nfoo\n\n");
    assert!(
        print("json", |printer| printer.watch(&deleted))
            .contains(r#""Events":[{"type":1,"kv":{"key":"Zm9v","mod_revision":9}}]"#)
    );
    let compacted = WatchResponse { header: header(0), canceled: true, compact_revision: 2, ..Default::default() };
    assert_eq!(
        print("json", |printer| printer.watch(&compacted)),
        concat!(
            r#"{"Header":{"cluster_id":5211519669624808227,"member_id":10444118659846891551,"raft_term":2},"#,
            r#""Events":null,"CompactRevision":2,"Canceled":true,"Created":false,"CancelReason":""}"#,
            "\n"
        )
    );
}

#[test]
fn leases_are_sixteen_digits() {
    let id = 7502893602113836042;
    let granted = LeaseGrantResponse { header: header(3), id, ttl: 60, error: String::new() };
    assert_eq!(
        print("simple", |printer| printer.lease_grant(&granted)),
        "lease 681fa1faa58bd40a granted with TTL(60s)\n"
    );
    let flat = HEADER_JSON.strip_suffix('}').unwrap();
    assert_eq!(
        print("json", |printer| printer.lease_grant(&granted)),
        format!("{flat},\"ID\":{id},\"TTL\":60,\"Error\":\"\"}}\n")
    );
    let gone = LeaseTimeToLiveResponse { header: header(3), id: 0x1234, ttl: -1, granted_ttl: 0, keys: vec![] };
    assert_eq!(
        print("simple", |printer| printer.lease_time_to_live(&gone, false)),
        "lease 0000000000001234 already expired\n"
    );
    assert_eq!(
        print("json", |printer| printer.lease_time_to_live(&gone, false)),
        format!("{flat},\"id\":4660,\"ttl\":-1,\"granted-ttl\":0,\"keys\":null}}\n")
    );
    let alive = LeaseTimeToLiveResponse {
        header: header(3),
        id,
        ttl: 99,
        granted_ttl: 100,
        keys: vec!["lk1".into(), "lk2".into()],
    };
    assert_eq!(
        print("simple", |printer| printer.lease_time_to_live(&alive, true)),
        "lease 681fa1faa58bd40a granted with TTL(100s), remaining(99s), attached keys([lk1 lk2])\n"
    );
    let listed = LeaseLeasesResponse { header: header(3), leases: vec![LeaseStatus { id }] };
    assert_eq!(print("simple", |printer| printer.leases(&listed)), "found 1 leases\n681fa1faa58bd40a\n");
    assert_eq!(print("json", |printer| printer.leases(&listed)), format!("{flat},\"leases\":[{{\"id\":{id}}}]}}\n"));
    let none = LeaseLeasesResponse { header: header(3), leases: vec![] };
    assert_eq!(print("json", |printer| printer.leases(&none)), format!("{flat},\"leases\":[]}}\n"));
}

#[test]
fn members_in_every_format() {
    let member = Member {
        id: 0x90f0f695f833e81f,
        name: "n1".into(),
        peer_ur_ls: vec!["http://127.0.0.1:35080".into()],
        client_ur_ls: vec!["http://127.0.0.1:35079".into()],
        is_learner: false,
    };
    let answer = MemberListResponse { header: header(0), members: vec![member.clone()] };
    let show = |format| print(format, |printer| printer.member_list(&answer));
    assert_eq!(
        show("simple"),
        "90f0f695f833e81f, started, n1, http://127.0.0.1:35080, http://127.0.0.1:35079, false\n"
    );
    assert_eq!(
        show("table"),
        "\
┌──────────────────┬─────────┬──────┬────────────────────────┬────────────────────────┬────────────┐
│        ID        │ STATUS  │ NAME │       PEER ADDRS       │      CLIENT ADDRS      │ IS LEARNER │
├──────────────────┼─────────┼──────┼────────────────────────┼────────────────────────┼────────────┤
│ 90f0f695f833e81f │ started │   n1 │ http://127.0.0.1:35080 │ http://127.0.0.1:35079 │      false │
└──────────────────┴─────────┴──────┴────────────────────────┴────────────────────────┴────────────┘
"
    );
    assert_eq!(
        show("json hex"),
        concat!(
            r#"{"header":{"cluster_id":"4853098717f2a323","member_id":"90f0f695f833e81f","raft_term":2},"#,
            r#""members":[{"ID":"90f0f695f833e81f","name":"n1","peerURLs":["http://127.0.0.1:35080"],"#,
            r#""clientURLs":["http://127.0.0.1:35079"]}]}"#,
            "\n"
        )
    );
    assert_eq!(
        show("fields hex"),
        "\"ClusterID\" : 4853098717f2a323\n\"MemberID\" : 90f0f695f833e81f\n\"RaftTerm\" : 2\n\
         \"ID\" : 90f0f695f833e81f\n\"Name\" : \"n1\"\n\"PeerURL\" : \"http://127.0.0.1:35080\"\n\
         \"ClientURL\" : \"http://127.0.0.1:35079\"\n\"IsLearner\" : false\n\n"
    );
    let added = Member { id: 0x94076d06a6473ca7, name: String::new(), is_learner: true, ..member };
    let answer = MemberAddResponse { header: header(0), member: Some(added), members: vec![] };
    assert_eq!(
        print("simple", |printer| printer.member_add(&answer)),
        "Member 94076d06a6473ca7 added as learner to cluster 4853098717f2a323\n"
    );
    assert_eq!(
        print("fields", |printer| printer.member_add(&answer)),
        "fields not supported as output format (exit 4)"
    );
}

#[test]
fn endpoint_status_in_every_format() {
    let status = StatusResponse {
        header: header(3),
        version: "3.7.1".into(),
        db_size: 24576,
        leader: 10444118659846891551,
        raft_index: 10,
        raft_term: 2,
        raft_applied_index: 10,
        db_size_in_use: 16384,
        storage_version: "3.7.0".into(),
        db_size_quota: 2147483648,
        downgrade_info: Some(DowngradeInfo::default()),
        ..Default::default()
    };
    let found = [EndpointStatus { endpoint: "127.0.0.1:35079".into(), status: status.clone() }];
    let show = |format| print(format, |printer| printer.endpoint_status(&found));
    assert_eq!(
        show("simple"),
        "127.0.0.1:35079, 90f0f695f833e81f, 3.7.1, 3.7.0, 25 kB, 16 kB, 34%, 2.1 GB, true, false, 2, 10, 10, , , false\n"
    );
    assert_eq!(
        show("json"),
        format!(
            "[{{\"Endpoint\":\"127.0.0.1:35079\",\"Status\":{{\"header\":{HEADER_JSON},\"version\":\"3.7.1\",\
             \"dbSize\":24576,\"leader\":10444118659846891551,\"raftIndex\":10,\"raftTerm\":2,\
             \"raftAppliedIndex\":10,\"dbSizeInUse\":16384,\"storageVersion\":\"3.7.0\",\
             \"dbSizeQuota\":2147483648,\"downgradeInfo\":{{}}}}}}]\n"
        )
    );
    assert_eq!(
        show("fields"),
        format!(
            "{HEADER_FIELDS}\"Version\" : \"3.7.1\"\n\"StorageVersion\" : \"3.7.0\"\n\"DBSize\" : 24576\n\
             \"DBSizeInUse\" : 16384\n\"DBSizeQuota\" : 2147483648\n\"Leader\" : 10444118659846891551\n\
             \"IsLearner\" : false\n\"RaftIndex\" : 10\n\"RaftTerm\" : 2\n\"RaftAppliedIndex\" : 10\n\"Errors\" : []\n\
             \"Endpoint\" : \"127.0.0.1:35079\"\n\"DowngradeTargetVersion\" : \"\"\n\"DowngradeEnabled\" : false\n\n"
        )
    );
    // A server without a size is no reason to divide by zero.
    let empty =
        [EndpointStatus { endpoint: "x:1".into(), status: StatusResponse { db_size: 0, db_size_in_use: 0, ..status } }];
    assert!(print("simple", |printer| printer.endpoint_status(&empty)).contains(", 0 B, 0 B, 0%, "));
}

#[test]
fn endpoint_health_and_hashes() {
    let healthy =
        EndpointHealth { endpoint: "127.0.0.1:35079".into(), took: Duration::from_nanos(2_132_425), error: None };
    let ill = EndpointHealth { error: Some("context deadline exceeded".into()), ..healthy.clone() };
    let show = |format, found: &[EndpointHealth]| print(format, |printer| printer.endpoint_health(found));
    assert_eq!(
        show("simple", &[healthy.clone(), ill.clone()]),
        "127.0.0.1:35079 is healthy: successfully committed proposal: took = 2.132425ms\n"
    );
    assert_eq!(
        show("json", &[healthy.clone(), ill]),
        concat!(
            r#"[{"endpoint":"127.0.0.1:35079","health":true,"took":"2.132425ms"},"#,
            r#"{"endpoint":"127.0.0.1:35079","health":false,"took":"2.132425ms","error":"context deadline exceeded"}]"#,
            "\n"
        )
    );
    assert_eq!(
        show("table", &[healthy]),
        "\
┌─────────────────┬────────┬────────────┬───────┐
│    ENDPOINT     │ HEALTH │    TOOK    │ ERROR │
├─────────────────┼────────┼────────────┼───────┤
│ 127.0.0.1:35079 │   true │ 2.132425ms │       │
└─────────────────┴────────┴────────────┴───────┘
"
    );
    let hash = HashKvResponse { header: header(3), hash: 3581052765, compact_revision: -1, hash_revision: 3 };
    let found = [EndpointHash { endpoint: "127.0.0.1:35079".into(), hash }];
    assert_eq!(print("simple", |printer| printer.endpoint_hashes(&found)), "127.0.0.1:35079, 3581052765, 3\n");
    assert_eq!(
        print("json", |printer| printer.endpoint_hashes(&found)),
        format!(
            "[{{\"Endpoint\":\"127.0.0.1:35079\",\"HashKV\":{{\"header\":{HEADER_JSON},\"hash\":3581052765,\
             \"compact_revision\":-1,\"hash_revision\":3}}}}]\n"
        )
    );
}

#[test]
fn alarms_name_member_and_kind() {
    let answer = AlarmResponse { header: header(3), alarms: vec![AlarmMember { member_id: 291, alarm: 1 }] };
    assert_eq!(print("simple", |printer| printer.alarms(&answer)), "memberID:291 alarm:NOSPACE\n");
    assert_eq!(
        print("json", |printer| printer.alarms(&answer)),
        format!("{{\"header\":{HEADER_JSON},\"alarms\":[{{\"memberID\":291,\"alarm\":1}}]}}\n")
    );
    assert_eq!(
        print("fields", |printer| printer.alarms(&answer)),
        format!("{HEADER_FIELDS}\"MemberID\" : 291\n\"AlarmType\" : NOSPACE\n\n")
    );
}
