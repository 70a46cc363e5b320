use std::time::Duration;

use http::HeaderValue;
use prost::Message;

use super::args::Common;
use super::server::Meter;
use super::wire::{CallError, Connection, Route, Target, frame};
use crate::client::Endpoint;
use crate::discovery::{StaticList, current_endpoints, find_endpoints};
use crate::pb::etcdserverpb::{AuthenticateRequest, AuthenticateResponse, StatusRequest, StatusResponse};
use crate::shutdown::Tasks;

/// What is fixed before a run begins: whom to load and whom to watch.
pub(super) struct Setup {
    pub(super) common: Common,
    pub(super) targets: Vec<Target>,
    pub(super) meter: Meter,
}

impl Setup {
    /// Logs in and finds the leader, when asked to; then takes the first reading of the servers' memory. Their CPU time
    /// counts from where the load begins.
    pub(super) fn prepare(common: &Common) -> Result<Self, CallError> {
        let tls = common.tls().map_err(CallError)?;
        let dial_timeout = common.dial_timeout.0;
        let target = |endpoint: Endpoint| Target { endpoint, tls: tls.clone(), dial_timeout, token: None };
        let endpoints = match common.srv().map_err(CallError)? {
            None => current_endpoints(&StaticList::new(&common.endpoints)),
            Some(srv) => runtime()?
                .block_on(find_endpoints(&srv))
                .map_err(|error| CallError(format!("--discovery-srv={}: {error}", srv.domain)))?,
        };
        let mut targets: Vec<Target> = endpoints.into_iter().map(target).collect();
        if common.user.is_some() || common.target_leader {
            targets = runtime()?.block_on(narrow(common, targets, &Tasks::new()))?;
        }
        let meter = Meter::start(&common.server_pid).map_err(CallError)?;
        Ok(Self { common: common.clone(), targets, meter })
    }

    /// The target of connection number `index`.
    pub(super) fn target(&self, index: u32) -> Target {
        self.targets[index as usize % self.targets.len()].clone()
    }

    pub(super) fn endpoints(&self) -> Vec<String> {
        self.targets.iter().map(|target| target.endpoint.to_string()).collect()
    }

    /// Opens the connections of one thread: of `conns` those that fall to it, one at least.
    pub(super) async fn connect(&self, thread: u32, tasks: &Tasks) -> Result<Vec<Connection>, CallError> {
        let mut connections = Vec::new();
        for index in (thread..self.common.conns.max(thread + 1)).step_by(self.common.threads as usize) {
            connections.push(Connection::open(self.target(index), tasks).await?);
        }
        Ok(connections)
    }
}

/// A single-threaded runtime.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CallError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| CallError(format!("start runtime: {error}")))
}

async fn narrow(common: &Common, mut targets: Vec<Target>, tasks: &Tasks) -> Result<Vec<Target>, CallError> {
    if let Some((name, password)) = &common.user {
        let connection = Connection::open(targets[0].clone(), tasks).await?;
        let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let answer = within(common, connection.unary(Route::Authenticate, frame(&request))).await?;
        let token = AuthenticateResponse::decode(answer).map_err(|error| CallError(format!("log in: {error}")))?.token;
        let token = HeaderValue::from_str(&token).map_err(|error| CallError(format!("log in: {error}")))?;
        targets.iter_mut().for_each(|target| target.token = Some(token.clone()));
    }
    if !common.target_leader {
        return Ok(targets);
    }
    for target in &targets {
        let connection = Connection::open(target.clone(), tasks).await?;
        let answer = within(common, connection.unary(Route::Status, frame(&StatusRequest {}))).await?;
        let status = StatusResponse::decode(answer).map_err(|error| CallError(format!("read status: {error}")))?;
        if status.header.map_or(0, |header| header.member_id) == status.leader {
            return Ok(vec![target.clone()]);
        }
    }
    Err(CallError("--target-leader: none of --endpoints is the leader".into()))
}

/// The outcome, or a timeout.
pub(super) async fn within<T>(
    common: &Common,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let limit: Duration = common.request_timeout.0;
    match tokio::time::timeout(limit, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CallError(format!("no answer within {limit:?}"))),
    }
}
