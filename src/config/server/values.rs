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

impl IntegrityChecks {
    /// Gates of etcd with their stage, and whether what they stand for is in effect here.
    pub fn features(self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        GATES.iter().map(move |gate| {
            let enabled = if gate.name == INITIAL_CORRUPT_CHECK { self.at_start } else { gate.in_effect };
            (gate.name, gate.stage, enabled)
        })
    }
}

/// A gate of etcd 3.7.
struct Gate {
    name: &'static str,
    stage: &'static str,
    default: bool,
    /// Whether the other value requires a feature that does not exist yet.
    refused: bool,
    /// Whether we do what it stands for, whatever its value.
    in_effect: bool,
}

const fn gate(name: &'static str, stage: &'static str, default: bool, refused: bool, in_effect: bool) -> Gate {
    Gate { name, stage, default, refused, in_effect }
}

const INITIAL_CORRUPT_CHECK: &str = "InitialCorruptCheck";
const GATES: &[Gate] = &[
    gate("AllAlpha", "ALPHA", false, true, false),
    gate("AllBeta", "BETA", false, false, false),
    gate("CompactHashCheck", "ALPHA", false, false, true),
    gate("FastLeaseKeepAlive", "BETA", true, false, true),
    gate(INITIAL_CORRUPT_CHECK, "ALPHA", false, false, true),
    gate("LeaseCheckpoint", "ALPHA", false, false, true),
    gate("LeaseCheckpointPersist", "ALPHA", false, false, true),
    gate("PriorityRequest", "ALPHA", false, true, false),
    gate("SetMemberLocalAddr", "ALPHA", false, true, false),
    gate("StopGRPCServiceOnDefrag", "ALPHA", false, true, false),
    gate("TxnModeWriteWithSharedBuffer", "BETA", true, false, true),
];

/// What `--feature-gates` changes. Every other gate stands for something that is always on here, or is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    /// Whether a member compares its state with the others' when it starts: unless `InitialCorruptCheck=false` is given.
    pub initial_corrupt_check: bool,
    /// Whether `LeaseCheckpointPersist` is asked for without the gate it needs, which is refused once all flags are read.
    pub persist_without_checkpoint: bool,
}

impl FromStr for FeatureGates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut set = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (name, value) = entry.split_once('=').ok_or_else(|| format!("missing bool value for {entry}"))?;
            let gate = GATES.iter().find(|gate| gate.name == name.trim());
            let &Gate { name, default, refused, .. } =
                gate.ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
            let value =
                parse_bool(value.trim()).map_err(|why| format!("invalid value of {name}={value}, err: {why}"))?;
            if refused && value != default {
                return Err(format!("feature gate {name} is not supported yet"));
            }
            set.push((name, value));
        }
        let on = |gate| set.iter().rfind(|(name, _)| *name == gate).is_some_and(|(_, value)| *value);
        let given = set.iter().rfind(|(name, _)| *name == INITIAL_CORRUPT_CHECK);
        Ok(Self {
            initial_corrupt_check: given.is_none_or(|(_, value)| *value),
            persist_without_checkpoint: on("LeaseCheckpointPersist") && !on("LeaseCheckpoint"),
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
        assert!(read_feature_gates("PriorityRequest=true").unwrap_err().contains("not supported yet"));
        assert_eq!(read_feature_gates("LeaseCheckpointPersist=true,LeaseCheckpoint=true"), Ok(true));
        assert!("LeaseCheckpointPersist=true".parse::<FeatureGates>().unwrap().persist_without_checkpoint);
        assert_eq!(read_feature_gates("Nope=true"), Err("unrecognized feature gate: Nope".to_owned()));
        assert_eq!(read_feature_gates("InitialCorruptCheck=true"), Ok(true));
        assert_eq!(read_feature_gates("InitialCorruptCheck=false"), Ok(false));
    }
}
