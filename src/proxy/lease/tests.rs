//! Whole streams: clients, the proxy's service on a real listener, members whose answers the test decides.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::api_error::ApiError;
use crate::client::{Channel, Client, ClientConfig, Endpoint, Pool, PoolConfig};
use crate::listener::{ListenerConfig, bind, serve};
use crate::pb::etcdserverpb::lease_server::{Lease, LeaseServer};
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::proxy::{
    KeepAliveBroadcasts, KnownLeases, MessageLimits, Namespace, PageListeners, ProxyService, ResponseMemory, Tenant,
    TenantUpstream, Tenants, UpstreamPools, WorkerParts, proxy_calls,
};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// A member's keep-alives: lease 404 is unknown, 403 is forbidden, the rest lives for its id in seconds.
#[derive(Clone)]
struct FakeLeases {
    seen: Arc<Mutex<Seen>>,
    /// Answers wait until this is true.
    open: watch::Receiver<bool>,
    /// Ends every stream at its first request.
    refusal: Option<Status>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    streams: Vec<Option<String>>,
    requests: Vec<i64>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Lease for FakeLeases {
    type LeaseKeepAliveStream = Answers;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let token = request.metadata().get("token").map(|token| token.to_str().unwrap().to_owned());
        self.seen.lock().streams.push(token);
        let this = self.clone();
        let answers = request.into_inner().then(move |request| {
            let mut this = this.clone();
            async move {
                let id = request?.id;
                this.seen.lock().requests.push(id);
                this.open.wait_for(|&open| open).await.map_err(|_| Status::internal("test over"))?;
                match (id, this.refusal) {
                    (_, Some(status)) => Err(status),
                    (403, None) => Err(Status::permission_denied("etcdserver: permission denied")),
                    (404, None) => Ok(LeaseKeepAliveResponse { id, ..Default::default() }),
                    (id, None) => Ok(LeaseKeepAliveResponse { id, ttl: id, ..Default::default() }),
                }
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_grant(&self, _: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn lease_revoke(&self, _: Request<LeaseRevokeRequest>) -> Result<Response<LeaseRevokeResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

struct FakeMember {
    endpoint: Endpoint,
    seen: Arc<Mutex<Seen>>,
    ownership: watch::Sender<bool>,
    /// Of its own, so that it can die with everything it does.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for FakeMember {
    fn drop(&mut self) {
        self.die();
    }
}

impl FakeMember {
    fn start(refusal: Option<Status>) -> Self {
        let (ownership, open) = watch::channel(true);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let service = LeaseServer::new(FakeLeases { seen: seen.clone(), open, refusal });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let served = Tasks::new();
        let within = runtime.enter();
        served.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        drop(within);
        Self { endpoint, seen, ownership, runtime: Some(runtime) }
    }

    fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Holds answers back.
    fn hold(&self) {
        self.ownership.send(false).unwrap();
    }

    fn release(&self) {
        self.ownership.send(true).unwrap();
    }

    async fn until(&self, met: impl Fn(&Seen) -> bool) {
        while !met(&self.seen.lock()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn proxy(members: &[&FakeMember], tasks: &Tasks) -> Endpoint {
    let endpoints: Vec<_> = members.iter().map(|member| member.endpoint.clone()).collect();
    let (listener, worker_tasks) = (bind("127.0.0.1:0".parse().unwrap()).unwrap(), tasks.clone());
    let config = ListenerConfig { serving_threads: 1, ..ListenerConfig::default() };
    let leases_pool = Pool::new(PoolConfig::new(endpoints.clone()), tasks);
    let leases = KeepAliveBroadcasts::new(Channel::new(leases_pool), tasks.clone());
    let make = move |worker| {
        let metrics = Metrics::new();
        let pools = UpstreamPools::new(PoolConfig::new(endpoints.clone()));
        let upstream = TenantUpstream::for_tests(pools, &metrics, &worker_tasks);
        ProxyService::new(
            worker,
            WorkerParts {
                calls: proxy_calls(&metrics),
                metrics,
                pool: Pool::new(PoolConfig::new(endpoints.clone()), &worker_tasks),
                tenants: Tenants::everybody(Tenant::new("", Namespace::default(), &worker_tasks)),
                upstream: upstream.clone(),
                page_listeners: PageListeners::all(),
                leases: leases.clone(),
                permissions: None,
                limits: MessageLimits::default(),
                health_pool: Pool::new(PoolConfig::new(endpoints.clone()), &worker_tasks),
                paused: tokio::sync::watch::channel(false).1,
                self_member: None,
                response_memory: ResponseMemory::new(1 << 20),
                known_leases: KnownLeases::default(),
                profiles: None,
                tasks: worker_tasks.clone(),
            },
        )
    };
    let serving = serve(vec![listener], config, make, tasks).unwrap();
    serving.addresses()[0].to_string().parse().unwrap()
}

/// One client's stream.
struct Keeper {
    requests: Option<mpsc::Sender<LeaseKeepAliveRequest>>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl Keeper {
    async fn open(proxy: &Endpoint, token: Option<&str>) -> Self {
        let mut config = ClientConfig::new([proxy.clone()]);
        config.token = token.map(str::to_owned);
        let (requests, receiver) = mpsc::channel(16);
        let client = Client::connect(config).unwrap();
        let answers = client.lease().lease_keep_alive(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests: Some(requests), answers }
    }

    async fn ask(&self, id: i64) {
        self.requests.as_ref().unwrap().send(LeaseKeepAliveRequest { id }).await.unwrap();
    }

    async fn answer(&mut self) -> Result<(i64, i64), Status> {
        Ok(self.answers.message().await?.map(|answer| (answer.id, answer.ttl)).unwrap())
    }
}

/// Runs a test with a limit on all its waiting.
async fn within(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test ends in time");
}

#[tokio::test]
async fn clients_share_one_stream_and_one_request_for_a_lease() {
    within(async {
        let (member, tasks) = (FakeMember::start(None), Tasks::new());
        let proxy = proxy(&[&member], &tasks);
        let (mut a, mut b) = (Keeper::open(&proxy, None).await, Keeper::open(&proxy, None).await);
        member.hold();
        a.ask(1).await;
        member.until(|seen| seen.requests == [1]).await;
        // Lease 1 is in flight: these two wait for its next round, together.
        a.ask(1).await;
        b.ask(1).await;
        // The member reads in order: once it answers 9, it has nothing else.
        b.ask(9).await;
        member.release();
        assert_eq!((a.answer().await.unwrap(), a.answer().await.unwrap()), ((1, 1), (1, 1)));
        assert_eq!((b.answer().await.unwrap(), b.answer().await.unwrap()), ((1, 1), (9, 9)));
        let seen = member.seen.lock().clone();
        assert_eq!(seen.streams.len(), 1);
        assert!(seen.requests.iter().filter(|&&id| id == 1).count() <= 3, "{seen:?}");
        tasks.stop();
    })
    .await;
}

#[tokio::test]
async fn nothing_is_answered_before_the_member_answers() {
    within(async {
        let (member, tasks) = (FakeMember::start(None), Tasks::new());
        let proxy = proxy(&[&member], &tasks);
        let mut keeper = Keeper::open(&proxy, None).await;
        keeper.ask(5).await;
        assert_eq!(keeper.answer().await.unwrap(), (5, 5));
        member.hold();
        keeper.ask(5).await;
        member.until(|seen| seen.requests == [5, 5]).await;
        let early = tokio::time::timeout(Duration::from_millis(100), keeper.answer()).await;
        assert!(early.is_err(), "answered on the strength of an older renewal");
        member.release();
        assert_eq!(keeper.answer().await.unwrap(), (5, 5));
        tasks.stop();
    })
    .await;
}

#[tokio::test]
async fn an_unknown_lease_is_ttl_zero_and_a_half_closed_stream_gets_its_answers() {
    within(async {
        let (member, tasks) = (FakeMember::start(None), Tasks::new());
        let mut keeper = Keeper::open(&proxy(&[&member], &tasks), None).await;
        member.hold();
        keeper.ask(404).await;
        keeper.ask(7).await;
        keeper.requests = None;
        member.release();
        assert_eq!((keeper.answer().await.unwrap(), keeper.answer().await.unwrap()), ((404, 0), (7, 7)));
        assert_eq!(keeper.answers.message().await.unwrap(), None, "then the stream ends well");
        tasks.stop();
    })
    .await;
}

#[tokio::test]
async fn identities_do_not_share() {
    within(async {
        let (member, tasks) = (FakeMember::start(None), Tasks::new());
        let proxy = proxy(&[&member], &tasks);
        for token in [Some("alice"), Some("bob"), None, Some("alice")] {
            let mut keeper = Keeper::open(&proxy, token).await;
            keeper.ask(3).await;
            assert_eq!(keeper.answer().await.unwrap(), (3, 3));
        }
        let streams = member.seen.lock().streams.clone();
        assert_eq!(streams, [Some("alice".to_owned()), Some("bob".to_owned()), None]);
        tasks.stop();
    })
    .await;
}

/// Cause: the streams of one more identity than had a broadcast were refused, and their leases ended.
#[tokio::test]
async fn no_number_of_identities_keeps_another_one_from_renewing() {
    within(async {
        let (member, tasks) = (FakeMember::start(None), Tasks::new());
        let proxy = proxy(&[&member], &tasks);
        let mut open = Vec::new();
        for number in 0..20 {
            open.push(Keeper::open(&proxy, Some(&format!("token{number}"))).await);
        }
        open.push(Keeper::open(&proxy, Some("token19")).await);
        for keeper in &mut open {
            keeper.ask(3).await;
            assert_eq!(keeper.answer().await.unwrap(), (3, 3));
        }
        tasks.stop();
    })
    .await;
}

#[tokio::test]
async fn another_member_takes_over_what_is_unanswered() {
    within(async {
        let (mut first, mut second) = (FakeMember::start(None), FakeMember::start(None));
        let tasks = Tasks::new();
        let mut keeper = Keeper::open(&proxy(&[&first, &second], &tasks), None).await;
        first.hold();
        second.hold();
        keeper.ask(8).await;
        // Whoever got it dies with it.
        let (dies, lives) = loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let asked = (first.seen.lock().requests.len(), second.seen.lock().requests.len());
            match asked {
                (0, 0) => {}
                (0, _) => break (&mut second, &first),
                // Both, where this test was so slow that the proxy left the first one for its silence: whoever has it now, the other
                // one takes over or keeps it.
                _ => break (&mut first, &second),
            }
        };
        dies.die();
        lives.release();
        assert_eq!(keeper.answer().await.unwrap(), (8, 8));
        tasks.stop();
    })
    .await;
}

#[tokio::test]
async fn what_the_cluster_says_ends_the_stream_unchanged() {
    within(async {
        let refusal = Status::unavailable("etcdserver: no leader");
        let (member, tasks) = (FakeMember::start(Some(refusal)), Tasks::new());
        let mut keeper = Keeper::open(&proxy(&[&member], &tasks), None).await;
        keeper.ask(1).await;
        let status = keeper.answer().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
        tasks.stop();
    })
    .await;
}

/// Cause: a learner among the endpoints got streams like a member, and its refusal ended those of the clients.
#[tokio::test]
async fn a_learner_is_left_for_a_member() {
    within(async {
        let learner = FakeMember::start(Some(ApiError::NotSupportedForLearner.into()));
        let (member, tasks) = (FakeMember::start(None), Tasks::new());
        let proxy = proxy(&[&learner, &member], &tasks);
        // Each identity has a stream of its own, which begins at the next endpoint if that is ready.
        let mut number = 0;
        while learner.seen.lock().requests.is_empty() {
            let mut keeper = Keeper::open(&proxy, Some(&format!("token{number}"))).await;
            keeper.ask(3).await;
            assert_eq!(keeper.answer().await.unwrap(), (3, 3));
            number += 1;
        }
        tasks.stop();
    })
    .await;
}

#[tokio::test]
async fn a_forbidden_lease_costs_only_its_own_client_the_stream() {
    within(async {
        let (member, tasks) = (FakeMember::start(None), Tasks::new());
        let proxy = proxy(&[&member], &tasks);
        let (mut good, mut bad) = (Keeper::open(&proxy, None).await, Keeper::open(&proxy, None).await);
        member.hold();
        bad.ask(403).await;
        member.until(|seen| seen.requests == [403]).await;
        good.ask(6).await;
        member.release();
        let status = bad.answer().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "etcdserver: permission denied"));
        assert_eq!(good.answer().await.unwrap(), (6, 6));
        tasks.stop();
    })
    .await;
}

#[tokio::test]
async fn clients_without_a_member_learn_so() {
    within(async {
        let (member, tasks) = (FakeMember::start(None), Tasks::new());
        let proxy = proxy(&[&member], &tasks);
        let mut keeper = Keeper::open(&proxy, None).await;
        keeper.ask(2).await;
        assert_eq!(keeper.answer().await.unwrap(), (2, 2));
        tasks.stop();
        let status = keeper.answer().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
    })
    .await;
}
#[tokio::test]
async fn a_silent_member_is_left_for_one_that_answers() {
    within(async {
        let (first, second) = (FakeMember::start(None), FakeMember::start(None));
        let tasks = Tasks::new();
        let mut keeper = Keeper::open(&proxy(&[&first, &second], &tasks), None).await;
        keeper.ask(8).await;
        assert_eq!(keeper.answer().await.unwrap(), (8, 8));
        let silent = if first.seen.lock().requests.is_empty() { &second } else { &first };
        silent.hold();
        keeper.ask(8).await;
        assert_eq!(keeper.answer().await.unwrap(), (8, 8));
        tasks.stop();
    })
    .await;
}
