/// Flags of older releases of etcd that 3.7 refuses, and what does the same today; none where nothing does.
const REMOVED: &[(&str, Option<&str>)] = &[
    ("ca-file", Some("--trusted-ca-file")),
    ("debug", Some("--log-level=debug")),
    ("enable-v2", None),
    ("experimental-bootstrap-defrag-threshold-megabytes", Some("--bootstrap-defrag-threshold-megabytes")),
    ("experimental-compact-hash-check-enabled", Some("--feature-gates=CompactHashCheck=true")),
    ("experimental-compact-hash-check-time", Some("--compact-hash-check-time")),
    ("experimental-compaction-batch-limit", Some("--compaction-batch-limit")),
    ("experimental-compaction-sleep-interval", Some("--compaction-sleep-interval")),
    ("experimental-corrupt-check-time", Some("--corrupt-check-time")),
    ("experimental-distributed-tracing-address", Some("--distributed-tracing-address")),
    ("experimental-distributed-tracing-instance-id", Some("--distributed-tracing-instance-id")),
    ("experimental-distributed-tracing-sampling-rate", Some("--distributed-tracing-sampling-rate")),
    ("experimental-distributed-tracing-service-name", Some("--distributed-tracing-service-name")),
    ("experimental-downgrade-check-time", Some("--downgrade-check-time")),
    ("experimental-enable-distributed-tracing", Some("--enable-distributed-tracing")),
    ("experimental-enable-lease-checkpoint", Some("--feature-gates=LeaseCheckpoint=true")),
    (
        "experimental-enable-lease-checkpoint-persist",
        Some("--feature-gates=LeaseCheckpoint=true,LeaseCheckpointPersist=true"),
    ),
    ("experimental-enable-v2v3", None),
    ("experimental-initial-corrupt-check", Some("--feature-gates=InitialCorruptCheck=true")),
    ("experimental-max-learners", Some("--max-learners")),
    ("experimental-memory-mlock", Some("--memory-mlock")),
    ("experimental-peer-skip-client-san-verification", Some("--peer-skip-client-san-verification")),
    ("experimental-set-member-localaddr", Some("--feature-gates=SetMemberLocalAddr=true")),
    ("experimental-snapshot-catchup-entries", Some("--snapshot-catchup-entries")),
    ("experimental-stop-grpc-service-on-defrag", Some("--feature-gates=StopGRPCServiceOnDefrag=true")),
    ("experimental-txn-mode-write-with-shared-buffer", Some("--feature-gates=TxnModeWriteWithSharedBuffer=true")),
    ("experimental-warning-apply-duration", Some("--warning-apply-duration")),
    ("experimental-warning-unary-request-duration", Some("--warning-unary-request-duration")),
    ("experimental-watch-progress-notify-interval", Some("--watch-progress-notify-interval")),
    ("log-output", Some("--log-outputs")),
    ("log-package-levels", Some("--log-level")),
    ("peer-ca-file", Some("--peer-trusted-ca-file")),
    ("proxy", Some("--discovery-fallback=proxy for a surplus member, or the grpc-proxy and gateway commands")),
    ("proxy-dial-timeout", None),
    ("proxy-failure-wait", None),
    ("proxy-read-timeout", None),
    ("proxy-refresh-interval", None),
    ("proxy-write-timeout", None),
];

/// What does today what this flag of an older release did.
pub(super) fn successor(flag: &str) -> Option<&'static str> {
    REMOVED.iter().find(|(removed, _)| *removed == flag)?.1
}

/// The text for a flag of an older release of etcd; none for a flag that no release had.
pub fn removed_flag(flag: &str) -> Option<String> {
    let (flag, successor) = REMOVED.iter().find(|(removed, _)| *removed == flag)?;
    Some(match successor {
        Some(successor) => format!("--{flag} was removed from etcd, use {successor}"),
        None => format!("--{flag} was removed from etcd and has no successor"),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::server::RawServerConfig;
    use super::super::unsupported::{Mode, add_to};
    use super::*;

    #[test]
    fn a_successor_is_a_flag_and_a_removed_flag_is_none() {
        let command = add_to(RawServerConfig::command(), Mode::Server);
        let is_flag = |name: &str| command.get_arguments().any(|arg| arg.get_long() == Some(name));
        for (removed, successor) in REMOVED {
            assert!(!is_flag(removed), "{removed}");
            let named = successor.unwrap_or_default().split_whitespace().filter_map(|word| word.strip_prefix("--"));
            for flag in named.map(|flag| flag.split('=').next().unwrap_or_default()) {
                assert!(is_flag(flag), "{removed} names {flag}");
            }
        }
        assert!(removed_flag("enable-v2").unwrap().ends_with("has no successor"));
        assert_eq!(removed_flag("never-there"), None);
    }
}
