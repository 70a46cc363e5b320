//! Configurations of well-known set-ups are accepted as they are. The files they name are not read here.

use std::ffi::OsString;
use std::time::Duration;

use super::super::flags::Variables;
use super::{Notice, ServerConfig, parse_server_config};

fn of_flags(line: &str) -> ServerConfig {
    let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    parse_server_config(&args, &Variables::none()).expect("accepted")
}

fn of_file(text: &str) -> ServerConfig {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("config");
    std::fs::write(&path, text).expect("write the file");
    parse_server_config(&["--config-file".into(), path.into()], &Variables::none()).expect("accepted")
}

fn unknown_keys(config: &ServerConfig) -> Vec<&str> {
    let keys = config.notices.iter().filter_map(|notice| match notice {
        Notice::UnknownKey { key, .. } => Some(key.as_str()),
        _ => None,
    });
    keys.collect()
}

// The static pod of a control plane since Kubernetes 1.34, whose etcd is 3.6 or newer.
#[test]
fn kubeadms_flags() {
    let config = of_flags(
        "--advertise-client-urls=https://10.0.0.1:2379 --cert-file=/etc/kubernetes/pki/etcd/server.crt \
         --client-cert-auth=true --data-dir=/var/lib/etcd --feature-gates=InitialCorruptCheck=true \
         --initial-advertise-peer-urls=https://10.0.0.1:2380 --initial-cluster=node=https://10.0.0.1:2380 \
         --key-file=/etc/kubernetes/pki/etcd/server.key --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379 \
         --listen-metrics-urls=http://127.0.0.1:2381 --listen-peer-urls=https://10.0.0.1:2380 --name=node \
         --peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt --peer-client-cert-auth=true \
         --peer-key-file=/etc/kubernetes/pki/etcd/peer.key --peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt \
         --snapshot-count=10000 --trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt --watch-progress-notify-interval=5s",
    );
    assert!(config.integrity.at_start);
    assert_eq!(config.listen_client_urls.len(), 2);
    assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(5));
}

#[test]
fn rke2s_file() {
    let config = of_file(include_str!("setups/rke2.yaml"));
    assert_eq!(
        (config.heartbeat_interval, config.election_timeout),
        (Duration::from_millis(500), Duration::from_secs(5))
    );
    assert_eq!(config.listen_peer_urls.len(), 2);
    let old = ["experimental-initial-corrupt-check", "experimental-watch-progress-notify-interval"];
    assert_eq!(unknown_keys(&config), old, "etcd 3.7 does not read them either");
}

// Every key of the sample file that etcd ships, with its value.
#[test]
fn etcds_sample_file() {
    let config = of_file(
        "name: 'default'\ndata-dir:\nwal-dir:\nsnapshot-count: 10000\nheartbeat-interval: 100\nelection-timeout: 1000\n\
         quota-backend-bytes: 0\nlisten-peer-urls: http://localhost:2380\nlisten-client-urls: http://localhost:2379\n\
         max-snapshots: 5\nmax-wals: 5\ncors:\ninitial-advertise-peer-urls: http://localhost:2380\n\
         advertise-client-urls: http://localhost:2379\ndiscovery:\ndiscovery-fallback: 'proxy'\ndiscovery-proxy:\n\
         discovery-srv:\ninitial-cluster:\ninitial-cluster-token: 'etcd-cluster'\ninitial-cluster-state: 'new'\n\
         strict-reconfig-check: false\nenable-pprof: true\nproxy: 'off'\nproxy-failure-wait: 5000\n\
         proxy-refresh-interval: 30000\nproxy-dial-timeout: 1000\nproxy-write-timeout: 5000\nproxy-read-timeout: 0\n\
         client-transport-security:\n  cert-file:\n  key-file:\n  client-cert-auth: false\n  trusted-ca-file:\n  \
         auto-tls: false\npeer-transport-security:\n  cert-file:\n  key-file:\n  client-cert-auth: false\n  \
         trusted-ca-file:\n  auto-tls: false\n  allowed-cn:\n  allowed-hostname:\nself-signed-cert-validity: 1\n\
         log-level: debug\nlogger: zap\nlog-outputs: [stderr]\nforce-new-cluster: false\n\
         auto-compaction-mode: periodic\nauto-compaction-retention: \"1\"\ncipher-suites: [\n  \
         TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,\n  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\n]\n\
         tls-min-version: 'TLS1.2'\ntls-max-version: 'TLS1.3'\n",
    );
    assert!(!config.strict_reconfig_check);
    assert_eq!(config.auto_compaction, super::AutoCompaction::Periodic(Duration::from_secs(3600)));
    let unknown = unknown_keys(&config);
    assert!(unknown.contains(&"proxy") && unknown.len() == 6, "{unknown:?}");
}
