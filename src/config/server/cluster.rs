use std::collections::BTreeSet;

use super::super::url::advertised_url;
use super::check::ServerConfigError;

/// Checks that `--initial-cluster` describes exactly this member and gives its peer URLs, sorted.
///
/// URLs are compared as text: the name they hold is not looked up.
pub(super) fn only_member(
    name: &str,
    initial_cluster: &str,
    advertised: &[String],
) -> Result<Vec<String>, ServerConfigError> {
    let wrong = |reason: String| ServerConfigError::Value { flag: "initial-cluster", reason };
    let mut own = BTreeSet::new();
    let mut all = BTreeSet::new();
    let mut names = BTreeSet::new();
    for entry in initial_cluster.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (member, url) = entry.split_once('=').ok_or_else(|| wrong(format!("{entry:?} has no name before =")))?;
        let url = advertised_url(url).map_err(|error| wrong(error.to_string()))?;
        if !all.insert(url.clone()) {
            return Err(ServerConfigError::DuplicateUrl(initial_cluster.to_owned()));
        }
        names.insert(member);
        if member == name {
            own.insert(url);
        }
    }
    if names.is_empty() {
        return Err(ServerConfigError::NoCluster);
    }
    if own.is_empty() {
        return Err(ServerConfigError::NotInCluster(name.to_owned()));
    }
    if names.len() > 1 {
        return Err(ServerConfigError::SeveralMembers(names.len()));
    }
    let own: Vec<String> = own.into_iter().collect();
    let listed = || own.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>().join(",");
    if let Some(url) = own.iter().find(|url| !advertised.contains(url)) {
        let entry = format!("{name}={url}");
        return Err(ServerConfigError::NotAdvertised { entry, advertised: advertised.join(",") });
    }
    if let Some(url) = advertised.iter().find(|url| !own.contains(url)) {
        return Err(ServerConfigError::NotListed { url: url.clone(), cluster: listed() });
    }
    Ok(own)
}
