use std::path::PathBuf;

use tempfile::TempDir;
use watershed::client::Client;
use watershed::pb::etcdserverpb::PutRequest;

use super::deployment::{client, own_binary};
use super::process::{Process, free_port};
use super::until;

/// The proxy under test: ours, or another one that `WATERSHED_TEST_PROXY` names, to compare.
pub fn proxy_binary() -> PathBuf {
    std::env::var_os("WATERSHED_TEST_PROXY").map_or_else(own_binary, Into::into)
}

/// A proxy of its own process in front of some endpoints.
pub struct Proxy {
    pub process: Process,
    /// `host:port` that clients connect to.
    pub endpoint: String,
    /// Our client towards it.
    pub client: Client,
    _folder: TempDir,
}

impl Proxy {
    /// Starts it and waits for nothing.
    pub fn spawn(endpoints: &[&str], flags: &[&str]) -> Self {
        let folder = TempDir::new().expect("temporary directory");
        let endpoint = format!("127.0.0.1:{}", free_port());
        let list = format!("--endpoints={}", endpoints.join(","));
        let listen = format!("--listen-addr={endpoint}");
        let mut args = vec!["grpc-proxy", "start", list.as_str(), listen.as_str()];
        args.extend_from_slice(flags);
        let process = Process::start(&proxy_binary(), &args, folder.path(), "proxy");
        Self { process, client: client(&endpoint), endpoint, _folder: folder }
    }

    /// Starts it and waits until a write passes.
    pub async fn start(endpoints: &[&str]) -> Self {
        Self::start_with(endpoints, &[]).await
    }

    pub async fn start_with(endpoints: &[&str], flags: &[&str]) -> Self {
        let proxy = Self::spawn(endpoints, flags);
        until("a write", async || {
            let ready = PutRequest { key: "ready".into(), ..Default::default() };
            proxy.client.kv().put(ready).await.ok()
        })
        .await;
        proxy
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn output(&self) -> String {
        self.process.output()
    }
}
