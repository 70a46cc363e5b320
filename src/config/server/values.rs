use std::str::FromStr;
use std::time::Duration;

use super::super::golang::{GoDuration, parse_bool};

/// Size of the state at which writes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Never.
    Unlimited,
    /// From this size on.
    Bytes(u64),
}

/// The quota of `--quota-backend-bytes=0`.
const DEFAULT_QUOTA_BYTES: u64 = 2 << 30;

impl Quota {
    /// Reads the flag.
    pub(super) fn from_flag(bytes: i64) -> Self {
        match bytes {
            0 => Self::Bytes(DEFAULT_QUOTA_BYTES),
            _ => u64::try_from(bytes).map_or(Self::Unlimited, Self::Bytes),
        }
    }
}

/// Automatic compaction by the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// No automatic compaction.
    Off,
    /// Compacts revisions older than this.
    Periodic(Duration),
    /// Keeps this many of the newest revisions.
    Revision(u64),
}

impl AutoCompaction {
    /// Reads the pair of flags; the error is etcd's text.
    pub(super) fn from_flags(mode: &str, retention: &str) -> Result<Self, String> {
        let retention = if retention.is_empty() { "0" } else { retention };
        let wrong = || format!("error parsing CompactionRetention: invalid value {retention:?}");
        let number = retention.parse::<u64>().ok();
        match mode {
            "periodic" => {
                let period = match number {
                    Some(hours) => Duration::from_secs(hours.checked_mul(3600).ok_or_else(wrong)?),
                    None => retention.parse::<GoDuration>().map_err(|_| wrong())?.0,
                };
                Ok(if period.is_zero() { Self::Off } else { Self::Periodic(period) })
            }
            "revision" => match number.ok_or_else(wrong)? {
                0 => Ok(Self::Off),
                revisions => Ok(Self::Revision(revisions)),
            },
            "" => Err("undefined auto-compaction-mode".to_owned()),
            _ => Err(format!("unknown auto-compaction-mode {mode:?}")),
        }
    }
}

/// When the states of the members are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntegrityChecks {
    /// By a member that starts.
    pub at_start: bool,
    /// By the leader, the whole state, so often; none for never.
    pub state: Option<Duration>,
    /// By the leader, what compactions left behind.
    pub compactions: Duration,
}

/// A gate of etcd 3.7.
struct Gate {
    name: &'static str,
    stage: &'static str,
    effect: Effect,
}

/// What a gate changes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing: what it stands for is always done.
    Always,
    /// It sets other gates.
    Others,
    /// What it stands for is done unless it is false.
    Unless,
    /// What it stands for is done if it is true.
    If,
}

const fn gate(name: &'static str, stage: &'static str, effect: Effect) -> Gate {
    Gate { name, stage, effect }
}

const ALL_ALPHA: &str = "AllAlpha";
const INITIAL_CORRUPT_CHECK: &str = "InitialCorruptCheck";
const SET_MEMBER_LOCAL_ADDRESS: &str = "SetMemberLocalAddr";
const STOP_GRPC_SERVICE_ON_DEFRAG: &str = "StopGRPCServiceOnDefrag";
const ALPHA: &str = "ALPHA";
const BETA: &str = "BETA";
const GATES: &[Gate] = &[
    gate(ALL_ALPHA, ALPHA, Effect::Others),
    gate("AllBeta", BETA, Effect::Others),
    gate("CompactHashCheck", ALPHA, Effect::Always),
    gate("FastLeaseKeepAlive", BETA, Effect::Always),
    gate(INITIAL_CORRUPT_CHECK, ALPHA, Effect::Unless),
    gate("LeaseCheckpoint", ALPHA, Effect::Always),
    gate("LeaseCheckpointPersist", ALPHA, Effect::Always),
    gate("PriorityRequest", ALPHA, Effect::Always),
    gate(SET_MEMBER_LOCAL_ADDRESS, ALPHA, Effect::If),
    gate(STOP_GRPC_SERVICE_ON_DEFRAG, ALPHA, Effect::If),
    gate("TxnModeWriteWithSharedBuffer", BETA, Effect::Always),
];

/// What `--feature-gates` changes. Every other gate stands for something that is always on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    /// Whether all gates that are alpha in etcd are true unless they are given.
    all_alpha: bool,
    /// Whether a member compares its state with the others' when it starts: unless `InitialCorruptCheck=false` is given.
    pub initial_corrupt_check: bool,
    /// Whether `LeaseCheckpointPersist` is asked for without the gate it needs, which is refused once all flags are read.
    pub persist_without_checkpoint: bool,
    /// Whether this member dials the others from the first of its own peer URLs that is an address and not loopback's.
    pub set_member_local_address: bool,
    /// Whether the gRPC health service says `NOT_SERVING` during a defragmentation.
    pub stop_grpc_service_on_defrag: bool,
}

impl FeatureGates {
    /// Gates of etcd with their stage, and whether what they stand for is in effect here.
    pub fn features(self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        GATES.iter().map(move |gate| {
            let enabled = match gate.name {
                ALL_ALPHA => self.all_alpha,
                INITIAL_CORRUPT_CHECK => self.initial_corrupt_check,
                SET_MEMBER_LOCAL_ADDRESS => self.set_member_local_address,
                STOP_GRPC_SERVICE_ON_DEFRAG => self.stop_grpc_service_on_defrag,
                _ => gate.effect == Effect::Always,
            };
            (gate.name, gate.stage, enabled)
        })
    }
}

impl FromStr for FeatureGates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut set = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (name, value) = entry.split_once('=').ok_or_else(|| format!("missing bool value for {entry}"))?;
            let gate = GATES.iter().find(|gate| gate.name == name.trim());
            let name = gate.ok_or_else(|| format!("unrecognized feature gate: {name}"))?.name;
            let value =
                parse_bool(value.trim()).map_err(|why| format!("invalid value of {name}={value}, err: {why}"))?;
            set.push((name, value));
        }
        let given = |gate| set.iter().rfind(|(name, _)| *name == gate).map(|(_, value)| *value);
        let all_alpha = given(ALL_ALPHA) == Some(true);
        let on = |gate| given(gate).unwrap_or(all_alpha);
        Ok(Self {
            all_alpha,
            initial_corrupt_check: given(INITIAL_CORRUPT_CHECK).unwrap_or(true),
            persist_without_checkpoint: on("LeaseCheckpointPersist") && !on("LeaseCheckpoint"),
            set_member_local_address: on(SET_MEMBER_LOCAL_ADDRESS),
            stop_grpc_service_on_defrag: on(STOP_GRPC_SERVICE_ON_DEFRAG),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_has_three_notations() {
        let read = AutoCompaction::from_flags;
        assert_eq!(read("periodic", "0"), Ok(AutoCompaction::Off));
        assert_eq!((read("periodic", ""), read("revision", "")), (Ok(AutoCompaction::Off), Ok(AutoCompaction::Off)));
        assert_eq!(read("periodic", "2"), Ok(AutoCompaction::Periodic(Duration::from_secs(7200))));
        assert_eq!(read("periodic", "10m"), Ok(AutoCompaction::Periodic(Duration::from_secs(600))));
        assert_eq!(read("revision", "1000"), Ok(AutoCompaction::Revision(1000)));
        assert!(read("revision", "10m").unwrap_err().starts_with("error parsing CompactionRetention"));
        assert_eq!(read("foo", "0"), Err("unknown auto-compaction-mode \"foo\"".to_owned()));
    }

    #[test]
    fn gates_are_known_by_name() {
        let read_feature_gates = |text: &str| text.parse::<FeatureGates>().map(|gates| gates.initial_corrupt_check);
        assert_eq!(read_feature_gates("FastLeaseKeepAlive=false, AllBeta=true"), Ok(true));
        assert_eq!(read_feature_gates("LeaseCheckpoint=false,PriorityRequest=false"), Ok(true));
        let on = |text: &str| {
            let gates = text.parse::<FeatureGates>().unwrap();
            (gates.set_member_local_address, gates.stop_grpc_service_on_defrag)
        };
        assert_eq!(on(""), (false, false));
        assert_eq!(on("SetMemberLocalAddr=true"), (true, false));
        assert_eq!(on("AllAlpha=true,SetMemberLocalAddr=false"), (false, true));
        let gates = "StopGRPCServiceOnDefrag=true".parse::<FeatureGates>().unwrap();
        let enabled: Vec<_> = gates.features().filter(|feature| !feature.2).map(|feature| feature.0).collect();
        assert_eq!(enabled, ["AllAlpha", "AllBeta", "SetMemberLocalAddr"]);
        assert_eq!(read_feature_gates("LeaseCheckpointPersist=true,LeaseCheckpoint=true"), Ok(true));
        assert!("LeaseCheckpointPersist=true".parse::<FeatureGates>().unwrap().persist_without_checkpoint);
        assert_eq!(read_feature_gates("Nope=true"), Err("unrecognized feature gate: Nope".to_owned()));
        assert_eq!(read_feature_gates("InitialCorruptCheck=true"), Ok(true));
        assert_eq!(read_feature_gates("InitialCorruptCheck=false"), Ok(false));
    }
}
