use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::shutdown::Tasks;

/// What happens to the connections through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Open,
    /// Nothing moves and nothing is closed, on old and on new connections.
    Stalled,
    /// New connections are closed at once.
    Refused,
}

/// Stands between a member and its peer.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    _tasks: Tasks,
}

struct State {
    target: SocketAddr,
    link: watch::Sender<Link>,
    /// Ends the connections of its time.
    cut: Mutex<CancellationToken>,
    /// Stalls the connections of its time for ever.
    stall: Mutex<CancellationToken>,
    /// Bytes towards the target on all connections.
    forwarded: AtomicU64,
    connections: AtomicUsize,
    /// Cuts everything when so many bytes were forwarded.
    cut_at: AtomicU64,
    /// Flips a bit of the byte with this number.
    flip_at: AtomicU64,
    /// Pause after each read of at most 16 KiB towards the target.
    pace: Mutex<Duration>,
}

impl Proxy {
    pub(super) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            target,
            link: watch::Sender::new(Link::Open),
            cut: Mutex::default(),
            stall: Mutex::default(),
            forwarded: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            flip_at: AtomicU64::new(u64::MAX),
            pace: Mutex::default(),
        });
        let tasks = Tasks::new();
        let (accepting, inner) = (state.clone(), tasks.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if *accepting.link.borrow() == Link::Refused {
                    continue;
                }
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                inner.spawn(accepting.clone().forward(stream));
            }
        });
        Self { address, state, _tasks: tasks }
    }

    pub(super) fn set(&self, link: Link) {
        self.state.link.send_replace(link);
    }

    /// Ends every connection.
    pub(super) fn cut(&self) {
        std::mem::take(&mut *self.state.cut.lock()).cancel();
    }

    /// The connections there are never move a byte again, and nobody is told; new ones work.
    pub(super) fn stall_present(&self) {
        std::mem::take(&mut *self.state.stall.lock()).cancel();
    }

    /// Ends every connection once so many more bytes went to the target.
    pub(super) fn cut_after(&self, bytes: u64) {
        self.state.cut_at.store(self.forwarded() + bytes, Ordering::Relaxed);
    }

    /// Falsifies a byte further on.
    pub(super) fn flip_after(&self, bytes: u64) {
        self.state.flip_at.store(self.forwarded() + bytes, Ordering::Relaxed);
    }

    pub(super) fn pace(&self, pause: Duration) {
        *self.state.pace.lock() = pause;
    }

    pub(super) fn forwarded(&self) -> u64 {
        self.state.forwarded.load(Ordering::Relaxed)
    }

    pub(super) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }
}

impl State {
    async fn forward(self: Arc<Self>, from: TcpStream) {
        let cut = self.cut.lock().clone();
        let stall = self.stall.lock().clone();
        let Ok(to) = TcpStream::connect(self.target).await else { return };
        from.set_nodelay(true).expect("a socket");
        to.set_nodelay(true).expect("a socket");
        let (from_read, from_write) = from.into_split();
        let (to_read, to_write) = to.into_split();
        let both = async {
            tokio::select! {
                () = self.copy(from_read, to_write, true, &stall) => {}
                () = self.copy(to_read, from_write, false, &stall) => {}
            }
        };
        cut.run_until_cancelled(both).await;
    }

    async fn copy(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counted: bool, stall: &CancellationToken) {
        let mut link = self.link.subscribe();
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let _ = link.wait_for(|link| *link != Link::Stalled).await;
            if stall.is_cancelled() {
                return std::future::pending().await;
            }
            if counted {
                let before = self.forwarded.fetch_add(count as u64, Ordering::Relaxed);
                let after = before + count as u64;
                let flip_at = self.flip_at.load(Ordering::Relaxed);
                if (before..after).contains(&flip_at) {
                    buffer[(flip_at - before) as usize] ^= 0x10;
                }
                if after >= self.cut_at.load(Ordering::Relaxed) {
                    self.cut_at.store(u64::MAX, Ordering::Relaxed);
                    std::mem::take(&mut *self.cut.lock()).cancel();
                    return;
                }
                let pace = *self.pace.lock();
                if !pace.is_zero() {
                    tokio::time::sleep(pace).await;
                }
            }
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
}
