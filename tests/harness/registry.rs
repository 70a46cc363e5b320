use super::{Certificates, Deployment, HttpAnswer, Process, free_port, http_get, own_binary, until};

/// A registry in front of the deployment's member.
pub struct Registry {
    pub address: String,
    _process: Process,
}

impl Registry {
    pub async fn start(deployment: &Deployment, flags: &[&str]) -> Self {
        Self::start_at(format!("127.0.0.1:{}", free_port()), deployment, flags).await
    }

    pub async fn start_at(address: String, deployment: &Deployment, flags: &[&str]) -> Self {
        let (endpoints, listen) = (format!("--endpoints={}", deployment.member), format!("--listen-addr={address}"));
        let args: Vec<&str> = ["discovery", "serve", &endpoints, &listen].iter().chain(flags).copied().collect();
        let process = Process::start(&own_binary(), &args, deployment.folder.path(), "registry");
        until("the registry", async || {
            http_get(&address, "GET", "/health").await.ok().filter(|answer| answer.status == 200)
        })
        .await;
        Self { address, _process: process }
    }

    /// One with TLS, by a certificate of these; its tokens have to be written by other means.
    pub fn start_secured(certificates: &Certificates, deployment: &Deployment) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let own = [format!("--endpoints={}", deployment.member), format!("--listen-addr={address}")];
        let tls = certificates.client_flags().into_iter().filter(|flag| !flag.starts_with("--trusted-ca-file"));
        let words = ["discovery", "serve"].map(str::to_owned);
        let args: Vec<String> = words.into_iter().chain(own).chain(tls).collect();
        let process = Process::start(&own_binary(), &args, deployment.folder.path(), "registry");
        Self { address, _process: process }
    }

    pub async fn ask(&self, method: &str, path: &str) -> HttpAnswer {
        http_get(&self.address, method, path).await.expect("an answer")
    }

    /// Makes a token; gives its path, with the slash before it.
    pub async fn token(&self, size: usize) -> String {
        let answer = self.ask("GET", &format!("/new?size={size}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body.strip_prefix(&format!("http://{}", self.address)).expect("its URL").to_owned()
    }

    /// The flags of who finds a cluster by a token.
    pub fn flags(&self, token: &str) -> Vec<String> {
        vec![format!("--discovery=http://{}{token}", self.address)]
    }

    pub async fn register(&self, token: &str, id: &str) -> HttpAnswer {
        self.ask("PUT", &format!("{token}/{id}?prevExist=false&value=m{id}=http://h{id}:2380")).await
    }
}
