use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt;
use http::HeaderMap;
use prost::Message;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::pool::{Pool, PoolConfig};
use super::testing::{Dial, FakeMember, FakeNetwork, Received, Reply};
use super::{Carried, Channel, Client, ClientConfig, Credentials};
use crate::api_error::ApiError;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::{
    AuthenticateRequest, AuthenticateResponse, PutRequest, RangeRequest, RangeResponse, WatchRequest,
};
use crate::pb::frame::framed;
use crate::shutdown::Tasks;
use crate::telemetry::unix_seconds;

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

/// What the scripted cluster knows about tokens: `t1` is that of the first login, and so on.
#[derive(Default)]
struct Tokens {
    logins: AtomicU64,
    /// The only one accepted; 0 is authentication that is off.
    accepted: AtomicU64,
    refusal: &'static str,
}

impl Tokens {
    fn answer(&self, request: &Received) -> Reply {
        let accepted = self.accepted.load(SeqCst);
        if request.path == AUTHENTICATE {
            let credentials = AuthenticateRequest::decode(&request.body[5..]).unwrap();
            if accepted == 0 {
                return Reply::Status(9, ApiError::AuthNotEnabled.text());
            }
            if credentials.password != "right" {
                return Reply::Status(3, ApiError::AuthFailed.text());
            }
            let token = self.logins.fetch_add(1, SeqCst) + 1;
            let answer = AuthenticateResponse { token: format!("t{token}"), ..Default::default() };
            return Reply::Message(framed(&answer).to_vec());
        }
        let token = request.headers.get("token").map(|token| token.to_str().unwrap());
        match (accepted, token) {
            (0, _) => Reply::Message(framed(&RangeResponse::default()).to_vec()),
            (_, None) => Reply::Status(3, ApiError::UserEmpty.text()),
            (accepted, Some(token)) if token == format!("t{accepted}") => {
                Reply::Message(framed(&RangeResponse::default()).to_vec())
            }
            _ => Reply::Status(16, self.refusal),
        }
    }
}

struct Setting {
    tokens: Arc<Tokens>,
    member: FakeMember,
    client: Client,
}

impl Setting {
    async fn new(accepted: u64, refusal: ApiError, password: &str) -> Self {
        let tokens = Arc::new(Tokens { accepted: accepted.into(), refusal: refusal.text(), ..Default::default() });
        let script = tokens.clone();
        let member = FakeMember::start(move |request| script.answer(request)).await;
        let user = Credentials { name: "root".into(), password: password.into() };
        let config = ClientConfig {
            user: Some(user),
            dial_timeout: Duration::from_secs(5),
            ..ClientConfig::new([member.endpoint.clone()])
        };
        Self { tokens, member, client: Client::connect(config).unwrap() }
    }

    async fn get(&self) -> Result<(), Status> {
        self.client.kv().range(RangeRequest::default()).await.map(drop)
    }

    fn paths(&self) -> Vec<String> {
        self.member.received().iter().map(|one| one.path.rsplit('/').next().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn the_first_request_logs_in_and_the_others_carry_its_token() {
    let setting = Setting::new(1, ApiError::InvalidAuthToken, "right").await;
    setting.get().await.unwrap();
    setting.get().await.unwrap();
    assert_eq!(setting.paths(), ["Authenticate", "Range", "Range"]);
}

#[tokio::test]
async fn a_token_that_is_no_longer_accepted_is_renewed_for_writes_too() {
    for refusal in [ApiError::InvalidAuthToken, ApiError::AuthOldRevision] {
        let setting = Setting::new(1, refusal, "right").await;
        setting.get().await.unwrap();
        setting.tokens.accepted.store(2, SeqCst);
        setting.client.kv().put(PutRequest::default()).await.unwrap();
        assert_eq!(setting.paths(), ["Authenticate", "Range", "Put", "Authenticate", "Put"]);
    }
}

/// Asked for with this much time.
fn put_within(time: &'static str) -> tonic::Request<PutRequest> {
    let mut request = tonic::Request::new(PutRequest::default());
    request.metadata_mut().insert("grpc-timeout", tonic::metadata::MetadataValue::from_static(time));
    request
}

fn has_less_than(received: &Received, time: u64) -> bool {
    let left = received.headers["grpc-timeout"].to_str().unwrap().strip_suffix('u').expect("microseconds");
    left.parse::<u64>().unwrap() < time * 1_000_000
}

// Cause: a request was sent again with all of the time that its caller had given it.
#[tokio::test]
async fn a_request_that_is_sent_again_with_another_token_has_the_time_that_is_left() {
    let setting = Setting::new(1, ApiError::InvalidAuthToken, "right").await;
    setting.get().await.unwrap();
    setting.tokens.accepted.store(2, SeqCst);
    setting.client.kv().put(put_within("90S")).await.unwrap();
    let received = setting.member.received();
    let puts: Vec<_> = received.iter().filter(|one| one.path.ends_with("/Put")).collect();
    assert_eq!((puts.len(), puts[0].headers["grpc-timeout"].to_str().unwrap()), (2, "90S"));
    assert!(has_less_than(puts[1], 90), "{:?}", puts[1].headers);
}

#[tokio::test]
async fn many_requests_share_one_login() {
    let setting = Setting::new(1, ApiError::InvalidAuthToken, "right").await;
    let all = |count: usize| futures::future::join_all((0..count).map(|_| setting.get()));
    all(50).await.into_iter().for_each(|outcome| outcome.unwrap());
    assert_eq!(setting.tokens.logins.load(SeqCst), 1);
    setting.tokens.accepted.store(2, SeqCst);
    all(50).await.into_iter().for_each(|outcome| outcome.unwrap());
    assert_eq!(setting.tokens.logins.load(SeqCst), 2);
}

#[tokio::test]
async fn a_cluster_without_authentication_is_used_without_token_until_it_has_it() {
    let setting = Setting::new(0, ApiError::InvalidAuthToken, "right").await;
    setting.client.login().await.unwrap();
    setting.get().await.unwrap();
    setting.get().await.unwrap();
    assert_eq!(setting.paths(), ["Authenticate", "Range", "Range"]);
    setting.tokens.accepted.store(1, SeqCst);
    setting.get().await.unwrap();
    assert_eq!(setting.paths()[3..], ["Range", "Authenticate", "Range"]);
}

#[tokio::test]
async fn a_wrong_password_is_the_answer_of_every_request_and_never_asked_in_a_loop() {
    let setting = Setting::new(1, ApiError::InvalidAuthToken, "wrong").await;
    for _ in 0..2 {
        assert_eq!(setting.get().await.unwrap_err().message(), ApiError::AuthFailed.text());
    }
    assert_eq!(setting.paths(), ["Authenticate", "Authenticate"]);
}

#[tokio::test]
async fn a_member_that_refuses_every_token_is_asked_a_few_times_only() {
    let setting = Setting::new(99, ApiError::InvalidAuthToken, "right").await;
    assert_eq!(setting.get().await.unwrap_err().message(), ApiError::InvalidAuthToken.text());
    assert_eq!(setting.tokens.logins.load(SeqCst), 4);
}

#[tokio::test]
async fn a_stream_that_was_refused_is_opened_again_with_another_token() {
    let setting = Setting::new(1, ApiError::InvalidAuthToken, "right").await;
    setting.get().await.unwrap();
    setting.tokens.accepted.store(2, SeqCst);
    let open = || async {
        let (_, requests) = tokio::sync::mpsc::channel::<WatchRequest>(1);
        setting.client.watch().watch(ReceiverStream::new(requests)).await.map(drop)
    };
    assert_eq!(open().await.unwrap_err().message(), ApiError::InvalidAuthToken.text());
    open().await.unwrap();
    // A member may also end a watch on a stream it accepted.
    assert!(setting.client.logs_in_after(ApiError::AuthOldRevision.text()));
    let reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert!(setting.client.logs_in_after(reason), "as members write it into the answer that cancels a watch");
    assert!(!setting.client.logs_in_after("rpc error: code = PermissionDenied desc = etcdserver: permission denied"));
    assert!(!setting.client.logs_in_after(ApiError::Compacted.text()));
    setting.tokens.accepted.store(3, SeqCst);
    open().await.unwrap();
    assert_eq!(setting.tokens.logins.load(SeqCst), 3);
}

#[test]
fn nothing_that_is_printed_holds_the_password() {
    let user = Credentials { name: "root".into(), password: "secret".into() };
    let client = Client::connect(ClientConfig { user: Some(user), ..ClientConfig::default() }).unwrap();
    assert!(!format!("{client:?}").contains("secret"), "{client:?}");
}

// Cause: only who could log in again was tried again, and a user by certificate cannot.
#[tokio::test]
async fn a_write_of_a_user_by_certificate_is_sent_again_when_users_changed() {
    let refusals = Arc::new(AtomicU64::new(2));
    let left = refusals.clone();
    let member = FakeMember::start(move |_| match left.load(SeqCst) {
        0 => Reply::Message(framed(&RangeResponse::default()).to_vec()),
        some => {
            left.store(some - 1, SeqCst);
            Reply::Status(3, ApiError::AuthOldRevision.text())
        }
    })
    .await;
    let authority = crate::net::testing::Authority::new();
    let tls = crate::net::ClientTls::verifying(Some(authority.identity("x")), &authority.authorities()).unwrap();
    let endpoint: super::Endpoint = format!("http://{}", member.endpoint).parse().unwrap();
    let config = |tls| ClientConfig { tls, ..ClientConfig::new([endpoint.clone()]) };
    let by_certificate = Client::connect(config(Some(tls))).unwrap();
    by_certificate.kv().put(put_within("90S")).await.unwrap();
    let received = member.received();
    assert_eq!(received.len(), 3);
    assert!(received[1..].iter().all(|again| has_less_than(again, 90)), "{received:?}");
    refusals.store(1000, SeqCst);
    let refusal = by_certificate.kv().put(PutRequest::default()).await.unwrap_err();
    assert_eq!((refusal.message(), member.received().len()), (ApiError::AuthOldRevision.text(), 13));
    Client::connect(config(None)).unwrap().kv().put(PutRequest::default()).await.unwrap_err();
    assert_eq!(member.received().len(), 14, "without a certificate there is no user");
}

/// A cluster whose tokens end, on paused time.
struct Ending {
    channel: Channel,
    logins: Arc<AtomicU64>,
    /// Requests that came with a token that was no longer accepted.
    refusals: Arc<AtomicU64>,
    /// Whether logins fail.
    locked: Arc<AtomicBool>,
    /// Whether logins are not answered.
    silent: Arc<AtomicBool>,
    /// How long a login takes, in milliseconds.
    takes: Arc<AtomicU64>,
}

impl Ending {
    /// Tokens end this long after they were given; signed ones say so.
    fn new(lifetime: Duration, signed: bool) -> Self {
        let (logins, refusals, locked, silent) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        let ends = Arc::new(parking_lot::Mutex::new(Vec::<Instant>::new()));
        let (counted, refused, fails): (Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>) =
            (Arc::clone(&logins), Arc::clone(&refusals), Arc::clone(&locked));
        let never: Arc<AtomicBool> = Arc::clone(&silent);
        let takes: Arc<AtomicU64> = Arc::default();
        let millis = takes.clone();
        let network = FakeNetwork::new(move |request| {
            if request.path == AUTHENTICATE {
                if never.load(SeqCst) {
                    return Reply::Never;
                }
                if fails.load(SeqCst) {
                    return Reply::Status(13, "out of order");
                }
                let number = counted.fetch_add(1, SeqCst);
                ends.lock().push(Instant::now() + lifetime);
                let claims = format!(r#"{{"exp":{}}}"#, unix_seconds() + lifetime.as_secs() as i64);
                let token = match signed {
                    true => format!("{number}.{}.s", URL_SAFE_NO_PAD.encode(claims)),
                    false => format!("{number}.x"),
                };
                let answer = framed(&AuthenticateResponse { token, ..Default::default() }).to_vec();
                return match millis.load(SeqCst) {
                    0 => Reply::Message(answer),
                    millis => Reply::Late(Duration::from_millis(millis), answer),
                };
            }
            let token = request.headers["token"].to_str().unwrap();
            let number: usize = token.split_once('.').unwrap().0.parse().unwrap();
            if ends.lock()[number] <= Instant::now() {
                refused.fetch_add(1, SeqCst);
                return Reply::Status(16, ApiError::InvalidAuthToken.text());
            }
            Reply::Message(framed(&RangeResponse::default()).to_vec())
        });
        let endpoint = network.place("a:1", Dial::Member(1));
        let config = PoolConfig { dialer: Arc::new(network), ..PoolConfig::new(vec![endpoint]) };
        let user = Credentials { name: "root".into(), password: "right".into() };
        let channel = Channel::of_user(Pool::new(config, &Tasks::new()), user);
        Self { channel, logins, refusals, locked, silent, takes }
    }

    /// Many requests every tenth of a second.
    async fn ask_for(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let one = || async { KvClient::new(self.channel.clone()).range(RangeRequest::default()).await };
            for answer in futures::future::join_all((0..20).map(|_| one())).await {
                answer.unwrap();
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn seen(&self) -> (u64, u64) {
        (self.logins.load(SeqCst), self.refusals.load(SeqCst))
    }
}

#[tokio::test(start_paused = true)]
async fn a_signed_token_is_renewed_before_it_ends_by_one_request() {
    let cluster = Ending::new(Duration::from_secs(30), true);
    cluster.ask_for(Duration::from_secs(105)).await;
    assert_eq!(cluster.seen(), (6, 0), "a login every 20 s");
    // Where it cannot be renewed it is used for as long as it is good.
    cluster.ask_for(Duration::from_secs(14)).await;
    cluster.locked.store(true, SeqCst);
    cluster.ask_for(Duration::from_secs(8)).await;
    cluster.locked.store(false, SeqCst);
    cluster.ask_for(Duration::from_secs(20)).await;
    assert_eq!(cluster.seen().1, 0);
}

/// Cause: who renewed a token waited for the login until its own time was up, and then the next one did: while the cluster could log in
/// nobody, no request of the user was answered.
#[tokio::test(start_paused = true)]
async fn a_login_without_an_answer_holds_up_no_request_whose_token_is_good() {
    let cluster = Ending::new(Duration::from_secs(60), true);
    cluster.channel.login().await.unwrap();
    cluster.silent.store(true, SeqCst);
    sleep(Duration::from_secs(40)).await;
    for _ in 0..3 {
        let read = async { KvClient::new(cluster.channel.clone()).range(RangeRequest::default()).await };
        timeout(Duration::from_secs(2), read).await.expect("in time").unwrap();
    }
    assert_eq!(cluster.seen(), (1, 0));
    cluster.silent.store(false, SeqCst);
    // It is given up after a while, and begun anew.
    cluster.ask_for(Duration::from_secs(14)).await;
    assert_eq!(cluster.seen(), (2, 0));
    // Nor does one that nobody waits for.
    cluster.silent.store(true, SeqCst);
    sleep(Duration::from_secs(40)).await;
    let login = || cluster.channel.login();
    assert!(timeout(Duration::from_millis(10), login()).await.is_err());
    timeout(Duration::from_millis(10), login()).await.expect("the next one goes on").unwrap();
}

/// Cause: a login was given up with the request that waited for it a second, so that a token was never renewed where one takes longer.
#[tokio::test(start_paused = true)]
async fn a_login_that_takes_longer_than_requests_wait_renews_the_token() {
    let cluster = Ending::new(Duration::from_secs(60), true);
    cluster.channel.login().await.unwrap();
    cluster.takes.store(3000, SeqCst);
    cluster.ask_for(Duration::from_secs(100)).await;
    assert_eq!(cluster.seen(), (3, 0), "a login every 40 s and what it takes");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_simple_token_is_met_once() {
    let cluster = Ending::new(Duration::from_secs(30), false);
    cluster.ask_for(Duration::from_secs(32)).await;
    let (logins, refusals) = cluster.seen();
    assert!(logins == 2 && refusals > 0, "{logins} logins, {refusals} refusals");
    cluster.ask_for(Duration::from_secs(150)).await;
    let later = cluster.seen();
    assert_eq!(later.1, refusals, "none since");
    assert!((10..14).contains(&later.0), "{later:?}");
}

/// Cause: a change of roles soon after a login was taken for the end of its token; from then on tokens were renewed each second.
#[tokio::test(start_paused = true)]
async fn a_change_of_roles_says_nothing_of_how_long_tokens_live() {
    let cluster = Ending::new(Duration::from_secs(300), false);
    for refusal in [ApiError::AuthOldRevision, ApiError::UserEmpty] {
        cluster.channel.login().await.unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(cluster.channel.refused(&Carried::default(), refusal.text()));
    }
    cluster.ask_for(Duration::from_secs(20)).await;
    assert_eq!(cluster.seen(), (3, 0));
}

/// Cause: the second of two streams with one token that was refused was taken for one with the token of the login that the first one had
/// caused. That was given up, too, and its age taken for the time that tokens live: from then on they were renewed every second.
#[tokio::test(start_paused = true)]
async fn a_stream_says_nothing_of_a_later_token_than_its_own() {
    let cluster = Ending::new(Duration::from_secs(300), false);
    let (channel, forgotten) = (&cluster.channel, ApiError::InvalidAuthToken.text());
    let open = async || channel.open_watch(&HeaderMap::new()).await.unwrap();
    let ((_one, carried), (_other, same)) = (open().await, open().await);
    sleep(Duration::from_secs(200)).await;
    assert!(channel.refused(&carried, forgotten));
    channel.login().await.unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(channel.refused(&same, forgotten), "the next one has a later token");
    assert!(channel.refused_watch(&same, ApiError::PermissionDenied.text()));
    cluster.ask_for(Duration::from_secs(20)).await;
    assert_eq!(cluster.seen(), (2, 0));
}

// Cause: the caller held a lock while it logged in, or was given it: one that is not polled kept all others waiting.
#[tokio::test(start_paused = true)]
async fn a_caller_that_is_not_polled_holds_up_nobody() {
    let cluster = Ending::new(Duration::from_secs(300), false);
    let login = || cluster.channel.login().boxed();
    // One has begun to log in, one waits for it.
    let mut stuck = [login(), login()];
    assert!(stuck.iter_mut().all(|call| call.now_or_never().is_none()));
    let in_time = async |call| timeout(Duration::from_secs(20), call).await.expect("in time");
    in_time(login()).await.unwrap();
    assert_eq!(cluster.seen().0, 1);
    // Nor does one that is given up.
    assert!(cluster.channel.refused(&Carried::default(), ApiError::InvalidAuthToken.text()));
    let mut dropped = login();
    assert!((&mut dropped).now_or_never().is_none());
    drop(dropped);
    in_time(login()).await.unwrap();
    for call in stuck {
        in_time(call).await.unwrap();
    }
}

/// Cause to look for: etcd 3.5.1 cancels a watch whose token has expired as "permission denied", and the watch of a tenant's user ended.
#[tokio::test(start_paused = true)]
async fn a_watch_that_is_denied_is_tried_once_with_a_new_token() {
    let cluster = Ending::new(Duration::from_secs(300), false);
    let (channel, denied) = (&cluster.channel, ApiError::PermissionDenied.text());
    assert!(!channel.refused_watch(&Carried::default(), denied), "no token was sent");
    channel.login().await.unwrap();
    assert!(!channel.refused_watch(&Carried::default(), denied), "the token is new");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!channel.refused_watch(&Carried::default(), ApiError::Compacted.text()));
    assert!(channel.refused_watch(&Carried::default(), &format!("rpc error: code = PermissionDenied desc = {denied}")));
    assert!(!channel.refused_watch(&Carried::default(), denied), "the next request logs in");
    channel.login().await.unwrap();
    assert!(!channel.refused_watch(&Carried::default(), denied));
    assert_eq!(cluster.seen(), (2, 0));
}
