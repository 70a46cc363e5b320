//! What etcd 3.7.1 and etcdctl 3.7.1 answered to the calls in `tests/interop/golden/`, against what our member and our
//! client answer: output, standard error and exit code, after ids, times and ports have got names.
//!
//! A transcript (`transcript.rs`) is a list of blocks. `$` begins a call, `<` a line of its standard input, `|` begins a
//! line of output, `!` one of standard error, `=` the exit code unless it is 0. Where we differ on purpose, `~` and a
//! reason follow, and then our own lines. A call is a command of the client (`ctl.rs`), or `GRPC package.Service/Method`
//! with metadata and messages as JSON (`grpc.rs`), whose exit code is the gRPC code. `3 lines of` before a call ends one
//! that goes on by itself. `{lease1}` is the first lease that the transcript granted (`scene.rs`); `normal.rs` masks what
//! has no name.
//!
//! `WATERSHED_TEST_SERVER=etcd WATERSHED_GOLDEN_CTL=etcdctl` compares the transcripts with those programs instead, and
//! `WATERSHED_GOLDEN_WRITE=1` beside them records what they answer (`just golden`).

mod ctl;
mod grpc;
mod normal;
mod proxy_flags;
mod scene;
mod transcript;

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;
use watershed::api_error::ApiError;
use watershed::pb::etcdserverpb::StatusRequest;
use watershed::pb::methods::METHODS;

use self::scene::Scene;
use self::transcript::{Block, parse, text};
use crate::harness::{Deployment, Target, run, until};

/// How long one call may take before it is ended.
const CALL_LIMIT: Duration = Duration::from_secs(30);

macro_rules! transcripts {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            compare(stringify!($name));
        })*
    };
}

transcripts!(
    command_line,
    kv,
    txn,
    watch,
    lease,
    cluster,
    concurrency,
    auth,
    downgrade, //
    rpc_kv,
    rpc_txn,
    rpc_watch,
    rpc_lease,
    rpc_cluster,
    rpc_maintenance,
    rpc_recipes,
    rpc_auth,
    rpc_jwt,
);

/// Errors of the API that no transcript has, and what it takes to see them.
const NOT_RECORDED: &[(ApiError, &str)] = &[
    (ApiError::TooManyRequests, "five thousand entries have to wait: `core::server::proposer`"),
    (ApiError::MemberExists, "two members added with the same URLs within one second"),
    (ApiError::ClusterIdMismatch, "between members of etcd only"),
    (ApiError::NotLeader, "several members: `cluster::reconfiguration`"),
    (ApiError::NotCapable, "before the cluster's version is decided: `core::server::route`"),
    (ApiError::NotSupportedForLearner, "a learner that runs: `cluster::reconfiguration`"),
    (ApiError::ClusterVersionUnavailable, "before the cluster's version is decided"),
    (ApiError::NoInflightDowngrade, "never sent, by etcd neither: a cancel without a job is answered"),
    (ApiError::NoLeader, "several members: `cluster`"),
    (ApiError::LeaderChanged, "several members: `core::server::lease_leader`"),
    (ApiError::Stopped, "a member that stops: `cluster::restarts`"),
    (ApiError::Timeout, "several members: `cluster`"),
    (ApiError::TimeoutDueToLeaderFail, "several members, and a leader that fails while an entry is on its way"),
    (ApiError::TimeoutDueToConnectionLost, "several members without connection"),
    (ApiError::TimeoutWaitAppliedIndex, "a member that applies slowly: `core::server::reconfigure`"),
    (ApiError::TimeoutLeaderTransfer, "several members: `cluster::reconfiguration`"),
    (ApiError::Unhealthy, "several members: `cluster::reconfiguration`"),
    (ApiError::WatchCanceled, "what a client sees of its own cancel"),
    (ApiError::RequestCanceled, "what a client sees of its own cancel"),
];

fn transcript(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/interop/golden/{name}.txt"))
}

fn compare(name: &str) {
    let stock = std::env::var_os("WATERSHED_GOLDEN_CTL").map(PathBuf::from);
    let secret = NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), "a secret that both sides know").expect("written");
    let jwt = format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=5m", secret.path().display());
    let flags: &[&str] = match name {
        "auth" | "rpc_auth" => &["--bcrypt-cost=4"],
        "rpc_jwt" => &["--bcrypt-cost=4", &jwt],
        _ => &[],
    };
    run(Target::Core, flags, async |deployment: &mut Deployment| {
        let path = transcript(name);
        let (mut blocks, tail) = parse(&std::fs::read_to_string(&path).expect("a transcript"));
        let ctl = deployment.folder.path().join("etcdctl");
        symlink(stock.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_watershed"))), &ctl).expect("link");
        if stock.is_some() {
            // etcd sets it a moment after it answers its first requests.
            until("the storage version is the cluster's", async || {
                let status = deployment.client.maintenance().status(StatusRequest {}).await.ok()?.into_inner();
                let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
                (minor(&status.storage_version) == minor(&status.version)).then_some(())
            })
            .await;
        }
        let mut scene = Scene::new(deployment, ctl).await;
        let mut differences = String::new();
        for block in &mut blocks {
            let answer = scene.answer(&block.call, &block.input).await;
            let wanted = match &block.ours {
                Some((_, ours)) if stock.is_none() => ours,
                _ => &block.stock,
            };
            if answer != *wanted {
                let _ = write!(differences, "$ {}\n--- wanted\n{wanted}--- got\n{answer}", block.call);
            }
            if stock.is_some() {
                block.stock = answer;
            }
        }
        if stock.is_some() && std::env::var_os("WATERSHED_GOLDEN_WRITE").is_some() {
            std::fs::write(&path, text(&blocks, &tail)).expect("written");
        } else {
            assert!(differences.is_empty(), "{name}:\n{differences}");
        }
    });
}

fn blocks() -> Vec<Block> {
    NAMES.iter().flat_map(|name| parse(&std::fs::read_to_string(transcript(name)).expect("a transcript")).0).collect()
}

#[test]
fn every_method_is_in_a_transcript() {
    let blocks = blocks();
    let called = |path: &str| blocks.iter().any(|block| block.call.contains(&format!("GRPC {} ", &path[1..])));
    let missing: Vec<&str> = METHODS.iter().map(|method| method.path).filter(|path| !called(path)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_error_is_in_a_transcript_or_has_a_reason() {
    let blocks = blocks();
    let recorded = |error: &ApiError| blocks.iter().any(|block| block.stock.contains(error.text()));
    for error in ApiError::ALL {
        let excused = NOT_RECORDED.iter().any(|(listed, _)| listed == error);
        assert_eq!(recorded(error), !excused, "{error:?}");
    }
}
