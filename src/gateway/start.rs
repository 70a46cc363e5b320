use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::accept::{Door, accept_loop, connections_max};
use super::balance::Division;
use super::check::{Care, HealthChecks};
use super::client::ClientRules;
use super::dial::Dialer;
use super::endpoint_lists::{EndpointLists, is_itself_alone, refuse_itself};
use super::error::GatewayError;
use super::http::serve_metrics;
use super::listener::{Accept, Listener, address_of};
use super::loop_questions::LoopQuestions;
use super::loops::search_for_loops;
use super::metrics::GatewayMetrics;
use super::probe::Probe;
use super::routes::Routes;
use super::status::GatewayStatus;
use super::upstreams::Upstreams;
use super::worker::Worker;
use crate::config::{GatewayAddress, GatewayConfig, HealthCheckConfig, ListenAddress, OnEject};
use crate::discovery::{Discovery, dialled};
use crate::net::{HostPort, PortUse, SocketFile, all_addresses, listen_tcp, listening_address, preferred_address};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    address: ListenAddress,
    /// Of a unix socket.
    file: Option<SocketFile>,
    metrics_address: Option<SocketAddr>,
    stop: CancellationToken,
    /// Ends the pages of the metrics address.
    stop_pages: CancellationToken,
    threads: Vec<oneshot::Receiver<()>>,
    /// Its listening sockets, for the next gateway, if there may be one.
    sockets: Vec<OwnedFd>,
    lists: EndpointLists,
}

impl Gateway {
    /// Listens and serves until `tasks` stop or [`finish`](Self::finish) is called. Must be called on a runtime, where
    /// the accept loop and the checks of the endpoints run; the bytes move on threads of their own.
    ///
    /// # Errors
    /// When an address cannot be bound, or an endpoint is the gateway itself.
    pub async fn start(
        config: &GatewayConfig,
        source: &dyn Discovery,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<Self, GatewayError> {
        Self::start_after(Vec::new(), config, source, metrics, tasks).await
    }

    /// [`start`](Self::start) with those of the listening sockets of an earlier gateway that have the addresses of this one.
    ///
    /// # Errors
    /// As there.
    pub async fn start_after(
        mut earlier: Vec<OwnedFd>,
        config: &GatewayConfig,
        source: &dyn Discovery,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<Self, GatewayError> {
        let wanted = resolve("listen-addr", &config.listen_addr).await?;
        let listener = match take(&mut earlier, &wanted) {
            Some(socket) => Listener::adopt(socket),
            None => Listener::bind(&wanted, config.listen_socket_mode),
        };
        let failed = |reason| bind_error("listen-addr", &config.listen_addr, reason);
        let listener = listener.map_err(failed)?;
        let file = match &config.listen_addr {
            GatewayAddress::Tcp(_) => None,
            GatewayAddress::Unix(path) => Some(SocketFile::at(path).map_err(failed)?),
        };
        let mut gateway = Self::start_listening(listener, earlier, config, source, metrics, tasks).await?;
        gateway.file = file;
        Ok(gateway)
    }

    /// [`start`](Self::start) on a socket that listens already, in place of `--listen-addr`. The file of a unix socket stays that of
    /// whoever made it.
    ///
    /// # Errors
    /// When it is no listening socket, or an endpoint is the gateway itself.
    pub async fn start_with(
        listener: OwnedFd,
        config: &GatewayConfig,
        source: &dyn Discovery,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<Self, GatewayError> {
        let listener = Listener::adopt(listener).map_err(GatewayError::Passed)?;
        Self::start_listening(listener, Vec::new(), config, source, metrics, tasks).await
    }

    async fn start_listening(
        listener: Listener,
        earlier: Vec<OwnedFd>,
        config: &GatewayConfig,
        source: &dyn Discovery,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<Self, GatewayError> {
        let address = listener.address().map_err(GatewayError::Passed)?;
        let clients = config.hot_restart_socket.as_ref().map(|_| listener.duplicate()).transpose();
        let clients = clients.map_err(GatewayError::Passed)?;
        let mut gateway = Self::start_on(listener, address, earlier, config, source, metrics, tasks).await?;
        gateway.sockets.extend(clients);
        Ok(gateway)
    }

    /// [`start`](Self::start) with a listener that is there already.
    pub(super) async fn start_on(
        listener: impl Accept,
        address: ListenAddress,
        mut earlier: Vec<OwnedFd>,
        config: &GatewayConfig,
        source: &dyn Discovery,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<Self, GatewayError> {
        let mut endpoints = source.endpoints();
        let first = endpoints.borrow_and_update().clone();
        let limit = config.connect_timeout;
        refuse_itself("endpoints", &dialled(&first), &address, limit).await?;
        refuse_itself("route", &config.routes_endpoints(), &address, limit).await?;
        let health = config.health_check.as_ref().map(health_checks).transpose()?;
        // The pages of the metrics address outlast the rest: they tell of the drain.
        let (tasks, pages) = (tasks.child(), tasks.child());
        let (stop, stop_pages) = (tasks.stop_signal(), pages.stop_signal());
        let gateway_metrics = Arc::new(GatewayMetrics::register(metrics));
        let division = Division {
            balance: config.balance,
            slow_start: config.slow_start,
            closes_when_down: config.on_eject == OnEject::Close,
            checked: config.health_check.is_some(),
        };
        let default = Arc::new(Upstreams::new(division, fastrand::Rng::new(), gateway_metrics.clone()));
        let dialer = Arc::new(Dialer {
            routes: ArcSwap::from_pointee(Routes { rules: Vec::new(), default }),
            metrics: gateway_metrics.clone(),
            connect_timeout: config.connect_timeout,
            rules: ClientRules::new(config),
            own: address.clone(),
            loops: LoopQuestions::new(config.detect_loops),
            checking: tokio::sync::Mutex::new(()),
        });
        let connections_max = config.connections_max.unwrap_or(usize::MAX).min(connections_max());
        let mut sockets = Vec::new();
        let metrics_address = match &config.metrics_addr {
            None => None,
            Some(wanted) => {
                let status = GatewayStatus {
                    dialer: dialer.clone(),
                    listen_addr: address.clone(),
                    connections_max,
                    metrics: metrics.clone(),
                    since: Instant::now(),
                    stop: stop.clone(),
                };
                let (address, socket) = metrics_listener(wanted, &mut earlier, status, metrics, &pages).await?;
                sockets.extend(Some(socket).filter(|_| config.hot_restart_socket.is_some()));
                Some(address)
            }
        };
        let mut workers = Vec::new();
        let mut threads = Vec::new();
        for number in 0..config.serving_threads.max(1) {
            let (worker, ended) =
                Worker::start(number, dialer.clone(), config.drain_timeout).map_err(GatewayError::Thread)?;
            workers.push(worker);
            threads.push(ended);
        }
        let care = Care { pause_max: config.retry_delay, drain: config.endpoint_drain_timeout, health };
        let lists = EndpointLists { dialer: dialer.clone(), division, care, tasks: tasks.clone() };
        lists.replace_default(&first);
        lists.replace_routes(&config.routes);
        let (follow_stop, followed, own) = (stop.clone(), lists.clone(), address.clone());
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = follow_stop.cancelled() => return,
                    changed = endpoints.changed() => if changed.is_err() { return },
                }
                let set = endpoints.borrow_and_update().clone();
                // Members may advertise the gateway in their place.
                match follow_stop.run_until_cancelled(is_itself_alone(&set, &own, limit)).await {
                    Some(false) => followed.replace_default(&set),
                    Some(true) => {
                        warn!(listen_addr = %own, "all endpoints are the gateway itself, those of before stay");
                    }
                    None => return,
                }
            }
        });
        tasks.spawn(search_for_loops(dialer.clone(), stop.clone()));
        let door = Door { workers: workers.into(), dialer, metrics: gateway_metrics, connections_max };
        tasks.spawn(accept_loop(listener, door, stop.clone()));
        let names: Vec<String> = first.iter().map(|endpoint| endpoint.endpoint.to_string()).collect();
        info!(listen_addr = %address, endpoints = names.join(","), "ready to proxy client requests");
        Ok(Self { address, file: None, metrics_address, stop, stop_pages, threads, sockets, lists })
    }

    /// What changes its endpoints.
    pub fn endpoint_lists(&self) -> EndpointLists {
        self.lists.clone()
    }

    /// Where clients connect.
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Where `/metrics` is served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Its listening sockets, for another process. As long as one of them is open, connections are not refused when this gateway
    /// stops accepting them.
    pub fn take_sockets(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.sockets)
    }

    /// Leaves the file of its unix socket to the gateway that has taken the sockets over, and the metrics address, where both would
    /// accept requests otherwise.
    pub fn leave_addresses(&mut self) {
        self.stop_pages.cancel();
        if let Some(file) = self.file.take() {
            file.leave();
        }
    }

    /// Stops accepting, as [`finish`](Self::finish) does.
    #[cfg(test)]
    pub(super) fn stop_signal(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Stops accepting and waits until every connection has ended, the drain timeout at most. The pages of the metrics address are
    /// served until then.
    pub async fn finish(mut self) {
        self.sockets.clear();
        self.file = None;
        self.stop.cancel();
        for thread in self.threads {
            // An error means that the thread is gone already.
            let _ = thread.await;
        }
        self.stop_pages.cancel();
    }
}

/// Serves the pages of the metrics address; gives that, and its socket for another process.
async fn metrics_listener(
    wanted: &HostPort,
    earlier: &mut Vec<OwnedFd>,
    status: GatewayStatus,
    metrics: &Metrics,
    tasks: &Tasks,
) -> Result<(SocketAddr, OwnedFd), GatewayError> {
    let address = resolve_tcp("metrics-addr", wanted).await?;
    let socket = match take(earlier, &ListenAddress::Tcp(address)) {
        Some(socket) => Ok(socket.into()),
        None => listen_tcp(address, PortUse::Alone),
    };
    let listener = socket.and_then(tokio::net::TcpListener::from_std);
    let served = listener.and_then(|listener| {
        let socket = listener.as_fd().try_clone_to_owned()?;
        Ok((serve_metrics(listener, metrics.clone(), status, tasks)?, socket))
    });
    served.map_err(|reason| GatewayError::Bind { flag: "metrics-addr", address: wanted.clone(), reason })
}

fn health_checks(config: &HealthCheckConfig) -> Result<HealthChecks, GatewayError> {
    let &HealthCheckConfig { interval, timeout, rise, fall, .. } = config;
    Ok(HealthChecks { probe: Probe::new(config)?, interval, timeout, rise, fall })
}

/// The one that listens on `address`. For all addresses of both families, it may be one for those of IPv4: from before the time of
/// `[::]`, or of a host that had no IPv6 then.
fn take(sockets: &mut Vec<OwnedFd>, address: &ListenAddress) -> Option<OwnedFd> {
    let all = address.tcp().filter(|address| *address == all_addresses(address.port()));
    let of_ipv4 = all.map(|address| ListenAddress::Tcp((Ipv4Addr::UNSPECIFIED, address.port()).into()));
    let is_wanted = |own: ListenAddress| own == *address || Some(own) == of_ipv4;
    let at = sockets.iter().position(|socket| address_of(socket).is_ok_and(is_wanted))?;
    Some(sockets.swap_remove(at))
}

fn bind_error(flag: &'static str, address: &GatewayAddress, reason: io::Error) -> GatewayError {
    match address.clone() {
        GatewayAddress::Tcp(address) => GatewayError::Bind { flag, address, reason },
        GatewayAddress::Unix(path) => GatewayError::BindUnix { flag, path, reason },
    }
}

/// Where to listen.
async fn resolve(flag: &'static str, address: &GatewayAddress) -> Result<ListenAddress, GatewayError> {
    match address {
        GatewayAddress::Tcp(address) => resolve_tcp(flag, address).await.map(ListenAddress::Tcp),
        GatewayAddress::Unix(path) => Ok(ListenAddress::Unix(path.clone())),
    }
}

/// No host, or `0.0.0.0`, means all addresses of IPv6 and IPv4. Of the addresses of a name, the first of IPv4 counts, or else the
/// first. As in etcd's gateway, which leaves both to Go.
async fn resolve_tcp(flag: &'static str, address: &HostPort) -> Result<SocketAddr, GatewayError> {
    let port = address.port();
    if address.host().is_empty() {
        return Ok(all_addresses(port));
    }
    if let Some(literal) = address.literal() {
        return Ok(listening_address(literal));
    }
    let found = tokio::net::lookup_host((address.host(), port)).await;
    let preferred = found.and_then(|found| {
        preferred_address(found).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    });
    preferred.map_err(|reason| GatewayError::LookUp { flag, address: address.clone(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolved(text: &str) -> ListenAddress {
        resolve("listen-addr", &text.parse().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn no_host_is_both_families_and_a_name_is_its_ipv4_address() {
        // Cause: `:2379` was 0.0.0.0, and `localhost` whatever the resolver had first, which may be ::1.
        assert_eq!(resolved(":7").await.to_string(), "[::]:7");
        assert_eq!(resolved("0.0.0.0:7").await.to_string(), "[::]:7");
        assert_eq!(resolved("[::1]:7").await.to_string(), "[::1]:7");
        let chosen = |texts: &[&str]| {
            let found = texts.iter().map(|text| text.parse::<SocketAddr>().unwrap());
            preferred_address(found).map(|address| address.to_string())
        };
        assert_eq!(chosen(&["[::1]:7", "127.0.0.1:7", "127.0.0.2:7"]).as_deref(), Some("127.0.0.1:7"));
        assert_eq!(chosen(&["[::2]:7", "[::1]:7"]).as_deref(), Some("[::2]:7"));
        assert_eq!(chosen(&[]), None);
    }

    #[tokio::test]
    async fn the_socket_of_an_earlier_gateway_for_all_addresses_is_taken_whichever_they_are() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let Ok(socket) = listen_tcp(address.parse().unwrap(), PortUse::Alone) else {
                assert_eq!(address, "[::]:0", "there is IPv4");
                continue;
            };
            let port = socket.local_addr().unwrap().port();
            let mut sockets = vec![socket.into()];
            assert!(take(&mut sockets, &resolved(&format!("127.0.0.1:{port}")).await).is_none());
            assert!(take(&mut sockets, &resolved(&format!(":{port}")).await).is_some(), "{address}");
        }
    }
}
