use std::net::SocketAddr;

use super::error::ConfigError;
use super::peer_source::{CompleteCluster, KeptClusterConfig, PeerSourceConfig};
use super::proxy::{Advertise, ProxyConfig, parse_proxy_config};
use super::server::{InitialDiscovery, ServerConfig};
use super::url::{ListenAddress, ListenUrl};

/// The flags that a refusal names.
const FLAGS: &str = "discovery-fallback, --listen-client-urls";

impl ServerConfig {
    /// The proxy that a surplus member becomes: on its client URLs, in front of the members of this cluster.
    ///
    /// # Errors
    /// Client URLs that a proxy cannot serve.
    pub fn surplus_proxy(&self, cluster: CompleteCluster) -> Result<ProxyConfig, ConfigError> {
        let listeners = Listeners::of(self)?;
        let peer_tls = self.tls.peers.as_ref().map(|peers| peers.dialling.clone());
        let kept = match &self.discovery {
            Some(InitialDiscovery::Registry(registry)) => Some(KeptClusterConfig::new(&self.data_dir, registry)),
            // What a domain says does not end.
            Some(InitialDiscovery::Srv(_)) | None => None,
        };
        let usual = parse_proxy_config(&[])?;
        Ok(ProxyConfig {
            listen: listeners.first,
            listen_tls: self.tls.clients.clone().filter(|_| listeners.is_tls),
            listen_too: listeners.others,
            metrics_listen: self.listen_metrics_urls.clone(),
            upstream_tls: self.tls.upstream.clone(),
            peers: Some(PeerSourceConfig::known(cluster, peer_tls, kept)),
            // Clients see the members, as behind the proxy of etcd 2.
            advertise: Advertise::Members,
            keepalive_min_time: self.keepalive_min_time,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
            answer_memory_bytes: self.answer_memory_bytes,
            max_concurrent_streams: self.max_concurrent_streams,
            enable_pprof: self.enable_pprof,
            serving_threads: Some(self.serving_threads),
            log: self.log.clone(),
            ..usual
        })
    }
}

/// The client URLs of a member, as a proxy has them.
struct Listeners {
    first: SocketAddr,
    is_tls: bool,
    others: Vec<ListenUrl>,
}

impl Listeners {
    fn of(config: &ServerConfig) -> Result<Self, ConfigError> {
        let wrong = |reason| ConfigError::Value { flag: FLAGS, reason };
        let mut urls: Vec<ListenUrl> = Vec::new();
        for url in config.listen_client_urls.iter().chain(&config.listen_client_http_urls) {
            match urls.iter().find(|known| known.address() == url.address()) {
                Some(known) if known.is_tls() != url.is_tls() => {
                    return Err(wrong(format!("a proxy does not serve {known} and {url} at one address")));
                }
                Some(_) => {}
                None => urls.push(url.clone()),
            }
        }
        let is_tls = urls.iter().any(ListenUrl::is_tls);
        let tcp = |url: &ListenUrl| match url.address() {
            ListenAddress::Tcp(address) if url.is_tls() == is_tls => Some(*address),
            _ => None,
        };
        let first = urls.iter().enumerate().find_map(|(at, url)| Some((at, tcp(url)?)));
        let (at, first) = first.ok_or_else(|| wrong("a proxy needs a TCP address".to_owned()))?;
        urls.remove(at);
        Ok(Self { first, is_tls, others: urls })
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::Variables;
    use super::super::server::parse_server_config;
    use super::*;

    fn proxy(flags: &str) -> Result<ProxyConfig, String> {
        let args: Vec<_> = flags.split_whitespace().map(std::ffi::OsString::from).collect();
        let config = parse_server_config(&args, &Variables::none()).map_err(|error| error.to_string())?;
        let cluster = CompleteCluster { peer_urls: vec!["http://a:2380".to_owned()], id: None };
        config.surplus_proxy(cluster).map_err(|error| error.to_string())
    }

    #[test]
    fn a_proxy_listens_where_the_member_would() {
        let config = proxy("").unwrap();
        assert_eq!((config.listen.to_string().as_str(), config.listen_too.len()), ("127.0.0.1:2379", 0));
        assert_eq!(config.advertise, Advertise::Members);
        let config = proxy(
            "--listen-client-urls=http://127.0.0.1:1,https://127.0.0.1:2,unix://s:3 --advertise-client-urls=http://a:1 \
             --listen-client-http-urls=http://127.0.0.1:4 --listen-metrics-urls=http://127.0.0.1:5,http://127.0.0.1:6 --cert-file=c \
             --key-file=k --trusted-ca-file=t",
        )
        .unwrap();
        let others: Vec<_> = config.listen_too.iter().map(ToString::to_string).collect();
        assert_eq!((config.listen.port(), others.len(), config.listen_tls.is_some()), (2, 3, true), "{others:?}");
        // Cause: the second address for metrics was one for clients, in plain text and without their certificates.
        let metrics: Vec<_> = config.metrics_listen.iter().map(ToString::to_string).collect();
        assert_eq!(metrics, ["http://127.0.0.1:5", "http://127.0.0.1:6"]);
        let upstream = config.upstream_tls.unwrap();
        assert_eq!(upstream.servers, crate::net::ServerAuth::File("t".into()));
        assert_eq!(upstream.identity.unwrap().key.to_str(), Some("k"));
    }

    #[test]
    fn what_it_learns_is_kept_for_the_registry_it_was_found_by() {
        let kept = |flags: &str| proxy(&format!("--data-dir=d {flags}")).unwrap().peers.unwrap().kept;
        assert_eq!(kept(""), None);
        assert_eq!(kept("--discovery-srv=example.com"), None);
        let of = |flags: &str| kept(flags).unwrap();
        let first = of("--discovery=http://u:p@r:1/t1");
        assert_eq!(first.file.to_str(), Some("d/proxy/cluster"));
        assert_eq!(first, of("--discovery=http://r:1/t1/"), "the same token");
        assert_ne!(first, of("--discovery=http://r:1/t2"));
        let token = of("--discovery-token=t1 --discovery-endpoints=r:1");
        assert_eq!(token, of("--discovery-token=t1 --discovery-endpoints=r:2,r:3"), "the registry may move");
        assert_ne!(token, first);
        assert!(!first.registry.contains("t1"));
    }

    #[test]
    fn what_a_proxy_cannot_serve_is_refused() {
        for (flags, reason) in [
            ("--listen-client-urls=unix://s:3", "a proxy needs a TCP address"),
            (
                "--listen-client-urls=http://127.0.0.1:1,https://127.0.0.1:1 --cert-file=c --key-file=k",
                "a proxy does not serve http://127.0.0.1:1 and https://127.0.0.1:1 at one address",
            ),
        ] {
            let error = proxy(&format!("{flags} --advertise-client-urls=http://a:1")).unwrap_err();
            assert_eq!(error, format!("--discovery-fallback, --listen-client-urls: {reason}"));
        }
    }
}
