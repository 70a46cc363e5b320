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

/// Which members answer a progress request in order: after all events up to the revision that the answer names.
///
/// Before 3.4.25 and 3.5.8 the answer could arrive ahead of events.
#[derive(Debug, Default)]
pub(in crate::proxy) struct MemberVersions {
    members: Mutex<HashMap<MemberId, (bool, Instant)>>,
    asking: tokio::sync::Mutex<()>,
}

impl MemberVersions {
    /// Whether the member's version answers progress requests in order; false while the version is not known.
    pub fn has_ordered_progress(&self, member: MemberId) -> bool {
        self.members.lock().get(&member).is_some_and(|(ordered, _)| *ordered)
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
        members.insert(member, (orders_progress(version), Instant::now()));
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

fn orders_progress(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
        digits.parse::<u32>().unwrap_or(0)
    });
    let [major, minor, patch] = [(); 3].map(|()| parts.next().unwrap_or(0));
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
            assert!(orders_progress(version), "{version}");
        }
        for version in ["3.3.27", "3.4.24", "3.5.7", "3.5.0-alpha", "2.3", "", "x.y.z"] {
            assert!(!orders_progress(version), "{version}");
        }
    }
}
