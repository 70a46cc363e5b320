//! No flag is accepted and read by nothing, unless the table of flags without effect names it.
//!
//! A flag that has an effect goes two steps: from a `Raw…Config` to a config, and from there to the code of other rooms. The
//! compiler finds neither that a public field nor that a field of clap's is never read, so sources are searched. The flags
//! of `ctl` have a test of their own (`ctl/command.rs`).

use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};

use super::gateway::RawGatewayConfig;
use super::proxy::RawProxyConfig;
use super::server::RawServerConfig;
use super::unsupported::{Mode, Support, add_to, unsupported_flags};

/// The fields of a struct in a source.
fn fields<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let body = source.split(&format!("struct {name} {{\n")).nth(1).expect("the struct");
    let lines = body.lines().take_while(|line| *line != "}").map(str::trim);
    let fields = lines.filter(|line| !line.starts_with(['/', '#']) && line.ends_with(','));
    fields.filter_map(|line| line.split_once(": ")?.0.split(' ').next_back()).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

/// The sources below a folder of `src`, without those of another, and without tests.
fn texts(folder: &str, but: Option<&str>) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src.join(folder), &mut files);
    files.retain(|file| but.is_none_or(|but| !file.starts_with(src.join(but))));
    let texts = files.iter().map(|file| std::fs::read_to_string(file).expect("a source file"));
    texts.map(|text| text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()).collect()
}

/// Whether a source reads a field of something of this name; of anything when the name is empty.
fn reads(source: &str, owner: &str, field: &str) -> bool {
    source.match_indices(&format!(".{field}")).any(|(at, found)| {
        let next = source[at + found.len()..].chars().next();
        source[..at].trim_end().ends_with(owner) && next.is_none_or(|next| !next.is_alphanumeric() && next != '_')
    })
}

#[track_caller]
fn check_fields(name: &str, source: &str, owner: &str, texts: &[String]) {
    let fields = fields(source, name);
    assert!(fields.len() >= 2, "{name}: {fields:?}");
    let unread: Vec<_> = fields.iter().filter(|field| !texts.iter().any(|text| reads(text, owner, field))).collect();
    assert!(unread.is_empty(), "{name}: read by nothing: {unread:?}");
}

#[test]
fn every_flag_and_every_value_of_a_config_is_read() {
    // `--grpc-keepalive-min-time`, `--bcrypt-cost` and `--auth-token-ttl` were not.
    let (room, others) = (texts("config", None), texts("", Some("config")));
    for (raw, config, source) in [
        ("RawServerConfig", "ServerConfig", [include_str!("server/raw.rs"), include_str!("server/check.rs")].concat()),
        ("RawGatewayConfig", "GatewayConfig", include_str!("gateway.rs").to_owned()),
        ("RawProxyConfig", "ProxyConfig", include_str!("proxy.rs").to_owned()),
    ] {
        check_fields(raw, &source, "raw", &room);
        check_fields(config, &source, "config", &others);
    }
    check_fields("RawLogConfig", include_str!("log.rs"), "raw", &room);
    check_fields("RawDevConfig", include_str!("../cmd/dev/run.rs"), "raw", &texts("cmd", None));
    check_fields("RawTcpBench", include_str!("../bench/tcp.rs"), "config", &texts("bench", None));
    let bench = include_str!("../bench/args.rs");
    for name in [
        "Common",
        "KeyArgs",
        "RangeArgs",
        "TxnPutArgs",
        "MixedArgs",
        "WatchArgs",
        "KeepAliveArgs",
        "CompareArgs",
        "SuiteArgs",
        "FleetArgs",
    ] {
        check_fields(name, bench, "", &texts("bench", None));
    }
    assert!(reads("self.config\n    .name.clone()", "config", "name") && !reads("config.names", "config", "name"));
    assert_eq!(fields("struct A {\n    /// B: c,\n    pub(super) d: E,\n    f: G,\n}\n", "A"), ["d", "f"]);
}

#[test]
fn every_flag_is_declared_once_and_its_default_is_accepted() {
    let commands: [(Mode, Command); 3] = [
        (Mode::Server, RawServerConfig::command()),
        (Mode::Gateway, RawGatewayConfig::command()),
        (Mode::Proxy, RawProxyConfig::command()),
    ];
    for (mode, command) in commands {
        let command = add_to(command, mode).disable_version_flag(true).no_binary_name(true);
        // Fails for a flag that has an effect and is in the table of those without.
        command.clone().debug_assert();
        command.try_get_matches_from::<_, &str>([]).expect("defaults are values");
    }
}

/// Every flag of the server of etcd 3.7.1.
const ETCD_SERVER_FLAGS: &str = "
    advertise-client-urls auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention auto-tls
    backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bcrypt-cost
    bootstrap-defrag-threshold-megabytes cert-file cipher-suites client-cert-allowed-hostname client-cert-auth
    client-cert-file client-crl-file client-key-file cluster-active-size cluster-remove-delay cluster-sync-interval
    compact-hash-check-time compaction-batch-limit compaction-sleep-interval config config-file corrupt-check-time cors
    data-dir discovery-cacert discovery-cert discovery-dial-timeout discovery-endpoints discovery-fallback
    discovery-insecure-skip-tls-verify discovery-insecure-transport discovery-keepalive-time discovery-keepalive-timeout
    discovery-key discovery-password discovery-request-timeout discovery-srv discovery-srv-name discovery-token
    discovery-user distributed-tracing-address distributed-tracing-instance-id distributed-tracing-sampling-rate
    distributed-tracing-service-name downgrade-check-time election-timeout enable-distributed-tracing
    enable-grpc-gateway enable-log-rotation enable-pprof feature-gates force force-new-cluster grpc-keepalive-interval
    grpc-keepalive-min-time grpc-keepalive-timeout heartbeat-interval host-whitelist initial-advertise-peer-urls
    initial-cluster initial-cluster-state initial-cluster-token initial-election-tick-advance key-file
    listen-client-http-urls listen-client-urls listen-metrics-urls listen-peer-urls log-format log-level log-outputs
    log-rotation-config-json logger max-concurrent-streams max-learners max-request-bytes max-result-buffer
    max-retry-attempts max-snapshots max-txn-ops max-wals memory-mlock metrics name peer-auto-tls
    peer-cert-allowed-cn peer-cert-allowed-hostname peer-cert-file peer-client-cert-auth peer-client-cert-file
    peer-client-key-file peer-crl-file peer-election-timeout peer-heartbeat-interval peer-key-file
    peer-skip-client-san-verification peer-trusted-ca-file pre-vote quota-backend-bytes raft-read-timeout
    raft-write-timeout retry-interval self-signed-cert-validity snapshot snapshot-catchup-entries snapshot-count
    socket-reuse-address socket-reuse-port strict-reconfig-check tls-max-version tls-min-version trusted-ca-file
    unsafe-no-fsync v v2-deprecation version vv wal-dir warning-apply-duration warning-unary-request-duration
    watch-progress-notify-interval";

#[test]
fn every_flag_of_etcd_is_known_under_its_name() {
    let command = add_to(RawServerConfig::command(), Mode::Server);
    let known = |name: &str| command.get_arguments().any(|arg| arg.get_long() == Some(name));
    let unknown: Vec<&str> = ETCD_SERVER_FLAGS.split_whitespace().filter(|name| !known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // The rows without effect give their reason, except where a refusal says it.
    for flag in unsupported_flags(Mode::Server).filter(|flag| flag.support == Support::Ignored) {
        assert!(!flag.why.is_empty(), "{flag:?}");
    }
}
