//! What the proxy says of itself while its cluster comes and goes: `grpc.health.v1`, `/livez`, `/readyz`, `/health`.

use rustix::process::Signal;
use watershed::pb::healthpb::HealthCheckRequest;
use watershed::pb::healthpb::health_check_response::ServingStatus;

use crate::harness::{Answers, Deployment, Target, client, free_port, http_get, own_binary, run, soon, until};
use crate::harness::{Process, member_args, server_binary};

async fn page(endpoint: &str, path: &str) -> Option<u16> {
    Some(http_get(endpoint, "GET", path).await.ok()?.status)
}

async fn serving(endpoint: &str) -> Option<ServingStatus> {
    let answer = client(endpoint).health().check(HealthCheckRequest::default()).await.ok()?;
    Some(answer.into_inner().status())
}

async fn until_serving(endpoint: &str, status: ServingStatus) {
    until("the health service", async || (serving(endpoint).await? == status).then_some(())).await;
}

/// The health service said "serving" whatever became of the cluster.
#[test]
fn health_follows_the_cluster() {
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let proxy = deployment.endpoint.clone();
        until_serving(&proxy, ServingStatus::Serving).await;
        let mut health = client(&proxy).health();
        let mut watch = Answers::new(async move { health.watch(HealthCheckRequest::default()).await });
        let mut next = async || soon("a status", watch.message()).await.expect("no error").expect("an answer").status();
        assert_eq!(next().await, ServingStatus::Serving);
        assert_eq!(page(&proxy, "/readyz").await, Some(200));
        deployment.server.signal(Signal::STOP);
        assert_eq!(next().await, ServingStatus::NotServing);
        assert_eq!(serving(&proxy).await, Some(ServingStatus::NotServing));
        let [live, ready, health, own] = futures::future::join_all(
            ["/livez", "/readyz", "/health", "/proxy/metrics"].map(|path| page(&proxy, path)),
        )
        .await
        .try_into()
        .expect("four");
        assert_eq!((live, ready, health, own), (Some(200), Some(503), Some(503), Some(200)));
        deployment.server.signal(Signal::CONT);
        assert_eq!(next().await, ServingStatus::Serving);
        until("readiness", async || (page(&proxy, "/readyz").await? == 200).then_some(())).await;
    });
}

#[test]
fn a_proxy_that_starts_first_waits_for_its_cluster() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (member, proxy) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let flags = [
            format!("--endpoints={member}"),
            format!("--listen-addr={proxy}"),
            "--resolver-prefix=proxies".to_owned(),
            "--resolver-ttl=5".to_owned(),
            "--advertise-client-url=http://nobody.invalid:1".to_owned(),
        ];
        let args: Vec<String> = ["grpc-proxy", "start"].into_iter().map(str::to_owned).chain(flags).collect();
        let folder = deployment.folder.path().join("late");
        std::fs::create_dir(&folder).expect("a folder");
        let _proxy = Process::start(&own_binary(), &args, &folder, "proxy");
        until("the proxy", async || (page(&proxy, "/livez").await? == 200).then_some(())).await;
        assert_eq!(page(&proxy, "/readyz").await, Some(503));
        assert_eq!(serving(&proxy).await, Some(ServingStatus::NotServing));
        let args = member_args(&member, free_port(), &folder.join("data"));
        let _member = Process::start(&server_binary(), &args, &folder, "member");
        until_serving(&proxy, ServingStatus::Serving).await;
        assert_eq!(page(&proxy, "/readyz").await, Some(200));
    });
}
