//! `watershed dev`: a whole tier in one process, on the ports that its help names.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{MemberListRequest, PutRequest, RangeRequest, WatchCreateRequest};

use crate::harness::{PATIENCE, Process, Share, Watching, client, free_loopback, http_get, own_binary, soon, until};

const MEMBERS: [u16; 3] = [2379, 12_379, 22_379];
const PEERS: [u16; 3] = [2380, 12_380, 22_380];
/// Of the registry: its store for clients and peers, and itself.
const REGISTRY: [u16; 3] = [2389, 2390, 2391];
const GATEWAY: u16 = 23_790;
const RED: u16 = 23_791;
const BLUE: u16 = 23_792;
const PROXY_PAGES: u16 = 23_793;
const GATEWAY_PAGES: u16 = 23_794;

/// A tier on an address of its own.
struct Dev {
    host: Ipv4Addr,
    process: Process,
}

impl Dev {
    /// Starts it and waits until it says what there is.
    async fn start(host: Ipv4Addr, folder: &Path, flags: &[&str], name: &str) -> Self {
        let mut args = vec!["dev".to_owned(), format!("--host={host}")];
        args.extend(flags.iter().map(|&flag| flag.to_owned()));
        let temporary = folder.display().to_string();
        let process = Process::start_with(&own_binary(), &args, &[("TMPDIR", &temporary)], folder, name);
        let mut dev = Self { host, process };
        until("the start", || {
            assert!(dev.process.ended().is_none(), "{}", dev.process.output());
            std::future::ready(dev.process.output().contains("Ctrl-C stops.").then_some(()))
        })
        .await;
        dev
    }

    fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.host)
    }

    fn client(&self, port: u16) -> Client {
        client(&self.at(port))
    }

    async fn page(&self, port: u16, path: &str) -> String {
        http_get(&self.at(port), "GET", path).await.expect("an answer").body
    }

    /// Ends it by SIGTERM. Nothing of it runs or listens after that.
    async fn stop(self, folder: &Path) {
        let Self { host, mut process } = self;
        process.terminate();
        // Watches and calls that are open go on being served meanwhile.
        let ended = tokio::task::spawn_blocking(move || (process.wait(PATIENCE), process.output()));
        let (status, output) = soon("the end", ended).await.expect("it ends");
        assert!(status.success() && output.contains("\nstopping\n"), "{status}: {output}");
        let others = [GATEWAY, RED, BLUE, PROXY_PAGES, GATEWAY_PAGES];
        for port in MEMBERS.into_iter().chain(PEERS).chain(REGISTRY).chain(others) {
            assert!(TcpListener::bind((host, port)).is_ok(), "somebody listens on {port}");
        }
        assert_eq!(processes_in(folder), Vec::<String>::new());
    }
}

/// The processes that were started in a folder.
fn processes_in(folder: &Path) -> Vec<String> {
    let folder = folder.canonicalize().expect("a folder");
    let is_there =
        |entry: &std::fs::DirEntry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == folder);
    let all = std::fs::read_dir("/proc").expect("processes").flatten();
    all.filter(is_there).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn run(test: impl AsyncFnOnce(&Path)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let folder = TempDir::new().expect("temporary directory");
    runtime.block_on(test(folder.path()));
}

async fn put(client: &Client, key: &'static str, value: &'static str) -> i64 {
    let request = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    client.kv().put(request).await.expect("a write").into_inner().header.expect("a header").revision
}

/// The value of a key, if there is one.
async fn value(client: &Client, key: &'static str) -> Option<String> {
    let read = client.kv().range(RangeRequest { key: key.into(), ..Default::default() }).await.expect("a read");
    let pair = read.into_inner().kvs.pop()?;
    Some(String::from_utf8_lossy(&pair.value).into_owned())
}

#[test]
fn members_that_registered_a_gateway_and_two_tenants_are_one_command() {
    run(async |folder: &Path| {
        let _share = Share::of(4).await;
        let (host, flags) = (free_loopback(), ["--members=3", "--discovery"]);
        let dev = Dev::start(host, folder, &flags, "first").await;
        let registered = dev.page(REGISTRY[2], "/dev-3").await;
        for (member, peers) in ["m1", "m2", "m3"].iter().zip(PEERS) {
            assert!(registered.contains(&format!("{member}=http://{}", dev.at(peers))), "{registered}");
        }
        let gateway = dev.client(GATEWAY);
        let list = gateway.cluster().member_list(MemberListRequest { linearizable: true }).await.expect("members");
        assert_eq!(list.into_inner().members.len(), 3);
        let status: Value = serde_json::from_str(&dev.page(GATEWAY_PAGES, "/gateway/status").await).expect("JSON");
        let mut endpoints: Vec<_> = status["endpoints"]
            .as_array()
            .expect("endpoints")
            .iter()
            .filter_map(|row| row["endpoint"].as_str())
            .collect();
        endpoints.sort_unstable();
        let mut expected = MEMBERS.map(|port| dev.at(port));
        expected.sort_unstable();
        assert_eq!(endpoints, expected);

        let (red, blue) = (dev.client(RED), dev.client(BLUE));
        let who = || WatchCreateRequest { key: "who".into(), ..Default::default() };
        let (mut of_red, _) = Watching::create(&red, who()).await;
        let (mut of_blue, _) = Watching::create(&blue, who()).await;
        let first = put(&gateway, "/red/who", "red").await;
        let second = put(&gateway, "/blue/who", "blue").await;
        assert_eq!(of_red.events(1).await, [format!("+who=red@{first}")]);
        assert_eq!(of_blue.events(1).await, [format!("+who=blue@{second}")]);
        let third = put(&red, "who", "new").await;
        assert_eq!(of_red.events(1).await, [format!("+who=new@{third}")]);
        assert_eq!(value(&gateway, "/red/who").await.as_deref(), Some("new"));
        assert_eq!(value(&blue, "who").await.as_deref(), Some("blue"));
        assert!(dev.page(PROXY_PAGES, "/proxy/metrics").await.contains("watershed_discovery_endpoints"));
        dev.stop(folder).await;

        // The data stays, and who registered is known without being asked.
        let dev = Dev::start(host, folder, &flags, "second").await;
        assert_eq!(value(&dev.client(GATEWAY), "/red/who").await.as_deref(), Some("new"));
        assert_eq!(value(&dev.client(BLUE), "who").await.as_deref(), Some("blue"));
        dev.stop(folder).await;
    });
}

#[test]
fn a_tier_of_one_member_leaves_nothing_behind_if_it_is_told_so() {
    run(async |folder: &Path| {
        let _share = Share::of(1).await;
        let dev = Dev::start(free_loopback(), folder, &["--ephemeral"], "dev").await;
        put(&dev.client(GATEWAY), "k", "v").await;
        assert_eq!(value(&dev.client(RED), "k").await.as_deref(), Some("v"));
        dev.stop(folder).await;
        let left: Vec<_> =
            std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["dev.log"]);
    });
}

#[test]
fn a_tier_that_is_told_to_stop_while_it_starts_leaves_nothing_behind_either() {
    // Cause: the signal ended the process at once, and the temporary folder stayed.
    run(async |folder: &Path| {
        let _share = Share::of(1).await;
        let args = ["dev".to_owned(), format!("--host={}", free_loopback()), "--ephemeral".to_owned()];
        let temporary = folder.display().to_string();
        let mut process = Process::start_with(&own_binary(), &args, &[("TMPDIR", &temporary)], folder, "dev");
        let names = || -> Vec<_> {
            std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.file_name()).collect()
        };
        until("the temporary folder", async || (names().len() > 1).then_some(())).await;
        process.terminate();
        let status = process.wait(PATIENCE);
        assert!(status.success(), "{status}: {}", process.output());
        assert_eq!(names(), ["dev.log"]);
    });
}

#[test]
fn a_tier_with_discovery_starts_after_one_without() {
    // Cause: both had their data in one folder. Members with data did not register, and the gateway waited for ever for one that did.
    run(async |folder: &Path| {
        let _share = Share::of(3).await;
        let host = free_loopback();
        Dev::start(host, folder, &["--members=2"], "listed").await.stop(folder).await;
        Dev::start(host, folder, &["--members=2", "--discovery"], "registered").await.stop(folder).await;
    });
}

#[test]
fn wrong_flags_of_a_tier_are_refused() {
    run(async |folder: &Path| {
        for (flags, reason) in [
            (&["--host=10.0.0.1"][..], "\"--host\" flag: must be in 127.0.0.0/8: the tier has neither TLS nor users"),
            (&["--host=localhost"], "\"--host\" flag: invalid IPv4 address syntax"),
            (&["--members=6"], "\"--members\" flag: 6 is not in 1..=5"),
            (&["--ephemeral", "--data-dir=d"], "--ephemeral and --data-dir exclude each other"),
        ] {
            let args: Vec<&str> = std::iter::once("dev").chain(flags.iter().copied()).collect();
            let mut process = Process::start(&own_binary(), &args, folder, "refused");
            let status = process.wait(PATIENCE);
            assert!(status.code() == Some(1) && process.output().contains(reason), "{status}: {}", process.output());
        }
    });
}

#[test]
fn a_port_in_use_is_named_before_anything_is_written() {
    run(async |folder: &Path| {
        let host = free_loopback();
        let taken = TcpListener::bind((host, BLUE)).expect("a port");
        let host = format!("--host={host}");
        let mut process =
            Process::start(&own_binary(), &["dev", &host, "--members=3", "--data-dir=d"], folder, "taken");
        assert_eq!(process.wait(PATIENCE).code(), Some(1));
        let text = format!("listen tcp {}: bind: address already in use", taken.local_addr().expect("bound"));
        assert!(process.output().contains(&text), "{}", process.output());
        assert!(!folder.join("d").exists());
    });
}
