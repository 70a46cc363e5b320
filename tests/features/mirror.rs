//! `ctl make-mirror` between two members, either of which ends and comes back.

use std::path::Path;

use bytes::Bytes;
use watershed::pb::etcdserverpb::request_op::Request;
use watershed::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use crate::harness::{Deployment, Process, Target, prefix, run, until};

fn mirror(from: &Deployment, to: &Deployment, flags: &[&str], name: &str) -> Process {
    let endpoints = format!("--endpoints={}", from.endpoint);
    let args: Vec<&str> =
        ["ctl", &endpoints, "make-mirror", &to.endpoint].into_iter().chain(flags.iter().copied()).collect();
    Process::start(Path::new(env!("CARGO_BIN_EXE_watershed")), &args, from.folder.path(), name)
}

fn put(key: String, value: &str) -> RequestOp {
    let put = PutRequest { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), ..Default::default() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

fn delete(key: String) -> RequestOp {
    let delete = DeleteRangeRequest { key: key.into(), ..Default::default() };
    RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

async fn commit(deployment: &Deployment, success: Vec<RequestOp>) {
    deployment.txn(TxnRequest { success, ..Default::default() }).await;
}

/// Names, without what they start with, and values.
async fn pairs(deployment: &Deployment, start: &'static str) -> Vec<(Vec<u8>, Bytes)> {
    let answer = deployment.range(prefix(start)).await;
    answer.kvs.into_iter().map(|kv| (kv.key[start.len()..].to_vec(), kv.value)).collect()
}

/// Waits until the keys below `there` are those below `here`.
async fn until_equal(from: &Deployment, here: &'static str, to: &Deployment, there: &'static str) {
    until("both to be equal", || async move { (pairs(from, here).await == pairs(to, there).await).then_some(()) })
        .await;
}

#[test]
fn every_change_arrives_whoever_was_away() {
    run(Target::Core, &[], async |from: &mut Deployment| {
        let mut to = Deployment::start(Target::Core, &[]).await;
        // More than two pages of the first copy, and a key that is not to be copied.
        for batch in 0..25 {
            commit(from, (0..100).map(|number| put(format!("a/{:04}", batch * 100 + number), "first")).collect()).await;
        }
        from.put("b/other", "stays").await;
        let mut process = mirror(from, &to, &["--prefix=a/", "--dest-prefix=copy/", "--max-txn-ops=7"], "mirror");
        until_equal(from, "a/", &to, "copy/").await;

        // One revision that is more than one transaction over there.
        let change = (0..20).map(|number| put(format!("a/{number:04}"), "second")).chain([delete("a/2000".into())]);
        commit(from, change.collect()).await;
        until_equal(from, "a/", &to, "copy/").await;

        to.server.kill();
        commit(from, vec![put("a/0001".into(), "third"), delete("a/0002".into())]).await;
        to.start_member_again().await;
        until_equal(from, "a/", &to, "copy/").await;

        from.crash_and_restart().await;
        from.put("a/0003", "fourth").await;
        until_equal(from, "a/", &to, "copy/").await;
        assert_eq!(pairs(&to, "").await.len(), pairs(from, "a/").await.len(), "only what was asked for");
        assert!(process.ended().is_none(), "{}", process.output());
    });
}

#[test]
fn it_begins_at_a_revision_with_the_names_it_is_told() {
    run(Target::Core, &[], async |from: &mut Deployment| {
        let to = Deployment::start(Target::Core, &[]).await;
        from.put("a/before", "1").await;
        let start = from.put("a/x", "2").await;
        from.put("other", "3").await;
        from.delete("a/before").await;
        let start = format!("--rev={start}");
        // Cause: etcdctl cuts the prefix off when --rev is given.
        let _kept = mirror(from, &to, &["--prefix=a/", &start], "kept");
        let _cut = mirror(from, &to, &["--prefix=a/", "--no-dest-prefix", &start], "cut");
        from.put("a/y", "4").await;
        until("four keys", || async { (to.range(prefix("")).await.count == 4).then_some(()) }).await;
        let names: Vec<Bytes> = to.range(prefix("")).await.kvs.into_iter().map(|kv| kv.key).collect();
        assert_eq!(names, ["a/x", "a/y", "x", "y"]);

        from.compact(3).await;
        let mut late = mirror(from, &to, &["--rev=2"], "late");
        until("the end of a mirror that begins in the past", || {
            let ended = late.ended();
            async move { ended }
        })
        .await;
        assert!(late.output().contains("required revision has been compacted"), "{}", late.output());
        let read = RangeRequest { key: "a/before".into(), ..Default::default() };
        assert_eq!(to.range(read).await.count, 0);
    });
}
