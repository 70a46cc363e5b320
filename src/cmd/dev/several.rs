use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use futures::future::{join_all, try_join_all};

use super::parts::{CLIENTS, GATEWAY, Host, PEERS, PROXY, member, try_ports};
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
const STORE_CLIENTS: u16 = 2389;
const STORE_PEERS: u16 = 2390;
const REGISTRY: u16 = 2391;
/// The token is this and the number of members.
const TOKEN: &str = "dev";
/// The tenant `red` comes to the proxy's own address.
const BLUE: u16 = 23792;
const PROXY_PAGES: u16 = 23793;
const GATEWAY_PAGES: u16 = 23794;
/// Of a member that is proposed as one more.
const SURPLUS_CLIENTS: u16 = 62379;
const SURPLUS_PEERS: u16 = 62380;

/// A registry of discovery tokens on a member of its own.
struct Registry {
    store: Server,
    serving: RunningRegistry,
    /// Under which the members find each other.
    url: String,
}

/// Several members, a gateway, and a proxy with two tenants.
pub(super) struct Several {
    host: Host,
    registry: Option<Registry>,
    members: Vec<Server>,
    gateway: Gateway,
    proxy: RunningProxy,
}

/// Ports for clients and peers of a member, by its number from 1.
fn ports(number: u16) -> (u16, u16) {
    let more = (number - 1) * 10_000;
    (CLIENTS + more, PEERS + more)
}

/// The folder of a tier. Another number of members is another cluster, and members that were listed have not registered: nobody
/// finds them by a registry.
fn folder(members: u16, discovery: bool) -> String {
    format!("{members}-members{}", if discovery { "-registered" } else { "" })
}

impl Several {
    pub(super) async fn start(
        host: Host,
        data_dir: &Path,
        members: u16,
        discovery: bool,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let data_dir = data_dir.join(folder(members, discovery));
        let fixed = [GATEWAY, PROXY, BLUE, PROXY_PAGES, GATEWAY_PAGES];
        let of_registry = [STORE_CLIENTS, STORE_PEERS, REGISTRY];
        let of_members = (1..=members).map(ports).flat_map(|(clients, peers)| [clients, peers]);
        try_ports(host, fixed.into_iter().chain(of_members).chain(of_registry.into_iter().filter(|_| discovery)))?;
        std::fs::create_dir_all(&data_dir).with_context(|| data_dir.display().to_string())?;
        let all: Vec<_> = (1..=members).map(ports).map(|(clients, peers)| (host.at(clients), host.at(peers))).collect();
        let registry = if discovery { Some(Registry::start(host, &data_dir, members, tasks).await?) } else { None };
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
        let [listen, pages] = [GATEWAY, GATEWAY_PAGES].map(|port| host.at(port));
        let flags = [format!("--listen-addr={listen}"), format!("--metrics-addr={pages}"), source.clone()];
        let config = parse_gateway_config(&flags.map(OsString::from))?;
        let endpoints = endpoints_of_gateway(&config, tasks).await?.source;
        let gateway = Gateway::start(&config, &*endpoints, &Metrics::new(), tasks).await?;
        let tenants = data_dir.join("tenants.yaml");
        if !tenants.exists() {
            std::fs::write(&tenants, tenants_text(host)).with_context(|| tenants.display().to_string())?;
        }
        let mut tenants_flag = OsString::from("--tenants-file=");
        tenants_flag.push(&tenants);
        let [listen, pages] = [PROXY, PROXY_PAGES].map(|port| host.at(port));
        let flags = [format!("--listen-addr={listen}"), format!("--metrics-addr=http://{pages}"), source];
        let flags: Vec<_> = flags.into_iter().map(OsString::from).chain([tenants_flag]).collect();
        let config = parse_proxy_config(&flags)?;
        let listed = grpc_proxy::listed_endpoints(&config, tasks).await?;
        let proxy = grpc_proxy::start(config, listed, tasks)?;
        Ok(Self { host, registry, members, gateway, proxy })
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
        let (host, count) = (self.host, self.members.len());
        let [gateway, gateway_pages, proxy] = [GATEWAY, GATEWAY_PAGES, PROXY].map(|port| host.at(port));
        let [blue, proxy_pages, store] = [BLUE, PROXY_PAGES, STORE_CLIENTS].map(|port| host.at(port));
        let mut text = format!("watershed dev: a tier on loopback, {count} members, without TLS and users\n\n");
        for (number, (clients, peers)) in (1..).map(|number| (number, ports(number))).take(count) {
            let (clients, peers) = (host.at(clients), host.at(peers));
            let _ = writeln!(text, "  m{number}        http://{clients}    peers at http://{peers}");
        }
        if let Some(registry) = &self.registry {
            let _ = writeln!(text, "  discovery {}    in a member at http://{store}", registry.url);
        }
        let found = if self.registry.is_some() { "the members that registered" } else { "the members" };
        let _ = write!(
            text,
            "\
\x20 gateway   {gateway}           TCP to {found}; http://{gateway_pages}/gateway/status
\x20 proxy     http://{proxy}    gRPC for the tenant red (/red/), http://{blue} for blue (/blue/); http://{proxy_pages}/proxy/metrics
\x20 data      {data}

Try, in another terminal:

\x20 {program} ctl --endpoints={proxy} put who red
\x20 {program} ctl --endpoints={blue} get who                 (nothing: the tenant blue has keys of its own)
\x20 {program} ctl --endpoints={gateway} get / --prefix       (as the cluster has them)
\x20 {program} ctl --endpoints={gateway} member list -w table
"
        );
        if let Some(registry) = &self.registry {
            let [clients, peers] = [SURPLUS_CLIENTS, SURPLUS_PEERS].map(|port| host.at(port));
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
    async fn start(host: Host, data_dir: &Path, members: u16, tasks: &Tasks) -> anyhow::Result<Self> {
        let [clients, peers, listen] = [STORE_CLIENTS, STORE_PEERS, REGISTRY].map(|port| host.at(port));
        let initial = format!("--initial-cluster=registry=http://{peers}");
        let config = member("registry", &data_dir.join("registry"), &clients, &peers, &[initial])?;
        let store = Server::start(&config, tasks).await?;
        let token = format!("{TOKEN}-{members}");
        let client = Client::connect(ClientConfig::new([clients.parse()?]))?;
        let (key, value) = (RegistryKeys::new(&token).size, members.to_string());
        let put = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        client.kv().put(put).await.context("make a discovery token")?;
        let flags = [format!("--listen-addr={listen}"), format!("--endpoints={clients}")];
        let config = parse_registry_config(&flags.map(OsString::from))?;
        let serving = registry::start(&config, tasks)?;
        Ok(Self { store, serving, url: format!("http://{listen}/{token}") })
    }
}

fn tenants_text(host: Host) -> String {
    let tenant = |name: &str, port: u16| {
        format!("- name: {name}\n  namespace: /{name}/\n  match:\n  - listen: {}\n", host.at(port))
    };
    format!("tenants:\n{}{}", tenant("red", PROXY), tenant("blue", BLUE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_have_ports_of_their_own() {
        assert_eq!([1, 2, 5].map(ports), [(2379, 2380), (12379, 12380), (42379, 42380)]);
    }

    #[test]
    fn members_that_were_listed_are_not_looked_for_in_a_registry() {
        // Cause: `dev --members=3 --discovery` after `dev --members=3` waited for ever. The members had data and did not register, and
        // the gateway waited for the first one that did.
        let folders = [folder(3, false), folder(3, true), folder(2, true)];
        assert_eq!(folders, ["3-members", "3-members-registered", "2-members-registered"]);
    }
}
