use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use watershed::pb::etcdserverpb::HashKvRequest;

use super::writers::{Acknowledged, write_until_told};
use crate::harness::{Deployment, Target, prefix, run};

const ROUNDS: usize = 50;
/// The rounds end early, with a note, on a machine too slow for all of them.
const BUDGET: Duration = Duration::from_secs(180);

async fn hash(deployment: &Deployment, revision: i64) -> u32 {
    deployment.client.maintenance().hash_kv(HashKvRequest { revision }).await.expect("hash").into_inner().hash
}

/// Every key the store holds, with value and revision.
async fn everything(deployment: &Deployment) -> (BTreeMap<String, (String, i64)>, i64) {
    let answer = deployment.range(prefix("crash/")).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let keys = answer.kvs.iter().map(|kv| (text(&kv.key), (text(&kv.value), kv.mod_revision))).collect();
    (keys, answer.header.expect("header").revision)
}

fn check(told: &Acknowledged, found: &BTreeMap<String, (String, i64)>, round: usize) {
    for (key, (value, revision)) in &told.keys {
        if told.unknown.contains(key) {
            continue;
        }
        let held = found.get(key).map(|(value, revision)| (Some(value.clone()), *revision));
        let held = held.unwrap_or((None, *revision));
        assert_eq!(held, (value.clone(), *revision), "round {round}: acknowledged write of {key} at {revision}");
    }
    let this_round = format!("crash/{round:02}/");
    for key in found.keys().filter(|key| key.starts_with(&this_round) && key.ends_with("/pair")) {
        let first = key.trim_end_matches("/pair");
        let deleted = told.keys.get(first).is_some_and(|(value, _)| value.is_none());
        let maybe = told.unknown.iter().any(|unknown| unknown == first);
        assert!(found.contains_key(first) || deleted || maybe, "round {round}: half of a transaction: {key}");
    }
}

#[test]
fn no_acknowledged_write_is_lost_over_fifty_kills() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let begun = Instant::now();
        let seed = u64::from(std::process::id());
        let mut random = fastrand::Rng::with_seed(seed);
        println!("seed {seed}");
        let (mut writes, mut newest, mut hashes) = (0, 1, Vec::<(i64, u32)>::new());
        let mut rounds = 0;
        while rounds < ROUNDS && begun.elapsed() < BUDGET {
            let stop = AtomicBool::new(false);
            let run_for = Duration::from_millis(random.u64(5..400));
            let client = deployment.member_client();
            let kill = async {
                tokio::time::sleep(run_for).await;
                deployment.server.kill();
                stop.store(true, Ordering::Relaxed);
            };
            let (told, ()) = tokio::join!(write_until_told(&client, rounds, 16, &stop), kill);
            deployment.start_member_again().await;

            let (found, revision) = everything(deployment).await;
            assert!(revision >= told.revision.max(newest), "round {rounds}: revision {revision} went back");
            check(&told, &found, rounds);
            for &(at, before) in hashes.iter().rev().take(3) {
                assert_eq!(hash(deployment, at).await, before, "round {rounds}: the hash at {at} changed");
            }
            hashes.push((revision, hash(deployment, revision).await));
            let next = deployment.put("marker", rounds.to_string()).await;
            assert_eq!(next, revision + 1, "revisions go on where they were");
            (newest, writes, rounds) = (next, writes + told.count, rounds + 1);
        }
        println!("{rounds} kills, {writes} acknowledged writes, revision {newest}");
        assert!(rounds >= 10, "only {rounds} rounds in {BUDGET:?}");
        assert!(writes > rounds, "the writers wrote");
    });
}
