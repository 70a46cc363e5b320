use std::fmt;

/// A version the cluster can agree on: what every member understands, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterVersion {
    major: u64,
    minor: u64,
}

impl ClusterVersion {
    /// What a cluster starts with while some of its members have not told theirs, as in etcd.
    pub const LOWEST: Self = Self { major: 3, minor: 0 };

    /// Reads `3.7` or `3.7.1`; the patch does not count.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(['-', '+']).next()?.split('.').map(str::parse::<u64>);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        let rest_is_fine = parts.next().is_none_or(|patch| patch.is_ok()) && parts.next().is_none();
        rest_is_fine.then_some(Self { major, minor })
    }

    /// The only version that a cluster of this one can be downgraded to.
    pub fn below(self) -> Option<Self> {
        Some(Self { major: self.major, minor: self.minor.checked_sub(1)? })
    }

    /// Major and minor, as answers about downgrades have it.
    pub fn short(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }

    /// What the leader should propose: none when the agreed version can stay.
    ///
    /// `members` holds what each member runs, none for those that did not answer. It rises only once all have
    /// answered, and falls only to `downgrade`, the target of a downgrade.
    pub fn decide(
        agreed: Option<Self>,
        downgrade: Option<Self>,
        members: impl IntoIterator<Item = Option<Self>>,
    ) -> Option<Self> {
        let versions: Option<Vec<Self>> = members.into_iter().collect();
        let lowest = versions.and_then(|versions| versions.into_iter().min());
        match agreed {
            None => Some(lowest.unwrap_or(Self::LOWEST)),
            Some(agreed) if downgrade.is_some() => {
                downgrade.filter(|_| lowest.is_some_and(|lowest| [agreed, lowest].map(Self::below) == [downgrade; 2]))
            }
            Some(agreed) => lowest.filter(|lowest| *lowest > agreed && lowest.major == agreed.major),
        }
    }
}

/// With the patch that etcd writes, which is 0.
impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.0", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_does_not_count() {
        let shown = |text| ClusterVersion::parse(text).map(|version| version.to_string());
        assert_eq!(shown("3.7.1").as_deref(), Some("3.7.0"));
        assert_eq!(shown("3.10").as_deref(), Some("3.10.0"));
        assert_eq!(shown("3.8.0-alpha.0").as_deref(), Some("3.8.0"));
        for wrong in ["", "3", "x.y", "3.7.x", "3.7.1.2", "not_decided"] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_lowest_member_decides_and_only_upwards() {
        let check = |agreed: &str, members: &[&str], expected: &str| {
            let members = members.iter().map(|text| ClusterVersion::parse(text));
            let decided = ClusterVersion::decide(ClusterVersion::parse(agreed), None, members);
            assert_eq!(decided.map_or("stays".to_owned(), |version| version.to_string()), expected);
        };
        check("", &["3.7.1", "3.7.1"], "3.7.0");
        check("", &["3.7.1", "3.6.4"], "3.6.0");
        check("", &["3.7.1", "no answer"], "3.0.0");
        check("3.0.0", &["3.7.1", "no answer"], "stays");
        check("3.0.0", &["3.7.1", "3.7.2"], "3.7.0");
        check("3.7.0", &["3.7.1", "3.6.4"], "stays");
        check("3.7.0", &["3.7.1"], "stays");
        check("3.7.0", &["4.0.0"], "stays");
    }

    #[test]
    fn a_downgrade_goes_one_version_down_once_all_members_answer() {
        let check = |agreed: &str, target: &str, members: &[&str], expected: &str| {
            let members = members.iter().map(|text| ClusterVersion::parse(text));
            let decided = ClusterVersion::decide(ClusterVersion::parse(agreed), ClusterVersion::parse(target), members);
            assert_eq!(decided.map_or("stays".to_owned(), |version| version.to_string()), expected);
        };
        check("3.7.0", "3.6.0", &["3.7.1", "3.7.1"], "3.6.0");
        check("3.7.0", "3.6.0", &["3.7.1", "no answer"], "stays");
        check("3.6.0", "3.6.0", &["3.7.1"], "stays");
        check("3.7.0", "3.5.0", &["3.7.1"], "stays");
        check("3.0.0", "", &["3.7.1"], "3.7.0");
    }
}
