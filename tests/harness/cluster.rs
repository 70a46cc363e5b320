use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use watershed::client::{Client, ClientConfig};
use watershed::net::ClientTls;
use watershed::pb::etcdserverpb::{HashKvRequest, RangeRequest, StatusRequest, StatusResponse};

use super::deployment::server_binary;
use super::network::Network;
use super::process::{Process, free_port};
use super::share::Share;
use super::{soon, until};

/// How long a member may take to answer before it counts as not answering.
const ANSWER: Duration = Duration::from_secs(2);
/// Attempts to start a member on ports nobody else took in the meantime.
const PORT_ATTEMPTS: usize = 5;

/// Several members of the real program on loopback, with a [`Network`] between them.
///
/// Members have numbers from 0 in the order they were added; a removed member keeps its number. The folder is kept
/// when a test fails.
pub struct Cluster {
    pub network: Network,
    members: Vec<Member>,
    flags: Vec<String>,
    /// Of the clients made here; members then listen with TLS.
    tls: Option<ClientTls>,
    /// Behind the processes, so that these are gone when it is removed.
    folder: Option<TempDir>,
    _share: Share,
}

/// One member and its process.
struct Member {
    name: String,
    /// `host:port` for clients.
    endpoint: String,
    client: Client,
    advertised_peer: SocketAddr,
    listens_peer: SocketAddr,
    initial_cluster: String,
    state: &'static str,
    extra: Vec<String>,
    process: Option<Process>,
    starts: usize,
}

/// A member's state once nothing is written any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndState {
    pub member: u64,
    pub revision: i64,
    pub compact_revision: i64,
    /// HashKV at its revision.
    pub hash: u32,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

impl Cluster {
    /// Starts so many members and waits until each of them answers a linearizable read.
    pub async fn start(size: usize, flags: &[&str]) -> Self {
        Self::start_with(size, flags, None).await
    }

    /// The same with https for clients, and TLS of the clients made here. With users, their certificate has to name
    /// root.
    pub async fn start_with(size: usize, flags: &[&str], tls: Option<ClientTls>) -> Self {
        let mut cluster = Self {
            network: Network::new(),
            members: Vec::new(),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            tls,
            folder: Some(TempDir::with_prefix("watershed-cluster-").expect("temporary directory")),
            _share: Share::of(size).await,
        };
        for _ in 0..size {
            cluster.place("new");
        }
        let all = cluster.initial_cluster();
        for number in 0..size {
            cluster.members[number].initial_cluster.clone_from(&all);
            cluster.spawn(number);
        }
        for number in 0..size {
            cluster.until_ready(number).await;
        }
        cluster
    }

    /// Adds a member that was not started; answers with its number.
    fn place(&mut self, state: &'static str) -> usize {
        let (number, advertised_peer) = self.network.add();
        let endpoint = loopback().to_string();
        self.members.push(Member {
            name: format!("n{}", number + 1),
            client: self.connect([&endpoint]),
            endpoint,
            advertised_peer,
            listens_peer: loopback(),
            initial_cluster: String::new(),
            state,
            extra: Vec::new(),
            process: None,
            starts: 0,
        });
        number
    }

    /// A client over these endpoints.
    fn connect<'a>(&self, endpoints: impl IntoIterator<Item = &'a String>) -> Client {
        let endpoints = endpoints.into_iter().map(|endpoint| endpoint.parse().expect("an endpoint"));
        Client::connect(ClientConfig { tls: self.tls.clone(), ..ClientConfig::new(endpoints) }).expect("client")
    }

    fn initial_cluster(&self) -> String {
        let entries = (0..self.members.len()).map(|number| self.entry(number));
        entries.collect::<Vec<_>>().join(",")
    }

    /// Prepares a member that joins later. Its peer URL is to be added through the API, then [`spawn`](Self::spawn)
    /// starts it with this `--initial-cluster`.
    pub fn prepare(&mut self) -> usize {
        self.place("existing")
    }

    /// Sets what a prepared member is told of the cluster.
    pub fn introduce(&mut self, number: usize, others: &[usize]) {
        let cluster: Vec<String> = others.iter().chain([&number]).map(|&number| self.entry(number)).collect();
        self.members[number].initial_cluster = cluster.join(",");
    }

    /// Flags of one member, besides those of all, from its next start on.
    pub fn set_flags(&mut self, number: usize, flags: &[&str]) {
        self.members[number].extra = flags.iter().map(|&flag| flag.to_owned()).collect();
    }

    /// The URL under which the others reach a member.
    pub fn peer_url(&self, number: usize) -> String {
        format!("{}://{}", self.peer_scheme(), self.members[number].advertised_peer)
    }

    /// Where a member listens for its peers.
    pub fn listens_peer(&self, number: usize) -> SocketAddr {
        self.members[number].listens_peer
    }

    /// Members that have certificates talk TLS.
    fn peer_scheme(&self) -> &'static str {
        if self.flags.iter().any(|flag| flag.starts_with("--peer-cert-file")) { "https" } else { "http" }
    }

    /// A member's place in `--initial-cluster`.
    fn entry(&self, number: usize) -> String {
        format!("{}={}", self.members[number].name, self.peer_url(number))
    }

    /// Starts a member's process and returns at once.
    pub fn spawn(&mut self, number: usize) {
        let folder = self.path().to_owned();
        let data_dir = self.data_dir(number);
        let (scheme, advertised) = (self.peer_scheme(), self.peer_url(number));
        let client_scheme = if self.tls.is_some() { "https" } else { "http" };
        let member = &mut self.members[number];
        member.starts += 1;
        let mut args = vec![
            format!("--name={}", member.name),
            format!("--data-dir={}", data_dir.display()),
            format!("--listen-client-urls={client_scheme}://{}", member.endpoint),
            format!("--advertise-client-urls={client_scheme}://{}", member.endpoint),
            format!("--listen-peer-urls={scheme}://{}", member.listens_peer),
            format!("--initial-advertise-peer-urls={advertised}"),
            format!("--initial-cluster={}", member.initial_cluster),
            format!("--initial-cluster-state={}", member.state),
        ];
        args.extend(self.flags.iter().chain(&member.extra).cloned());
        let log = format!("{}-{}", member.name, member.starts);
        let start = || Process::start(&server_binary(), &args, &folder, &log);
        member.process = Some(self.network.start(number, member.listens_peer, start));
    }

    /// Waits until a member answers a linearizable read. One whose port was taken by somebody else gets another.
    pub async fn until_ready(&mut self, number: usize) {
        let mut attempts = 1;
        let begun = std::time::Instant::now();
        loop {
            if self.answers(number).await {
                return;
            }
            let member = &mut self.members[number];
            let process = member.process.as_mut().expect("a member that was started");
            if let Some(status) = process.ended() {
                let output = process.output();
                assert!(output.contains("in use") && attempts < PORT_ATTEMPTS, "{} {status}:\n{output}", member.name);
                attempts += 1;
                member.endpoint = loopback().to_string();
                member.listens_peer = loopback();
                self.members[number].client = self.connect([&self.members[number].endpoint]);
                self.spawn(number);
            }
            assert!(begun.elapsed() < super::PATIENCE * 2, "{} does not answer:\n{}", number + 1, self.output(number));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether a member answers a linearizable read now.
    pub async fn answers(&self, number: usize) -> bool {
        let mut kv = self.members[number].client.kv();
        let read = kv.range(RangeRequest { key: "ready".into(), ..Default::default() });
        matches!(tokio::time::timeout(ANSWER, read).await, Ok(Ok(_)))
    }

    /// Starts a member again and waits until it answers.
    pub async fn restart(&mut self, number: usize) {
        self.spawn(number);
        self.until_ready(number).await;
    }

    /// Ends a member without warning (`SIGKILL`).
    pub fn kill(&mut self, number: usize) {
        if let Some(mut process) = self.members[number].process.take() {
            process.kill();
        }
    }

    /// Ends several members without warning, one right after the other.
    pub fn kill_all(&mut self, numbers: &[usize]) {
        for &number in numbers {
            if let Some(process) = &mut self.members[number].process {
                process.signal(rustix::process::Signal::KILL);
            }
        }
        numbers.iter().for_each(|&number| self.kill(number));
    }

    /// Asks a member to end (`SIGTERM`) and waits until it has.
    pub async fn terminate(&mut self, number: usize) -> std::process::ExitStatus {
        let mut process = self.members[number].process.take().expect("a running member");
        process.terminate();
        // Others must be served meanwhile.
        let ended = tokio::task::spawn_blocking(move || process.wait(super::PATIENCE));
        ended.await.expect("it ends")
    }

    /// Stops a member's process for a while (`SIGSTOP`).
    pub fn pause(&self, number: usize) {
        self.process(number).signal(rustix::process::Signal::STOP);
    }

    /// Lets a stopped process go on (`SIGCONT`).
    pub fn resume(&self, number: usize) {
        self.process(number).signal(rustix::process::Signal::CONT);
    }

    pub fn process(&self, number: usize) -> &Process {
        self.members[number].process.as_ref().expect("a running member")
    }

    /// How a member's process ended, if it did; a member that was never started or was killed counts as ended.
    pub fn ended(&mut self, number: usize) -> bool {
        self.members[number].process.as_mut().is_none_or(|process| process.ended().is_some())
    }

    /// Waits until a member's process has ended by itself.
    pub async fn until_ended(&mut self, number: usize) {
        until("the end of a member", || std::future::ready(self.ended(number).then_some(()))).await;
    }

    /// The members with a process.
    pub fn running(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|&number| self.members[number].process.is_some()).collect()
    }

    /// What a member printed since its last start.
    pub fn output(&self, number: usize) -> String {
        self.members[number].process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// The folder of all members.
    pub fn path(&self) -> &Path {
        self.folder.as_ref().expect("it exists until the end").path()
    }

    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.path().join(&self.members[number].name)
    }

    /// `host:port` of a member for clients.
    pub fn endpoint(&self, number: usize) -> &str {
        &self.members[number].endpoint
    }

    pub fn member(&self, number: usize) -> Client {
        self.members[number].client.clone()
    }

    /// A fresh client over these members.
    pub fn client_of(&self, numbers: &[usize]) -> Client {
        self.connect(numbers.iter().map(|&number| &self.members[number].endpoint))
    }

    /// A fresh client over all running members.
    pub fn client(&self) -> Client {
        self.client_of(&self.running())
    }

    /// A member's answer to Status; none when it does not answer.
    pub async fn status(&self, number: usize) -> Option<StatusResponse> {
        let mut maintenance = self.members[number].client.maintenance();
        let status = maintenance.status(StatusRequest {});
        Some(tokio::time::timeout(ANSWER, status).await.ok()?.ok()?.into_inner())
    }

    /// The same, as soon as it answers.
    pub async fn until_status(&self, number: usize) -> StatusResponse {
        until("a status", || self.status(number)).await
    }

    pub async fn id(&self, number: usize) -> u64 {
        self.until_status(number).await.header.expect("header").member_id
    }

    /// Waits until all of these members name the same one of them as leader; answers with its number.
    pub async fn leader_of(&self, numbers: &[usize]) -> usize {
        until("a leader", async || {
            let mut leaders = Vec::new();
            let mut found = None;
            for &number in numbers {
                let status = self.status(number).await?;
                if status.leader != 0 && status.leader == status.header.as_ref()?.member_id {
                    found = Some(number);
                }
                leaders.push((status.leader, status.raft_term));
            }
            found.filter(|_| leaders.windows(2).all(|pair| pair[0] == pair[1]))
        })
        .await
    }

    /// As [`leader_of`](Self::leader_of) all running members.
    pub async fn leader(&self) -> usize {
        self.leader_of(&self.running()).await
    }

    /// A running member that is not the leader.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        self.running().into_iter().find(|&number| number != leader).expect("a follower")
    }

    /// Waits until all running members are at one revision, and know of the same compaction, and returns the state of each.
    pub async fn end_states(&self) -> Vec<EndState> {
        let running = self.running();
        // Members learn of an entry one after the other, and a compaction has no revision of its own.
        let position = |state: &EndState| (state.revision, state.compact_revision);
        soon("one revision on all members", async {
            loop {
                let mut states = Vec::new();
                for &number in &running {
                    states.extend(self.end_state(number).await);
                }
                let equal = states.windows(2).all(|pair| position(&pair[0]) == position(&pair[1]));
                if equal && states.len() == running.len() {
                    return states;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }

    async fn end_state(&self, number: usize) -> Option<EndState> {
        let mut maintenance = self.members[number].client.maintenance();
        let hash = maintenance.hash_kv(HashKvRequest { revision: 0 });
        let hash = tokio::time::timeout(ANSWER, hash).await.ok()?.ok()?.into_inner();
        let header = hash.header?;
        Some(EndState {
            member: header.member_id,
            revision: hash.hash_revision.max(header.revision),
            compact_revision: hash.compact_revision,
            hash: hash.hash,
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Stopped processes die of SIGKILL all the same.
        self.members.iter_mut().for_each(|member| drop(member.process.take()));
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("--- data directories, logs and history are kept in {}", folder.keep().display());
        }
    }
}
