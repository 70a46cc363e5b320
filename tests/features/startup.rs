//! Starting and stopping: refusals are one clear line, the exit code etcd has, and leave the disk as it was.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{Deployment, PATIENCE, Process, Target, free_port, is_stock, member_args, run};

/// Runs our binary to its end and answers with exit code and error output.
fn refused_start(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut process = Process::start(Path::new(env!("CARGO_BIN_EXE_watershed")), args, folder, "refused");
    let status = process.wait(PATIENCE);
    (status.code(), process.output())
}

/// Everything below a folder, with sizes.
fn listing(folder: &Path) -> Vec<String> {
    let output = Command::new("find").arg(folder).args(["-printf", "%P %s\n"]).output().expect("find");
    let mut lines: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.retain(|line| !line.ends_with(".log") && !line.contains(".log "));
    lines.sort();
    lines
}

#[test]
fn wrong_flags_are_named() {
    let folder = TempDir::new().expect("temporary directory");
    let data = format!("--data-dir={}", folder.path().join("data").display());
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let busy_url = format!("--listen-client-urls=http://{}", busy.local_addr().expect("address"));
    // 2 is what etcd's flag parser refuses, in the server only.
    for (exit, args, named) in [
        (2, vec!["--no-such-flag=1"], "no-such-flag"),
        (2, vec!["--initial-cluster-state=odd"], "initial-cluster-state"),
        (2, vec!["--listen-client-urls=nonsense", "--advertise-client-urls=http://127.0.0.1:1"], "listen-client-urls"),
        (
            2,
            vec!["--listen-client-urls=http://127.0.0.1:99999", "--advertise-client-urls=http://127.0.0.1:1"],
            "listen-client-urls",
        ),
        (1, vec!["--listen-peer-urls=http://example.com:1"], "listen-peer-urls"),
        (2, vec!["--quota-backend-bytes=many"], "quota-backend-bytes"),
        (2, vec!["--max-txn-ops=-3"], "max-txn-ops"),
        (1, vec!["--election-timeout=1"], "election-timeout"),
        (1, vec![busy_url.as_str(), "--advertise-client-urls=http://127.0.0.1:1"], "127.0.0.1:"),
        (1, vec!["gateway", "start", "--endpoints=::bad::"], "endpoints"),
        (1, vec!["gateway", "start", "--no-such-flag"], "no-such-flag"),
        (1, vec!["grpc-proxy", "start", "--endpoints="], "endpoint"),
        (1, vec!["no-such-command"], "no-such-command"),
    ] {
        let mut all = args.clone();
        if args[0].starts_with("--") {
            all.push(&data);
        }
        let (code, output) = refused_start(folder.path(), &all);
        std::fs::remove_file(folder.path().join("refused.log")).expect("log file");
        assert_eq!(code, Some(exit), "{args:?}: {output}");
        assert!(output.contains(named), "{args:?} must name {named:?}: {output}");
        assert!(!output.contains("panicked"), "{args:?}: {output}");
        assert_eq!(listing(folder.path()).len(), 1, "{args:?} left something: {:?}", listing(folder.path()));
    }
}

#[test]
fn a_foreign_directory_is_left_alone() {
    let folder = TempDir::new().expect("temporary directory");
    let data = folder.path().join("data");
    std::fs::create_dir_all(data.join("member/wal")).expect("create");
    std::fs::write(data.join("member/wal/0000000000000000-0000000000000000.wal"), b"not a log").expect("write");
    let before = listing(&data);
    let args = member_args(&format!("127.0.0.1:{}", free_port()), free_port(), &data);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, output) = refused_start(folder.path(), &args);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("member/wal") || output.contains("0000000000000000"), "names the file: {output}");
    assert!(!output.contains("panicked"), "{output}");
    let after: Vec<_> = listing(&data).into_iter().filter(|line| line.contains("wal")).collect();
    let before: Vec<_> = before.into_iter().filter(|line| line.contains("wal")).collect();
    assert_eq!(after, before);
}

#[test]
fn a_file_is_no_directory() {
    let folder = TempDir::new().expect("temporary directory");
    let data = folder.path().join("data");
    std::fs::write(&data, b"a file").expect("write");
    let args = member_args(&format!("127.0.0.1:{}", free_port()), free_port(), &data);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, output) = refused_start(folder.path(), &args);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains(&data.display().to_string()), "names it: {output}");
    assert_eq!(std::fs::read(&data).expect("still there"), b"a file");
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        if is_stock() {
            return; // A stock member waits for the lock instead.
        }
        deployment.put("k", "v").await;
        let args = member_args(&format!("127.0.0.1:{}", free_port()), free_port(), &deployment.data_dir());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, output) = refused_start(deployment.folder.path(), &args);
        assert_eq!(code, Some(1), "{output}");
        assert!(output.contains(&deployment.data_dir().display().to_string()), "names the directory: {output}");
        deployment.put("k", "still served").await;
        deployment.crash_and_restart().await;
        assert_eq!(deployment.get("k").await.kvs[0].value, "still served", "the lock went with its owner");
    });
}

#[test]
fn terminating_is_clean() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "v").await;
        deployment.server.terminate();
        let status = deployment.server.wait(PATIENCE);
        // Cleaned up, then ended by the very signal, as etcd is.
        assert_eq!(status.signal(), Some(15), "{status:?}");
        assert!(is_stock() || deployment.server.output().contains("stopped"), "{}", deployment.server.output());
        deployment.start_member_again().await;
        assert_eq!(deployment.get("k").await.kvs[0].value, "v");
    });
}

// It was listed by --help and refused.
#[test]
fn without_syncs_the_end_of_the_process_loses_nothing() {
    run(Target::Core, &["--unsafe-no-fsync"], async |deployment: &mut Deployment| {
        assert!(
            is_stock() || deployment.server.output().contains("--unsafe-no-fsync"),
            "{}",
            deployment.server.output()
        );
        for value in 0..50 {
            deployment.put("k", value.to_string()).await;
        }
        deployment.crash_and_restart().await;
        let found = deployment.get("k").await.kvs.remove(0);
        assert_eq!((found.value, found.version), ("49".into(), 50));
    });
}

#[test]
fn repeated_flags_and_the_environment_follow_etcd() {
    // The last of a repeated flag wins.
    run(Target::Core, &["--max-txn-ops=1", "--max-txn-ops=3"], async |deployment: &mut Deployment| {
        use watershed::pb::etcdserverpb::{RangeRequest, RequestOp, TxnRequest, request_op};
        let get = || RequestOp {
            request: Some(request_op::Request::RequestRange(RangeRequest { key: "k".into(), ..Default::default() })),
        };
        deployment.txn(TxnRequest { success: vec![get(), get(), get()], ..Default::default() }).await;
        let four = TxnRequest { success: vec![get(), get(), get(), get()], ..Default::default() };
        deployment.client.kv().txn(four).await.expect_err("one too many");
    });
}

/// A sidecar starts with a soft limit of 1,024 descriptors; each mode raises it, and tells systemd when it serves.
#[test]
fn every_mode_raises_its_descriptor_limit_and_notifies_systemd() {
    let folder = TempDir::new().expect("temporary directory");
    let address = || format!("127.0.0.1:{}", free_port());
    let member = address();
    let (gateway, proxy) = (format!("--listen-addr={}", address()), format!("--listen-addr={}", address()));
    let endpoints = format!("--endpoints={member}");
    let front = |mode: &str, listen: &str| [mode, "start", listen, &endpoints].map(str::to_owned).to_vec();
    let modes = [
        ("member", member_args(&member, free_port(), &folder.path().join("data"))),
        ("gateway", front("gateway", &gateway)),
        ("proxy", front("grpc-proxy", &proxy)),
    ];
    let running = modes.map(|(name, args)| {
        let path = folder.path().join(name);
        let systemd = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
        systemd.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
        let line = format!("ulimit -S -n 256; exec '{}' {}", env!("CARGO_BIN_EXE_watershed"), quoted.join(" "));
        let variables = [("NOTIFY_SOCKET", path.to_str().expect("text"))];
        let process = Process::start_with(Path::new("/bin/sh"), &["-c", &line], &variables, folder.path(), name);
        let mut text = [0; 64];
        let length = systemd.recv(&mut text).unwrap_or_else(|error| panic!("{name}: {error}: {}", process.output()));
        assert_eq!(&text[..length], b"READY=1", "{name}");
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).expect("limits");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("the limit");
        let [soft, hard] = [3, 4].map(|word| line.split_whitespace().nth(word).expect("a number").to_owned());
        assert_eq!(soft, hard, "{name}: {line}");
        process
    });
    drop(running);
}
