use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, sendto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::process::Process;

/// Most bytes moved at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks on their way per direction of a connection; more waits in the kernel.
const CHUNKS: usize = 64;

/// What happens to the bytes one member sends to another. The default lets them pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    /// Nothing arrives and nothing is lost: bytes wait until the link is released, and connections stay open.
    pub held: bool,
    /// Connections that use this direction are reset, new ones too.
    pub cut: bool,
    /// Time every byte takes.
    pub delay: Duration,
    /// Most bytes per second; none is no limit.
    pub bytes_per_second: Option<u64>,
    /// One bit of about every so many bytes is flipped; none is no damage.
    pub flip_every_bytes: Option<u64>,
}

/// The network between the members: every member's advertised peer address is a port of this process, which forwards the
/// bytes as the [`Link`]s say. The kernel tells which member opened a connection, so the protocol does not matter.
pub struct Network {
    shared: Arc<Shared>,
    /// Its own, so that faults go on while a test blocks.
    runtime: Option<Runtime>,
}

#[derive(Default)]
struct Shared {
    /// Where members really listen, and their process ids.
    members: Mutex<Vec<Member>>,
    /// Held while a process starts: it may connect before anybody knows which member it is.
    starts: Mutex<()>,
    links: Mutex<HashMap<(usize, usize), watch::Sender<Link>>>,
    counts: Counts,
}

#[derive(Clone, Copy, Default)]
struct Member {
    listens: Option<SocketAddr>,
    process: Option<u32>,
}

/// Counts over all links.
#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    flips: AtomicU64,
    resets: AtomicU64,
}

impl Network {
    /// A network without members.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self { shared: Arc::default(), runtime: Some(runtime.expect("runtime")) }
    }

    /// Adds a member; answers with its number and the address others must use.
    pub fn add(&self) -> (usize, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("address");
        let number = {
            let mut members = self.shared.members.lock();
            members.push(Member::default());
            members.len() - 1
        };
        let shared = Arc::clone(&self.shared);
        let handle = self.runtime.as_ref().expect("it runs").handle().clone();
        handle.clone().spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            loop {
                if let Ok((stream, from)) = listener.accept().await {
                    handle.spawn(Arc::clone(&shared).connection(stream, from, address, number));
                }
            }
        });
        (number, address)
    }

    /// Says where a member listens and which process it is.
    pub fn place(&self, member: usize, listens: SocketAddr, process: u32) {
        self.shared.members.lock()[member] = Member { listens: Some(listens), process: Some(process) };
    }

    /// Starts a member's process; connections that come meanwhile wait until it is known whose they are.
    pub fn start(&self, member: usize, listens: SocketAddr, start: impl FnOnce() -> Process) -> Process {
        let _starting = self.shared.starts.lock();
        let process = start();
        self.place(member, listens, process.id());
        process
    }

    /// Changes what happens to the bytes from one member to another, on connections of either side.
    pub fn link(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        self.shared.link(from, to, |sender| sender.send_modify(change));
    }

    /// Changes both directions between two members.
    pub fn both(&self, one: usize, other: usize, change: impl Fn(&mut Link)) {
        self.link(one, other, &change);
        self.link(other, one, &change);
    }

    /// Changes all links between the members of one group and all others.
    pub fn around(&self, group: &[usize], change: impl Fn(&mut Link)) {
        let all = self.shared.members.lock().len();
        for &inside in group {
            for outside in (0..all).filter(|member| !group.contains(member)) {
                self.both(inside, outside, &change);
            }
        }
    }

    /// Lets everything pass again. Connections that were held go on where they were.
    pub fn heal(&self) {
        for sender in self.shared.links.lock().values() {
            sender.send_replace(Link::default());
        }
    }

    /// Bytes passed, bits flipped and connections reset so far.
    pub fn counts(&self) -> [u64; 3] {
        let Counts { bytes, flips, resets } = &self.shared.counts;
        [bytes, flips, resets].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn link<T>(&self, from: usize, to: usize, with: impl FnOnce(&watch::Sender<Link>) -> T) -> T {
        with(self.links.lock().entry((from, to)).or_insert_with(|| watch::Sender::new(Link::default())))
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, from: SocketAddr, to: SocketAddr, target: usize) {
        let shared = Arc::clone(&self);
        let source = move || {
            drop(shared.starts.lock());
            let members = shared.members.lock().clone();
            owner(&members, from.port(), to.port())
        };
        let source = tokio::task::spawn_blocking(source).await.ok().flatten();
        let Some(listens) = self.members.lock()[target].listens else { return };
        let rules = |from: Option<usize>, to: Option<usize>| match (from, to) {
            (Some(from), Some(to)) => self.link(from, to, watch::Sender::subscribe),
            _ => watch::Sender::new(Link::default()).subscribe(),
        };
        let (mut there, mut back) = (rules(source, Some(target)), rules(Some(target), source));
        if there.borrow_and_update().cut || back.borrow_and_update().cut {
            self.counts.resets.fetch_add(1, Ordering::Relaxed);
            let _ = stream.set_zero_linger();
            return;
        }
        let Ok(upstream) = TcpStream::connect(listens).await else { return };
        let _ = (stream.set_nodelay(true), upstream.set_nodelay(true));
        let broken = CancellationToken::new();
        // Whoever drops the last half of a broken connection resets it.
        let reset = {
            let (there, back, broken) = (there.clone(), back.clone(), broken.clone());
            async move {
                let cut = |mut rules: watch::Receiver<Link>| async move {
                    // A sender that is gone cuts nothing any more.
                    if rules.wait_for(|link| link.cut).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = cut(there) => broken.cancel(),
                    () = cut(back) => broken.cancel(),
                    () = broken.cancelled() => {}
                }
            }
        };
        let (near_in, near_out) = stream.into_split();
        let (far_in, far_out) = upstream.into_split();
        let pumps = async {
            tokio::join!(self.pump(near_in, far_out, there), self.pump(far_in, near_out, back));
        };
        tokio::select! {
            () = pumps => {}
            () = reset => {
                self.counts.resets.fetch_add(1, Ordering::Relaxed);
            }
        }
        broken.cancel();
    }

    /// Moves bytes in one direction until its end.
    async fn pump(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut rules: watch::Receiver<Link>) {
        let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
        let delay = rules.clone();
        let read = async move {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                match from.read(&mut chunk).await {
                    Ok(0) | Err(_) => return from,
                    Ok(count) => chunk.truncate(count),
                }
                let due = Instant::now() + delay.borrow().delay;
                if sender.send((due, chunk)).await.is_err() {
                    return from;
                }
            }
        };
        let write = async {
            while let Some((due, mut chunk)) = chunks.recv().await {
                tokio::time::sleep_until(due.into()).await;
                // No sender is left when the network ends.
                let Ok(link) = rules.wait_for(|link| !link.held).await.map(|link| link.clone()) else { return };
                self.damage(&link, &mut chunk);
                if let Some(rate) = link.bytes_per_second {
                    tokio::time::sleep(Duration::from_secs_f64(chunk.len() as f64 / rate as f64)).await;
                }
                self.counts.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                if to.write_all(&chunk).await.is_err() {
                    return;
                }
            }
            let _ = to.shutdown().await;
        };
        tokio::join!(read, write);
    }

    fn damage(&self, link: &Link, chunk: &mut [u8]) {
        let Some(every) = link.flip_every_bytes else { return };
        for byte in chunk {
            if fastrand::u64(0..every) == 0 {
                *byte ^= 1 << fastrand::u8(0..8);
                self.counts.flips.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The member whose process holds the connection from `from` to `to`, both ports of this host.
fn owner(members: &[Member], from: u16, to: u16) -> Option<usize> {
    let inode = asked_inode(from, to).or_else(|| listed_inode(from, to))?;
    let socket = format!("socket:[{inode}]");
    let holds = |process: u32| {
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|link| link.as_os_str() == socket.as_str())
    };
    members.iter().position(|member| member.process.is_some_and(holds))
}

/// Asks the kernel for one connection on loopback (sock_diag(7)); none where it has no answer. Its list, which
/// [`listed_inode`] reads, takes milliseconds to write, for each of the many connections that members open.
fn asked_inode(from: u16, to: u16) -> Option<u32> {
    const REQUEST_BYTES: u32 = 72;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const INODE_AT: usize = 84;
    let mut request = Vec::with_capacity(REQUEST_BYTES as usize);
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend([SOCK_DIAG_BY_FAMILY.to_ne_bytes(), NLM_F_REQUEST.to_ne_bytes()].as_flattened());
    request.extend([0; 8]);
    // IPv4, TCP, nothing besides, in any state.
    request.extend([2, 6, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    request.extend([from.to_be_bytes(), to.to_be_bytes()].as_flattened());
    for _ in 0..2 {
        request.extend([127, 0, 0, 1]);
        request.extend([0; 12]);
    }
    // Any interface, no cookie.
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::DGRAM, Some(netlink::SOCK_DIAG)).ok()?;
    sendto(&socket, &request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0)).ok()?;
    let mut answer = [0; 512];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty()).ok()?;
    let answer = answer.get(..length)?;
    let is_found = answer.get(4..6)? == SOCK_DIAG_BY_FAMILY.to_ne_bytes();
    let inode = u32::from_ne_bytes(answer.get(INODE_AT..INODE_AT + 4)?.try_into().ok()?);
    (is_found && inode != 0).then_some(inode)
}

/// Looks for the connection in the kernel's list.
fn listed_inode(from: u16, to: u16) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let port = |address: &str| u16::from_str_radix(address.split_once(':')?.1, 16).ok();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = port(fields.get(1)?)? == from && port(fields.get(2)?)? == to;
        fields.get(9).filter(|_| is_ours)?.parse().ok()
    })
}

#[test]
fn a_connection_waits_until_its_member_is_known() {
    let folder = tempfile::tempdir().expect("folder");
    let network = Network::new();
    let ((from, listens), (to, address)) = (network.add(), network.add());
    network.place(to, listens, std::process::id());
    network.link(from, to, |link| link.cut = true);

    // It connects before its start is over; the answer never comes, as the link is cut.
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; echo open; read -r -t 60 -u 3; test $? = 1", address.port());
    let mut process = network.start(from, listens, || {
        let process = Process::start("bash".as_ref(), &["-c", &script], folder.path(), "member");
        while !process.output().contains("open") {
            std::thread::sleep(Duration::from_millis(5));
        }
        process
    });
    assert!(process.wait(super::PATIENCE).success(), "{}", process.output());
    assert_eq!(network.counts(), [0, 0, 1]);
}

#[test]
fn both_ways_to_a_connection_agree() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = listener.local_addr().expect("address").port();
    let stream = std::net::TcpStream::connect(("127.0.0.1", to)).expect("connects");
    let from = stream.local_addr().expect("address").port();
    let listed = listed_inode(from, to);
    assert!(listed.is_some());
    assert!([None, listed].contains(&asked_inode(from, to)));
    assert_eq!(owner(&[Member { listens: None, process: Some(std::process::id()) }], from, to), Some(0));
    drop((stream, listener));
    assert_eq!(owner(&[Member { listens: None, process: Some(std::process::id()) }], from, to), None);
}
