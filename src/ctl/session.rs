use std::future::Future;
use std::io::Write;
use std::time::Duration;

use tonic::{Response, Status};

use super::failure::{Exit, Failure};
use super::options::Options;
use super::print::Printer;
use crate::client::{Client, ClientConfig, Credentials, Endpoint, KeepAlive};
use crate::discovery::{StaticList, current_endpoints};
use crate::net::ClientTls;

/// Shortest ping interval that stock members tolerate.
const KEEPALIVE_LEAST: Duration = Duration::from_secs(5);

/// One command's connection to the cluster and to the terminal.
pub(super) struct Session {
    pub(super) options: Options,
    pub(super) printer: Printer,
    client: Result<Client, Failure>,
    logged_in: bool,
}

impl Session {
    /// A session with the endpoints of the options.
    pub(super) fn new(options: Options) -> Self {
        let endpoints = options.endpoints.clone();
        Self::with_endpoints(options, &endpoints)
    }

    /// A session with other endpoints.
    pub(super) fn with_endpoints(options: Options, endpoints: &[String]) -> Self {
        Self::prepared(options, endpoints, 1)
    }

    /// The same with that many connections to each endpoint.
    pub(super) fn with_connections(self, connections: usize) -> Self {
        let endpoints = self.options.endpoints.clone();
        Self::prepared(self.options, &endpoints, connections)
    }

    fn prepared(options: Options, endpoints: &[String], connections: usize) -> Self {
        let client = Self::connect(&options, endpoints, connections);
        Self { printer: options.printer, options, client, logged_in: false }
    }

    fn connect(options: &Options, endpoints: &[String], connections: usize) -> Result<Client, Failure> {
        options.usable()?;
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| options.endpoint(text)).collect::<Result<_, _>>()?;
        let tls = options.tls.as_ref().map(ClientTls::new).transpose();
        let tls = tls.map_err(|error| Failure::new(Exit::Error, error.to_string()))?;
        let patience = options.command_timeout.mul_f64(0.9);
        let config = ClientConfig {
            // Zero is no limit, other than that of the command.
            dial_timeout: match options.dial_timeout {
                Duration::ZERO => patience,
                limit => limit.min(patience),
            },
            keepalive: Some(KeepAlive {
                interval: options.keepalive_time.max(KEEPALIVE_LEAST),
                timeout: options.keepalive_timeout,
                while_idle: false,
            }),
            tls,
            user: options.user.clone().map(|(name, password)| Credentials { name, password }),
            token: options.token.clone(),
            send_bytes_max: options.send_bytes_max,
            receive_bytes_max: options.receive_bytes_max,
            connections,
            ..ClientConfig::new(current_endpoints(&StaticList::new(&endpoints)))
        };
        Client::connect(config).map_err(|error| Failure::new(Exit::Error, format!("--endpoints: {error}")))
    }

    /// The client, logged in when the operator gave a user. A cluster without auth needs no login.
    ///
    /// # Errors
    /// What is wrong with the options; exit code 2 when the login fails.
    pub(super) async fn client(&mut self) -> Result<Client, Failure> {
        let client = self.client.clone()?;
        if !self.logged_in {
            let login = tokio::time::timeout(self.options.command_timeout, client.login()).await;
            let login = login.unwrap_or_else(|_| Err(Status::deadline_exceeded("login")));
            login.map_err(|status| Failure::call(&status).with(Exit::BadConnection))?;
            self.logged_in = true;
        }
        Ok(client)
    }

    /// Waits for one answer, as long as a short command may take.
    pub(super) async fn short<T>(
        &mut self,
        call: impl AsyncFnOnce(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let client = self.client().await?;
        within(self.options.command_timeout, call(client)).await.map_err(|status| Failure::call(&status))
    }

    /// Waits for one answer, however long the cluster takes.
    pub(super) async fn patient<T>(
        &mut self,
        call: impl AsyncFnOnce(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let client = self.client().await?;
        call(client).await.map(Response::into_inner).map_err(|status| Failure::call(&status))
    }
}

/// The answer, or a deadline status after `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}

/// Writes to standard output at once, so that a pipe sees every event when it happens.
pub(super) fn show(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes.as_ref())?;
    out.flush()?;
    Ok(())
}
