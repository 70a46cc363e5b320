use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::endpoint_set::{EndpointSet, ListedEndpoint, Origin, dialled};
use super::source::{Discovery, Followed, Published};
use crate::client::{Channel, Client, Head, Method, framed, unframed};
use crate::net::Endpoint;
use crate::pb::etcdserverpb::{Member, MemberListRequest, MemberListResponse};
use crate::shutdown::Tasks;

const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";
/// How long the list may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The client URLs of the cluster's own member list, read again at an interval.
///
/// Learners, members that have not started and URLs that cannot be dialled are left out. The last set stays while the
/// list cannot be read, or when nothing of it is left; then a change of the source before it counts.
#[derive(Debug)]
pub struct MemberList {
    followed: Followed,
}

impl MemberList {
    /// Begins with the current set of `first` and reads the list by `channel`, whose pool has to follow this source as
    /// every other pool of the cluster does, and refuse members of other clusters. A cluster with users gives the list to a user
    /// alone. Ends with `tasks`.
    pub fn follow(channel: Channel, first: &dyn Discovery, interval: Duration, tasks: &Tasks) -> Self {
        Self::begin(channel, first, interval, None, tasks)
    }

    /// `cluster` is the id that lists must have: of the first answer that has one where it is 0, any where it is none.
    fn begin(channel: Channel, first: &dyn Discovery, interval: Duration, cluster: Option<u64>, tasks: &Tasks) -> Self {
        let first = first.endpoints();
        let published = Published::new(Origin::MemberList, first.borrow().clone());
        let followed = published.followed();
        let stop = tasks.stop_signal();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = read_at_interval(&channel, &published, first, interval, cluster) => {}
            }
        });
        Self { followed }
    }

    /// The same by a client that nothing else uses, and that takes members of any cluster: its endpoints follow the list.
    pub fn follow_alone(client: Client, first: &dyn Discovery, interval: Duration, tasks: &Tasks) -> Self {
        let list = Self::begin(client.channel(), first, interval, Some(0), tasks);
        let (mut sets, stop) = (list.endpoints(), tasks.stop_signal());
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = sets.changed() => if changed.is_err() { return },
                }
                client.set_endpoints(&dialled(&sets.borrow_and_update()));
            }
        });
        list
    }
}

impl Discovery for MemberList {
    fn followed(&self) -> Followed {
        self.followed.clone()
    }
}

async fn read_at_interval(
    channel: &Channel,
    published: &Published,
    mut first: watch::Receiver<EndpointSet>,
    interval: Duration,
    mut cluster: Option<u64>,
) {
    loop {
        published.pause(interval).await;
        let late = |_| Err("no answer in time".to_owned());
        match timeout(ANSWER_MAX, read(channel, &mut cluster)).await.unwrap_or_else(late) {
            Ok(answer) => published.answer(listed(&answer.members, &first.borrow(), Origin::MemberList)),
            Err(reason) => {
                published.failed(&reason);
                // No member of the last list can be reached: they may all have moved.
                if first.has_changed().unwrap_or_default() {
                    published.replace(first.borrow_and_update().clone());
                }
            }
        }
    }
}

async fn read(channel: &Channel, cluster: &mut Option<u64>) -> Result<MemberListResponse, String> {
    let head = Head::grpc(MEMBER_LIST, http::HeaderMap::new());
    // As etcd's client asks: a member that is cut off from the others has an old list of its own.
    let request = framed(&MemberListRequest { linearizable: true });
    let answer = channel.exchange(Method::of(MEMBER_LIST), &head, request).await;
    let answer = unframed::<MemberListResponse>(answer).await.map_err(|status| status.to_string())?;
    // The list of a gRPC proxy has none.
    let own = answer.header.as_ref().map_or(0, |header| header.cluster_id);
    match cluster {
        Some(known) if *known == 0 => *known = own,
        Some(known) if own != 0 && own != *known => {
            return Err(format!("a member is of another cluster ({own:x}, not {known:x})"));
        }
        _ => {}
    }
    Ok(answer)
}

/// An endpoint that the source before the list knows is as that one has it: with its addresses and the name in its
/// certificate.
pub(super) fn listed(members: &[Member], known: &EndpointSet, origin: Origin) -> EndpointSet {
    let voters = members.iter().filter(|member| !member.is_learner && !member.name.is_empty());
    let urls = voters.flat_map(|member| &member.client_ur_ls);
    let mut set: Vec<ListedEndpoint> = Vec::new();
    for endpoint in urls.filter_map(|url| url.parse::<Endpoint>().ok()) {
        let known = known.iter().map(|listed| &listed.endpoint).find(|known| known.is_same_place(&endpoint));
        let endpoint = known.cloned().unwrap_or(endpoint);
        let listed = ListedEndpoint { origin, ..ListedEndpoint::new(endpoint) };
        if !set.contains(&listed) {
            set.push(listed);
        }
    }
    set.into()
}

#[cfg(test)]
mod tests {
    use super::super::StaticList;
    use super::*;
    use crate::client::testing::{FakeMember, Reply};
    use crate::client::{Pool, PoolConfig};
    use crate::pb::etcdserverpb::ResponseHeader;

    #[tokio::test]
    async fn the_list_is_that_of_the_cluster_and_not_of_one_member() {
        // Cause: each member told the list that it had itself. One that was cut off from the others brought members
        // back that were replaced, and took their successors away.
        let (member, tasks) = (FakeMember::start(|_| Reply::Never).await, Tasks::new());
        let channel = Channel::new(Pool::new(PoolConfig::new(vec![member.endpoint.clone()]), &tasks));
        let first = StaticList::new([member.endpoint.clone()]);
        let _list = MemberList::follow(channel, &first, Duration::ZERO, &tasks);
        let asked = loop {
            match member.received().pop() {
                Some(asked) => break asked,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(asked.path, MEMBER_LIST);
        assert_eq!(asked.body, framed(&MemberListRequest { linearizable: true }).to_vec());
        tasks.stop();
        member.stop();
    }

    /// Cause: a proxy, whose pool follows a cluster that was rebuilt behind the same names, used no list of it until it was started again.
    #[tokio::test]
    async fn the_list_of_another_cluster_is_not_used_unless_the_pool_takes_its_members() {
        for (cluster, endpoint) in [(Some(0), "cluster-1:1"), (None, "cluster-2:1")] {
            assert_eq!(list_of_two_clusters(cluster).await, endpoint);
        }
    }

    /// What is listed after a member has answered for one cluster, and then twice or more for another.
    async fn list_of_two_clusters(cluster: Option<u64>) -> String {
        let asked = std::sync::atomic::AtomicU64::new(0);
        let member = FakeMember::start(move |_| {
            let cluster_id = 1 + asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed).min(1);
            let urls = vec![format!("http://cluster-{cluster_id}:1")];
            let answer = MemberListResponse {
                header: Some(ResponseHeader { cluster_id, ..Default::default() }),
                members: vec![Member { name: "m".into(), client_ur_ls: urls, ..Default::default() }],
            };
            Reply::Message(framed(&answer).to_vec())
        });
        let (member, tasks) = (member.await, Tasks::new());
        let channel = Channel::new(Pool::new(PoolConfig::new(vec![member.endpoint.clone()]), &tasks));
        let first = StaticList::new([member.endpoint.clone()]);
        let list = MemberList::begin(channel, &first, Duration::ZERO, cluster, &tasks);
        // The second answer was taken when the fourth question came.
        while member.received().len() < 4 {
            tokio::task::yield_now().await;
        }
        let listed = list.endpoints().borrow()[0].endpoint.to_string();
        tasks.stop();
        member.stop();
        listed
    }

    #[test]
    fn members_that_cannot_serve_are_left_out() {
        let member = |name: &str, is_learner, urls: &[&str]| Member {
            name: name.into(),
            is_learner,
            client_ur_ls: urls.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let members = [
            member("a", false, &["http://a:1", "ftp://a", "https://[::1]:2"]),
            member("learner", true, &["http://b:1"]),
            member("", false, &["http://not-started:1"]),
        ];
        let set = listed(&members, &EndpointSet::default(), Origin::MemberList);
        let found: Vec<_> = set.iter().map(|listed| listed.endpoint.to_string()).collect();
        assert_eq!(found, ["a:1", "[::1]:2"]);
    }

    #[test]
    fn what_is_known_of_an_endpoint_stays() {
        let urls = ["https://a:1", "https://b:1", "https://a:1"].map(str::to_owned).to_vec();
        let member = Member { name: "a".into(), client_ur_ls: urls, ..Default::default() };
        let known: Endpoint = "https://a:1".parse().unwrap();
        let known =
            ListedEndpoint::new(known.with_addresses(["192.0.2.1".parse().unwrap()]).certified_as("example.com"));
        let set = listed(&[member], &[known.clone()].into(), Origin::MemberList);
        assert_eq!(set[0].endpoint, known.endpoint);
        assert_eq!((set.len(), set[1].endpoint.addresses(), set[1].endpoint.server_name()), (2, None, "b"));
    }
}
