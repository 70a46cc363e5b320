//! `grpc-proxy start --tenants-file`: many tenants in one process, none of whom sees another.

mod compaction;
mod identities;
mod isolation;
#[allow(dead_code, reason = "the unit tests that share it use the rest")]
#[path = "../../../src/proxy/namespace/tests/lawful.rs"]
mod lawful;
mod limits;
mod reload;
mod scale;
mod stored;

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use tonic::Code;
use watershed::client::Client;
use watershed::pb::etcdserverpb::*;

use crate::harness::{
    Deployment, Process, Target, Watching, client, free_port, http_get, in_words, json, own_binary, refused, run, until,
};

const DENIED: &str = "etcdserver: permission denied";
const NO_TENANT: &str = "the gRPC proxy serves no tenant that matches this client";

/// A proxy with a file of tenants.
struct Tier {
    process: Process,
    /// `--listen-addr`, where nobody is a tenant unless the file says so.
    main: String,
    metrics: String,
    folder: TempDir,
}

impl Tier {
    /// In front of the member, with this file and these flags.
    fn start(deployment: &Deployment, file: &str, flags: &[String]) -> Self {
        Self::in_folder(TempDir::new().expect("temporary directory"), &deployment.endpoint, file, flags)
    }

    fn in_folder(folder: TempDir, endpoint: &str, file: &str, flags: &[String]) -> Self {
        let path = folder.path().join("tenants.yaml");
        fs::write(&path, file).expect("written");
        let [main, metrics] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let mut args: Vec<String> = ["grpc-proxy", "start"].map(str::to_owned).to_vec();
        args.push(format!("--endpoints={endpoint}"));
        args.push(format!("--listen-addr={main}"));
        args.push(format!("--metrics-addr=http://{metrics}"));
        args.push(format!("--tenants-file={}", path.display()));
        args.extend_from_slice(flags);
        let process = Process::start(&own_binary(), &args, folder.path(), "grpc-proxy");
        Self { process, main, metrics, folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("tenants.yaml")
    }

    /// Puts another file in its place, and waits until the proxy has read it; `outcome` is what it made of it.
    async fn replace(&self, file: &str, outcome: &str) {
        let before = self.reloads(outcome).await;
        let new = self.file().with_extension("new");
        fs::write(&new, file).expect("written");
        fs::rename(new, self.file()).expect("replaced");
        self.process.signal(rustix::process::Signal::HUP);
        until("the file is read", async || (self.reloads(outcome).await > before).then_some(())).await;
    }

    async fn reloads(&self, outcome: &str) -> u64 {
        let name = format!("watershed_proxy_tenants_reloads_total{{outcome=\"{outcome}\"}} ");
        self.metric(&name).await.unwrap_or(0)
    }

    /// The value of a series, by its name and the blank behind it.
    async fn metric(&self, name: &str) -> Option<u64> {
        let page = http_get(&self.metrics, "GET", "/proxy/metrics").await.ok()?.body;
        page.lines().find_map(|line| line.strip_prefix(name)?.parse().ok())
    }
}

/// Two tenants with neighbouring namespaces, each by the listener it comes to.
fn two(a: &str, b: &str) -> String {
    format!(
        "tenants:\n\
         - {{name: a, namespace: t/a/, match: [{{listen: '{a}'}}]}}\n\
         - {{name: b, namespace: t/b/, match: [{{listen: '{b}'}}]}}\n"
    )
}

fn address() -> String {
    format!("127.0.0.1:{}", free_port())
}

async fn answers(client: &Client) {
    until("the tenant is served", async || client.kv().range(all()).await.ok()).await;
}

fn all() -> RangeRequest {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

async fn keys(client: &Client) -> Vec<String> {
    let answer = client.kv().range(all()).await.expect("range").into_inner();
    answer.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

fn watch_all() -> WatchCreateRequest {
    WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

#[test]
fn each_listener_is_a_tenant_and_nobody_else_is_one() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("t/a", "not theirs").await;
        deployment.put("t/b0", "not theirs").await;
        let [a, b] = [address(), address()];
        let tier = Tier::start(deployment, &two(&a, &b), &[]);
        let (of_a, of_b) = (client(&a), client(&b));
        answers(&of_a).await;
        answers(&of_b).await;
        let (mut watching_a, _) = Watching::create(&of_a, watch_all()).await;
        let (mut watching_b, _) = Watching::create(&of_b, watch_all()).await;
        of_a.kv().put(put("k", "a")).await.expect("put");
        of_b.kv().put(put("k", "b")).await.expect("put");
        assert_eq!(deployment.get("t/a/k").await.kvs[0].value, "a");
        assert_eq!((keys(&of_a).await, keys(&of_b).await), (vec!["k".to_owned()], vec!["k".to_owned()]));
        let words = |answer: WatchResponse| in_words(&answer).concat();
        assert!(words(watching_a.next().await).starts_with("+k=a@"));
        assert!(words(watching_b.next().await).starts_with("+k=b@"));
        // In JSON as well: `Aw==` is nothing that exists, `AA==` the zero byte.
        let (status, answer) = json(&b, "/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#).await;
        assert_eq!((status, answer["kvs"][0]["value"].as_str()), (200, Some("Yg==")), "{answer}");
        // A lease of one is none of the other.
        let id = of_a.lease().lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("grant").into_inner().id;
        let lost = of_b.lease().lease_revoke(LeaseRevokeRequest { id }).await;
        refused(lost, Code::NotFound, "etcdserver: requested lease not found");
        let leases = of_b.lease().lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner().leases;
        assert!(leases.is_empty(), "{leases:?}");
        // Who is no tenant gets nothing, and what reaches beyond is closed to tenants.
        refused(client(&tier.main).kv().range(all()).await, Code::PermissionDenied, NO_TENANT);
        let (status, answer) = json(&tier.main, "/v3/kv/range", r#"{"key":"AA=="}"#).await;
        assert_eq!((status, answer["message"].as_str()), (403, Some(NO_TENANT)), "{answer}");
        let compact = of_a.kv().compact(CompactionRequest { revision: 1, physical: false }).await;
        refused(compact, Code::PermissionDenied, DENIED);
    });
}

#[test]
fn pages_that_tell_of_all_clients_are_for_the_operator() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let tier = Tier::start(deployment, &two(&a, &b), &["--enable-pprof".to_owned()]);
        answers(&client(&a)).await;
        for address in [&a, &tier.main] {
            for (path, status) in [
                ("/metrics", 404),
                ("/proxy/metrics", 404),
                ("/debug/vars", 404),
                ("/debug/pprof/", 404),
                ("/health", 200),
                ("/readyz", 200),
                ("/version", 200),
            ] {
                assert_eq!(http_get(address, "GET", path).await.expect("a page").status, status, "{address} {path}");
            }
        }
        for path in ["/metrics", "/proxy/metrics", "/debug/vars"] {
            assert_eq!(http_get(&tier.metrics, "GET", path).await.expect("a page").status, 200, "{path}");
        }
        assert_eq!(tier.metric("watershed_proxy_tenants ").await, Some(2));
    });
}

#[test]
fn a_tenant_that_reads_changes_nothing() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let revision = deployment.put("t/k", "v").await;
        let [reader, writer] = [address(), address()];
        let file = format!(
            "tenants:\n\
             - {{name: reader, namespace: t/, read-only: true, match: [{{listen: '{reader}'}}]}}\n\
             - {{name: writer, namespace: t/, contains: [reader], match: [{{listen: '{writer}'}}]}}\n"
        );
        let _tier = Tier::start(deployment, &file, &[]);
        let (reader, writer) = (client(&reader), client(&writer));
        answers(&reader).await;
        answers(&writer).await;
        let (mut watching, _) =
            Watching::create(&reader, WatchCreateRequest { start_revision: revision, ..watch_all() }).await;
        assert_eq!(in_words(&watching.next().await), [format!("+k=v@{revision}")]);
        let op = |request| RequestOp { request: Some(request) };
        let get = op(request_op::Request::RequestRange(all()));
        let set = op(request_op::Request::RequestPut(put("k", "w")));
        let txn = |success| TxnRequest { success, ..TxnRequest::default() };
        assert!(
            reader.kv().txn(txn(vec![get.clone()])).await.expect("a transaction that reads").into_inner().succeeded
        );
        let nested = op(request_op::Request::RequestTxn(txn(vec![set.clone()])));
        refused(reader.kv().txn(txn(vec![get, nested])).await, Code::PermissionDenied, DENIED);
        refused(reader.kv().put(put("k", "w")).await, Code::PermissionDenied, DENIED);
        let wipe = DeleteRangeRequest { key: "k".into(), ..Default::default() };
        refused(reader.kv().delete_range(wipe).await, Code::PermissionDenied, DENIED);
        let grant = LeaseGrantRequest { ttl: 60, id: 0 };
        refused(reader.lease().lease_grant(grant).await, Code::PermissionDenied, DENIED);
        let lease = writer.lease().lease_grant(grant).await.expect("grant").into_inner().id;
        let keep_alive = tokio_stream::iter([LeaseKeepAliveRequest { id: lease }]);
        refused(reader.lease().lease_keep_alive(keep_alive).await, Code::PermissionDenied, DENIED);
        refused(reader.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await, Code::PermissionDenied, DENIED);
        let request = LeaseTimeToLiveRequest { id: lease, keys: true };
        assert!(reader.lease().lease_time_to_live(request).await.expect("may be seen").into_inner().ttl > 0);
        assert_eq!(deployment.get("t/k").await.kvs[0].mod_revision, revision);
    });
}

#[test]
fn what_is_wrong_with_the_file_is_said_with_its_line() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let file = "tenants:\n- name: a\n  namespace: t/\n  match:\n  - {listen: '127.0.0.1:1', sni: a}\n";
        let mut tier = Tier::start(deployment, file, &[]);
        assert!(!tier.process.wait(crate::harness::PATIENCE).success());
        let expected = "tenants.yaml: line 5: tenants[0].match[0].sni: no listener knows it without --cert-file";
        let output = tier.process.output();
        assert!(output.contains(expected), "{output}");
    });
}

#[test]
fn the_example_works() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let example = fs::read_to_string("contrib/tenants.yaml").expect("the example");
        let [writer, reader] = [address(), address()];
        let file = example.replace("127.0.0.1:23801", &writer).replace("127.0.0.1:23802", &reader);
        let tier = Tier::start(deployment, &file, &[]);
        let (writer, reader) = (client(&writer), client(&reader));
        answers(&writer).await;
        writer.kv().put(put("k", "v")).await.expect("put");
        assert_eq!(keys(&reader).await, ["k"]);
        refused(reader.kv().put(put("k", "w")).await, Code::PermissionDenied, DENIED);
        assert_eq!(tier.metric("watershed_proxy_tenants ").await, Some(3));
    });
}
