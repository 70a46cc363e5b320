//! The proxy in front of endpoints that fail: which of its clients' calls do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    LeaseKeepAliveRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, request_op,
};
use watershed::shutdown::Tasks;

use super::story::{grant, on_three, put, try_put};
use crate::harness::{Answers, Cluster, Deployment, PATIENCE, Proxy, Target, Watching, client, http_get, soon, until};

/// From then on bad endpoints must not be noticed any more.
const NOTICED: Duration = Duration::from_secs(5);
const OBSERVED: Duration = Duration::from_secs(2);
/// Each of eight clients makes so many calls then, however slow the machine is.
const CALLS_MIN: usize = 15;
/// How long a call may take before it counts as failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// So often calls are observed while too many fail: a machine that stands still for a moment makes calls fail too, but
/// what is wrong with the proxy lasts.
const WINDOWS_MAX: usize = 5;

/// Calls that began later than [`NOTICED`] from now, and how many of them failed.
async fn calls(client: &Client) -> (usize, usize) {
    let mut counts = observed(client, NOTICED).await;
    for _ in 1..WINDOWS_MAX {
        if is_unnoticed(counts) {
            break;
        }
        println!("{counts:?} calls and failures");
        counts = observed(client, Duration::ZERO).await;
    }
    counts
}

/// The same of those that begin at least `from` from now.
async fn observed(client: &Client, from: Duration) -> (usize, usize) {
    let began = Instant::now();
    let one = |number: usize| async move {
        let (mut all, mut failed) = (0, 0);
        while began.elapsed() < from + OBSERVED || all < CALLS_MIN {
            let counts = began.elapsed() > from;
            let answer = tokio::time::timeout(CALL_TIMEOUT, try_put(client, &format!("k{number}"), "")).await;
            if counts {
                all += 1;
                failed += usize::from(!matches!(answer, Ok(Ok(_))));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (all, failed)
    };
    let counts = futures::future::join_all((0..8).map(one)).await;
    counts.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

fn is_unnoticed((all, failed): (usize, usize)) -> bool {
    all >= 100 && failed * 100 < all
}

fn assert_unnoticed(what: &str, counts: (usize, usize)) {
    assert!(is_unnoticed(counts), "{what}: {counts:?} calls and failures");
}

/// A listener whose queue of connections is full: the kernel answers no further one.
struct FullQueue {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<tokio::task::JoinHandle<std::io::Result<TcpStream>>>,
}

fn small_listener() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
    socket.listen(0).expect("listen");
    socket.set_nonblocking(true).expect("non-blocking");
    socket
}

impl FullQueue {
    fn new() -> Self {
        let listener = small_listener();
        let address = listener.local_addr().expect("bound").as_socket().expect("an address");
        Self { address, _listener: listener, _queued: fill(address) }
    }
}

/// More connections than a queue of the smallest size takes.
fn fill(address: SocketAddr) -> Vec<tokio::task::JoinHandle<std::io::Result<TcpStream>>> {
    (0..4).map(|_| Tasks::new().spawn(TcpStream::connect(address))).collect()
}

/// Something that listens and is no member.
async fn stranger<F: Future<Output = ()> + Send>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound").to_string();
    Tasks::new().spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            serve(stream).await;
        }
    });
    address
}

/// A connection to a member that can stop passing bytes without being closed.
struct Wire {
    address: SocketAddr,
    state: watch::Sender<Packets>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Packets {
    Pass,
    /// Nothing passes any more, and no connection can be opened.
    Lost,
    /// Nothing passes on what is connected; new connections reach the member.
    Moved,
}

impl Wire {
    fn new(member: &str) -> Self {
        let (member, socket) = (member.to_owned(), small_listener());
        let address = socket.local_addr().expect("bound").as_socket().expect("an address");
        let listener = TcpListener::from_std(socket.into()).expect("a listener");
        let state = watch::Sender::new(Packets::Pass);
        let mut changes = state.subscribe();
        Tasks::new().spawn(async move {
            loop {
                if changes.wait_for(|&packets| packets != Packets::Lost).await.is_err() {
                    return;
                }
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = changes.changed() => continue,
                };
                let silent = *changes.borrow();
                // Gone at the end of a test.
                let Ok(far) = TcpStream::connect(&member).await else { continue };
                let near = accepted.expect("accept").0;
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let (near, far) = (near.into_split(), far.into_split());
                Tasks::new().spawn(one_way(near.0, far.1, changes.clone(), silent));
                Tasks::new().spawn(one_way(far.0, near.1, changes.clone(), silent));
            }
        });
        Self { address, state }
    }

    fn lose(&self) {
        self.state.send_replace(Packets::Lost);
        // Nothing accepts any more: these fill the queue.
        drop(fill(self.address));
    }
}

/// Passes bytes until the state is another one than at the beginning; from then on holds them for ever.
async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut changes: watch::Receiver<Packets>,
    passes: Packets,
) {
    let copy = async {
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    };
    tokio::select! {
        () = copy => return,
        _ = changes.wait_for(|&packets| packets != passes) => {}
    }
    std::future::pending().await
}

/// The kernel of a stopped process completes handshakes, which the proxy took for health: 30 % of the calls failed for
/// as long as the member was stopped.
#[test]
fn a_hung_member_is_not_noticed() {
    on_three(&[], async |cluster: &mut Cluster| {
        let proxy = Proxy::start(&[cluster.endpoint(0), cluster.endpoint(1), cluster.endpoint(2)]).await;
        cluster.pause(1);
        let counts = calls(&proxy.client).await;
        cluster.resume(1);
        assert_unnoticed("one of three members stopped", counts);
    });
}

/// Every request whose turn it was waited for a dial that led nowhere: 33 % failed, at a seventh of the rate.
#[test]
fn a_dark_member_is_not_noticed() {
    on_three(&[], async |cluster: &mut Cluster| {
        let wire = Wire::new(cluster.endpoint(1));
        let proxy = Proxy::start(&[cluster.endpoint(0), &wire.address.to_string(), cluster.endpoint(2)]).await;
        // Until the connection is there.
        for _ in 0..10 {
            put(&proxy.client, "k", "").await;
        }
        wire.lose();
        assert_unnoticed("one of three members dark", calls(&proxy.client).await);
    });
}

/// What connects counted as a member: 25 to 50 % failed.
#[test]
fn endpoints_that_are_no_members_are_not_noticed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let deployment = Deployment::start(Target::Core, &[]).await;
        let full = FullQueue::new();
        let http = stranger(async |mut stream| {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ =
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        });
        let silent = stranger(async |stream| {
            Tasks::new().spawn(async move {
                let _stream = stream;
                std::future::pending::<()>().await
            });
        });
        let garbage = stranger(async |mut stream| {
            let _ = stream.write_all(&[0xa5; 300]).await;
            let _ = stream.read(&mut [0; 1024]).await;
        });
        let cases = [
            ("an HTTP server", http.await),
            ("a full accept queue", full.address.to_string()),
            ("a silent one", silent.await),
            ("one that talks garbage", garbage.await),
        ];
        let observe = async |(what, bad): (&'static str, String)| {
            let proxy = Proxy::start(&[&deployment.member, &bad]).await;
            (what, calls(&proxy.client).await)
        };
        let counts = futures::future::join_all(cases.into_iter().map(observe)).await;
        println!("calls and failures: {counts:?}");
        for (what, counts) in counts {
            assert_unnoticed(what, counts);
        }
    });
}

/// A connection that stopped was not noticed while there was no other endpoint: no write passed, and no lease was kept,
/// until a restart.
#[test]
fn the_only_endpoint_moves_while_its_host_hangs() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let deployment = Deployment::start(Target::Core, &[]).await;
        // Stands for the name: what is connected reaches the old host, what connects the new one.
        let wire = Wire::new(&deployment.member);
        let proxy = Proxy::start(&[&wire.address.to_string()]).await;
        let (mut watch, _) =
            Watching::create(&proxy.client, WatchCreateRequest { key: "k".into(), ..Default::default() }).await;
        let lease = grant(&proxy.client, 60).await;
        let (ask, asks) = tokio::sync::mpsc::channel(4);
        let mut leases = proxy.client.lease();
        let asks = tokio_stream::wrappers::ReceiverStream::new(asks);
        let mut kept = Answers::new(async move { leases.lease_keep_alive(asks).await });
        ask.send(LeaseKeepAliveRequest { id: lease }).await.expect("open");
        assert_eq!(kept.message().await.expect("kept").expect("an answer").ttl, 60);

        wire.state.send_replace(Packets::Moved);
        let revision = until("a write", async || try_put(&proxy.client, "k", "v").await.ok()).await;
        // One that was answered with an error may have happened.
        while !watch.events(1).await.contains(&format!("+k=v@{revision}")) {}
        ask.send(LeaseKeepAliveRequest { id: lease }).await.expect("open");
        let again = soon("a keep-alive", kept.message()).await.expect("kept").expect("an answer");
        assert_eq!(again.ttl, 60);
    });
}

/// Members end a connection that resets more streams than they have looked at. Clients that gave up while a member
/// stalled took the proxy's connection along, and with it the calls of everybody else.
#[test]
fn clients_that_give_up_together_harm_nobody_else() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let deployment = Deployment::start(Target::Core, &[]).await;
        let proxy = Proxy::start(&[&deployment.member]).await;
        let patient = client(&proxy.endpoint);
        put(&patient, "k", "").await;
        deployment.server.signal(rustix::process::Signal::STOP);
        let impatient = (0..200).map(|number| {
            let (client, key) = (proxy.client.clone(), format!("i{number}"));
            async move { tokio::time::timeout(Duration::from_millis(500), try_put(&client, &key, "")).await }
        });
        let wake = async {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            deployment.server.signal(rustix::process::Signal::CONT);
        };
        let patient_puts = futures::future::join_all((0..20).map(|_| try_put(&patient, "k", "")));
        let (gave_up, patient_puts, ()) = tokio::join!(futures::future::join_all(impatient), patient_puts, wake);
        assert!(gave_up.iter().all(Result::is_err), "the member was stopped in time");
        for put in patient_puts {
            put.expect("a call of somebody who waits");
        }
    });
}

/// Writes went to two clusters in turn.
#[test]
fn endpoints_of_two_clusters_do_not_start() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (one, other) = (Deployment::start(Target::Core, &[]).await, Deployment::start(Target::Core, &[]).await);
        put(&other.client, "other", "").await;
        let mut proxy = Proxy::spawn(&[&one.member, &other.member], &[]);
        let status = tokio::task::spawn_blocking(move || {
            let status = proxy.process.wait(PATIENCE);
            (status, proxy.process.output())
        });
        let (status, output) = status.await.expect("it ends");
        assert_eq!(status.code(), Some(1), "{output}");
        for deployment in [&one, &other] {
            let header = deployment.get("k").await.header.expect("header");
            let id = format!("cluster id {:x}", header.cluster_id);
            assert!(output.contains(&deployment.member) && output.contains(&id), "{id}: {output}");
        }
    });
}

#[test]
fn an_endpoint_of_another_cluster_is_left_out() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        // Auth on: the cluster id must be found without rights.
        let (one, other) = (Deployment::start(Target::Core, &[]).await, Deployment::start(Target::Core, &[]).await);
        let wire = Wire::new(&other.member);
        wire.lose();
        let proxy = Proxy::start(&[&one.member, &wire.address.to_string()]).await;
        wire.state.send_replace(Packets::Pass);
        let left_out = "watershed_proxy_upstream_endpoints_left_out 1";
        until("the other cluster is noticed", async || {
            let page = http_get(&proxy.endpoint, "GET", "/proxy/metrics").await.ok()?;
            page.body.contains(left_out).then_some(())
        })
        .await;
        for number in 0..20 {
            put(&proxy.client, &format!("k{number}"), "").await;
        }
        let ids = [&one, &other].map(async |deployment: &Deployment| deployment.get("k").await.header.expect("header"));
        let [one_header, other_header] = futures::future::join_all(ids).await.try_into().expect("two");
        assert_eq!(other_header.revision, 1, "nothing was written there");
        let output = proxy.process.output();
        let line = output.lines().find(|line| line.contains("belongs to another cluster")).expect("a line");
        for part in [format!("{:x}", one_header.cluster_id), format!("{:x}", other_header.cluster_id)] {
            assert!(line.contains(&part), "{part}: {line}");
        }
    });
}

/// Serializable reads go to one member and writes to all in turn, so one in some hundreds of reads met a member that
/// had not applied what its connection had just written, or had been told by a watch.
#[test]
fn a_connection_reads_what_it_has_seen() {
    on_three(&[], async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        // What is committed is known to the follower later than to the leader's clients.
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            cluster.network.both(one, other, |link| link.delay = Duration::from_millis(20));
        }
        // Which of the two members answers serializable reads is up to chance.
        for flags in [&[][..], &["--namespace=n/"], &[], &["--namespace=n/"]] {
            let proxy = Proxy::start_with(&[cluster.endpoint(leader), cluster.endpoint(follower)], flags).await;
            // A client that has one connection for all it does.
            let mut public = etcd_client::Client::connect([&proxy.endpoint], None).await.expect("connects");
            let mut watch = public.watch("w", None).await.expect("a watch");
            for round in 0..8 {
                let value = round.to_string();
                let written = put(&proxy.client, "k", &value).await;
                for revision in [0, written] {
                    let request = RangeRequest { key: "k".into(), serializable: true, revision, ..Default::default() };
                    let answer = proxy.client.kv().range(request.clone()).await.expect("range").into_inner();
                    assert_eq!(answer.kvs[0].value.as_ref(), value.as_bytes(), "at revision {revision}");
                    assert!(answer.header.expect("header").revision >= written);
                    let op = RequestOp { request: Some(request_op::Request::RequestRange(request)) };
                    let txn = TxnRequest { success: vec![op], ..Default::default() };
                    let answer = proxy.client.kv().txn(txn).await.expect("transaction").into_inner();
                    assert!(answer.header.expect("header").revision >= written);
                }
                let written = put(&proxy.client, "w", &value).await;
                let told = loop {
                    let answer = soon("an event", watch.message()).await.expect("a message").expect("open");
                    if let Some(event) = answer.events().first() {
                        break event.kv().expect("a key").mod_revision();
                    }
                };
                assert_eq!(told, written);
                let serializable = etcd_client::GetOptions::new().with_serializable();
                let answer = public.get("w", Some(serializable)).await.expect("range");
                assert_eq!(answer.kvs()[0].mod_revision(), written, "told by a watch");
            }
        }
    });
}
