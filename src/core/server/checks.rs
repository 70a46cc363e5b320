//! Health, liveness and readiness, as monitoring asks for them.

use std::sync::Arc;
use std::time::Instant;

use super::caller::Caller;
use super::metrics::CoreMetrics;
use super::published::Published;
use super::read_index::ReadIndex;
use crate::core::apply::describe_range;
use crate::core::mvcc::StoreReader;
use crate::core::raft::RaftHandle;
use crate::pages::{CheckQuery, CheckReport};
use crate::pb::etcdserverpb::{AlarmType, RangeRequest};
use crate::telemetry::OperationKind;

/// Which list of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// Whether the process should be restarted.
    Live,
    /// Whether it should get requests.
    Ready,
}

impl CheckKind {
    fn label(self) -> &'static str {
        match self {
            Self::Live => "livez",
            Self::Ready => "readyz",
        }
    }

    fn checks(self) -> &'static [&'static str] {
        match self {
            Self::Live => &["serializable_read"],
            Self::Ready => &["data_corruption", "serializable_read", "linearizable_read", "non_learner"],
        }
    }
}

/// Reads `/livez`, `/readyz` and `/readyz/<check>`; none for anything else.
pub fn parse_path(path: &str) -> Option<(CheckKind, Option<&'static str>)> {
    let rest = path.strip_prefix('/')?;
    let (kind, name) = match rest.split_once('/') {
        None => (rest, None),
        Some((kind, name)) => (kind, Some(name)),
    };
    let kind = match kind {
        "livez" => CheckKind::Live,
        "readyz" => CheckKind::Ready,
        _ => return None,
    };
    match name {
        None => Some((kind, None)),
        Some(name) => kind.checks().iter().find(|check| **check == name).map(|check| (kind, Some(*check))),
    }
}

/// Runs the checks, and counts what they find.
pub(super) struct HealthChecks {
    pub(super) raft: RaftHandle,
    pub(super) published: Arc<Published>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) store: StoreReader,
    pub(super) metrics: Arc<CoreMetrics>,
}

impl HealthChecks {
    /// `/health`: alarms, leader, one read.
    ///
    /// # Errors
    /// The reason, in etcd's words.
    pub(super) async fn health(&self, query: &CheckQuery) -> Result<(), String> {
        for alarm in self.published.alarms().list(AlarmType::None) {
            let name = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |kind| kind.as_str_name());
            if !query.excludes(name) {
                return Err(format!("ALARM {name}"));
            }
        }
        if !query.serializable && self.raft.term_with_leader().is_none() {
            return Err("RAFT NO LEADER".to_owned());
        }
        self.read(!query.serializable).await.map_err(|error| format!("RANGE ERROR:{error}"))
    }

    /// Runs all checks of a kind that are not excluded, or a single one.
    pub(super) async fn run(&self, kind: CheckKind, single: Option<&str>, query: &CheckQuery) -> CheckReport {
        let mut report = CheckReport::default();
        for &name in kind.checks() {
            if single.is_some_and(|single| single != name) || (single.is_none() && query.excludes(name)) {
                continue;
            }
            let passed = report.add(name, self.check(name).await);
            let result = if passed { "success" } else { "error" };
            let server = &self.metrics.server;
            server.healthcheck.with_label_values(&[kind.label(), name]).set(i64::from(passed));
            server.healthchecks.with_label_values(&[kind.label(), name, result]).inc();
        }
        report
    }

    async fn check(&self, name: &str) -> Result<(), String> {
        match name {
            "data_corruption" if self.published.alarms().is_raised(AlarmType::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            "serializable_read" => self.read(false).await,
            "linearizable_read" => self.read(true).await,
            "non_learner" if self.published.is_learner() => Err("not supported for learner".to_owned()),
            _ => Ok(()),
        }
    }

    async fn read(&self, linearizable: bool) -> Result<(), String> {
        let request = RangeRequest { key: "a".into(), limit: 1, ..RangeRequest::default() };
        let timed = self.metrics.read(&Caller::Member, OperationKind::Range, || describe_range(&request));
        if linearizable {
            self.reads.linearizable().await.map_err(|error| error.text().to_owned())?;
        }
        let began = Instant::now();
        let answer = self.store.snapshot().range(&request);
        self.metrics.mvcc.ranges.inc();
        self.metrics.range_took(answer.is_ok(), began.elapsed());
        answer.map_err(|error| error.to_string())?;
        timed.succeed();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_kind_and_perhaps_a_check() {
        assert_eq!(parse_path("/livez"), Some((CheckKind::Live, None)));
        assert_eq!(parse_path("/readyz/data_corruption"), Some((CheckKind::Ready, Some("data_corruption"))));
        assert_eq!(parse_path("/livez/data_corruption"), None);
        assert_eq!(parse_path("/readyz/"), None);
        assert_eq!(parse_path("/health"), None);
    }
}
