use std::ffi::OsString;
use std::path::Path;

use super::parts::{GATEWAY, PROXY, member, try_ports};
use crate::cmd::grpc_proxy::{self, RunningProxy};
use crate::cmd::server::Server;
use crate::config::{GatewayConfig, parse_proxy_config};
use crate::discovery::StaticList;
use crate::gateway::Gateway;
use crate::net::Endpoint;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

const CLIENTS: &str = "127.0.0.1:2379";
const PEERS: &str = "127.0.0.1:2380";

/// One member, a gateway and a proxy.
pub(super) struct Single {
    server: Server,
    gateway: Gateway,
    proxy: RunningProxy,
}

impl Single {
    pub(super) async fn start(data_dir: &Path, tasks: &Tasks) -> anyhow::Result<Self> {
        let initial = format!("--initial-cluster=default=http://{PEERS}");
        let config = member("default", data_dir, CLIENTS, PEERS, &[initial])?;
        try_ports([CLIENTS, PEERS, GATEWAY, PROXY])?;
        let server = Server::start(&config, tasks).await?;
        let endpoint: Endpoint = CLIENTS.parse()?;
        let gateway_config = GatewayConfig::new(GATEWAY.parse().map_err(anyhow::Error::msg)?, vec![endpoint.clone()]);
        let gateway = Gateway::start(&gateway_config, &StaticList::new([endpoint]), &Metrics::new(), tasks).await?;
        let flags = [format!("--listen-addr={PROXY}"), format!("--endpoints={CLIENTS}")].map(OsString::from);
        let proxy_config = parse_proxy_config(&flags)?;
        let listed = grpc_proxy::listed_endpoints(&proxy_config, tasks).await?;
        let proxy = grpc_proxy::start(proxy_config, listed, tasks)?;
        Ok(Self { server, gateway, proxy })
    }

    /// Proxy and gateway first, so that no client is left in front of members that are gone.
    pub(super) async fn stop(self) {
        self.proxy.finish().await;
        self.gateway.finish().await;
        self.server.stop().await;
    }
}

pub(super) fn screen(program: &str, data: &str) -> String {
    format!(
        "\
watershed dev: a tier on loopback, one member, without TLS and users

  server    http://{CLIENTS}    gRPC (etcd v3 API), /health /readyz /metrics /version
  peers     http://{PEERS}    /members /version
  gateway   {GATEWAY}          TCP to the server
  proxy     http://{PROXY}   gRPC with coalesced watches and keep-alives, /proxy/health /proxy/metrics
  data      {data}

Try, in another terminal:

  {program} ctl --endpoints={PROXY} watch /a --prefix
  {program} ctl --endpoints={PROXY} put /a/1 x
  {program} ctl --endpoints={GATEWAY} get /a --prefix
  {program} ctl --endpoints={CLIENTS} endpoint status -w table
  {program} bench put --endpoints={CLIENTS} --clients=64 --conns=8 --total=100000

Any etcd v3 client works on all three ports. Ctrl-C stops.
"
    )
}
