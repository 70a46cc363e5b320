//! A member whose state is not that of the others: found, named, kept from serving, and replaced.

use std::ops::ControlFlow;
use std::path::Path;

use tonic::Code;
use watershed::core::backend::{Backend, Change, ChangeSet, Table};
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, MemberAddRequest, MemberRemoveRequest, PutRequest, RangeRequest,
};
use watershed::types::{RecordId, Revision};

use super::story::{assert_equal, on_three, put, try_put, value};
use crate::harness::{Cluster, refused, until};

const CORRUPT: &str = "etcdserver: corrupt cluster";

/// Changes one byte of a value in the state of a member that does not run, checksum and all: what a disk or a bug
/// would have to do to go unnoticed by the member itself.
fn damage(data_dir: &Path) {
    let backend = Backend::open(&data_dir.join("member/snap/db")).expect("the state of a stopped member");
    let mut found = None;
    let visit = &mut |id: RecordId, tombstone: bool, value: &bytes::Bytes| {
        let sound = value.windows(5).position(|part| part == b"sound");
        if let (false, Some(at)) = (tombstone, sound) {
            let mut wrong = value.to_vec();
            wrong[at] ^= 1;
            found = Some((id, wrong));
        }
        ControlFlow::Continue(())
    };
    backend.scan(RecordId::default(), Revision(i64::MAX), visit).expect("readable");
    let (id, wrong) = found.expect("the value is in the state");
    let changes = vec![Change::put(Table::Key, id.to_bytes().to_vec(), wrong)];
    backend.submit(ChangeSet { position: backend.durable(), changes });
    backend.checkpoint().expect("written");
}

async fn alarms(cluster: &Cluster, on: usize, action: AlarmAction, member_id: u64) -> Vec<AlarmMember> {
    let request = AlarmRequest { action: action.into(), member_id, alarm: AlarmType::Corrupt.into() };
    cluster.member(on).maintenance().alarm(request).await.expect("alarm").into_inner().alarms
}

async fn read_here(cluster: &Cluster, on: usize) -> Result<i64, tonic::Status> {
    let request = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
    Ok(cluster.member(on).kv().range(request).await?.into_inner().count)
}

/// Stops a follower and changes its state.
async fn damage_a_follower(cluster: &mut Cluster) -> usize {
    for number in 0..20 {
        put(&cluster.member(0), &format!("other{number}"), "v").await;
    }
    put(&cluster.member(0), "k", "sound").await;
    assert_equal(cluster).await;
    let damaged = cluster.follower().await;
    cluster.terminate(damaged).await;
    damage(&cluster.data_dir(damaged));
    damaged
}

#[test]
fn a_member_in_the_minority_does_not_start() {
    on_three(&[], async |cluster: &mut Cluster| {
        let damaged = damage_a_follower(cluster).await;
        let sound = cluster.leader().await;
        cluster.spawn(damaged);
        cluster.until_ended(damaged).await;
        let output = cluster.output(damaged);
        assert!(output.contains("found data inconsistency with peers"), "{output}");
        cluster.kill(damaged);
        // The sound ones do not mind, and start again beside it.
        assert_eq!(put(&cluster.member(sound), "after", "v").await, 23);
    });
}

#[test]
fn a_damaged_member_is_named_and_replaced() {
    on_three(&["--corrupt-check-time=1s"], async |cluster: &mut Cluster| {
        let damaged = damage_a_follower(cluster).await;
        cluster.set_flags(damaged, &["--feature-gates=InitialCorruptCheck=false"]);
        cluster.spawn(damaged);
        let id = cluster.id(damaged).await;
        let leader = cluster.leader().await;
        let raised = until("the alarm", async || {
            Some(alarms(cluster, leader, AlarmAction::Get, 0).await).filter(|raised| !raised.is_empty())
        })
        .await;
        assert_eq!(raised, [AlarmMember { member_id: id, alarm: AlarmType::Corrupt.into() }]);

        // It gives no data any more, not after a restart either; the others do, but nobody writes.
        let stops = async |cluster: &Cluster| {
            until("the end of its service", async || read_here(cluster, damaged).await.err()).await
        };
        let refusal = stops(cluster).await;
        assert_eq!((refusal.code(), refusal.message()), (Code::DataLoss, CORRUPT));
        cluster.kill(damaged);
        cluster.spawn(damaged);
        assert_eq!(cluster.id(damaged).await, id);
        let refusal = until("a refusal", async || {
            read_here(cluster, damaged).await.err().filter(|status| status.code() != Code::Unavailable)
        })
        .await;
        assert_eq!((refusal.code(), refusal.message()), (Code::DataLoss, CORRUPT));
        assert_eq!(value(&cluster.member(leader), "k").await.as_deref(), Some("sound"));
        let write = PutRequest { key: "k".into(), ..Default::default() };
        refused(cluster.member(leader).kv().put(write).await, Code::DataLoss, CORRUPT);

        // As docs/reliability.md has it: remove, wipe, add, lift the alarm.
        let leader = cluster.leader().await;
        assert_ne!(leader, damaged);
        until("the removal, once all were connected for a while", async || {
            match cluster.member(leader).cluster().member_remove(MemberRemoveRequest { id }).await {
                Ok(_) => Some(()),
                Err(status) if status.code() == Code::Unavailable => None,
                Err(status) => panic!("{status:?}"),
            }
        })
        .await;
        cluster.until_ended(damaged).await;
        cluster.kill(damaged);
        let new = cluster.prepare();
        let others = cluster.running();
        let add = MemberAddRequest { peer_ur_ls: vec![cluster.peer_url(new)], is_learner: false };
        until("the member is added", async || {
            cluster.member(leader).cluster().member_add(add.clone()).await.ok().map(drop)
        })
        .await;
        cluster.introduce(new, &others);
        cluster.spawn(new);
        cluster.until_ready(new).await;
        assert_eq!(alarms(cluster, new, AlarmAction::Deactivate, id).await.len(), 1);
        until("a write", async || try_put(&cluster.member(new), "after", "v").await.ok()).await;
        assert_equal(cluster).await;
    });
}
