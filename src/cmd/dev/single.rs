use std::ffi::OsString;
use std::path::Path;

use super::parts::{CLIENTS, GATEWAY, Host, PEERS, PROXY, member, try_ports};
use crate::cmd::grpc_proxy::{self, RunningProxy};
use crate::cmd::server::Server;
use crate::config::{GatewayConfig, parse_proxy_config};
use crate::discovery::StaticList;
use crate::gateway::Gateway;
use crate::net::Endpoint;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// One member, a gateway and a proxy.
pub(super) struct Single {
    host: Host,
    server: Server,
    gateway: Gateway,
    proxy: RunningProxy,
}

impl Single {
    pub(super) async fn start(host: Host, data_dir: &Path, tasks: &Tasks) -> anyhow::Result<Self> {
        let [clients, peers, gateway, proxy] = [CLIENTS, PEERS, GATEWAY, PROXY].map(|port| host.at(port));
        let initial = format!("--initial-cluster=default=http://{peers}");
        let config = member("default", data_dir, &clients, &peers, &[initial])?;
        try_ports(host, [CLIENTS, PEERS, GATEWAY, PROXY])?;
        let server = Server::start(&config, tasks).await?;
        let endpoint: Endpoint = clients.parse()?;
        let gateway_config = GatewayConfig::new(gateway.parse().map_err(anyhow::Error::msg)?, vec![endpoint.clone()]);
        let gateway = Gateway::start(&gateway_config, &StaticList::new([endpoint]), &Metrics::new(), tasks).await?;
        let flags = [format!("--listen-addr={proxy}"), format!("--endpoints={clients}")].map(OsString::from);
        let proxy_config = parse_proxy_config(&flags)?;
        let listed = grpc_proxy::listed_endpoints(&proxy_config, tasks).await?;
        let proxy = grpc_proxy::start(proxy_config, listed, tasks)?;
        Ok(Self { host, server, gateway, proxy })
    }

    /// Proxy and gateway first, so that no client is left in front of members that are gone.
    pub(super) async fn stop(self) {
        self.proxy.finish().await;
        self.gateway.finish().await;
        self.server.stop().await;
    }

    pub(super) fn screen(&self, program: &str, data: &str) -> String {
        let [clients, peers, gateway, proxy] = [CLIENTS, PEERS, GATEWAY, PROXY].map(|port| self.host.at(port));
        format!(
            "\
watershed dev: a tier on loopback, one member, without TLS and users

  server    http://{clients}    gRPC (etcd v3 API), /health /readyz /metrics /version
  peers     http://{peers}    /members /version
  gateway   {gateway}          TCP to the server
  proxy     http://{proxy}   gRPC with coalesced watches and keep-alives, /proxy/health /proxy/metrics
  data      {data}

Try, in another terminal:

  {program} ctl --endpoints={proxy} watch /a --prefix
  {program} ctl --endpoints={proxy} put /a/1 x
  {program} ctl --endpoints={gateway} get /a --prefix
  {program} ctl --endpoints={clients} endpoint status -w table
  {program} bench put --endpoints={clients} --clients=64 --conns=8 --total=100000

Any etcd v3 client works on all three ports. Ctrl-C stops.
"
        )
    }
}
