use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use futures::future::{join_all, try_join_all};

use super::parts::{GATEWAY, PROXY, member, try_ports};
use crate::client::{Client, ClientConfig};
use crate::cmd::gateway::listed_endpoints as endpoints_of_gateway;
use crate::cmd::grpc_proxy::{self, RunningProxy};
use crate::cmd::server::Server;
use crate::config::{parse_gateway_config, parse_proxy_config, parse_registry_config};
use crate::discovery::RegistryKeys;
use crate::gateway::Gateway;
use crate::pb::etcdserverpb::PutRequest;
use crate::registry::{self, RunningRegistry};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// What the registry keeps its tokens in.
const STORE_CLIENTS: &str = "127.0.0.1:2389";
const STORE_PEERS: &str = "127.0.0.1:2390";
const REGISTRY: &str = "127.0.0.1:2391";
/// The token is this and the number of members.
const TOKEN: &str = "dev";
/// The tenant `red` comes to the proxy's own address.
const BLUE: &str = "127.0.0.1:23792";
const PROXY_PAGES: &str = "127.0.0.1:23793";
const GATEWAY_PAGES: &str = "127.0.0.1:23794";

/// A registry of discovery tokens on a member of its own.
struct Registry {
    store: Server,
    serving: RunningRegistry,
    /// Under which the members find each other.
    url: String,
}

/// Several members, a gateway, and a proxy with two tenants.
pub(super) struct Several {
    registry: Option<Registry>,
    members: Vec<Server>,
    gateway: Gateway,
    proxy: RunningProxy,
}

/// Addresses for clients and peers of a member, by its number from 1.
fn places(number: usize) -> (String, String) {
    let port = |last: usize| if number == 1 { 2300 + last } else { (number - 1) * 10_000 + 2300 + last };
    (format!("127.0.0.1:{}", port(79)), format!("127.0.0.1:{}", port(80)))
}

impl Several {
    pub(super) async fn start(data_dir: &Path, members: usize, discovery: bool, tasks: &Tasks) -> anyhow::Result<Self> {
        // Another number of members is another cluster.
        let data_dir = data_dir.join(format!("{members}-members"));
        std::fs::create_dir_all(&data_dir).with_context(|| data_dir.display().to_string())?;
        let all: Vec<_> = (1..=members).map(places).collect();
        let fixed = [GATEWAY, PROXY, BLUE, PROXY_PAGES, GATEWAY_PAGES];
        let of_registry = [STORE_CLIENTS, STORE_PEERS, REGISTRY];
        let of_members = all.iter().flat_map(|(clients, peers)| [clients.as_str(), peers]);
        try_ports(fixed.into_iter().chain(of_members).chain(of_registry.into_iter().filter(|_| discovery)))?;
        let registry = if discovery { Some(Registry::start(&data_dir, members, tasks).await?) } else { None };
        let (initial, source) = match &registry {
            Some(registry) => (format!("--discovery={}", registry.url), format!("--discovery={}", registry.url)),
            None => {
                let entry = |(at, (_, peers)): (usize, &(String, String))| format!("m{}=http://{peers}", at + 1);
                let list: Vec<_> = all.iter().enumerate().map(entry).collect();
                let clients: Vec<_> = all.iter().map(|(clients, _)| clients.as_str()).collect();
                (format!("--initial-cluster={}", list.join(",")), format!("--endpoints={}", clients.join(",")))
            }
        };
        let mut configs = Vec::new();
        for (at, (clients, peers)) in all.iter().enumerate() {
            let name = format!("m{}", at + 1);
            configs.push(member(&name, &data_dir.join(&name), clients, peers, std::slice::from_ref(&initial))?);
        }
        // Each waits for the others.
        let members = try_join_all(configs.iter().map(|config| Server::start(config, tasks))).await?;
        let flags = [format!("--listen-addr={GATEWAY}"), format!("--metrics-addr={GATEWAY_PAGES}"), source.clone()];
        let config = parse_gateway_config(&flags.map(OsString::from))?;
        let endpoints = endpoints_of_gateway(&config, tasks).await?.source;
        let gateway = Gateway::start(&config, &*endpoints, &Metrics::new(), tasks).await?;
        let tenants = data_dir.join("tenants.yaml");
        if !tenants.exists() {
            std::fs::write(&tenants, tenants_text()).with_context(|| tenants.display().to_string())?;
        }
        let mut tenants_flag = OsString::from("--tenants-file=");
        tenants_flag.push(&tenants);
        let flags = [format!("--listen-addr={PROXY}"), format!("--metrics-addr=http://{PROXY_PAGES}"), source];
        let flags: Vec<_> = flags.into_iter().map(OsString::from).chain([tenants_flag]).collect();
        let config = parse_proxy_config(&flags)?;
        let listed = grpc_proxy::listed_endpoints(&config, tasks).await?;
        let proxy = grpc_proxy::start(config, listed, tasks)?;
        Ok(Self { registry, members, gateway, proxy })
    }

    /// Proxy and gateway first, so that no client is left in front of members that are gone.
    pub(super) async fn stop(self) {
        self.proxy.finish().await;
        self.gateway.finish().await;
        join_all(self.members.into_iter().map(Server::stop)).await;
        if let Some(registry) = self.registry {
            registry.serving.finish().await;
            registry.store.stop().await;
        }
    }

    pub(super) fn screen(&self, program: &str, data: &str) -> String {
        let count = self.members.len();
        let mut text = format!("watershed dev: a tier on loopback, {count} members, without TLS and users\n\n");
        for number in 1..=count {
            let (clients, peers) = places(number);
            let _ = writeln!(text, "  m{number}        http://{clients}    peers at http://{peers}");
        }
        if let Some(registry) = &self.registry {
            let _ = writeln!(text, "  discovery {}    in a member at http://{STORE_CLIENTS}", registry.url);
        }
        let found = if self.registry.is_some() { "the members that registered" } else { "the members" };
        let _ = write!(
            text,
            "\
\x20 gateway   {GATEWAY}           TCP to {found}; http://{GATEWAY_PAGES}/gateway/status
\x20 proxy     http://{PROXY}    gRPC for the tenant red (/red/), http://{BLUE} for blue (/blue/); http://{PROXY_PAGES}/proxy/metrics
\x20 data      {data}

Try, in another terminal:

\x20 {program} ctl --endpoints={PROXY} put who red
\x20 {program} ctl --endpoints={BLUE} get who                 (nothing: the tenant blue has keys of its own)
\x20 {program} ctl --endpoints={GATEWAY} get / --prefix       (as the cluster has them)
\x20 {program} ctl --endpoints={GATEWAY} member list -w table
"
        );
        if let Some(registry) = &self.registry {
            let (clients, peers) = ("127.0.0.1:62379", "127.0.0.1:62380");
            let _ = write!(
                text,
                "\
\x20 curl {url}
\x20 {program} --name=surplus --data-dir=surplus.watershed --listen-client-urls=http://{clients} --advertise-client-urls=http://{clients} \\
\x20   --listen-peer-urls=http://{peers} --initial-advertise-peer-urls=http://{peers} --discovery={url} --discovery-fallback=proxy
\x20 {program} ctl --endpoints={clients} get / --prefix       (the surplus member is a proxy of the others)
",
                url = registry.url
            );
        }
        text.push_str("\nAny etcd v3 client works on all ports. Ctrl-C stops.\n");
        text
    }
}

impl Registry {
    async fn start(data_dir: &Path, members: usize, tasks: &Tasks) -> anyhow::Result<Self> {
        let initial = format!("--initial-cluster=registry=http://{STORE_PEERS}");
        let config = member("registry", &data_dir.join("registry"), STORE_CLIENTS, STORE_PEERS, &[initial])?;
        let store = Server::start(&config, tasks).await?;
        let token = format!("{TOKEN}-{members}");
        let client = Client::connect(ClientConfig::new([STORE_CLIENTS.parse()?]))?;
        let (key, value) = (RegistryKeys::new(&token).size, members.to_string());
        let put = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        client.kv().put(put).await.context("make a discovery token")?;
        let flags = [format!("--listen-addr={REGISTRY}"), format!("--endpoints={STORE_CLIENTS}")];
        let config = parse_registry_config(&flags.map(OsString::from))?;
        let serving = registry::start(&config, tasks)?;
        Ok(Self { store, serving, url: format!("http://{REGISTRY}/{token}") })
    }
}

fn tenants_text() -> String {
    let tenant =
        |name: &str, listen: &str| format!("- name: {name}\n  namespace: /{name}/\n  match:\n  - listen: {listen}\n");
    format!("tenants:\n{}{}", tenant("red", PROXY), tenant("blue", BLUE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_have_ports_of_their_own() {
        let text = |number| places(number).0;
        assert_eq!([1, 2, 5].map(text), ["127.0.0.1:2379", "127.0.0.1:12379", "127.0.0.1:42379"]);
    }
}
