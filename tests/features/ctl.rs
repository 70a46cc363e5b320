//! The command line as scripts use it: exit codes, texts on standard error, names of the program.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use watershed::pb::etcdserverpb::LeaseGrantRequest;
use watershed::pb::v3electionpb::{CampaignRequest, ResignRequest};
use watershed::pb::v3lockpb::{LockRequest, UnlockRequest};

use crate::harness::{Deployment, Target, own_binary, prefix, run, until};

/// Exit code, standard output and standard error of one run.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A command line without variables of etcdctl, besides these.
fn ctl(program: &Path, args: &[&str], variables: &[(&str, &str)], input: &[u8]) -> Ran {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCDCTL_")) {
        command.env_remove(name);
    }
    let mut child = command
        .args(args)
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    // A program that reads no input closes the pipe; that is its right.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("ends");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// Our binary under another name.
fn link(deployment: &Deployment, name: &str) -> PathBuf {
    let path = deployment.folder.path().join(name);
    symlink(env!("CARGO_BIN_EXE_watershed"), &path).expect("link");
    path
}

#[test]
fn scripts_that_call_etcdctl_find_it() {
    // Cause: whole names only, one name of the program, an empty variable that counted as given, a login that failed
    // because the cluster has no users, ids below zero that no command took back.
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "1").await;
        deployment.put("k", "2").await;
        let etcdctl = link(deployment, "etcdctl");
        let endpoints = format!("--endpoints={}", deployment.endpoint);
        let run = |args: &[&str], variables: &[(&str, &str)], input: &[u8]| {
            let args: Vec<&str> = std::iter::once(endpoints.as_str()).chain(args.iter().copied()).collect();
            ctl(&etcdctl, &args, variables, input)
        };
        let plain = |args: &[&str]| run(args, &[], b"");

        assert_eq!(plain(&["compact", "2"]).stdout, "compacted revision 2\n");
        let healthy = plain(&["endp", "health"]);
        assert!(healthy.stdout.contains(" is healthy: successfully committed proposal"), "{}", healthy.stderr);
        assert_eq!((plain(&["comp", "2"]).code, plain(&["nope"]).code), (Some(1), Some(1)));
        assert!(plain(&["version"]).stdout.starts_with("etcdctl version: 3."));

        assert_eq!(run(&["get", "k"], &[("ETCDCTL_USER", "root:x")], b"").stdout, "k\n2\n");
        let empty = run(&["get", "k"], &[("ETCDCTL_ENDPOINTS", ""), ("ETCDCTL_NO_SUCH_OPTION", "")], b"");
        assert_eq!((empty.stdout.as_str(), empty.stderr.as_str()), ("k\n2\n", ""));

        let gone = plain(&["lease", "timetolive", "--", "-000000000000001"]);
        assert_eq!(gone.stdout, "lease -000000000000001 already expired\n");

        let large = run(&["put", "k"], &[], &vec![b'a'; 3_000_000]);
        assert_eq!(large.code, Some(1));
        let text = "rpc error: code = ResourceExhausted desc = trying to send message larger than max \
                    (3000008 vs. 2097152)";
        assert_eq!(large.stderr, format!("Error: {text}\n"));
        deployment.put("large", vec![b'a'; 200_000]).await;
        let large = plain(&["--max-recv-bytes=100000", "get", "large"]);
        assert!(large.stderr.contains("code = ResourceExhausted desc = grpc: received message larger than max"));
    });
}

#[test]
fn a_link_named_etcd_takes_what_etcd_takes() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let etcd = link(deployment, "etcd");
        let version = ctl(&etcd, &["--version"], &[], b"");
        assert!(version.stdout.starts_with("etcd Version: 3."), "{}", version.stdout);
        assert_eq!(ctl(&etcd, &["--no-such-flag"], &[], b"").code, Some(2));
        // No mode of etcd: a stray word among the server's flags.
        assert_eq!(ctl(&etcd, &["ctl", "version"], &[], b"").code, Some(1));
        let etcdutl = link(deployment, "etcdutl");
        assert!(ctl(&etcdutl, &["version"], &[], b"").stdout.starts_with("etcdutl version: 3."));
    });
}

#[test]
fn a_lock_that_is_waited_for_outlives_the_member() {
    // Cause: `lock` and `elect` ended when the member that their call waited at was restarted, where etcdctl waits on.
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let lease = |id| LeaseGrantRequest { ttl: 600, id };
        deployment.client.lease().lease_grant(lease(7)).await.expect("grant");
        let lock = deployment.client.lock().lock(LockRequest { name: "l".into(), lease: 7 }).await.expect("lock");
        let campaign = CampaignRequest { name: "e".into(), lease: 7, value: "first".into() };
        let won = deployment.client.election().campaign(campaign).await.expect("campaign").into_inner();
        let start = |args: &[&str]| {
            let mut command = Command::new(own_binary());
            command.arg("ctl").arg(format!("--endpoints={}", deployment.endpoint)).args(args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
        };
        let waiting = start(&["lock", "l", "--ttl=60", "--", "echo", "locked"]);
        let mut candidate = start(&["elect", "e", "second"]);
        let mut observer = start(&["elect", "-l", "e"]);
        let mut observed = BufReader::new(observer.stdout.take().expect("piped")).lines();
        let mut next =
            move || [observed.next().expect("a key").expect("text"), observed.next().expect("a value").expect("text")];
        assert_eq!(next()[1], "first");
        let queued = async |name: &'static str| deployment.range(prefix(name)).await.kvs.len();
        for name in ["l/", "e/"] {
            until("both in the queue", || async { (queued(name).await == 2).then_some(()) }).await;
        }
        let before: Vec<_> = deployment.range(prefix("")).await.kvs.into_iter().map(|kv| kv.key).collect();
        deployment.crash_and_restart().await;
        // Each under another lease.
        until("both in the queue again", || async {
            let keys: Vec<_> = deployment.range(prefix("")).await.kvs.into_iter().map(|kv| kv.key).collect();
            let same = keys.iter().filter(|key| before.contains(key)).count();
            (keys.len() == 4 && same == 2).then_some(())
        })
        .await;
        deployment.client.lock().unlock(UnlockRequest { key: lock.into_inner().key }).await.expect("unlock");
        let output = tokio::task::spawn_blocking(|| waiting.wait_with_output()).await.expect("joins").expect("ends");
        assert!(output.status.success() && output.stdout == b"locked\n", "{output:?}");
        deployment.client.election().resign(ResignRequest { leader: won.leader }).await.expect("resign");
        let led = tokio::task::spawn_blocking(next).await.expect("joins");
        assert_eq!(led[1], "second");
        candidate.kill().and(candidate.wait()).expect("ends");
        observer.kill().and(observer.wait()).expect("ends");
    });
}
