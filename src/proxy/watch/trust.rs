use std::collections::HashMap;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Mutex as TurnLock;
use tokio::time::Instant;

use super::upstream::Upstream;
use crate::types::MemberId;

/// Requests sent to learn the version of one member; which member answers one is not chosen.
const ASKS_MAX: usize = 8;
/// How long a version is believed: a member may come back as another one.
const FRESH_MAX: Duration = Duration::from_secs(60);
/// Members remembered.
const MEMBERS_MAX: usize = 256;

/// Which members send all events up to a revision before they answer that it is reached.
///
/// Before 3.4.25 and 3.5.8 an answer to a progress request could overtake events.
#[derive(Debug, Default)]
pub(super) struct Trust {
    members: Mutex<HashMap<MemberId, (bool, Instant)>>,
    asking: TurnLock<()>,
}

impl Trust {
    /// Whether the progress a member tells is proven; false while its version is not known.
    pub fn is_proven(&self, member: MemberId) -> bool {
        self.members.lock().get(&member).is_some_and(|(proven, _)| *proven)
    }

    fn is_fresh(&self, member: MemberId) -> bool {
        self.members.lock().get(&member).is_some_and(|(_, at)| at.elapsed() < FRESH_MAX)
    }

    fn note(&self, member: MemberId, version: &str) {
        let mut members = self.members.lock();
        if members.len() >= MEMBERS_MAX {
            members.clear();
        }
        members.insert(member, (proves_progress(version), Instant::now()));
    }

    /// Learns the version of a member unless it is known.
    pub async fn learn(&self, upstream: &dyn Upstream, metadata: &HeaderMap, member: MemberId) {
        let _turn = self.asking.lock().await;
        for _ in 0..ASKS_MAX {
            if self.is_fresh(member) {
                return;
            }
            match upstream.version(metadata.clone()).await {
                Ok((member, version)) => self.note(member, &version),
                Err(status) => {
                    tracing::debug!(%status, %member, "version of a member is not known");
                    return;
                }
            }
        }
    }
}

fn proves_progress(version: &str) -> bool {
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
    fn versions_that_prove_progress() {
        for version in ["3.4.25", "3.5.8", "3.5.30-dirty", "3.6.0-rc.0", "3.7.1", "4.0.0"] {
            assert!(proves_progress(version), "{version}");
        }
        for version in ["3.3.27", "3.4.24", "3.5.7", "3.5.0-alpha", "2.3", "", "x.y.z"] {
            assert!(!proves_progress(version), "{version}");
        }
    }
}
