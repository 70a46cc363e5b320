//! Bad endpoints, silence and other clusters, on paused time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::time::{Instant, sleep, timeout};
use tonic::body::Body;

use super::{Head, Pool, PoolConfig, UpstreamCluster};
use crate::api_error::ApiError;
use crate::client::testing::{Dial, FakeNetwork, Reply};
use crate::client::{Endpoint, Lane, Method, framed};
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::healthpb::HealthCheckResponse;
use crate::pb::healthpb::health_check_response::ServingStatus;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

const WRITE: &str = "/etcdserverpb.KV/Put";
const BAD: [Dial; 6] = [Dial::Refused, Dial::Dark, Dial::Silent, Dial::Garbage, Dial::Http1, Dial::Closed];

fn network() -> FakeNetwork {
    FakeNetwork::new(|_| Reply::Message(vec![0; 5]))
}

fn config(network: &FakeNetwork, endpoints: &[Endpoint]) -> PoolConfig {
    PoolConfig {
        dial_timeout: Duration::from_secs(3),
        dialer: Arc::new(network.clone()),
        ..PoolConfig::new(endpoints.to_vec())
    }
}

fn pool(network: &FakeNetwork, endpoints: &[Endpoint]) -> Pool {
    Pool::new(config(network, endpoints), &Tasks::new())
}

async fn write(pool: &Pool) -> Response<Body> {
    pool.exchange(Method::of(WRITE), &Head::grpc(WRITE, HeaderMap::new()), message()).await
}

fn message() -> Bytes {
    Bytes::from_static(&[0; 5])
}

fn failed(answer: &Response<Body>) -> Option<String> {
    let code = answer.headers().get("grpc-status")?;
    let message = answer.headers().get("grpc-message").map(|text| text.to_str().unwrap().to_owned());
    (code != "0").then(|| format!("{code:?} {message:?}"))
}

/// An endpoint counted as healthy once TCP connected, so each round of probes sent it requests again, and requests
/// waited for its dial while another endpoint was up.
#[tokio::test(start_paused = true)]
async fn no_request_meets_an_endpoint_that_does_not_answer() {
    for dial in BAD {
        let network = network();
        let (good, bad) = (network.place("good:1", Dial::Member(1)), network.place("bad:1", dial));
        let pool = pool(&network, &[good.clone(), bad.clone()]);
        for _ in 0..600 {
            let began = Instant::now();
            assert_eq!(failed(&write(&pool).await), None, "{dial:?}");
            assert_eq!(began.elapsed(), Duration::ZERO, "{dial:?}");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(network.received(&good), 600);
        let dials = network.dials(&bad);
        // A minute with a pause of at most 2 s between two attempts, each of which may take 3 s.
        assert!((12..70).contains(&dials.len()), "{dial:?}: {} dials", dials.len());
        // It is used again as soon as it answers.
        network.moves(&bad, Dial::Member(1));
        sleep(Duration::from_secs(6)).await;
        for _ in 0..10 {
            write(&pool).await;
        }
        assert_eq!(network.received(&bad), 5, "{dial:?}");
    }
}

/// The kernel of a hung process completes handshakes, which reset the back-off.
#[tokio::test(start_paused = true)]
async fn a_hung_member_is_left_until_it_answers() {
    let network = network();
    let endpoints: Vec<_> = ["a:1", "b:1", "c:1"].map(|name| network.place(name, Dial::Member(1))).to_vec();
    let pool = pool(&network, &endpoints);
    for _ in 0..30 {
        write(&pool).await;
        sleep(Duration::from_millis(10)).await;
    }
    let before = network.received(&endpoints[1]);
    assert_eq!(before, 10);
    network.hang(&endpoints[1], true);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        let late = began.elapsed() > Duration::from_millis(800);
        // Those sent before the silence is noticed wait for as long as their callers do.
        match timeout(Duration::from_millis(500), write(&pool)).await {
            Ok(answer) if late => assert_eq!(failed(&answer), None),
            Err(_) if late => panic!("waits after {:?}", began.elapsed()),
            _ => {}
        }
        sleep(Duration::from_millis(10)).await;
    }
    network.hang(&endpoints[1], false);
    let resumed = network.received(&endpoints[1]);
    sleep(Duration::from_secs(6)).await;
    for _ in 0..30 {
        assert_eq!(failed(&write(&pool).await), None);
    }
    assert!(network.received(&endpoints[1]) >= resumed + 10);
}

/// A read waited until the connection was cut, four seconds, though others would have answered at once.
#[tokio::test(start_paused = true)]
async fn reads_leave_a_member_that_hangs_and_writes_wait() {
    let network = network();
    let endpoints = [network.place("a:1", Dial::Member(1)), network.place("b:1", Dial::Member(1))];
    let pool = pool(&network, &endpoints);
    for _ in 0..4 {
        assert_eq!(failed(&write(&pool).await), None);
    }
    network.hang(&endpoints[0], true);
    let timed = async |path| {
        let began = Instant::now();
        let answer = pool.exchange(Method::of(path), &Head::grpc(path, HeaderMap::new()), message()).await;
        (failed(&answer), began.elapsed())
    };
    let reads = futures::future::join_all((0..4).map(|_| timed("/etcdserverpb.KV/Range")));
    let writes = futures::future::join_all((0..4).map(|_| timed(WRITE)));
    let (reads, writes) = tokio::join!(reads, writes);
    assert!(reads.iter().all(|(failed, took)| failed.is_none() && *took < Duration::from_secs(1)), "{reads:?}");
    let unknown = writes.iter().filter(|(failed, _)| failed.is_some()).count();
    assert_eq!(unknown, 2, "a write may have been executed: {writes:?}");
}

/// Requests went to a member that had lost the others, and waited there for seven seconds.
#[tokio::test(start_paused = true)]
async fn a_member_without_a_leader_gets_requests_only_if_no_other_is_ready() {
    let network = network();
    let endpoints: Vec<_> = ["a:1", "b:1", "c:1"].map(|name| network.place(name, Dial::Member(1))).to_vec();
    let pool = pool(&network, &endpoints);
    // How many of so many writes each endpoint gets.
    let writes = async |count| {
        let received = || [0, 1, 2].map(|at: usize| network.received(&endpoints[at]));
        let before = received();
        for _ in 0..count {
            assert_eq!(failed(&write(&pool).await), None);
        }
        let after = received();
        [0, 1, 2].map(|at| after[at] - before[at])
    };
    let no_leader = || Reply::Status(14, ApiError::NoLeader.text());
    assert_eq!(writes(30).await, [10, 10, 10]);
    network.health(&endpoints[0], no_leader());
    sleep(Duration::from_secs(1)).await;
    let shares = writes(300).await;
    // The share of the first is spread over the others.
    assert!(shares[0] == 0 && shares[1] > 120 && shares[2] > 120, "{shares:?}");
    assert_eq!(network.dials(&endpoints[0]).len(), 1, "it is alive, so its connection stays");
    endpoints.iter().for_each(|endpoint| network.health(endpoint, no_leader()));
    sleep(Duration::from_secs(1)).await;
    let shares = writes(30).await;
    assert!(shares.iter().sum::<usize>() == 30, "nobody knows a leader, so any may do: {shares:?}");
    network.health(&endpoints[0], Reply::Message(vec![0; 5]));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(writes(10).await, [10, 0, 0]);
    // One that says "not serving" waits its turn behind one that says nothing of the kind.
    let not_serving = HealthCheckResponse { status: ServingStatus::NotServing as i32 };
    network.health(&endpoints[0], Reply::Message(framed(&not_serving).to_vec()));
    network.health(&endpoints[1], Reply::Message(vec![0; 5]));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(writes(10).await, [0, 10, 0]);
}

/// One in so many calls failed because it met the learner.
#[tokio::test(start_paused = true)]
async fn a_learner_gets_nothing_that_it_refuses() {
    let refuses = Reply::Status(9, ApiError::NotSupportedForLearner.text());
    let script_refuses = refuses.clone();
    let network = FakeNetwork::new(move |received| match received.headers.contains_key("to-learner") {
        true => script_refuses.clone(),
        false => Reply::Message(vec![0; 5]),
    });
    let endpoints = [network.place("learner:1", Dial::Member(1)), network.place("voter:1", Dial::Member(1))];
    network.health(&endpoints[0], refuses);
    let pool = pool(&network, &endpoints);
    for _ in 0..10 {
        assert_eq!(failed(&write(&pool).await), None);
    }
    let received = || [network.received(&endpoints[0]), network.received(&endpoints[1])];
    assert_eq!(received(), [0, 10]);
    let read = async |serializable| {
        let path = "/etcdserverpb.KV/Range";
        let range = RangeRequest { key: "k".into(), serializable, ..Default::default() };
        failed(&pool.exchange(Method::of(path), &Head::grpc(path, HeaderMap::new()), framed(&range)).await)
    };
    assert_eq!((read(true).await, received()), (None, [0, 11]), "a voter is preferred");
    network.moves(&endpoints[1], Dial::Refused);
    network.hang(&endpoints[1], true);
    pool.set_endpoints(&endpoints[..1]);
    pool.set_endpoints(&endpoints);
    assert_eq!((read(true).await, received()), (None, [1, 11]), "no voter is ready");
    let reason = read(false).await.expect("no voter is ready");
    assert!(reason.contains("is%20a%20learner"), "{reason}");
    assert_eq!(received(), [1, 11]);
}

/// A learner that is promoted refused for ever through a pool that took its standing once and did not follow it.
#[tokio::test(start_paused = true)]
async fn a_learner_behind_a_pool_refuses_for_itself_until_it_is_promoted() {
    let learner = || Reply::Status(14, ApiError::NotSupportedForLearner.text());
    // With one endpoint whether its standing is followed or not; of several, as those of a client, nobody follows any.
    for (names, follows) in [(&["a:1"][..], true), (&["a:1"][..], false), (&["a:1", "b:1"][..], false)] {
        let promoted = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_promoted = promoted.clone();
        let network = FakeNetwork::new(move |_| match is_promoted.load(std::sync::atomic::Ordering::SeqCst) {
            true => Reply::Message(vec![0; 5]),
            false => learner(),
        });
        let endpoints: Vec<_> = names.iter().map(|name| network.place(name, Dial::Member(1))).collect();
        endpoints.iter().for_each(|endpoint| network.health(endpoint, learner()));
        let usual = config(&network, &endpoints);
        let pool = Pool::new(PoolConfig { silence_max: usual.silence_max.filter(|_| follows), ..usual }, &Tasks::new());
        let refusal = failed(&write(&pool).await).expect("a learner takes no write");
        assert!(refusal.contains("learner"), "{names:?}, {follows}: {refusal}");
        let asked: usize = endpoints.iter().map(|endpoint| network.received(endpoint)).sum();
        assert!(asked > 0, "{names:?}, {follows}: the member refuses, not the pool");
        promoted.store(true, std::sync::atomic::Ordering::SeqCst);
        endpoints.iter().for_each(|endpoint| network.health(endpoint, Reply::Message(vec![0; 5])));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(failed(&write(&pool).await), None, "{names:?}, {follows}");
    }
}

/// What a member refuses before it looks at the request goes to another one, a write too.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_refused_unread_goes_elsewhere() {
    for refusal in
        [Reply::Status(9, ApiError::NotSupportedForLearner.text()), Reply::Status(14, ApiError::NoLeader.text())]
    {
        let first = std::sync::atomic::AtomicBool::new(true);
        let script_refusal = refusal.clone();
        let network = FakeNetwork::new(move |_| match first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            true => script_refusal.clone(),
            false => Reply::Message(vec![0; 5]),
        });
        let endpoints = [network.place("a:1", Dial::Member(1)), network.place("b:1", Dial::Member(1))];
        assert_eq!(failed(&write(&pool(&network, &endpoints)).await), None, "{refusal:?}");
        assert_eq!([network.received(&endpoints[0]), network.received(&endpoints[1])], [1, 1]);
    }
    // Its outcome is unknown.
    let network = FakeNetwork::new(|_| Reply::Status(14, ApiError::Timeout.text()));
    let endpoints = [network.place("a:1", Dial::Member(1)), network.place("b:1", Dial::Member(1))];
    assert!(failed(&write(&pool(&network, &endpoints)).await).is_some());
    assert_eq!(network.received(&endpoints[0]) + network.received(&endpoints[1]), 1);
}

/// A cluster of which nobody answered was left alone: there was nobody better to ask.
#[tokio::test(start_paused = true)]
async fn a_name_that_moves_while_all_are_silent_is_followed() {
    for names in [&["a:1"][..], &["a:1", "b:1"]] {
        let network = network();
        let endpoints: Vec<_> = names.iter().map(|name| network.place(name, Dial::Member(1))).collect();
        let pool = pool(&network, &endpoints);
        assert_eq!(failed(&write(&pool).await), None);
        let stream = pool.open(Lane::Watch, &Head::grpc("/etcdserverpb.Watch/Watch", HeaderMap::new())).await.unwrap();
        for endpoint in &endpoints {
            network.hang(endpoint, true);
            network.moves(endpoint, Dial::Member(1));
        }
        let began = Instant::now();
        while failed(&write(&pool).await).is_some() {}
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // Streams end too, so that watches and leases go on elsewhere.
        let answer = timeout(Duration::from_secs(5), stream.body.into_response()).await.expect("the stream ends");
        assert!(failed(&answer).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_fails_is_repeated_ever_later() {
    let network = network();
    let endpoint = network.place("a:1", Dial::Refused);
    let pool = pool(&network, std::slice::from_ref(&endpoint));
    let answer = failed(&write(&pool).await).expect("nobody is there");
    assert!(answer.contains("a:1:%20connection%20refused"), "{answer}");
    sleep(Duration::from_secs(60)).await;
    let dials = network.dials(&endpoint);
    let pauses: Vec<_> = dials.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (failures, pause) in pauses.iter().enumerate() {
        let longest = Duration::from_millis(50).saturating_mul(1 << failures.min(10)).min(Duration::from_secs(2));
        // The clock of tests moves in milliseconds.
        assert!((longest / 2..=longest + Duration::from_millis(2)).contains(pause), "{failures}: {pause:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_dialled_any_more_when_the_pool_is_gone() {
    let network = network();
    let endpoints = [network.place("a:1", Dial::Member(1)), network.place("b:1", Dial::Refused)];
    let pool = pool(&network, &endpoints);
    write(&pool).await;
    drop(pool);
    sleep(Duration::from_secs(1)).await;
    let dials = network.dials(&endpoints[1]).len();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(network.dials(&endpoints[1]).len(), dials);
}

/// Writes went to two clusters in turn.
#[tokio::test(start_paused = true)]
async fn an_endpoint_of_another_cluster_gets_no_request() {
    let network = network();
    let endpoints = [network.place("a:1", Dial::Member(0xa)), network.place("b:1", Dial::Member(0xb))];
    let metrics = Metrics::new();
    let cluster = UpstreamCluster::new(&endpoints, &metrics);
    let config = PoolConfig { cluster: Some(cluster), ..config(&network, &endpoints) };
    // All pools of a process agree.
    let pools = [Pool::new(config.clone(), &Tasks::new()), Pool::new(config, &Tasks::new())];
    for _ in 0..20 {
        for pool in &pools {
            assert_eq!(failed(&write(pool).await), None);
        }
        sleep(Duration::from_secs(1)).await;
    }
    let mut received = endpoints.each_ref().map(|endpoint| network.received(endpoint));
    received.sort_unstable();
    assert_eq!(received, [0, 40]);
    let text = metrics.render();
    assert!(text.contains("watershed_proxy_upstream_endpoints_left_out 1\n"), "{text}");
}

/// Two hundred clients that gave up while the member stalled were two hundred resets at once, which members take for an
/// attack: they ended the connection with the requests and watches of everybody on it.
#[tokio::test(start_paused = true)]
async fn clients_that_give_up_together_cost_nobody_the_connection() {
    let network = network();
    let endpoint = network.place("a:1", Dial::Member(1));
    let pool = pool(&network, std::slice::from_ref(&endpoint));
    assert_eq!(failed(&write(&pool).await), None);
    network.hang(&endpoint, true);
    let patient = write(&pool);
    let impatient = futures::future::join_all((0..200).map(|_| timeout(Duration::from_millis(500), write(&pool))));
    let wakes = async {
        sleep(Duration::from_millis(1200)).await;
        network.hang(&endpoint, false);
    };
    let (patient, impatient, ()) = tokio::join!(patient, impatient, wakes);
    assert!(impatient.iter().all(Result::is_err));
    assert_eq!(failed(&patient), None);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(failed(&write(&pool).await), None);
    assert_eq!(network.dials(&endpoint).len(), 1, "still the first connection");
}

/// All clients share the connections of a pool: what HTTP/2 refuses of one request ended them, six for each such request.
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_carried_costs_nobody_the_connection() {
    let network = network();
    let endpoint = network.place("a:1", Dial::Member(1));
    let pool = pool(&network, std::slice::from_ref(&endpoint));
    let metadata = HeaderMap::from_iter([(HeaderName::from_static("keep-alive"), HeaderValue::from_static("x"))]);
    for path in [WRITE, "/etcdserverpb.KV/Range"] {
        let refused = pool.exchange(Method::of(path), &Head::grpc(path, metadata.clone()), message()).await;
        let reason = failed(&refused).expect("it cannot be sent");
        assert!(reason.starts_with("\"13\"") && reason.contains("malformed"), "{reason}");
    }
    let watch = "/etcdserverpb.Watch/Watch";
    let status = pool.open(Lane::Watch, &Head::grpc(watch, metadata)).await.expect_err("nor can a stream");
    assert_eq!(status.code(), tonic::Code::Internal);
    assert_eq!(failed(&write(&pool).await), None);
    pool.open(Lane::Watch, &Head::grpc(watch, HeaderMap::new())).await.expect("a stream");
    assert_eq!(network.dials(&endpoint).len(), 2, "one connection of each lane");
}

/// A health check waited for a stream of those that the member allows, and so the connection was cut, with the watches that
/// had them all.
#[tokio::test(start_paused = true)]
async fn a_connection_without_a_free_stream_is_not_taken_for_silent() {
    let network = network();
    let endpoint = network.place("a:1", Dial::Member(1));
    network.allows_streams(&endpoint, 2);
    let pool = pool(&network, std::slice::from_ref(&endpoint));
    let open = async |lane| pool.open(lane, &Head::grpc("/etcdserverpb.Watch/Watch", HeaderMap::new())).await.unwrap();
    // The connection whose checks show the endpoint's standing, too.
    let mut idle =
        vec![open(Lane::Watch).await, open(Lane::Watch).await, open(Lane::Unary).await, open(Lane::Unary).await];
    sleep(Duration::from_secs(60)).await;
    assert_eq!(network.dials(&endpoint).len(), 2, "one connection of each lane");
    // A third one finds a connection that takes it.
    idle.push(open(Lane::Watch).await);
    assert_eq!(failed(&write(&pool).await), None);
    assert_eq!(network.dials(&endpoint).len(), 4);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(network.dials(&endpoint).len(), 4);
    // Silence is noticed all the same.
    network.hang(&endpoint, true);
    for stream in idle {
        let answer = timeout(Duration::from_secs(20), stream.body.into_response()).await.expect("the stream ends");
        assert!(failed(&answer).is_some());
    }
}

/// A waiter that is gone must not get the lock, so a request is cancelled upstream as well, soon.
#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_cancels_its_request_upstream() {
    let network = FakeNetwork::new(|_| Reply::Never);
    let endpoint = network.place("a:1", Dial::Member(1));
    let pool = pool(&network, std::slice::from_ref(&endpoint));
    let all = futures::future::join_all((0..100).map(|_| timeout(Duration::from_secs(1), write(&pool))));
    all.await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!((network.received(&endpoint), network.cancelled(&endpoint)), (100, 100));
}
