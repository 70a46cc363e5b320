use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tracing::warn;

use super::on_thread::on_thread;
use super::remote_cluster::{RunningCluster, fetch_cluster, fetch_cluster_version};
use crate::config::{ConfigError, InitialCluster, InitialState, Resolve, ServerConfig, same_urls};
use crate::core::cluster::{AddContext, ClusterVersion, Member, MembershipError, cluster_id, member_id};
use crate::core::peer::PeerDialer;
use crate::core::raft::bootstrap_entries;
use crate::core::wal::{HardState, Wal, WalDisk, WalEntry, WalError, WalMetadata};
use crate::types::{API_VERSION, MemberId};

/// How long the other members of a new cluster may take to answer whether they know this one.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a member of a running cluster may take to list the members.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long host names are looked up again.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);
const RESOLVE_RETRY: Duration = Duration::from_secs(1);

/// Why a member without data does not start. The texts are etcd's.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The flags do not fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Two first members would have one id.
    #[error("member exists with identical ID {0}")]
    SameId(MemberId),
    /// The cluster knows this member with its client URLs, so it had data once.
    #[error(
        "member {0} has already been bootstrapped; its data directory is gone or another one: remove the member from \
         the cluster, add it again and start it with --initial-cluster-state=existing"
    )]
    AlreadyBootstrapped(MemberId),
    /// No member answers with the list of members.
    #[error(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs ({0})"
    )]
    NoAnswer(String),
    /// The members of the running cluster are not those of `--initial-cluster`.
    #[error("error validating peerURLs {cluster}: {reason}")]
    OtherMembers {
        /// The members that the cluster lists.
        cluster: String,
        /// What does not fit.
        reason: String,
    },
    /// No member runs a version this one can work with, or one runs a later one.
    #[error("incompatible with current running cluster")]
    Incompatible,
    /// More learners than `--max-learners`.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A thread that looks up names ended.
    #[error("host names could not be looked up")]
    Resolver,
}

/// What a member without a log starts with.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// The ids of the member and its cluster.
    pub metadata: WalMetadata,
    /// All members of a new cluster, by id; none when the cluster runs already, since the log then comes from there.
    pub first: Vec<Member>,
    /// The other members of a running cluster, for a member whose log does not name any yet.
    pub running: Vec<Member>,
}

impl Bootstrap {
    /// The first members of a new cluster; the same on each of them.
    ///
    /// # Errors
    /// When two members have the same URLs.
    pub fn new_cluster(initial: &InitialCluster) -> Result<Self, BootstrapError> {
        let mut first: Vec<Member> = initial
            .members()
            .map(|(name, urls)| Member {
                id: member_id(urls, &initial.token).0,
                name: initial.first_name(name),
                peer_urls: urls.to_vec(),
                ..Member::default()
            })
            .collect();
        first.sort_by_key(|member| member.id);
        if let Some(pair) = first.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(BootstrapError::SameId(pair[0].member_id()));
        }
        let ids: Vec<MemberId> = first.iter().map(Member::member_id).collect();
        let member = member_id(initial.own_urls(), &initial.token);
        Ok(Self { metadata: WalMetadata { member, cluster: cluster_id(&ids) }, first, running: Vec::new() })
    }

    /// The ids that a running cluster has for this member.
    ///
    /// # Errors
    /// When its list is not that of `--initial-cluster`.
    pub fn joining(
        initial: &InitialCluster,
        cluster: RunningCluster,
        max_learners: usize,
        resolve: Resolve<'_>,
    ) -> Result<Self, BootstrapError> {
        let other = |reason: String| BootstrapError::OtherMembers { cluster: cluster.to_string(), reason };
        if cluster.members.len() != initial.members().count() {
            return Err(other("member count is unequal".to_owned()));
        }
        let mut own = None;
        for member in &cluster.members {
            let mut last_error = String::new();
            let listed = initial.members().find(|(_, urls)| match same_urls(&member.peer_urls, urls, resolve) {
                Ok(()) => true,
                Err(error) => {
                    last_error = error;
                    false
                }
            });
            let Some((name, _)) = listed else {
                let (id, urls) = (member.member_id(), &member.peer_urls);
                return Err(other(format!(
                    "PeerURLs: no match found for existing member ({id}, [{}]), last resolver error ({last_error})",
                    urls.join(" ")
                )));
            };
            if name == initial.name {
                own = Some(member.member_id());
            }
        }
        let Some(own) = own else {
            return Err(other(format!("no member has the peer URLs of {:?}", initial.name)));
        };
        if cluster.members.iter().filter(|member| member.is_learner).count() > max_learners {
            return Err(MembershipError::TooManyLearners.into());
        }
        let running = cluster.members.into_iter().filter(|member| member.member_id() != own).collect();
        Ok(Self { metadata: WalMetadata { member: own, cluster: cluster.id }, first: Vec::new(), running })
    }

    /// Makes the log. That of a new cluster begins with an entry that adds each first member, committed in term 1.
    ///
    /// It gets its name when all of this is durable: a log without entries means a member that joins. An empty directory of
    /// that name is replaced.
    ///
    /// # Errors
    /// There is a log already, or the disk refuses.
    pub fn create_log<D: WalDisk + Clone>(&self, disk: &D, dir: &Path) -> Result<(), WalError> {
        match disk.list(dir) {
            Ok(names) if names.is_empty() => {}
            Ok(_) => return Err(WalError::Exists { dir: dir.into() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(WalError::io("look for", dir, source)),
        }
        let mut made_as = dir.as_os_str().to_os_string();
        made_as.push(".first");
        let made_as = PathBuf::from(made_as);
        disk.remove(&made_as).map_err(|source| WalError::io("remove", &made_as, source))?;
        let mut wal = Wal::create(disk.clone(), &made_as, self.metadata)?;
        let entries = self.entries();
        if let Some(last) = entries.last() {
            let committed = HardState { term: last.term, vote: None, commit: last.index };
            wal.append(&entries, Some(&committed))?;
            wal.sync()?;
        }
        drop(wal);
        disk.rename(&made_as, dir).map_err(|source| WalError::io("rename", dir, source))?;
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        disk.sync_dir(parent).map_err(|source| WalError::io("sync", parent, source))
    }

    fn entries(&self) -> Vec<WalEntry> {
        let context = |member: &Member| AddContext::add(member.clone(), 0).to_json();
        bootstrap_entries(&self.first.iter().map(|member| (member.member_id(), context(member))).collect::<Vec<_>>())
    }
}

/// Decides what a member without data starts with; asks the others.
///
/// # Errors
/// See [`BootstrapError`]; nothing on disk has changed.
pub async fn plan(config: &ServerConfig, dialer: &PeerDialer) -> Result<Bootstrap, BootstrapError> {
    let initial = config.initial.clone();
    on_thread(|_| BootstrapError::Resolver, move || initial.check(&resolver()).map_err(BootstrapError::from)).await?;
    match config.initial.state {
        InitialState::New => {
            let bootstrap = Bootstrap::new_cluster(&config.initial)?;
            refuse_start_without_data(&config.initial, dialer, bootstrap.metadata.member).await?;
            Ok(bootstrap)
        }
        InitialState::Existing => join(config, dialer).await,
    }
}

/// Refuses to start without data when the cluster knows this member's client URLs: it ran before, and entries that it
/// acknowledged would be missing.
async fn refuse_start_without_data(
    initial: &InitialCluster,
    dialer: &PeerDialer,
    member: MemberId,
) -> Result<(), BootstrapError> {
    let asked = initial.other_urls().into_iter().map(|url| fetch_cluster(url, dialer, ASK_TIMEOUT));
    for cluster in futures::future::join_all(asked).await.into_iter().flatten() {
        let known = cluster.members.iter().find(|known| known.member_id() == member);
        if known.is_some_and(|known| !known.client_urls.is_empty()) {
            return Err(BootstrapError::AlreadyBootstrapped(member));
        }
    }
    Ok(())
}

async fn join(config: &ServerConfig, dialer: &PeerDialer) -> Result<Bootstrap, BootstrapError> {
    let bootstrap = join_by_any_list(&config.initial, dialer, config.max_learners).await?;
    let timeout = Duration::from_secs(5) + 2 * config.election_timeout;
    let asked = bootstrap.running.iter().map(|member| fetch_cluster_version(member, dialer, timeout));
    let versions: Vec<ClusterVersion> = futures::future::join_all(asked).await.into_iter().flatten().collect();
    if is_compatible(&versions) { Ok(bootstrap) } else { Err(BootstrapError::Incompatible) }
}

/// By the first list that is that of `--initial-cluster`. A member that is behind, as one that has just joined, does not list
/// this one yet.
async fn join_by_any_list(
    initial: &InitialCluster,
    dialer: &PeerDialer,
    max_learners: usize,
) -> Result<Bootstrap, BootstrapError> {
    let mut answers = member_lists(initial, dialer);
    let (mut reasons, mut seen, mut refused) = (Vec::new(), Vec::new(), None);
    while let Some(answer) = answers.next().await {
        let cluster = match answer {
            Ok(cluster) => cluster,
            Err(reason) => {
                reasons.push(reason);
                continue;
            }
        };
        if seen.contains(&cluster) {
            continue;
        }
        seen.push(cluster.clone());
        let initial = initial.clone();
        let joining = move || Bootstrap::joining(&initial, cluster, max_learners, &resolver());
        match on_thread(|_| BootstrapError::Resolver, joining).await {
            Ok(bootstrap) => return Ok(bootstrap),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| BootstrapError::NoAnswer(reasons.join("; "))))
}

/// The members of the cluster as each other member lists them, in the order of the answers; or why one does not answer.
fn member_lists(
    initial: &InitialCluster,
    dialer: &PeerDialer,
) -> impl Stream<Item = Result<RunningCluster, String>> + Unpin {
    let asked = initial.other_urls().into_iter().map(move |url| async move {
        let answer = fetch_cluster(url, dialer, FETCH_TIMEOUT).await;
        answer.inspect_err(|reason| warn!(reason, "peer did not tell who belongs to the cluster"))
    });
    asked.collect::<FuturesUnordered<_>>()
}

/// The members of the cluster, from the first member that answers.
///
/// # Errors
/// No member answered; carries the reason for each.
pub async fn running_cluster(initial: &InitialCluster, dialer: &PeerDialer) -> Result<RunningCluster, String> {
    let mut answers = member_lists(initial, dialer);
    let mut reasons = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(cluster) => return Ok(cluster),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(reasons.join("; "))
}

/// The other members of a cluster that this one has joined, while its log does not name them yet. Empty when no member
/// answers: then the others connect to this one.
pub async fn others(config: &ServerConfig, dialer: &PeerDialer, metadata: &WalMetadata) -> Vec<Member> {
    match running_cluster(&config.initial, dialer).await {
        Ok(cluster) if cluster.id == metadata.cluster => {
            cluster.members.into_iter().filter(|member| member.member_id() != metadata.member).collect()
        }
        Ok(cluster) => {
            warn!(found = %cluster.id, own = %metadata.cluster, "members of --initial-cluster belong to another cluster");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Whether at least one member has a cluster version that this program knows, and none a later one.
fn is_compatible(versions: &[ClusterVersion]) -> bool {
    let ours = ClusterVersion::parse(API_VERSION).unwrap_or(ClusterVersion::LOWEST);
    !versions.is_empty() && versions.iter().all(|version| (ClusterVersion::LOWEST..=ours).contains(version))
}

/// Asks the system for addresses, and again as long as all look-ups together took less than the limit: at the start
/// of a machine the name service may come up later than we do.
fn resolver() -> impl Fn(&str) -> Result<IpAddr, String> {
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    move |host| {
        loop {
            let found = (host, 0).to_socket_addrs().map(|mut all| all.next().map(|address| address.ip()));
            let error = match found {
                Ok(Some(address)) => return Ok(address),
                Ok(None) => format!("lookup {host}: no address"),
                Err(error) => format!("lookup {host}: {error}"),
            };
            if Instant::now() + RESOLVE_RETRY >= deadline {
                return Err(error);
            }
            warn!(error, "host name of a peer URL is unknown; looking it up again");
            std::thread::sleep(RESOLVE_RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::{Variables, parse_server_config};
    use crate::types::ClusterId;

    fn config(flags: &str) -> ServerConfig {
        let args: Vec<OsString> = flags.split_whitespace().map(OsString::from).collect();
        parse_server_config(&args, &Variables::none()).expect("good flags")
    }

    fn nowhere(host: &str) -> Result<IpAddr, String> {
        Err(format!("lookup {host}: no such host"))
    }

    const THREE: &str = "--initial-cluster infra1=http://127.0.0.1:12380,infra2=http://127.0.0.1:22380,\
                         infra3=http://127.0.0.1:32380 --initial-cluster-token etcd-cluster-1";

    #[test]
    fn first_members_agree_on_all_ids() {
        for (name, own) in [("infra1", 0x8211_f1d0_f64f_3269), ("infra2", 0x91bc_3c39_8fb3_c146)] {
            let bootstrap = Bootstrap::new_cluster(&config(&format!("--name {name} {THREE}")).initial).expect("right");
            assert_eq!(bootstrap.metadata.member, MemberId(own));
            assert_eq!(bootstrap.metadata.cluster, ClusterId(0xef37_ad9d_c622_a7c4));
            let names: Vec<_> = bootstrap.first.iter().map(|member| member.name.as_str()).collect();
            assert_eq!(names, ["infra1", "infra2", "infra3"], "by id");
            assert!(bootstrap.first.iter().all(|member| member.client_urls.is_empty() && !member.is_learner));
        }
    }

    /// A cluster whose members have these URLs; a learner's begin with `?`.
    fn running(urls: &[&str]) -> RunningCluster {
        let member = |(id, url): (u64, &&str)| Member {
            id,
            peer_urls: url.trim_start_matches('?').split('+').map(str::to_owned).collect(),
            is_learner: url.starts_with('?'),
            ..Member::default()
        };
        RunningCluster { id: ClusterId(0xabc), members: (0xa..).zip(urls).map(member).collect() }
    }

    fn check_join(urls: &[&str], max_learners: usize, expected: &str) {
        let initial =
            config("--name b --initial-cluster a=http://10.0.0.1:1,b=http://10.0.0.2:1,b=http://10.0.0.2:2").initial;
        let seen = match Bootstrap::joining(&initial, running(urls), max_learners, &nowhere) {
            Ok(bootstrap) => {
                assert!(bootstrap.first.is_empty(), "the log comes from the others");
                let others: Vec<_> = bootstrap.running.iter().map(|member| member.member_id().to_string()).collect();
                format!("{} of {}, others {}", bootstrap.metadata.member, bootstrap.metadata.cluster, others.join(" "))
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_running_cluster_gives_the_ids() {
        let own = "http://10.0.0.2:2+http://10.0.0.2:1";
        check_join(&["http://10.0.0.1:1", own], 1, "b of abc, others a");
        check_join(&[own, "http://10.0.0.1:1"], 1, "a of abc, others b");
        check_join(&["http://10.0.0.1:1", &format!("?{own}")], 1, "b of abc, others a");
        check_join(&["http://10.0.0.1:1", &format!("?{own}")], 0, "membership: too many learner members in cluster");
    }

    #[test]
    fn a_running_cluster_of_others_is_refused() {
        check_join(
            &["http://10.0.0.1:1"],
            1,
            "error validating peerURLs {ClusterID:abc Members:[{ID:a PeerURLs:[http://10.0.0.1:1] IsLearner:false \
             Name: ClientURLs:[]}]}: member count is unequal",
        );
        check_join(
            &["http://10.0.0.1:1", "http://10.0.0.9:1"],
            1,
            "error validating peerURLs {ClusterID:abc Members:[{ID:a PeerURLs:[http://10.0.0.1:1] IsLearner:false \
             Name: ClientURLs:[]} {ID:b PeerURLs:[http://10.0.0.9:1] IsLearner:false Name: ClientURLs:[]}]}: PeerURLs: \
             no match found for existing member (b, [http://10.0.0.9:1]), last resolver error \
             (len([\"http://10.0.0.9:1\"]) != len([\"http://10.0.0.2:1\", \"http://10.0.0.2:2\"]))",
        );
    }

    /// Answers one request for the members, and waits until the one who asked has gone.
    async fn list_members(listener: &TcpListener, cluster: &RunningCluster) {
        let (mut stream, _) = listener.accept().await.expect("somebody asks");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.expect("a request") > 0, "the request ends early");
        }
        let (id, body) = (cluster.id, serde_json::to_string(&cluster.members).expect("JSON"));
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nx-etcd-cluster-id: {id}\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all((head + &body).as_bytes()).await.expect("it is still there");
        let _ = stream.read(&mut [0]).await;
    }

    // Cause: the first answer counted. One of a member that had just joined, and was not through with its log, kept the next
    // one from joining.
    #[tokio::test]
    async fn a_member_that_is_behind_does_not_keep_another_from_joining() {
        let bound = async || TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (behind, current) = (bound().await, bound().await);
        let [a, b] = [&behind, &current].map(|listener| format!("http://{}", listener.local_addr().expect("bound")));
        let own = "http://10.0.0.3:1";
        let initial = config(&format!("--name c --initial-cluster a={a},b={b},c={own}")).initial;
        let (before, now) = (running(&[&a, &b]), running(&[&a, &b, own]));
        let served = async {
            list_members(&behind, &before).await;
            list_members(&current, &now).await;
        };
        let dialer = PeerDialer::default();
        let (joined, ()) = tokio::join!(join_by_any_list(&initial, &dialer, 1), served);
        assert_eq!(joined.expect("listed").metadata.member, MemberId(0xc));
    }

    #[test]
    fn versions_must_fit() {
        let check = |versions: &[&str], expected| {
            let versions: Vec<_> = versions.iter().filter_map(|text| ClusterVersion::parse(text)).collect();
            assert_eq!(is_compatible(&versions), expected, "{versions:?}");
        };
        check(&["3.7.0"], true);
        check(&["3.7.0", "3.0.0"], true);
        check(&["not_decided"], false);
        check(&["3.7.0", "3.8.0"], false);
        check(&["3.7.0", "2.3.0"], false);
    }

    #[tokio::test]
    async fn nobody_answers() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("address").port();
        let flags = format!(
            "--initial-cluster default=http://localhost:2380,b=http://127.0.0.1:{port} --initial-cluster-state "
        );
        let error =
            plan(&config(&(flags.clone() + "existing")), &PeerDialer::default()).await.expect_err("nobody there");
        let text =
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs";
        assert!(error.to_string().starts_with(text), "{error}");
        plan(&config(&(flags + "new")), &PeerDialer::default()).await.expect("the others may come later");
    }
}
