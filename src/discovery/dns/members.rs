use std::net::{IpAddr, SocketAddr};

use futures::future::join;
use tracing::info;

use super::error::SrvError;
use super::resolver::{Resolver, Target};
use super::service::ServiceNames;
use crate::config::SrvConfig;
use crate::net::Endpoint;

/// The service that members look for.
const PEER_SERVICE: &str = "etcd-server";

/// The members of a cluster that begins, as SRV records name them, in the form that `--initial-cluster` has.
///
/// The records of one kind are read, with TLS or without, as the URLs that this member advertises (`own_urls`) have it.
/// A record is this member's, and gets its name, when it has the host and port of one of those URLs, or an address of that host.
/// The others are numbered: the names of members come with their log.
///
/// # Errors
/// No records; a host without an address, since members that see different sets would not be one cluster; no record of
/// this member.
pub async fn find_members(config: &SrvConfig, name: &str, own_urls: &[String]) -> Result<String, SrvError> {
    let resolver = Resolver::new(config.dns_server)?;
    let names = ServiceNames::new(PEER_SERVICE, &config.service_name, &config.domain);
    let is_tls = own_urls.iter().any(|url| url.starts_with("https://"));
    let (tls, plain) = join(resolver.targets(&names.tls), resolver.targets(&names.plain)).await;
    let targets = match (is_tls, tls, plain) {
        (true, Ok(targets), _) | (false, _, Ok(targets)) => targets.found,
        (true, Err(asked), Ok(_)) => return Err(SrvError::OtherKind { asked, others: "without TLS" }),
        (false, Ok(_), Err(asked)) => return Err(SrvError::OtherKind { asked, others: "with TLS" }),
        (_, Err(tls), Err(plain)) => return Err(SrvError::NoRecords { tls, plain }),
    };
    let own = own_places(&resolver, own_urls).await;
    let scheme = if is_tls { "https" } else { "http" };
    let (mut entries, mut found_own) = (Vec::new(), false);
    for (number, target) in targets.iter().enumerate() {
        let is_own = own.is(&resolver, target).await?;
        found_own |= is_own;
        let member = if is_own { name.to_owned() } else { number.to_string() };
        entries.push(format!("{member}={scheme}://{}:{}", target.host, target.port));
    }
    let entries = entries.join(",");
    info!(domain = config.domain, initial_cluster = entries, "found the initial cluster in SRV records");
    if found_own { Ok(entries) } else { Err(SrvError::NotAmongThem { name: name.to_owned(), found: entries }) }
}

/// Where this member listens for the others.
struct OwnPlaces {
    named: Vec<(String, u16)>,
    addresses: Vec<SocketAddr>,
}

async fn own_places(resolver: &Resolver, urls: &[String]) -> OwnPlaces {
    let mut own = OwnPlaces { named: Vec::new(), addresses: Vec::new() };
    for endpoint in urls.iter().filter_map(|url| url.parse::<Endpoint>().ok()) {
        let (host, port) = (endpoint.host().trim_end_matches('.').to_ascii_lowercase(), endpoint.port());
        let known = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => addresses(resolver, &host).await,
        };
        own.addresses.extend(known.into_iter().map(|address| SocketAddr::new(address, port)));
        own.named.push((host, port));
    }
    own
}

/// Those that DNS knows, or else the system: an own name may be in its hosts file alone.
async fn addresses(resolver: &Resolver, host: &str) -> Vec<IpAddr> {
    match resolver.addresses(host, &[]).await {
        Ok(answer) => answer.found,
        Err(_) => match tokio::net::lookup_host((host, 0)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(_) => Vec::new(),
        },
    }
}

impl OwnPlaces {
    async fn is(&self, resolver: &Resolver, target: &Target) -> Result<bool, SrvError> {
        let found = addresses(resolver, &target.host).await;
        if found.is_empty() {
            let why = format!("{}:{}: the host has no address", target.host, target.port);
            return Err(SrvError::NoneUsable(vec![why]));
        }
        let is_named = self.named.iter().any(|(host, port)| (host, *port) == (&target.host, target.port));
        let at_own = |address: &IpAddr| self.addresses.contains(&SocketAddr::new(*address, target.port));
        Ok(is_named || found.iter().any(at_own))
    }
}
