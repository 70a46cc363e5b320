use anyhow::{Context, bail};
use prometheus::IntCounterVec;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::changed_file::{ChangedFile, Occasion};
use crate::config::GatewayFile;
use crate::discovery::{Discovery, Followed, ListedEndpoint, StaticList};
use crate::gateway::EndpointLists;
use crate::telemetry::Metrics;

/// SIGHUP, which would end the process otherwise.
///
/// # Errors
/// When the process may not install a signal handler.
pub(super) fn hangups() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("wait for SIGHUP")
}

/// Has these sources of endpoints asked again at each SIGHUP.
pub(super) async fn ask_at_hangups(mut hangup: Signal, sources: Vec<Followed>) {
    while hangup.recv().await.is_some() {
        info!("SIGHUP: all sources of endpoints are asked again");
        sources.iter().for_each(Discovery::ask_again);
    }
}

/// What the configuration file of a gateway changes while that runs.
pub(super) struct GatewayReload {
    /// As it was at the start: only endpoints and routes have changed since.
    file: GatewayFile,
    /// None where the endpoints come from another source.
    list: Option<StaticList>,
    lists: EndpointLists,
    reloads: IntCounterVec,
}

impl GatewayReload {
    pub fn new(file: GatewayFile, list: Option<StaticList>, lists: EndpointLists, metrics: &Metrics) -> Self {
        let reloads = metrics.counter_vec(
            "watershed_gateway_reloads_total",
            "Times the configuration file was read again, by whether it was taken.",
            &["outcome"],
        );
        for outcome in ["taken", "refused"] {
            reloads.with_label_values(&[outcome]);
        }
        Self { file, list, lists, reloads }
    }

    /// Reads the file again when it changes and at SIGHUP, when the sources are asked again as well.
    pub async fn follow(self, mut changed: ChangedFile, mut hangup: Signal, sources: Vec<Followed>) {
        loop {
            let occasion = changed.next(&mut hangup).await;
            self.reload().await;
            if occasion == Occasion::Hangup {
                sources.iter().for_each(Discovery::ask_again);
            }
        }
    }

    async fn reload(&self) {
        let file = self.file.path.display();
        match self.take().await {
            Ok((endpoints, routes)) => {
                self.reloads.with_label_values(&["taken"]).inc();
                info!(%file, endpoints, routes, "configuration file read again");
            }
            Err(error) => {
                self.reloads.with_label_values(&["refused"]).inc();
                warn!(%file, error = format!("{error:#}"), "configuration file not used: endpoints and routes stay as they are");
            }
        }
    }

    /// How many endpoints and routes the file has.
    async fn take(&self) -> anyhow::Result<(usize, usize)> {
        let newer = self.file.read_again()?;
        let Some(file) = &newer.file else { bail!("the configuration is from no file") };
        let has_endpoints = |file: &GatewayFile| file.values.contains_key("endpoints");
        if newer.has_listed_endpoints() && has_endpoints(&self.file) && !has_endpoints(file) {
            bail!("{}: endpoints is not there any more", self.file.path.display());
        }
        self.lists.refuse_itself("endpoints", &newer.endpoints).await?;
        self.lists.refuse_itself("route", &newer.routes_endpoints()).await?;
        let mut without_effect = self.file.fixed_changes(file);
        match &self.list {
            Some(list) if newer.has_listed_endpoints() => {
                list.replace(newer.endpoints.iter().cloned().map(ListedEndpoint::new).collect());
            }
            _ if self.file.values.get("endpoints") != file.values.get("endpoints") => {
                without_effect.push("endpoints".to_owned());
            }
            _ => {}
        }
        if !without_effect.is_empty() {
            let (file, keys) = (self.file.path.display(), without_effect.join(","));
            warn!(%file, keys, "these keys of the configuration file have changed, which counts at the next start");
        }
        self.lists.replace_routes(&newer.routes);
        Ok((newer.endpoints.len(), newer.routes.len()))
    }
}
