//! Where a server's configuration comes from: arguments, variables, a file; and which of them counts.

use std::path::Path;

use tempfile::TempDir;
use watershed::client::{Client, ClientConfig};
use watershed::pb::etcdserverpb::auth_client::AuthClient;
use watershed::pb::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
    MemberListRequest, RangeRequest,
};

use crate::harness::{Authority, PATIENCE, Process, client, client_tls, free_port, http_get, https, until};

/// A server in a folder of its own, with what it is told.
struct Told {
    folder: TempDir,
    client: String,
    peer: String,
}

impl Told {
    fn new() -> Self {
        let address = || format!("http://127.0.0.1:{}", free_port());
        Self { folder: TempDir::new().expect("temporary directory"), client: address(), peer: address() }
    }

    /// Writes a file into the folder and names it.
    fn file(&self, text: &str) -> String {
        let path = self.folder.path().join("etcd.yaml");
        let data = self.folder.path().join("data").display().to_string();
        let text = text.replace("CLIENT", &self.client).replace("PEER", &self.peer).replace("DATA", &data);
        std::fs::write(&path, text).expect("write the file");
        path.display().to_string()
    }

    fn start(&self, args: &[&str], variables: &[(&str, &str)]) -> Process {
        Process::start_with(Path::new(env!("CARGO_BIN_EXE_watershed")), args, variables, self.folder.path(), "told")
    }

    /// Runs to the end; exit code and output.
    fn refused(&self, args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut process = self.start(args, variables);
        let code = process.wait(PATIENCE).code();
        let output = process.output();
        std::fs::remove_file(self.folder.path().join("told.log")).expect("log file");
        (code, output)
    }

    /// Waits until it answers, and returns its output.
    fn serves(&self, mut process: Process) -> String {
        self.serves_and(&mut process, async |_| {});
        process.output()
    }

    /// Waits until it answers, and does something with a client.
    fn serves_and(&self, process: &mut Process, then: impl AsyncFnOnce(Client)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let client = client(self.client.trim_start_matches("http://"));
            let kv = client.kv();
            until("the start", || {
                assert!(process.ended().is_none(), "ended at its start:\n{}", process.output());
                let mut kv = kv.clone();
                async move { kv.range(RangeRequest { key: "ready".into(), ..Default::default() }).await.ok() }
            })
            .await;
            then(client).await;
        });
    }
}

#[test]
fn a_file_replaces_flags_and_variables() {
    let told = Told::new();
    let file = told.file(
        "name: from-file\n\
         data-dir: DATA\n\
         listen-client-urls: CLIENT\n\
         advertise-client-urls: CLIENT\n\
         listen-peer-urls: PEER\n\
         initial-advertise-peer-urls: PEER\n\
         initial-cluster: from-file=PEER\n\
         grpc-keepalive-min-time: 5000000000\n\
         proxy: 'off'\n\
         no-such-key: 1\n",
    );
    // A flag and a variable that contradict each other and the file: neither counts.
    let process = told.start(&["--config-file", &file, "--name=a"], &[("ETCD_NAME", "b"), ("ETCD_LOG_LEVEL", "odd")]);
    let output = told.serves(process);
    for line in [
        "loaded server configuration, other configuration command line flags",
        r#""key":"no-such-key","line":10"#,
        r#""key":"proxy","line":9,"successor":"--discovery-fallback=proxy for a surplus member, or the grpc-proxy and gateway commands""#,
    ] {
        assert!(output.contains(line), "{line}: {output}");
    }
    assert!(told.folder.path().join("data/member").is_dir());
}

#[test]
fn a_variable_may_name_the_file() {
    let told = Told::new();
    let file = told.file(
        r#"{"name": "j", "data-dir": "DATA", "listen-client-urls": "CLIENT", "listen-peer-urls": "PEER",
            "initial-advertise-peer-urls": "PEER", "initial-cluster": "j=PEER"}"#,
    );
    let output = told.serves(told.start(&[], &[("ETCD_CONFIG_FILE", file.as_str())]));
    assert!(output.contains("loaded server configuration"), "{output}");
}

#[test]
fn variables_configure_a_server_as_in_a_container() {
    let told = Told::new();
    let cluster = format!("v={}", told.peer);
    let data = told.folder.path().join("data").display().to_string();
    let variables = [
        ("ETCD_NAME", "v"),
        ("ETCD_DATA_DIR", &data),
        ("ETCD_LISTEN_CLIENT_URLS", &told.client),
        ("ETCD_ADVERTISE_CLIENT_URLS", &told.client),
        ("ETCD_LISTEN_PEER_URLS", &told.peer),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", &told.peer),
        ("ETCD_INITIAL_CLUSTER", &cluster),
        ("ETCD_LOG_LEVEL", ""),
        ("ETCD_VERSION", "3.5.0"),
        ("ETCD_ROOT_PASSWORD", "s3cret"),
        ("ETCD_EXPERIMENTAL_MAX_LEARNERS", "s3cret"),
    ];
    let output = told.serves(told.start(&[], &variables));
    for line in [
        r#""msg":"recognized and used environment variable","variable-name":"ETCD_NAME""#,
        r#""msg":"cannot set special environment variable","key":"ETCD_VERSION""#,
        r#""msg":"unrecognized environment variable","environment-variable":"ETCD_ROOT_PASSWORD""#,
        r#""environment-variable":"ETCD_EXPERIMENTAL_MAX_LEARNERS","successor":"--max-learners""#,
    ] {
        assert!(output.contains(line), "{line}: {output}");
    }
    assert!(!output.contains("s3cret") && !output.contains("ETCD_LOG_LEVEL"), "{output}");
}

#[test]
fn refusals_have_etcds_form_and_exit_code() {
    let told = Told::new();
    let file = told.file("name: x\ngrpc-keepalive-min-time: 5s\n");
    let shadowed = "conflicting environment variable \\\"ETCD_NAME\\\" is shadowed";
    for (args, variables, code, text) in [
        (vec!["--nope"], vec![], 2, "flag provided but not defined: -nope\nUsage:"),
        (vec!["--experimental-max-learners=2"], vec![], 2, "was removed from etcd, use --max-learners\nUsage:"),
        (
            vec!["--proxy=on"],
            vec![],
            2,
            "--proxy was removed from etcd, use --discovery-fallback=proxy for a surplus member",
        ),
        (
            vec!["--heartbeat-interval=x"],
            vec![],
            2,
            "invalid value \"x\" for flag -heartbeat-interval: parse error\nUsage:",
        ),
        (vec!["extra"], vec![("ETCD_NAME", "x")], 1, "unknown command"),
        (vec!["--name=a"], vec![("ETCD_NAME", "b")], 1, shadowed),
        (vec![], vec![("ETCD_HEARTBEAT_INTERVAL", "x")], 1, "for ETCD_HEARTBEAT_INTERVAL: parse error"),
        (
            vec!["--config-file=/no/such"],
            vec![],
            1,
            r#""msg":"failed to verify flags","error":"/no/such: No such file"#,
        ),
        (vec!["--config-file", &file], vec![], 1, "line 2: cannot unmarshal string into field grpc-keepalive-min-time"),
        (vec!["--name=x", "--version"], vec![], 0, "etcd Version: 3."),
    ] {
        let (exit, output) = told.refused(&args, &variables);
        assert_eq!(exit, Some(code), "{args:?}: {output}");
        assert!(output.contains(text), "{args:?}: {text}: {output}");
    }
}

// The container of Bitnami: variables only, some of which are its own, JSON web tokens with the key it makes (PKCS #1),
// and the calls of its set-up script.
#[test]
fn bitnamis_container_starts_its_member_unchanged() {
    let told = Told::new();
    let key = told.folder.path().join("jwt-token.pem");
    std::fs::write(&key, include_str!("../../src/core/auth/jwt/tests/rsa-pkcs1.pem")).expect("write the key");
    let token = format!("jwt,priv-key={},sign-method=RS256,ttl=10m", key.display());
    let data = told.folder.path().join("data").display().to_string();
    let cluster = format!("etcd-0={}", told.peer);
    let variables = [
        ("BITNAMI_DEBUG", "false"),
        ("ALLOW_NONE_AUTHENTICATION", "no"),
        ("ETCD_ROOT_PASSWORD", "s3cret"),
        ("ETCDCTL_API", "3"),
        ("ETCD_ON_K8S", "yes"),
        ("ETCD_START_FROM_SNAPSHOT", "no"),
        ("ETCD_DISASTER_RECOVERY", "no"),
        ("ETCD_CLUSTER_DOMAIN", "etcd-headless.default.svc.cluster.local"),
        ("ETCD_NAME", "etcd-0"),
        ("ETCD_DATA_DIR", &data),
        ("ETCD_LOG_LEVEL", "info"),
        ("ETCD_AUTH_TOKEN", &token),
        ("ETCD_ADVERTISE_CLIENT_URLS", &told.client),
        ("ETCD_LISTEN_CLIENT_URLS", &told.client),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", &told.peer),
        ("ETCD_LISTEN_PEER_URLS", &told.peer),
        ("ETCD_INITIAL_CLUSTER_TOKEN", "etcd-cluster-k8s"),
        ("ETCD_INITIAL_CLUSTER_STATE", "new"),
        ("ETCD_INITIAL_CLUSTER", &cluster),
        ("ETCD_AUTO_COMPACTION_MODE", ""),
        ("ETCD_CERT_FILE", ""),
        ("ETCD_BCRYPT_COST", "4"),
    ];
    let mut process = told.start(&[], &variables);
    told.serves_and(&mut process, async |client| {
        let (name, password, role) = ("root".to_owned(), "s3cret".to_owned(), "root".to_owned());
        let user = AuthUserAddRequest { name: name.clone(), password: password.clone(), ..Default::default() };
        let mut auth = AuthClient::new(client.channel());
        auth.user_add(user).await.expect("user add root");
        auth.role_add(AuthRoleAddRequest { name: role.clone() }).await.expect("role add root");
        auth.user_grant_role(AuthUserGrantRoleRequest { user: name.clone(), role }).await.expect("grant");
        auth.auth_enable(AuthEnableRequest {}).await.expect("auth enable");
        let login = AuthenticateRequest { name, password };
        let token = auth.authenticate(login).await.expect("login").into_inner().token;
        assert_eq!(token.split('.').count(), 3, "a JSON web token");
    });
    let output = process.output();
    assert!(output.contains("ETCD_ROOT_PASSWORD") && !output.contains("s3cret"), "{output}");
    assert!(!output.contains("ETCD_CERT_FILE"), "empty ones count as not set: {output}");
}

// The compose file of Milvus: single dashes, and variables for the rest.
#[test]
fn milvus_starts_its_store_unchanged() {
    let told = Told::new();
    let link = told.folder.path().join("etcd");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_watershed"), &link).expect("link");
    let (advertised, listening) =
        (format!("-advertise-client-urls={}", told.client), [String::from("-listen-client-urls"), told.client.clone()]);
    let data = told.folder.path().join("etcd-data").display().to_string();
    let peers = format!("--listen-peer-urls={}", told.peer);
    let args = [&advertised, &listening[0], &listening[1], "--data-dir", &data, &peers];
    let variables = [
        ("ETCD_AUTO_COMPACTION_MODE", "revision"),
        ("ETCD_AUTO_COMPACTION_RETENTION", "1000"),
        ("ETCD_QUOTA_BACKEND_BYTES", "4294967296"),
        ("ETCD_SNAPSHOT_COUNT", "50000"),
        ("ETCD_BOOTSTRAP_DEFRAG_THRESHOLD_MEGABYTES", "1000"),
    ];
    let process = Process::start_with(&link, &args, &variables, told.folder.path(), "told");
    let output = told.serves(process);
    for line in [
        r#""snapshot-count":50000"#,
        r#""quota":"Bytes(4294967296)""#,
        r#""auto-compaction":"Revision(1000)""#,
        r#""msg":"Skipping defragmentation""#,
        r#""msg":"published local member to cluster through raft""#,
    ] {
        assert!(output.contains(line), "{line}: {output}");
    }
}

/// The ports of a member of a control plane.
struct ControlPlane {
    told: Told,
    clients: u16,
    peers: u16,
    probes: u16,
}

impl ControlPlane {
    /// One with the certificates `server` and `peer` for the member and `client` for its clients.
    fn new() -> Self {
        let told = Told::new();
        let authority = Authority::new(told.folder.path(), "ca");
        authority.sign("server", |_| {});
        authority.sign("peer", |_| {});
        authority.sign_user("client", "kube-apiserver-etcd-client");
        Self { told, clients: free_port(), peers: free_port(), probes: free_port() }
    }

    /// Puts ports and folders in place of those of the usual host.
    fn filled(&self, text: &str) -> String {
        let folder = self.told.folder.path().display().to_string();
        let text = text.replace(":2379", &format!(":{}", self.clients)).replace(":2380", &format!(":{}", self.peers));
        // Of this host, too, and another than 127.0.0.1.
        let text = text.replace("10.0.0.1", "127.0.0.2");
        text.replace(":2381", &format!(":{}", self.probes)).replace("FOLDER", &folder)
    }

    /// Waits until it answers clients that have a certificate, and looks at what others see, with this certificate or none;
    /// returns the output.
    fn serves(&self, mut process: Process, stranger: Option<&str>) -> String {
        let folder = self.told.folder.path();
        let (endpoint, probes) = (format!("https://127.0.0.1:{}", self.clients), format!("127.0.0.1:{}", self.probes));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let tls = Some(client_tls(folder, Some("client")));
            let config = ClientConfig { tls, ..ClientConfig::new([endpoint.parse().expect("an endpoint")]) };
            let client = Client::connect(config).expect("a client");
            until("the start", || {
                assert!(process.ended().is_none(), "ended at its start:\n{}", process.output());
                let mut cluster = client.cluster();
                async move {
                    let members =
                        cluster.member_list(MemberListRequest { linearizable: true }).await.ok()?.into_inner();
                    let published = format!("https://127.0.0.2:{}", self.clients);
                    (members.members.first()?.client_ur_ls == [published]).then_some(())
                }
            })
            .await;
            for probe in ["/livez", "/readyz", "/health?serializable=true&exclude=NOSPACE", "/metrics"] {
                assert_eq!(http_get(&probes, "GET", probe).await.expect("an answer").status, 200, "{probe}");
            }
            let stranger = client_tls(folder, stranger);
            https(&endpoint, Some(&stranger), "GET", "/health", "").await.expect_err("it is not let in");
        });
        process.output()
    }
}

// The static pod that kubeadm writes since Kubernetes 1.34, whose etcd is 3.6 or newer.
#[test]
fn kubeadms_static_pod_starts_its_member_unchanged() {
    let plane = ControlPlane::new();
    let flags = plane.filled(
        "--advertise-client-urls=https://10.0.0.1:2379 --cert-file=FOLDER/server.crt --client-cert-auth=true \
         --data-dir=FOLDER/data --feature-gates=InitialCorruptCheck=true \
         --initial-advertise-peer-urls=https://10.0.0.1:2380 --initial-cluster=node=https://10.0.0.1:2380 \
         --key-file=FOLDER/server.key --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379 \
         --listen-metrics-urls=http://127.0.0.1:2381 --listen-peer-urls=https://10.0.0.1:2380 --name=node \
         --peer-cert-file=FOLDER/peer.crt --peer-client-cert-auth=true --peer-key-file=FOLDER/peer.key \
         --peer-trusted-ca-file=FOLDER/ca --snapshot-count=10000 --trusted-ca-file=FOLDER/ca \
         --watch-progress-notify-interval=5s",
    );
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let link = plane.told.folder.path().join("etcd");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_watershed"), &link).expect("link");
    let process = Process::start_with(&link, &flags, &[], plane.told.folder.path(), "told");
    let output = plane.serves(process, None);
    assert!(output.contains("serving client traffic securely"), "{output}");
}

#[test]
fn rke2s_file_starts_its_member_unchanged() {
    let plane = ControlPlane::new();
    let text = include_str!("../../src/config/server/setups/rke2.yaml");
    let [tls, data] = ["/var/lib/rancher/rke2/server/tls/etcd", "/var/lib/rancher/rke2/server/db/etcd"];
    // Its folders are those of the test, its certificates have shorter names here.
    let text =
        text.replace(tls, "FOLDER").replace(data, "DATA").replace("server-ca.crt", "ca").replace("peer-ca.crt", "ca");
    let text = text.replace("peer-server-client", "peer").replace("server-client", "server");
    let file = plane.told.file(&plane.filled(&text));
    let output = plane.serves(plane.told.start(&["--config-file", &file], &[]), None);
    assert!(output.contains(r#""key":"experimental-initial-corrupt-check""#), "{output}");
}

// A key of etcd's file that has no flag.
#[test]
fn a_file_may_name_the_clients_that_are_let_in() {
    let plane = ControlPlane::new();
    let authority = Authority::new(plane.told.folder.path(), "ca");
    for (name, user) in [("server", "server"), ("peer", "peer"), ("client", "let-in"), ("other", "other")] {
        authority.sign_user(name, user);
    }
    let file = plane.told.file(&plane.filled(
        "name: one\ndata-dir: DATA\nadvertise-client-urls: https://10.0.0.1:2379\n\
         listen-client-urls: https://127.0.0.1:2379\nlisten-metrics-urls: http://127.0.0.1:2381\n\
         listen-peer-urls: PEER\ninitial-advertise-peer-urls: PEER\ninitial-cluster: one=PEER\n\
         client-transport-security:\n  cert-file: FOLDER/server.crt\n  key-file: FOLDER/server.key\n  \
         client-cert-auth: true\n  trusted-ca-file: FOLDER/ca\n  allowed-cn: [let-in, also]\n",
    ));
    let process = plane.told.start(&["--config-file", &file], &[]);
    plane.serves(process, Some("other"));
}

/// Whether a text is a time as etcd logs it: `2006-01-02T15:04:05.999999Z`, without zeros at the end.
fn is_log_time(text: &str) -> bool {
    let Some((head, fraction)) = text.strip_suffix('Z').and_then(|text| text.split_at_checked(19)) else {
        return false;
    };
    let form = head.bytes().zip(b"0000-00-00T00:00:00");
    form.into_iter().all(|(c, form)| if *form == b'0' { c.is_ascii_digit() } else { c == *form })
        && (fraction.is_empty() || fraction.len() <= 7 && fraction.starts_with('.') && !fraction.ends_with(['0', '.']))
}

#[test]
fn log_lines_have_etcds_form_in_every_output() {
    let told = Told::new();
    let log = told.folder.path().join("logs/etcd.log").display().to_string();
    let file = told.file(&format!(
        "name: l\ndata-dir: DATA\nlisten-client-urls: CLIENT\nadvertise-client-urls: CLIENT\nlisten-peer-urls: PEER\n\
         initial-advertise-peer-urls: PEER\ninitial-cluster: l=PEER\nlogger: zap\nlog-level: debug\n\
         log-outputs: [stdout, {log}]\nenable-log-rotation: true\n\
         log-rotation-config-json: '{{\"maxsize\": 1, \"compress\": true}}'\n"
    ));
    let output = told.serves(told.start(&["--config-file", &file], &[]));
    let written = std::fs::read_to_string(&log).expect("the log file");
    for text in [&output, &written] {
        assert!(text.contains("ready to serve client requests"), "{text}");
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let field = |name: &str| value[name].as_str().unwrap_or_else(|| panic!("{name}: {line}"));
            assert!(is_log_time(field("ts")), "{line}");
            assert!(["debug", "info", "warn", "error"].contains(&field("level")), "{line}");
            assert!(!field("caller").is_empty() && !field("msg").is_empty(), "{line}");
        }
    }
    let told = Told::new();
    let args = ["--name=c", "--log-format=console", "--log-outputs=stderr"];
    let cluster = format!("c={}", told.peer);
    let variables = [
        ("ETCD_LISTEN_CLIENT_URLS", told.client.as_str()),
        ("ETCD_ADVERTISE_CLIENT_URLS", &told.client),
        ("ETCD_LISTEN_PEER_URLS", &told.peer),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", &told.peer),
        ("ETCD_INITIAL_CLUSTER", &cluster),
    ];
    let output = told.serves(told.start(&args, &variables));
    let ready = output.lines().find(|line| line.contains("ready to serve client requests")).expect("a line");
    let columns: Vec<&str> = ready.split('\t').collect();
    assert!(is_log_time(columns[0]) && columns[1] == "info" && columns[2].starts_with("cmd/server.rs:"), "{ready}");
    if !Path::new("/run/systemd/journal/socket").exists() {
        let (code, output) = told.refused(&["--log-outputs=systemd/journal"], &[]);
        assert!(code == Some(1) && output.contains("can't find journal"), "{output}");
    }
}
