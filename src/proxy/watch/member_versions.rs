use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::upstream::Upstream;
use crate::proxy::Identity;
use crate::types::MemberId;

/// Status requests sent to learn the version of one member; the pool decides which member gets each.
const REQUESTS_MAX: usize = 8;
/// Age at which a version is asked for again: the member may have been upgraded.
const FRESH_MAX: Duration = Duration::from_secs(60);
/// Members kept; one more empties the table.
const MEMBERS_MAX: usize = 256;

/// What members can do, by their versions.
#[derive(Debug, Default)]
pub(in crate::proxy) struct MemberVersions {
    members: Mutex<HashMap<MemberId, (Version, Instant)>>,
    asking: tokio::sync::Mutex<()>,
}

impl MemberVersions {
    /// Whether the member's version answers progress requests in order: after all events up to the revision that the answer
    /// names. False while the version is not known.
    pub fn has_ordered_progress(&self, member: MemberId) -> bool {
        self.members.lock().get(&member).is_some_and(|(version, _)| orders_progress(*version))
    }

    /// Whether the member's version has `RangeStream`; false while the version is not known.
    pub fn has_range_stream(&self, member: MemberId) -> bool {
        self.members.lock().get(&member).is_some_and(|(version, _)| *version >= [3, 7, 0])
    }

    /// Whether the member's version is known.
    pub fn is_known(&self, member: MemberId) -> bool {
        self.members.lock().contains_key(&member)
    }

    fn is_fresh(&self, member: MemberId) -> bool {
        self.members.lock().get(&member).is_some_and(|(_, at)| at.elapsed() < FRESH_MAX)
    }

    fn note(&self, member: MemberId, version: &str) {
        let mut members = self.members.lock();
        if members.len() >= MEMBERS_MAX {
            members.clear();
        }
        members.insert(member, (parsed(version), Instant::now()));
    }

    /// Asks for the version of a member unless a fresh one is known.
    pub async fn learn(&self, upstream: &dyn Upstream, identity: &Identity, member: MemberId) {
        let _turn = self.asking.lock().await;
        for _ in 0..REQUESTS_MAX {
            if self.is_fresh(member) {
                return;
            }
            match upstream.version(identity).await {
                Ok((member, version)) => self.note(member, &version),
                Err(status) => {
                    tracing::debug!(%status, %member, "version of a member is not known");
                    return;
                }
            }
        }
    }
}

/// Major, minor and patch.
type Version = [u32; 3];

fn parsed(version: &str) -> Version {
    let mut parts = version.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
        digits.parse::<u32>().unwrap_or(0)
    });
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

/// Before 3.4.25 and 3.5.8 the answer could arrive ahead of events.
fn orders_progress([major, minor, patch]: Version) -> bool {
    match (major, minor) {
        (3, 4) => patch >= 25,
        (3, 5) => patch >= 8,
        _ => (major, minor) > (3, 5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_order_progress() {
        for version in ["3.4.25", "3.5.8", "3.5.30-dirty", "3.6.0-rc.0", "3.7.1", "4.0.0"] {
            assert!(orders_progress(parsed(version)), "{version}");
        }
        for version in ["3.3.27", "3.4.24", "3.5.7", "3.5.0-alpha", "2.3", "", "x.y.z"] {
            assert!(!orders_progress(parsed(version)), "{version}");
        }
    }

    #[test]
    fn versions_with_range_streams() {
        let versions = MemberVersions::default();
        let has = |member: u64, version: &str| {
            versions.note(MemberId(member), version);
            versions.has_range_stream(MemberId(member))
        };
        assert!(has(1, "3.7.0-rc.1") && has(1, "3.7.1") && has(1, "4.0.0"));
        assert!(!has(1, "3.6.9") && !has(1, "3.5.21") && !has(1, ""));
        assert!(!versions.has_range_stream(MemberId(2)), "not known");
    }
}
