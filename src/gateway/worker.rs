use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::client::Unwelcome;
use super::dial::Dialer;
use super::first_bytes::read_hello;
use super::pump::Pump;
use super::stream::Accepted;
use crate::config::ConnectionLimits;

/// Connections waiting for their serving thread; a full queue delays the accept loop.
const HANDOVER_MAX: usize = 256;
/// Tasks run between two looks at the sockets: one bulk connection must not keep the others waiting.
const EVENT_INTERVAL: u32 = 16;

/// A serving thread as the accept loop sees it.
#[derive(Debug)]
pub(super) struct Worker {
    connections: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
}

impl Worker {
    /// Starts a thread. It ends once this handle is gone and its connections are over, or `drain` after that.
    pub(super) fn start(
        number: usize,
        dialer: Arc<Dialer>,
        drain: Duration,
    ) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let (connections, incoming) = mpsc::channel(HANDOVER_MAX);
        let (ended, wait) = oneshot::channel();
        let open = Arc::new(AtomicUsize::new(0));
        let counter = open.clone();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
        std::thread::Builder::new().name(format!("gateway-{number}")).spawn(move || {
            runtime.block_on(serve(incoming, dialer, counter, drain));
            // Closes what is still open, and does not wait for a resolver that does not answer.
            runtime.shutdown_background();
            let _ = ended.send(());
        })?;
        Ok((Self { connections, open }, wait))
    }

    /// Connections given to this thread that are not over.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Gives a connection to the thread; one that is ending closes it.
    pub(super) async fn hand_over(&self, client: Accepted) {
        self.open.fetch_add(1, Ordering::Relaxed);
        if self.connections.send(client).await.is_err() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

async fn serve(
    mut connections: mpsc::Receiver<Accepted>,
    dialer: Arc<Dialer>,
    open: Arc<AtomicUsize>,
    drain: Duration,
) {
    let tracker = TaskTracker::new();
    // The accept loop owns the other end: what it accepted before its own end is served.
    while let Some(client) = connections.recv().await {
        let guard = Open::new(&open, &dialer);
        tracker.spawn(connect(client, dialer.clone(), guard, tracker.clone()));
    }
    tracker.close();
    if tracker.is_empty() {
        return;
    }
    info!(connections = tracker.len(), ?drain, "waiting for connections to end");
    if tokio::time::timeout(drain, tracker.wait()).await.is_err() {
        info!(connections = tracker.len(), "connections cut at the end of the drain timeout");
    }
}

/// Finds an endpoint for the client. Moving the bytes is a task of its own, since this one is the bigger.
async fn connect(accepted: Accepted, dialer: Arc<Dialer>, guard: Open, tracker: TaskTracker) {
    let rules = &dialer.rules;
    let client = match rules.admit(accepted).await {
        Ok(client) => client,
        Err(reason) => {
            dialer.metrics.turned_away(&reason);
            return debug!(%reason, "client turned away");
        }
    };
    if dialer.loops.has_come_back(&client.stream).await {
        return debug!("a question of this gateway has come back to it");
    }
    let routes = dialer.routes.load_full();
    let (upstreams, first) = match routes.only() {
        Some(upstreams) => (upstreams, None),
        None => match read_hello(&client.stream).await {
            Ok((hello, first)) => (routes.choose(hello.as_ref()), Some(first)),
            Err(error) => {
                let reason = Unwelcome::Hello(error);
                dialer.metrics.turned_away(&reason);
                return debug!(%reason, "client turned away");
            }
        },
    };
    let Some((mut endpoint, assigned)) = dialer.dial(upstreams).await else {
        dialer.metrics.unserved.inc();
        return;
    };
    if let Err(error) = rules.introduce(Some(&client), &mut endpoint).await {
        return debug!(%error, endpoint = %assigned.upstream().endpoint(), "PROXY header not sent");
    }
    debug!(client = ?client.source(), endpoint = %assigned.upstream().endpoint(), "connected");
    let (limits, metrics) = (rules.limits, dialer.metrics.clone());
    assigned.run(|assigned| {
        let pump = Pump::new(client.stream, endpoint, first, assigned);
        let counted = (guard, client.admitted);
        // An idle connection costs what its future holds: without limits that is the pump alone.
        if limits == ConnectionLimits::default() {
            let moving = async move {
                pump.await;
                drop(counted);
            };
            return tracker.spawn(moving).abort_handle();
        }
        let moving = async move {
            if let Some(limit) = pump.within(limits).await {
                metrics.limited(limit);
            }
            drop(counted);
        };
        tracker.spawn(moving).abort_handle()
    });
}

/// Counts a connection for as long as it lives.
struct Open {
    counter: Arc<AtomicUsize>,
    dialer: Arc<Dialer>,
}

impl Open {
    fn new(counter: &Arc<AtomicUsize>, dialer: &Arc<Dialer>) -> Self {
        dialer.metrics.open.inc();
        Self { counter: counter.clone(), dialer: dialer.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.dialer.metrics.open.dec();
        self.counter.fetch_sub(1, Ordering::Relaxed);
    }
}
