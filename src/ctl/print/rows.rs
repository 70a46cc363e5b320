use std::time::Duration;

use super::super::golang;
use crate::pb::etcdserverpb::{HashKvResponse, MemberListResponse, StatusResponse};

/// How one endpoint did in a health check.
#[derive(Clone, Debug)]
pub(crate) struct EndpointHealth {
    pub(crate) endpoint: String,
    pub(crate) took: Duration,
    /// Why it is not healthy.
    pub(crate) error: Option<String>,
}

/// What one endpoint says about itself.
#[derive(Clone, Debug)]
pub(crate) struct EndpointStatus {
    pub(crate) endpoint: String,
    pub(crate) status: StatusResponse,
}

/// The hash of one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct EndpointHash {
    pub(crate) endpoint: String,
    pub(crate) hash: HashKvResponse,
}

pub(super) const MEMBER_HEADS: &[&str] = &["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];
pub(super) const HEALTH_HEADS: &[&str] = &["ENDPOINT", "HEALTH", "TOOK", "ERROR"];
pub(super) const HASH_HEADS: &[&str] = &["ENDPOINT", "HASH", "HASH REVISION"];
pub(super) const STATUS_HEADS: &[&str] = &[
    "ENDPOINT",
    "ID",
    "VERSION",
    "STORAGE VERSION",
    "DB SIZE",
    "IN USE",
    "PERCENTAGE NOT IN USE",
    "QUOTA",
    "IS LEADER",
    "IS LEARNER",
    "RAFT TERM",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "ERRORS",
    "DOWNGRADE TARGET VERSION",
    "DOWNGRADE ENABLED",
];

pub(super) fn members(answer: &MemberListResponse) -> Vec<Vec<String>> {
    answer
        .members
        .iter()
        .map(|member| {
            vec![
                format!("{:x}", member.id),
                if member.name.is_empty() { "unstarted" } else { "started" }.to_owned(),
                member.name.clone(),
                member.peer_ur_ls.join(","),
                member.client_ur_ls.join(","),
                member.is_learner.to_string(),
            ]
        })
        .collect()
}

pub(super) fn health(endpoints: &[EndpointHealth]) -> Vec<Vec<String>> {
    endpoints
        .iter()
        .map(|health| {
            vec![
                health.endpoint.clone(),
                health.error.is_none().to_string(),
                golang::duration(health.took),
                health.error.clone().unwrap_or_default(),
            ]
        })
        .collect()
}

pub(super) fn status(endpoints: &[EndpointStatus]) -> Vec<Vec<String>> {
    endpoints
        .iter()
        .map(|EndpointStatus { endpoint, status }| {
            let member = status.header.as_ref().map_or(0, |header| header.member_id);
            let downgrade = status.downgrade_info.clone().unwrap_or_default();
            let bytes = |value: i64| golang::size(u64::try_from(value).unwrap_or(0));
            vec![
                endpoint.clone(),
                format!("{member:x}"),
                status.version.clone(),
                status.storage_version.clone(),
                bytes(status.db_size),
                bytes(status.db_size_in_use),
                not_in_use(status),
                bytes(status.db_size_quota),
                (status.leader == member).to_string(),
                status.is_learner.to_string(),
                status.raft_term.to_string(),
                status.raft_index.to_string(),
                status.raft_applied_index.to_string(),
                status.errors.join(", "),
                downgrade.target_version,
                downgrade.enabled.to_string(),
            ]
        })
        .collect()
}

/// Share of the file that a defragment would give back, in whole percent.
fn not_in_use(status: &StatusResponse) -> String {
    match status.db_size_in_use.saturating_mul(100).checked_div(status.db_size) {
        Some(used) => format!("{}%", 100 - used),
        None => "0%".to_owned(),
    }
}

pub(super) fn hashes(endpoints: &[EndpointHash]) -> Vec<Vec<String>> {
    endpoints
        .iter()
        .map(|EndpointHash { endpoint, hash }| {
            vec![endpoint.clone(), hash.hash.to_string(), hash.hash_revision.to_string()]
        })
        .collect()
}

/// The simple form of a table: cells joined by a comma and a space.
pub(super) fn joined(rows: &[Vec<String>]) -> Vec<u8> {
    rows.iter().flat_map(|row| (row.join(", ") + "\n").into_bytes()).collect()
}
