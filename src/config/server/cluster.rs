use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::super::error::{ConfigError, UrlError};
use super::super::url::advertised_url;
use super::same_urls::{Resolve, same_urls};

/// Whether a member without data begins a cluster or joins one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitialState {
    /// All members of `--initial-cluster` begin together.
    #[default]
    New,
    /// The cluster runs, and has this member in its list.
    Existing,
}

impl FromStr for InitialState {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "new" => Ok(Self::New),
            "existing" => Ok(Self::Existing),
            _ => Err("invalid value"),
        }
    }
}

/// Initial cluster of a member without data; ignored once there is data.
#[derive(Clone, Debug)]
pub struct InitialCluster {
    /// Name of this member.
    pub name: String,
    /// Whether the cluster begins with this.
    pub state: InitialState,
    /// Part of the ids of first members.
    pub token: String,
    /// Peer URLs by name, sorted.
    members: BTreeMap<String, Vec<String>>,
    /// `--initial-advertise-peer-urls`, sorted.
    advertised: Vec<String>,
    /// What the first mention of a URL twice was found in.
    duplicate: Option<String>,
    /// Whether the names of the members are not known: they publish them.
    names_to_come: bool,
}

impl InitialCluster {
    /// Reads the list; without one, the cluster is this member.
    pub(super) fn parse(
        name: &str,
        list: Option<&str>,
        mut advertised: Vec<String>,
        token: &str,
        state: InitialState,
    ) -> Result<Self, ConfigError> {
        advertised.sort();
        let wrong = |reason: String| ConfigError::Value { flag: "initial-cluster", reason };
        let mut members = BTreeMap::<String, Vec<String>>::new();
        let mut duplicate = None;
        match list {
            None => {
                members.insert(name.to_owned(), advertised.clone());
            }
            Some(list) => {
                let mut all = BTreeSet::new();
                for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
                    let pair = entry.split_once('=').filter(|(member, _)| !member.is_empty());
                    let (member, url) = pair.ok_or_else(|| wrong(format!("{entry:?} has no name before =")))?;
                    let url = advertised_url(url).map_err(|error: UrlError| wrong(error.to_string()))?;
                    if !all.insert(url.clone()) {
                        duplicate = Some(list.to_owned());
                    }
                    members.entry(member.to_owned()).or_default().push(url);
                }
            }
        }
        members.values_mut().for_each(|urls| urls.sort());
        let (name, token) = (name.to_owned(), token.to_owned());
        Ok(Self { name, state, token, members, advertised, duplicate, names_to_come: false })
    }

    /// Reads what `snapshot restore` is given, for a new cluster.
    ///
    /// # Errors
    /// A URL that no member could dial; an entry without a name.
    pub fn restored(name: &str, list: &str, advertised: &str, token: &str) -> Result<Self, ConfigError> {
        let url = |text: &str| advertised_url(text.trim());
        let advertised: Result<Vec<String>, UrlError> = advertised.split(',').map(url).collect();
        let advertised =
            advertised.map_err(|source| ConfigError::Url { flag: "initial-advertise-peer-urls", source })?;
        Self::parse(name, Some(list), advertised, token, InitialState::New)
    }

    /// The same for a list that was found.
    ///
    /// # Errors
    /// A URL that no member could dial; an entry without a name.
    pub fn found(&self, list: &str) -> Result<Self, ConfigError> {
        Self::parse(&self.name, Some(list), self.advertised.clone(), &self.token, self.state)
    }

    /// The same list, whose names of members other than this one mean nothing.
    #[must_use]
    pub fn with_names_to_come(self) -> Self {
        Self { names_to_come: true, ..self }
    }

    /// The name that the first entries of the log give to a member: all members have to write the same ones.
    pub fn first_name(&self, name: &str) -> String {
        if self.names_to_come { String::new() } else { name.to_owned() }
    }

    /// Names and peer URLs of all members.
    pub fn members(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.members.iter().map(|(name, urls)| (name.as_str(), urls.as_slice()))
    }

    /// Peer URLs of this member.
    pub fn own_urls(&self) -> &[String] {
        self.members.get(&self.name).map_or(&[], Vec::as_slice)
    }

    /// Peer URLs of all other members, sorted.
    pub fn other_urls(&self) -> Vec<&str> {
        let others = self.members.iter().filter(|(name, _)| **name != self.name);
        let mut urls: Vec<&str> = others.flat_map(|(_, urls)| urls).map(String::as_str).collect();
        urls.sort_unstable();
        urls
    }

    /// Checks that a member can start from this, which is for the moment when it has no data.
    ///
    /// Whoever begins a cluster must be listed with the URLs it advertises. They are compared as text first, and if
    /// that differs with host names replaced by addresses.
    ///
    /// # Errors
    /// What etcd says.
    pub fn check(&self, resolve: Resolve<'_>) -> Result<(), ConfigError> {
        if self.members.is_empty() {
            return Err(ConfigError::NoCluster);
        }
        if self.own_urls().is_empty() {
            return Err(ConfigError::NotInCluster(self.name.clone()));
        }
        if self.state == InitialState::New {
            self.check_advertised(resolve)?;
        }
        match &self.duplicate {
            Some(list) => Err(ConfigError::DuplicateUrl(list.clone())),
            None => Ok(()),
        }
    }

    fn check_advertised(&self, resolve: Resolve<'_>) -> Result<(), ConfigError> {
        let own = self.own_urls();
        let Err(reason) = same_urls(&self.advertised, own, resolve) else { return Ok(()) };
        let listed = || own.iter().map(|url| format!("{}={url}", self.name)).collect::<Vec<_>>().join(",");
        let advertised = self.advertised.join(",");
        if let Some(url) = own.iter().find(|url| !self.advertised.contains(url)) {
            let entry = format!("{}={url}", self.name);
            return Err(ConfigError::NotAdvertised { entry, advertised, reason });
        }
        if let Some(url) = self.advertised.iter().find(|url| !own.contains(url)) {
            return Err(ConfigError::NotListed { url: url.clone(), cluster: listed() });
        }
        Err(ConfigError::NotResolved { advertised, cluster: listed(), reason })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn resolve(host: &str) -> Result<IpAddr, String> {
        match host {
            "here" => Ok([127, 0, 0, 1].into()),
            _ => Err(format!("lookup {host}: no such host")),
        }
    }

    fn checked(state: InitialState, list: &str, advertised: &str) -> String {
        let advertised = advertised.split(',').map(str::to_owned).collect();
        let cluster = InitialCluster::parse("n1", Some(list), advertised, "t", state).expect("readable");
        match cluster.check(&resolve) {
            Ok(()) => "fine".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_list_is_read() {
        let list = "n2=http://b:1, n1=http://z:1,n1=http://a:1,";
        let cluster = InitialCluster::parse("n1", Some(list), Vec::new(), "t", InitialState::New).expect("readable");
        let names: Vec<_> = cluster.members().map(|(name, urls)| format!("{name} {}", urls.join(" "))).collect();
        assert_eq!(names, ["n1 http://a:1 http://z:1", "n2 http://b:1"]);
        assert_eq!(cluster.other_urls(), ["http://b:1"]);
        let alone = InitialCluster::parse("n1", None, vec!["http://a:1".into()], "t", InitialState::New);
        assert_eq!(alone.expect("readable").own_urls(), ["http://a:1"]);
        for (list, text) in [
            ("http://a:1", "--initial-cluster: \"http://a:1\" has no name before ="),
            ("=http://a:1", "--initial-cluster: \"=http://a:1\" has no name before ="),
            ("a=b", "--initial-cluster: URL scheme must be http, https, unix, or unixs: b"),
        ] {
            let read = InitialCluster::parse("n1", Some(list), Vec::new(), "t", InitialState::New);
            assert_eq!(read.expect_err("no list").to_string(), text);
        }
    }

    #[test]
    fn refusals_are_etcds() {
        use InitialState::{Existing, New};
        let check = |state, list, advertised, expected: &str| {
            assert_eq!(checked(state, list, advertised), expected, "{list} {advertised}");
        };
        check(New, "n1=http://a:1,n2=http://b:1", "http://a:1", "fine");
        check(New, "n1=http://here:1", "http://127.0.0.1:1", "fine");
        check(New, "", "http://a:1", "initial cluster unset and no discovery endpoints found (--initial-cluster)");
        let not_there =
            "couldn't find local name \"n1\" in the initial cluster configuration (--name, --initial-cluster)";
        check(New, "n2=http://a:1", "http://a:1", not_there);
        check(Existing, "n2=http://a:1", "http://a:1", not_there);
        check(
            New,
            "n1=http://a:1,n2=http://a:1",
            "http://a:1",
            "--initial-cluster: initial cluster n1=http://a:1,n2=http://a:1 has duplicate url",
        );
        check(
            New,
            "n1=http://127.0.0.2:1",
            "http://127.0.0.1:1",
            "--initial-cluster has n1=http://127.0.0.2:1 but missing from --initial-advertise-peer-urls=http://127.0.0.1:1 \
             (resolved urls: \"http://127.0.0.1:1\" != \"http://127.0.0.2:1\")",
        );
        check(
            New,
            "n1=http://a:1",
            "http://a:1,http://b:1",
            "--initial-advertise-peer-urls has http://b:1 but missing from --initial-cluster=n1=http://a:1",
        );
        check(
            New,
            "n1=http://nowhere:1",
            "http://127.0.0.1:1",
            "--initial-cluster has n1=http://nowhere:1 but missing from \
             --initial-advertise-peer-urls=http://127.0.0.1:1 (lookup nowhere: no such host)",
        );
        // Whoever joins has announced its URLs before; the flag is not looked at, as in etcd.
        check(Existing, "n1=http://a:1", "http://b:1", "fine");
    }
}
