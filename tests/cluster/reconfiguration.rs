//! What is refused, who is asked, and what becomes of members that lost their cluster or their disk.

use tonic::{Code, Status};
use watershed::pb::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest,
    MoveLeaderRequest, RangeRequest,
};

use super::story::{on_three, put, try_put, value};
use crate::harness::{Cluster, http_get, refused, until};

async fn list(cluster: &Cluster, on: usize) -> Vec<(u64, String, Vec<String>, bool)> {
    let request = MemberListRequest { linearizable: true };
    let list = cluster.member(on).cluster().member_list(request).await.expect("list").into_inner();
    list.members.into_iter().map(|member| (member.id, member.name, member.peer_ur_ls, member.is_learner)).collect()
}

async fn add(cluster: &Cluster, on: usize, url: &str, is_learner: bool) -> Result<u64, Status> {
    let request = MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner };
    let answer = cluster.member(on).cluster().member_add(request).await?.into_inner();
    let member = answer.member.expect("the member");
    assert!(answer.members.contains(&member), "{:?}", answer.members);
    assert_eq!(answer.header.expect("header").revision, 0, "membership has no revision");
    Ok(member.id)
}

/// Adds a member; `--strict-reconfig-check` wants connections that have held for a while.
async fn add_soon(cluster: &Cluster, on: usize, url: &str, is_learner: bool) -> u64 {
    until("the member is added", async || match add(cluster, on, url, is_learner).await {
        Ok(id) => Some(id),
        Err(status) if status.message() == "etcdserver: unhealthy cluster" => None,
        Err(status) => panic!("{status:?}"),
    })
    .await
}

#[test]
fn all_members_tell_one_story() {
    on_three(&["--initial-cluster-token=told"], async |cluster: &mut Cluster| {
        let first = list(cluster, 0).await;
        assert_eq!(first.len(), 3);
        let mut names: Vec<_> = first.iter().map(|member| member.1.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["n1", "n2", "n3"]);
        for number in 0..3 {
            assert_eq!(list(cluster, number).await, first);
            until("the version of the cluster", async || {
                let answer = http_get(cluster.endpoint(number), "GET", "/version").await.expect("version");
                let expected = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
                (answer.body == expected).then_some(())
            })
            .await;
        }
    });
}

#[test]
fn a_learner_serves_what_it_may() {
    on_three(&[], async |cluster: &mut Cluster| {
        put(&cluster.member(0), "k", "v").await;
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        let new = cluster.prepare();
        let url = cluster.peer_url(new);
        let id = add_soon(cluster, follower, &url, true).await;
        // On a busy machine the members may have lost touch for a moment, and that is refused first.
        let too_many = until("a second learner is refused as one too many", async || {
            let refused = add(cluster, leader, "http://127.0.0.1:1", true).await.expect_err("one learner is enough");
            Some(refused).filter(|status| status.message() != "etcdserver: unhealthy cluster")
        })
        .await;
        assert_eq!(
            (too_many.code(), too_many.message()),
            (Code::FailedPrecondition, "etcdserver: too many learner members in cluster")
        );
        let promote = |on: usize| {
            let mut client = cluster.member(on).cluster();
            async move { client.member_promote(MemberPromoteRequest { id }).await }
        };
        // A learner that has never started has nothing.
        let not_ready = "etcdserver: can only promote a learner member which is in sync with leader";
        for on in [leader, follower] {
            refused(promote(on).await, Code::FailedPrecondition, not_ready);
        }
        cluster.introduce(new, &[0, 1, 2]);
        cluster.spawn(new);
        let learner = cluster.member(new);
        until("the learner has the data", async || {
            let request = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
            Some(learner.kv().range(request).await.ok()?.into_inner().kvs.len() == 1).filter(|there| *there)
        })
        .await;
        let not_here = "etcdserver: rpc not supported for learner";
        let status = try_put(&learner, "k", "w").await.expect_err("a write");
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, not_here));
        let range = learner.kv().range(RangeRequest { key: "k".into(), ..Default::default() }).await;
        refused(range, Code::FailedPrecondition, not_here);
        let members = learner.cluster().member_list(MemberListRequest { linearizable: false }).await;
        refused(members, Code::FailedPrecondition, not_here);

        // etcd issue 21736: an update made a voter of a learner.
        let update = MemberUpdateRequest { id, peer_ur_ls: vec![url.clone()] };
        cluster.member(follower).cluster().member_update(update).await.expect("update");
        assert!(list(cluster, leader).await.contains(&(id, "n4".to_owned(), vec![url.clone()], true)));
        // The follower asks the leader.
        let promote = |on: usize| {
            let mut client = cluster.member(on).cluster();
            async move { client.member_promote(MemberPromoteRequest { id }).await }
        };
        until("the learner is promoted", async || promote(follower).await.ok()).await;
        refused(promote(follower).await, Code::FailedPrecondition, "etcdserver: can only promote a learner member");
        until("it serves as a voter", async || try_put(&learner, "k", "w").await.ok()).await;
        assert!(list(cluster, new).await.contains(&(id, "n4".to_owned(), vec![url], false)));
    });
}

#[test]
fn changes_that_make_no_sense_are_refused() {
    on_three(&["--strict-reconfig-check=false"], async |cluster: &mut Cluster| {
        let members = list(cluster, 0).await;
        let not_found = "etcdserver: member not found";
        for on in 0..3 {
            let mut client = cluster.member(on).cluster();
            refused(client.member_remove(MemberRemoveRequest { id: 7 }).await, Code::NotFound, not_found);
            refused(client.member_promote(MemberPromoteRequest { id: 7 }).await, Code::NotFound, not_found);
            let update = |id, url: &str| MemberUpdateRequest { id, peer_ur_ls: vec![url.to_owned()] };
            refused(client.member_update(update(7, "http://127.0.0.1:1")).await, Code::NotFound, not_found);
            let taken = "etcdserver: Peer URLs already exists";
            let (own, other) = (members[on].0, &members[(on + 1) % 3].2[0]);
            refused(client.member_update(update(own, other)).await, Code::FailedPrecondition, taken);
            let add = |urls: &[&str]| MemberAddRequest {
                peer_ur_ls: urls.iter().map(|url| (*url).to_owned()).collect(),
                is_learner: false,
            };
            refused(client.member_add(add(&[other])).await, Code::FailedPrecondition, taken);
            let invalid = "etcdserver: given member URLs are invalid";
            for urls in [&[][..], &["127.0.0.1:1"], &["http://127.0.0.1"], &["http://127.0.0.1:1/x"]] {
                refused(client.member_add(add(urls)).await, Code::InvalidArgument, invalid);
            }
            refused(client.member_update(update(own, "%zz")).await, Code::InvalidArgument, invalid);
        }
        assert_eq!(list(cluster, 0).await, members, "nothing changed");
    });
}

#[test]
fn the_quorum_is_protected() {
    on_three(&[], async |cluster: &mut Cluster| {
        let members = list(cluster, 0).await;
        let leader = cluster.leader().await;
        let (down, other) = ((leader + 1) % 3, (leader + 2) % 3);
        let id_of = |number: usize| {
            let name = format!("n{}", number + 1);
            members.iter().find(|member| member.1 == name).expect("a member").0
        };
        // Connections are old enough once a learner may be added.
        let learner = add_soon(cluster, leader, "http://127.0.0.1:1", true).await;
        let remove = |id| {
            let mut client = cluster.member(leader).cluster();
            async move { client.member_remove(MemberRemoveRequest { id }).await }
        };
        remove(learner).await.expect("a learner may always go");
        cluster.kill(down);
        let unhealthy = "etcdserver: unhealthy cluster";
        until("the loss is noticed", async || {
            // Three of four would be needed, and two are there.
            add(cluster, leader, "http://127.0.0.1:1", true).await.err().filter(|status| status.message() == unhealthy)
        })
        .await;
        let remove = |id| {
            let mut client = cluster.member(leader).cluster();
            async move { client.member_remove(MemberRemoveRequest { id }).await }
        };
        refused(remove(id_of(other)).await, Code::Unavailable, unhealthy);
        remove(id_of(down)).await.expect("the one that is down may go");
        put(&cluster.member(other), "k", "two are left").await;
    });
}

#[test]
fn changes_asked_at_once_all_happen() {
    on_three(&["--strict-reconfig-check=false", "--max-learners=6"], async |cluster: &mut Cluster| {
        let add = |number: usize| {
            let mut client = cluster.member(number % 3).cluster();
            let peer_ur_ls = vec![format!("http://127.0.0.1:{}", number + 1)];
            async move { client.member_add(MemberAddRequest { peer_ur_ls, is_learner: true }).await }
        };
        for answer in futures::future::join_all((0..6).map(add)).await {
            answer.expect("added");
        }
        let members = list(cluster, 0).await;
        assert_eq!(members.iter().filter(|member| member.3).count(), 6, "{members:?}");
        for number in 1..3 {
            assert_eq!(list(cluster, number).await, members);
        }
    });
}

#[test]
fn leadership_moves_to_voters_only() {
    on_three(&[], async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        let (next, asleep) = ((leader + 1) % 3, (leader + 2) % 3);
        let (next_id, asleep_id) = (cluster.id(next).await, cluster.id(asleep).await);
        let learner = add_soon(cluster, leader, "http://127.0.0.1:1", true).await;
        // Until the new leader has applied that, raft does not let it campaign, and the transfer takes too long.
        list(cluster, next).await;
        let move_to = |on: usize, target_id| {
            let mut client = cluster.member(on).maintenance();
            async move { client.move_leader(MoveLeaderRequest { target_id }).await }
        };
        refused(move_to(next, next_id).await, Code::FailedPrecondition, "etcdserver: not leader");
        for target in [7, learner] {
            let bad = "etcdserver: bad leader transferee";
            refused(move_to(leader, target).await, Code::FailedPrecondition, bad);
        }
        // One that takes longer than an election timeout is given up.
        until("the new leader", async || {
            if let Ok(answer) = move_to(cluster.leader().await, next_id).await {
                assert_eq!(answer.into_inner().header, None);
            }
            (cluster.leader().await == next).then_some(())
        })
        .await;
        put(&cluster.member(leader), "k", "after").await;

        // The target does not answer. The leader goes on.
        cluster.pause(asleep);
        let late = "etcdserver: request timed out, leader transfer took too long";
        // What a follower sends on meanwhile waits, and is done.
        let (moved, ()) = tokio::join!(move_to(next, asleep_id), async {
            let through = cluster.member(leader);
            for number in 0..200 {
                put(&through, "meanwhile", &number.to_string()).await;
            }
        });
        refused(moved, Code::Unknown, late);
        put(&cluster.member(next), "k", "still").await;
        cluster.resume(asleep);
        assert_eq!(value(&cluster.member(next), "k").await.as_deref(), Some("still"));
    });
}

#[test]
fn a_leader_that_is_removed_ends_in_peace() {
    on_three(&["--strict-reconfig-check=false"], async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        let id = cluster.id(leader).await;
        let rest: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
        let request = MemberRemoveRequest { id };
        let answer = cluster.member(leader).cluster().member_remove(request).await.expect("removed").into_inner();
        assert_eq!(answer.members.len(), 2);
        cluster.until_ended(leader).await;
        let output = cluster.output(leader);
        assert!(output.contains("the member has been permanently removed from the cluster"), "{output}");
        cluster.kill(leader);
        cluster.leader_of(&rest).await;
        put(&cluster.member(rest[0]), "k", "v").await;
        assert_eq!(list(cluster, rest[1]).await.len(), 2);
    });
}

#[test]
fn one_after_the_other_is_removed_until_one_is_left() {
    on_three(&["--strict-reconfig-check=false"], async |cluster: &mut Cluster| {
        let mut left = vec![0, 1, 2];
        while left.len() > 1 {
            let leader = cluster.leader_of(&left).await;
            put(&cluster.member(leader), "k", &format!("of {}", left.len())).await;
            let request = MemberRemoveRequest { id: cluster.id(leader).await };
            let answer = cluster.member(leader).cluster().member_remove(request).await.expect("removed").into_inner();
            left.retain(|number| *number != leader);
            assert_eq!(answer.members.len(), left.len());
            // It has been answered: whoever is left must know by now.
            cluster.kill(leader);
        }
        let last = left[0];
        until("the last one serves alone", async || try_put(&cluster.member(last), "k", "alone").await.ok()).await;
        assert_eq!(list(cluster, last).await.len(), 1);
    });
}

#[test]
fn a_member_that_was_away_meets_a_leader_it_does_not_know() {
    on_three(&["--strict-reconfig-check=false"], async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
        cluster.kill(away);
        let new = cluster.prepare();
        add(cluster, leader, &cluster.peer_url(new), false).await.expect("two of three decide");
        cluster.introduce(new, &[0, 1, 2]);
        cluster.spawn(new);
        cluster.until_ready(new).await;
        let target_id = cluster.id(new).await;
        // Until the new one had started there was no quorum, and anybody may lead now.
        until("the new one leads", async || {
            let leads = cluster.leader_of(&[leader, other, new]).await;
            let moved = cluster.member(leads).maintenance().move_leader(MoveLeaderRequest { target_id }).await;
            moved.ok()
        })
        .await;
        put(&cluster.member(new), "k", "by a stranger").await;
        // It is told of three members, none of which leads.
        cluster.restart(away).await;
        assert_eq!(value(&cluster.member(away), "k").await.as_deref(), Some("by a stranger"));
        cluster.kill(other);
        put(&cluster.member(away), "k", "three of four").await;
    });
}

#[test]
fn a_member_does_not_begin_twice() {
    on_three(&[], async |cluster: &mut Cluster| {
        let lost = cluster.follower().await;
        cluster.kill(lost);
        std::fs::remove_dir_all(cluster.data_dir(lost)).expect("its disk is gone");
        cluster.spawn(lost);
        until("it is refused", || {
            let ended = cluster.ended(lost);
            async move { ended.then_some(()) }
        })
        .await;
        let output = cluster.output(lost);
        assert!(output.contains("has already been bootstrapped"), "{output}");
        assert!(!cluster.data_dir(lost).join("member").exists(), "nothing was made");
    });
}

#[test]
fn one_member_goes_on_alone_with_all_data() {
    on_three(&[], async |cluster: &mut Cluster| {
        for number in 0..100 {
            put(&cluster.member(number % 3), &format!("k{number}"), "v").await;
        }
        let leader = cluster.leader().await;
        add_soon(cluster, leader, "http://127.0.0.1:1", true).await;
        let survivor = leader;
        let id = cluster.id(survivor).await;
        cluster.kill_all(&[0, 1, 2]);
        cluster.set_flags(survivor, &["--force-new-cluster"]);
        cluster.restart(survivor).await;
        let alone = list(cluster, survivor).await;
        assert_eq!(alone.iter().map(|member| member.0).collect::<Vec<_>>(), [id], "the learner is gone too");
        assert_eq!(value(&cluster.member(survivor), "k99").await.as_deref(), Some("v"));
        put(&cluster.member(survivor), "k", "alone").await;
        cluster.kill(survivor);
        cluster.set_flags(survivor, &[]);
        cluster.restart(survivor).await;
        assert_eq!(list(cluster, survivor).await, alone);
        assert_eq!(value(&cluster.member(survivor), "k").await.as_deref(), Some("alone"));
        let new = cluster.prepare();
        add(cluster, survivor, &cluster.peer_url(new), false).await.expect("it may grow again");
        cluster.introduce(new, &[survivor]);
        cluster.spawn(new);
        cluster.until_ready(new).await;
        assert_eq!(value(&cluster.member(new), "k50").await.as_deref(), Some("v"));
    });
}
