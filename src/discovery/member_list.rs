use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use super::endpoint_set::{Discovery, EndpointSet, ListedEndpoint};
use crate::client::{Head, Method, Pool, framed, unframed};
use crate::net::Endpoint;
use crate::pb::etcdserverpb::{MemberListRequest, MemberListResponse};
use crate::shutdown::Tasks;

const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";

/// The client URLs of the cluster's own member list, read again at an interval.
///
/// Learners, members that have not started and URLs that cannot be dialled are left out. The last set stays while the
/// list cannot be read, or when nothing of it is left.
#[derive(Debug)]
pub struct MemberList {
    current: watch::Receiver<EndpointSet>,
}

impl MemberList {
    /// Begins with the current set of `first` and reads the list through `pool`, which has to follow this source as
    /// every other pool of the cluster does. Ends with `tasks`.
    pub fn follow(pool: Pool, first: &dyn Discovery, interval: Duration, tasks: &Tasks) -> Self {
        let (sender, current) = watch::channel(first.endpoints().borrow().clone());
        let stop = tasks.stop_signal();
        tasks.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = read_at_interval(&pool, &sender, interval) => {} }
        });
        Self { current }
    }
}

impl Discovery for MemberList {
    fn endpoints(&self) -> watch::Receiver<EndpointSet> {
        self.current.clone()
    }

    fn name(&self) -> &'static str {
        "member list"
    }
}

async fn read_at_interval(pool: &Pool, current: &watch::Sender<EndpointSet>, interval: Duration) {
    loop {
        sleep(interval).await;
        let head = Head::grpc(MEMBER_LIST, http::HeaderMap::new());
        let answer = pool.exchange(Method::of(MEMBER_LIST), &head, framed(&MemberListRequest::default())).await;
        match unframed(answer).await {
            Ok(answer) => {
                let found = listed(&answer);
                current.send_if_modified(|set| {
                    let changed = !found.is_empty() && found != *set;
                    if changed {
                        *set = found;
                    }
                    changed
                });
            }
            Err(status) => warn!(%status, "member list not available, endpoints stay as they are"),
        }
    }
}

fn listed(answer: &MemberListResponse) -> EndpointSet {
    let voters = answer.members.iter().filter(|member| !member.is_learner && !member.name.is_empty());
    let urls = voters.flat_map(|member| &member.client_ur_ls);
    urls.filter_map(|url| url.parse::<Endpoint>().ok()).map(ListedEndpoint::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::Member;

    #[test]
    fn members_that_cannot_serve_are_left_out() {
        let member = |name: &str, is_learner, urls: &[&str]| Member {
            name: name.into(),
            is_learner,
            client_ur_ls: urls.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let answer = MemberListResponse {
            members: vec![
                member("a", false, &["http://a:1", "ftp://a", "https://[::1]:2"]),
                member("learner", true, &["http://b:1"]),
                member("", false, &["http://not-started:1"]),
            ],
            ..Default::default()
        };
        let found: Vec<_> = listed(&answer).iter().map(|listed| listed.endpoint.to_string()).collect();
        assert_eq!(found, ["a:1", "[::1]:2"]);
    }
}
