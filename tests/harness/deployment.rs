use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use watershed::client::{Client, ClientConfig};
use watershed::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use watershed::types::KeyRange;

use super::process::{Process, free_port};
use super::proxy::proxy_binary;
use super::share::Share;
use super::until;

/// How long one test may take.
const LIMIT: Duration = Duration::from_secs(600);

/// What a test's client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The member's own port.
    Core,
    /// Through `watershed gateway start`.
    Gateway,
    /// Through `watershed grpc-proxy start`.
    Proxy,
}

/// One fresh store and what its clients connect to.
pub struct Deployment {
    pub target: Target,
    /// `host:port` that clients connect to.
    pub endpoint: String,
    /// `host:port` of the member.
    pub member: String,
    /// Where the member listens with TLS besides, if its flags have a certificate: `host:port`.
    pub secure: String,
    /// Our client towards `endpoint`.
    pub client: Client,
    pub front: Option<Process>,
    pub server: Process,
    flags: Vec<String>,
    peer_port: u16,
    /// Behind the processes, so that these are gone when it is removed.
    pub folder: TempDir,
    _share: Share,
}

/// The server under test.
pub fn server_binary() -> PathBuf {
    std::env::var_os("WATERSHED_TEST_SERVER").map_or_else(own_binary, Into::into)
}

/// Our program: the build of the tests, or another one, as for a measurement.
pub fn own_binary() -> PathBuf {
    std::env::var_os("WATERSHED_TEST_BINARY").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_watershed")), Into::into)
}

/// Whether another server takes the place of ours; facts that are ours alone are not asserted then.
pub fn is_stock() -> bool {
    std::env::var_os("WATERSHED_TEST_SERVER").is_some()
}

/// Runs one test in a fresh deployment.
pub fn run(target: Target, flags: &[&str], test: impl AsyncFnOnce(&mut Deployment)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut deployment = Deployment::start(target, flags).await;
        // Whatever a test waits for: the limit is on all of it.
        tokio::time::timeout(LIMIT, test(&mut deployment)).await.expect("the test ends in time");
    });
}

impl Deployment {
    /// Starts the member and what is in front of it, and waits until both answer.
    pub async fn start(target: Target, flags: &[&str]) -> Self {
        let _share = Share::of(1).await;
        let folder = TempDir::new().expect("temporary directory");
        let member = format!("127.0.0.1:{}", free_port());
        let peer_port = free_port();
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let secure = format!("127.0.0.1:{}", free_port());
        let server = start_member(&member, &secure, peer_port, folder.path(), &flags);
        let endpoint = if target == Target::Core { member.clone() } else { format!("127.0.0.1:{}", free_port()) };
        let front = match target {
            Target::Core => None,
            Target::Gateway => Some(start_front("gateway", &member, &endpoint, &[], folder.path())),
            Target::Proxy => Some(start_front("grpc-proxy", &member, &endpoint, &[], folder.path())),
        };
        let client = client(&endpoint);
        let mut deployment =
            Self { target, endpoint, member, secure, client, front, server, flags, peer_port, folder, _share };
        deployment.until_ready().await;
        deployment
    }

    /// Waits until a read through `endpoint` is answered.
    pub async fn until_ready(&mut self) {
        let (kv, server, front) = (self.client.kv(), &mut self.server, &mut self.front);
        until("the start", || {
            for process in std::iter::once(&mut *server).chain(front.as_mut()) {
                assert!(process.ended().is_none(), "ended at its start:\n{}", process.output());
            }
            let mut kv = kv.clone();
            async move { kv.range(RangeRequest { key: "ready".into(), ..Default::default() }).await.ok() }
        })
        .await;
    }

    /// Kills the member without warning and starts it again on the same directory.
    pub async fn crash_and_restart(&mut self) {
        self.server.kill();
        self.start_member_again().await;
    }

    /// Starts the member again after it ended.
    pub async fn start_member_again(&mut self) {
        self.server = start_member(&self.member, &self.secure, self.peer_port, self.folder.path(), &self.flags);
        self.until_ready().await;
    }

    /// Starts the member again, and waits for nothing: whoever has no token cannot ask whether it is ready.
    pub fn restart_without_waiting(&mut self) {
        self.server = start_member(&self.member, &self.secure, self.peer_port, self.folder.path(), &self.flags);
    }

    /// Starts one more proxy or gateway in front of the member, with these flags; returns its endpoint.
    pub async fn also_front(&self, mode: &str, flags: &[&str]) -> (Process, String) {
        let endpoint = format!("127.0.0.1:{}", free_port());
        let process = start_front(mode, &self.member, &endpoint, flags, self.folder.path());
        let kv = client(&endpoint).kv();
        until("the start", || {
            let mut kv = kv.clone();
            async move { kv.range(RangeRequest { key: "ready".into(), ..Default::default() }).await.ok() }
        })
        .await;
        (process, endpoint)
    }

    /// Starts a gateway in front of the listener with TLS; returns its endpoint.
    pub fn secure_gateway(&self) -> (Process, String) {
        let endpoint = format!("127.0.0.1:{}", free_port());
        (start_front("gateway", &self.secure, &endpoint, &[], self.folder.path()), endpoint)
    }

    /// Where other members would reach this one.
    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A client of the member itself.
    pub fn member_client(&self) -> Client {
        client(&self.member)
    }

    /// The public crate as the client.
    pub async fn public_client(&self) -> etcd_client::Client {
        etcd_client::Client::connect([&self.endpoint], None).await.expect("connects")
    }

    /// Puts a key; returns the revision.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> i64 {
        let request = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        self.put_with(request).await.header.expect("header").revision
    }

    pub async fn put_with(&self, request: PutRequest) -> PutResponse {
        self.client.kv().put(request).await.expect("put").into_inner()
    }

    pub async fn range(&self, request: RangeRequest) -> RangeResponse {
        self.client.kv().range(request).await.expect("range").into_inner()
    }

    pub async fn get(&self, key: impl Into<Bytes>) -> RangeResponse {
        self.range(RangeRequest { key: key.into(), ..Default::default() }).await
    }

    pub async fn delete(&self, key: impl Into<Bytes>) -> DeleteRangeResponse {
        let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
        self.client.kv().delete_range(request).await.expect("delete").into_inner()
    }

    pub async fn txn(&self, request: TxnRequest) -> TxnResponse {
        self.client.kv().txn(request).await.expect("txn").into_inner()
    }

    pub async fn compact(&self, revision: i64) {
        let request = CompactionRequest { revision, physical: true };
        self.client.kv().compact(request).await.expect("compaction");
    }

    /// Grants a lease; returns its id.
    pub async fn grant(&self, ttl: i64) -> i64 {
        let request = LeaseGrantRequest { ttl, id: 0 };
        self.client.lease().lease_grant(request).await.expect("grant").into_inner().id
    }

    pub async fn time_to_live(&self, id: i64) -> LeaseTimeToLiveResponse {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        self.client.lease().lease_time_to_live(request).await.expect("time to live").into_inner()
    }
}

/// A range request over a prefix.
pub fn prefix(prefix: &'static str) -> RangeRequest {
    let (key, range_end) = KeyRange::prefix(Bytes::from_static(prefix.as_bytes())).to_wire();
    RangeRequest { key, range_end, ..Default::default() }
}

/// Our client towards one endpoint.
pub fn client(endpoint: &str) -> Client {
    Client::connect(ClientConfig::new([endpoint.parse().expect("an endpoint")])).expect("client")
}

/// The command line of a member.
pub fn member_args(member: &str, peer_port: u16, data_dir: &Path) -> Vec<String> {
    let peer = format!("http://127.0.0.1:{peer_port}");
    vec![
        "--name=m1".into(),
        format!("--data-dir={}", data_dir.display()),
        format!("--listen-client-urls=http://{member}"),
        format!("--advertise-client-urls=http://{member}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=m1={peer}"),
    ]
}

fn start_member(member: &str, secure: &str, peer_port: u16, folder: &Path, flags: &[String]) -> Process {
    let mut args = member_args(member, peer_port, &folder.join("data"));
    if flags.iter().any(|flag| flag.starts_with("--cert-file")) {
        let listen = args.iter_mut().find(|arg| arg.starts_with("--listen-client-urls")).expect("one of them");
        *listen += &format!(",https://{secure}");
    }
    args.extend_from_slice(flags);
    Process::start(&server_binary(), &args, folder, "member")
}

fn start_front(mode: &str, member: &str, endpoint: &str, flags: &[&str], folder: &Path) -> Process {
    let mut args =
        vec![mode.to_owned(), "start".to_owned(), format!("--endpoints={member}"), format!("--listen-addr={endpoint}")];
    args.extend(flags.iter().map(|&flag| flag.to_owned()));
    let program = if mode == "grpc-proxy" { proxy_binary() } else { own_binary() };
    Process::start(&program, &args, folder, mode)
}
