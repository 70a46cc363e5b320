use std::io;
use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::bootstrap::{JoinError, Looks, Registry};
use super::endpoint_set::{EndpointSet, Origin};
use super::kept_cluster::KeptCluster;
use super::member_list::listed;
use super::source::{Discovery, Followed, Published};
use crate::client::http_page;
use crate::config::{FirstPeers, KeptClusterConfig, PeerSourceConfig};
use crate::net::{Alpn, Backoff, ClientTls, Endpoint};
use crate::pb::etcdserverpb::Member;
use crate::shutdown::Tasks;

/// How long one peer port may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Pauses while no member has been found yet.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long the registry may take to answer once members are known.
const REGISTRY_MAX: Duration = Duration::from_secs(5);
/// Peer ports that are asked.
const PEERS_MAX: usize = 64;

/// The client URLs of a cluster that is known by the peer URLs of its members, asked for again at an interval.
///
/// The peer port of a member tells without a login who the members are (`GET /members`, as etcd has it). All known peers are
/// asked, and the list counts that most of them have: a member that was cut off may have an old one. Peers of another cluster than
/// the first are not listened to. Members that are replaced are followed, since each list names the next peers to ask.
#[derive(Debug)]
pub struct PeerMembers {
    followed: Followed,
}

impl PeerMembers {
    /// Waits until there is an endpoint, then follows until `tasks` stop.
    ///
    /// # Errors
    /// Files that cannot be used, and what a registry refuses for good.
    pub async fn start(config: &PeerSourceConfig, tasks: &Tasks) -> Result<Self, JoinError> {
        let mut search = Search::new(config)?;
        let set = search.first().await?;
        let published = Published::new(Origin::Peers, EndpointSet::default());
        published.answer(set);
        let (followed, interval, stop) = (published.followed(), config.interval, tasks.stop_signal());
        tasks.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = search.follow(interval, &published) => {} }
        });
        Ok(Self { followed })
    }
}

impl Discovery for PeerMembers {
    fn followed(&self) -> Followed {
        self.followed.clone()
    }
}

/// A member as its peer port tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default)]
struct PeerMember {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(rename = "isLearner")]
    is_learner: bool,
    name: String,
    #[serde(rename = "clientURLs")]
    client_urls: Vec<String>,
}

/// What is known, and whom to ask.
struct Search {
    registry: Option<Registry>,
    tls: ClientTls,
    peers: Vec<Endpoint>,
    /// As the peers name it; empty before the first answer, unless it was known before.
    cluster: String,
    kept: Option<KeptClusterConfig>,
    last_kept: Option<KeptCluster>,
}

impl Search {
    fn new(config: &PeerSourceConfig) -> Result<Self, JoinError> {
        let tls = ClientTls::new(&config.tls).map_err(|error| JoinError::Client(error.to_string()))?;
        let (registry, peers) = match &config.first {
            FirstPeers::Registered(registry) => (Some(Registry::new(registry)?), Vec::new()),
            FirstPeers::Known(urls) => (None, endpoints(urls)),
        };
        let (tls, cluster) = (tls.asking_for(Alpn::Http1), config.cluster_id.clone().unwrap_or_default());
        Ok(Self { registry, tls, peers, cluster, kept: config.kept.clone(), last_kept: None })
    }

    /// Asks until a member answers.
    async fn first(&mut self) -> Result<EndpointSet, JoinError> {
        let (mut retry, mut looks) = (Backoff::new(RETRY_FIRST, RETRY_MAX), Looks::new());
        loop {
            if let Some(registry) = &self.registry {
                // Members that are known are asked without a registry that does not answer any more.
                let limit = if self.peers.is_empty() { Duration::MAX } else { REGISTRY_MAX };
                if let Ok(registered) = timeout(limit, registry.look()).await {
                    let registered = registered?;
                    self.peers = endpoints(&registered.peer_urls());
                    if self.peers.is_empty() {
                        info!(size = registered.size(), "waiting for members to register");
                        registry.wait(&registered, &mut looks).await;
                        continue;
                    }
                }
            }
            match self.round().await {
                Ok(set) => return Ok(set),
                Err(reason) => {
                    let pause = retry.pause();
                    warn!(reason, ?pause, "no member of the cluster answers yet, they are asked again");
                    sleep(pause).await;
                }
            }
        }
    }

    async fn follow(&mut self, interval: Duration, published: &Published) {
        loop {
            if published.pause(interval).await {
                self.ask_registry().await;
            }
            match self.round().await {
                Ok(set) => published.answer(set),
                Err(reason) => published.failed(&reason),
            }
        }
    }

    /// Has those asked as well that are registered now. A registry that does not answer, or not any more, changes nothing.
    async fn ask_registry(&mut self) {
        let Some(registry) = &self.registry else { return };
        match timeout(REGISTRY_MAX, registry.look()).await {
            Ok(Ok(registered)) => {
                let known = std::mem::take(&mut self.peers);
                let registered = endpoints(&registered.peer_urls());
                let new = registered.into_iter().filter(|peer| !known.contains(peer)).collect::<Vec<_>>();
                self.peers = known.into_iter().chain(new).take(PEERS_MAX).collect();
            }
            Ok(Err(error)) => warn!(%error, "the registry of members is of no use any more, the known ones are asked"),
            Err(_) => warn!("the registry of members does not answer, the known ones are asked"),
        }
    }

    /// Asks all peers who the members are; those whom most of them name are the next to be asked.
    async fn round(&mut self) -> Result<EndpointSet, String> {
        let (tls, peers) = (&self.tls, &self.peers);
        let answers = join_all(peers.iter().map(|peer| members(peer, tls))).await;
        let (mut lists, mut reasons) = (Vec::new(), Vec::new());
        for answer in answers {
            match answer {
                Ok((cluster, _)) if !self.cluster.is_empty() && cluster != self.cluster => {
                    reasons.push(format!("a peer is of another cluster ({cluster}, not {})", self.cluster));
                }
                Ok(list) => lists.push(list),
                Err(reason) => reasons.push(reason),
            }
        }
        let Some((cluster, members)) = most_frequent(lists) else { return Err(reasons.join("; ")) };
        let as_listed = |member: &PeerMember| Member {
            name: member.name.clone(),
            is_learner: member.is_learner,
            client_ur_ls: member.client_urls.clone(),
            ..Default::default()
        };
        let serving: Vec<Member> = members.iter().map(as_listed).collect();
        let set = listed(&serving, &EndpointSet::default(), Origin::Peers);
        if set.is_empty() {
            return Err("no member has started and told its client URLs".to_owned());
        }
        self.cluster = cluster;
        let peer_urls: Vec<String> = members.into_iter().flat_map(|member| member.peer_urls).collect();
        self.peers = endpoints(&peer_urls);
        self.keep(peer_urls).await;
        Ok(set)
    }

    /// Writes down who the members are, if they are others.
    async fn keep(&mut self, peer_urls: Vec<String>) {
        let Some(config) = self.kept.clone() else { return };
        let new = KeptCluster::new(&config, self.cluster.clone(), peer_urls);
        if self.last_kept.as_ref() == Some(&new) {
            return;
        }
        let written = new.clone();
        let file = config.file.display().to_string();
        match tokio::task::spawn_blocking(move || written.write(&config)).await.map_err(io::Error::other) {
            Ok(Ok(())) => self.last_kept = Some(new),
            Ok(Err(error)) | Err(error) => {
                warn!(file, %error, "the members of the cluster cannot be kept for the next start");
            }
        }
    }
}

/// The list that most have; of two, the longer one.
fn most_frequent(lists: Vec<(String, Vec<PeerMember>)>) -> Option<(String, Vec<PeerMember>)> {
    let votes = |list: &(String, Vec<PeerMember>)| lists.iter().filter(|other| *other == list).count();
    lists.iter().max_by_key(|list| (votes(list), list.1.len())).cloned()
}

/// Those of the URLs that can be asked, each once.
fn endpoints<'a>(urls: impl IntoIterator<Item = &'a String>) -> Vec<Endpoint> {
    let mut found: Vec<Endpoint> = Vec::new();
    for endpoint in urls.into_iter().filter_map(|url| url.parse::<Endpoint>().ok()) {
        if !found.contains(&endpoint) && found.len() < PEERS_MAX {
            found.push(endpoint);
        }
    }
    found
}

/// The id of the cluster and its members, as this peer has them.
async fn members(peer: &Endpoint, tls: &ClientTls) -> Result<(String, Vec<PeerMember>), String> {
    let described = |why: String| format!("{peer}/members: {why}");
    let asked = timeout(ANSWER_MAX, http_page(peer, peer.uses_tls(false).then_some(tls), "/members")).await;
    let page = asked.map_err(|_| described("no answer in time".to_owned()))?;
    let page = page.map_err(|error| described(error.to_string()))?;
    if page.status() != StatusCode::OK {
        return Err(described(page.status().to_string()));
    }
    let cluster = page.headers().get("x-etcd-cluster-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let mut members: Vec<PeerMember> =
        serde_json::from_slice(page.body()).map_err(|error| described(error.to_string()))?;
    members.sort();
    Ok((cluster.ok_or_else(|| described("no cluster id".to_owned()))?, members))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_that_most_have_counts() {
        let list = |ids: &[u64]| {
            let member = |id: &u64| PeerMember { id: *id, ..Default::default() };
            ("c".to_owned(), ids.iter().map(member).collect::<Vec<_>>())
        };
        assert_eq!(most_frequent(vec![list(&[1, 2, 3]), list(&[1, 4]), list(&[1, 4])]), Some(list(&[1, 4])));
        assert_eq!(most_frequent(vec![list(&[1]), list(&[1, 4])]), Some(list(&[1, 4])));
        assert_eq!(most_frequent(Vec::new()), None);
    }

    #[test]
    fn members_are_read_as_etcd_writes_them() {
        let text = r#"[{"id":18249187646912138824,"peerURLs":["http://a:2380"],"name":"a","clientURLs":["http://a:2379"]},
            {"id":1,"peerURLs":["http://b:2380"],"isLearner":true}]"#;
        let members: Vec<PeerMember> = serde_json::from_str(text).unwrap();
        assert_eq!(
            (members[0].id, members[0].is_learner, members[1].is_learner),
            (18_249_187_646_912_138_824, false, true)
        );
        assert_eq!((members[0].client_urls.len(), members[1].name.as_str()), (1, ""));
    }
}
