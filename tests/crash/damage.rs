use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use watershed::pb::etcdserverpb::RangeRequest;

use crate::harness::{
    Deployment, Process, Target, client, free_port, is_stock, member_args, run, server_binary, until,
};

const WRITES: i64 = 40;

/// How a start on a damaged log ended.
#[derive(Debug)]
enum Outcome {
    /// It serves, at this revision.
    Serves(i64),
    /// It refused, with this output.
    Refused(String),
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("create");
    for entry in std::fs::read_dir(from).expect("read") {
        let entry = entry.expect("read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(data.join("member/wal"))
        .expect("the log")
        .map(|entry| entry.expect("read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    files.sort();
    files
}

/// Starts the server on a copy of `data` whose last segment is `bytes`.
async fn start_with(deployment: &Deployment, name: &str, bytes: &[u8]) -> Outcome {
    let folder = deployment.folder.path().join(name);
    let data = folder.join("data");
    copy(&deployment.data_dir(), &data);
    let last = segments(&data).pop().expect("a segment");
    std::fs::write(last, bytes).expect("write");
    let member = format!("127.0.0.1:{}", free_port());
    let mut process = Process::start(&server_binary(), &member_args(&member, free_port(), &data), &folder, "damaged");
    let kv = client(&member).kv();
    let outcome = until("an outcome", || {
        let ended = process.ended();
        let mut kv = kv.clone();
        let output = process.output();
        async move {
            if let Some(status) = ended {
                assert_eq!(status.code(), Some(1), "{output}");
                return Some(Outcome::Refused(output));
            }
            let answer = tokio::time::timeout(
                Duration::from_secs(1),
                kv.range(RangeRequest { key: "k".into(), ..Default::default() }),
            );
            let answer = answer.await.ok()?.ok()?.into_inner();
            Some(Outcome::Serves(answer.header.expect("header").revision))
        }
    })
    .await;
    assert!(!process.output().contains("panicked"), "{name}: {}", process.output());
    drop(process);
    std::fs::remove_dir_all(folder).expect("remove");
    outcome
}

/// Starts the server on each of these logs, a few at a time.
async fn outcomes(deployment: &Deployment, cases: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Outcome)> {
    stream::iter(cases)
        .map(async |(case, bytes)| {
            let outcome = start_with(deployment, &case, &bytes).await;
            (case, outcome)
        })
        .buffer_unordered(4)
        .collect()
        .await
}

fn flipped(bytes: &[u8], at: usize, mask: u8) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    damaged[at] ^= mask;
    damaged
}

/// Where the records of a segment begin, and where the last one ends: 8 bytes of length (its top byte holds the
/// padding), then the record.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 8) {
        let field = u64::from_le_bytes(head.try_into().expect("eight bytes"));
        if field == 0 {
            break;
        }
        let padding = if field >> 63 == 1 { (field >> 56) & 7 } else { 0 };
        at += 8 + (field & 0x00ff_ffff_ffff_ffff) as usize + padding as usize;
        starts.push(at);
    }
    starts
}

#[test]
fn a_damaged_log_is_cut_or_refused_by_name() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        if is_stock() {
            return; // The texts are ours.
        }
        for number in 0..WRITES {
            deployment.put("k", format!("value {number}")).await;
        }
        let full = WRITES + 1;
        deployment.server.kill();
        let last = segments(&deployment.data_dir()).pop().expect("a segment");
        let bytes = std::fs::read(&last).expect("read");
        let name = last.file_name().expect("name").to_string_lossy().into_owned();
        let frames = frames(&bytes);
        let end = *frames.last().expect("an end");
        let last_start = frames[frames.len() - 2];
        assert!(frames.len() > WRITES as usize, "{} records", frames.len());

        // Every truncation of the last record is a torn tail.
        let truncations = (last_start..end).map(|length| (format!("cut-{length}"), bytes[..length].to_vec()));
        for (case, outcome) in outcomes(deployment, truncations).await {
            match outcome {
                Outcome::Serves(revision) => assert!((full - 1..=full).contains(&revision), "{case}: {revision}"),
                Outcome::Refused(output) => panic!("{case} of {end}: {output}"),
            }
        }
        // A flipped bit anywhere before the last record is corruption, and says where.
        let mut random = fastrand::Rng::with_seed(7);
        // Not of a length at the end of a sector: a disk may have lost that alone.
        let judged: Vec<_> = (0..last_start)
            .filter(|at| !frames.iter().any(|frame| (frame + 8) % 512 == 0 && (*frame..frame + 8).contains(at)))
            .collect();
        let flips = (0..40).map(|_| {
            let (at, bit) = (judged[random.usize(..judged.len())], random.u8(0..8));
            (format!("flip-{at}-{bit}"), flipped(&bytes, at, 1 << bit))
        });
        for (case, outcome) in outcomes(deployment, flips).await {
            match outcome {
                Outcome::Refused(output) => {
                    assert!(output.contains(&name), "{case}: names the file: {output}");
                    assert!(output.contains("offset"), "{case}: names the offset: {output}");
                }
                Outcome::Serves(revision) => panic!("{case} of {end} passed in silence, at {revision}"),
            }
        }
        // In the last record it may look like a torn tail.
        let flips = (last_start..end).step_by(3).map(|at| (format!("last-{at}"), flipped(&bytes, at, 0x10)));
        for (case, outcome) in outcomes(deployment, flips).await {
            match outcome {
                Outcome::Refused(output) => assert!(output.contains(&name), "{case}: {output}"),
                Outcome::Serves(revision) => assert!((full - 1..=full).contains(&revision), "{case}: {revision}"),
            }
        }
        // And without damage it is all there.
        let Outcome::Serves(revision) = start_with(deployment, "whole", &bytes).await else { panic!("refused") };
        assert_eq!(revision, full);
    });
}
