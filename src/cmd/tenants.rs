//! `--tenants-file`: the tenants of a proxy, from its start on and after each change of the file.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use prometheus::{IntCounterVec, IntGauge};
use tokio::signal::unix::Signal;
use tracing::{info, warn};

use super::changed_file::ChangedFile;
use super::reload::hangups;
use crate::client::SharedLogin;
use crate::config::{CompactRight, TenantConfig, TenantCredentials, TenantLimits, TenantsConfig, read_tenants_file};
use crate::listener::{Listening, OpenListener, Protection, bind};
use crate::net::{Alpn, ClientTls, ClientTlsConfig, IdentityFiles};
use crate::proxy::{
    AgreedCompaction, Namespace, Rights, Tenant, TenantMetrics, TenantRule, TenantSet, TenantUser, Tenants, Turns,
};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// Makes tenants of what the file says.
pub(super) struct TenantsOfFile {
    /// TLS with members, but for the certificate that is shown.
    upstream_tls: ClientTlsConfig,
    /// Whether some endpoint speaks no TLS.
    plain_endpoints: bool,
    tenants: Tenants,
    /// As they were made, by their names.
    made: HashMap<String, (TenantConfig, Arc<Tenant>)>,
    metrics: TenantMetrics,
    count: IntGauge,
    reloads: IntCounterVec,
    tasks: Tasks,
}

/// What has the file read again.
pub(super) struct TenantsFileChanges {
    file: ChangedFile,
    hangup: Signal,
}

impl TenantsFileChanges {
    /// Changes and signals from now on. The first endpoints may be long in coming, and the file may change meanwhile.
    ///
    /// # Errors
    /// When the process may not install a signal handler.
    pub fn of(config: &TenantsConfig) -> anyhow::Result<Self> {
        Ok(Self { file: ChangedFile::new(&config.file), hangup: hangups()? })
    }
}

/// The listeners that tenants are known by.
pub(super) struct TenantListeners {
    pub listening: Listening,
    pub protection: Protection,
    /// Those that are there whatever the file says, by their addresses.
    pub fixed: HashMap<SocketAddr, usize>,
    pub open: HashMap<SocketAddr, OpenListener>,
}

/// The listeners that tenants name, besides `--listen-addr`.
pub(super) fn listen_addresses(tenants: &[TenantConfig], main: SocketAddr) -> BTreeSet<SocketAddr> {
    let named = tenants.iter().flat_map(|tenant| &tenant.matches).filter_map(|one| one.listen);
    named.filter(|address| *address != main).collect()
}

impl TenantsOfFile {
    /// No tenant yet.
    pub fn new(
        upstream_tls: Option<ClientTlsConfig>,
        plain_endpoints: bool,
        requests_max: usize,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Self {
        let upstream_tls = upstream_tls.unwrap_or_else(|| ClientTlsConfig::new(Alpn::H2));
        Self {
            upstream_tls: ClientTlsConfig { identity: None, ..upstream_tls },
            plain_endpoints,
            tenants: Tenants::new(TenantSet::default()),
            made: HashMap::new(),
            metrics: TenantMetrics::register(metrics, Turns::new(requests_max)),
            count: metrics.gauge("watershed_proxy_tenants", "Tenants of the file that is in force."),
            reloads: metrics.counter_vec(
                "watershed_proxy_tenants_reloads_total",
                "Times the file of tenants was read, by whether it was taken.",
                &["outcome"],
            ),
            tasks: tasks.clone(),
        }
    }

    /// The tenants in force.
    pub fn tenants(&self) -> Tenants {
        self.tenants.clone()
    }

    /// Has these tenants in force. One that differs in nothing but its matches and limits stays the tenant it was.
    ///
    /// # Errors
    /// When a certificate cannot be used; then nothing has changed.
    pub fn replace(&mut self, configs: &[TenantConfig], numbers: &HashMap<SocketAddr, usize>) -> anyhow::Result<()> {
        let mut made = HashMap::new();
        let set = match self.make(configs, numbers, &mut made) {
            Ok(set) => set,
            Err(error) => {
                // The metrics of tenants that are not taken.
                made.keys().filter(|name| !self.made.contains_key(*name)).for_each(|name| self.metrics.forget(name));
                return Err(error);
            }
        };
        for config in configs {
            if let Some((_, tenant)) = made.get(&config.name) {
                tenant.limits.replace(config.limits);
            }
        }
        self.made.keys().filter(|name| !made.contains_key(*name)).for_each(|name| self.metrics.forget(name));
        self.count.set(i64::try_from(configs.len()).unwrap_or(i64::MAX));
        self.made = made;
        self.tenants.replace(set);
        Ok(())
    }

    /// The tenants. Each is in `made` once its metrics are registered, also when a later one fails.
    fn make(
        &self,
        configs: &[TenantConfig],
        numbers: &HashMap<SocketAddr, usize>,
        made: &mut HashMap<String, (TenantConfig, Arc<Tenant>)>,
    ) -> anyhow::Result<TenantSet> {
        let mut set = TenantSet::default();
        for config in configs {
            let limits = TenantLimits::default();
            let kept = TenantConfig { matches: Vec::new(), contains: Vec::new(), limits, ..config.clone() };
            let tenant = match self.made.get(&config.name) {
                Some((before, tenant)) if *before == kept => tenant.clone(),
                _ => Arc::new(self.tenant(config).with_context(|| format!("tenant {:?}", config.name))?),
            };
            made.insert(config.name.clone(), (kept, tenant.clone()));
            let mut rules = Vec::new();
            for one in &config.matches {
                let number = |address| numbers.get(&address).copied().context("a listener that is not open");
                rules.push(TenantRule::new(one.clone(), one.listen.map(number).transpose()?));
            }
            set.add(tenant, rules);
        }
        Ok(set)
    }

    fn tenant(&self, config: &TenantConfig) -> anyhow::Result<Tenant> {
        let user = config.upstream.as_ref().map(|credentials| self.user(credentials)).transpose()?;
        let mut tenant = Tenant::new(config.name.as_str(), Namespace::new(config.namespace.clone()), &self.tasks);
        tenant.limits = Arc::new(self.metrics.limits(&config.name, config.limits));
        let compact = config.compact == CompactRight::Allow;
        tenant.rights = Rights { admin: config.admin, compact, read_only: config.read_only };
        tenant.compaction = (config.compact == CompactRight::Agreed).then(|| AgreedCompaction::new(&tenant.namespace));
        tenant.user = user;
        Ok(tenant)
    }

    fn user(&self, credentials: &TenantCredentials) -> anyhow::Result<TenantUser> {
        match credentials {
            TenantCredentials::Password(user) => Ok(TenantUser::Login(SharedLogin::new(user.clone()))),
            TenantCredentials::Certificate { cert_file, key_file } => {
                if self.plain_endpoints {
                    bail!("upstream.cert-file: an endpoint of the cluster speaks no TLS");
                }
                let identity = IdentityFiles { certificates: cert_file.clone(), key: key_file.clone() };
                let config = ClientTlsConfig { identity: Some(identity), ..self.upstream_tls.clone() };
                let tls = ClientTls::new(&config).context("upstream.cert-file, upstream.key-file")?;
                Ok(TenantUser::Certificate(tls))
            }
        }
    }

    /// Reads the file again when it changes, or the process gets SIGHUP.
    pub fn follow(
        mut self,
        config: TenantsConfig,
        changes: TenantsFileChanges,
        mut listeners: TenantListeners,
        tasks: &Tasks,
    ) {
        let (TenantsFileChanges { mut file, mut hangup }, stop) = (changes, tasks.stop_signal());
        tasks.spawn(async move {
            let changed = async {
                loop {
                    file.next(&mut hangup).await;
                    self.reload(&config, &mut listeners);
                }
            };
            stop.run_until_cancelled(changed).await;
        });
    }

    fn reload(&mut self, config: &TenantsConfig, listeners: &mut TenantListeners) {
        let file = config.file.display();
        let outcome = read_tenants_file(&config.file, config.listeners)
            .map_err(anyhow::Error::from)
            .and_then(|tenants| self.take(&tenants, listeners));
        match outcome {
            Ok(()) => {
                self.reloads.with_label_values(&["taken"]).inc();
                info!(%file, tenants = self.count.get(), "tenants have changed");
            }
            Err(error) => {
                self.reloads.with_label_values(&["refused"]).inc();
                warn!(%file, error = format!("{error:#}"), "changed file of tenants not used");
            }
        }
    }

    /// Opens what listeners are new, replaces the tenants, and closes the listeners that none names any more.
    fn take(&mut self, tenants: &[TenantConfig], listeners: &mut TenantListeners) -> anyhow::Result<()> {
        let mut wanted: BTreeSet<SocketAddr> =
            tenants.iter().flat_map(|tenant| &tenant.matches).filter_map(|one| one.listen).collect();
        wanted.retain(|address| !listeners.fixed.contains_key(address));
        let mut sockets = Vec::new();
        for address in wanted.iter().filter(|address| !listeners.open.contains_key(address)) {
            let socket = bind(*address).with_context(|| format!("listen: {address}"))?;
            sockets.push((*address, socket.speaking(listeners.protection.clone())));
        }
        let mut opened = HashMap::new();
        let replace = || {
            for (address, socket) in sockets {
                opened.insert(address, listeners.listening.open(socket).context("listen")?);
            }
            let mut numbers = listeners.fixed.clone();
            numbers.extend(listeners.open.iter().chain(&opened).map(|(address, open)| (*address, open.number())));
            self.replace(tenants, &numbers)
        };
        if let Err(error) = replace() {
            opened.into_values().for_each(OpenListener::close);
            return Err(error);
        }
        listeners.open.extend(opened);
        let (kept, closed) = listeners.open.drain().partition(|(address, _)| wanted.contains(address));
        listeners.open = kept;
        let closed: HashMap<SocketAddr, OpenListener> = closed;
        closed.into_values().for_each(OpenListener::close);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cause: the new tenants of a file that was refused had rows among the metrics from then on, and those that came later had none of
    /// their own when there were enough.
    #[test]
    fn a_file_that_is_refused_leaves_no_rows() {
        let metrics = Metrics::new();
        let mut of_file = TenantsOfFile::new(None, true, 1, &metrics, &Tasks::new());
        let tenant = |name: &str| TenantConfig {
            name: name.to_owned(),
            namespace: format!("{name}/").into(),
            contains: Vec::new(),
            matches: Vec::new(),
            upstream: None,
            read_only: false,
            admin: false,
            compact: CompactRight::Deny,
            limits: TenantLimits::default(),
        };
        // No endpoint speaks TLS.
        let certificate = TenantCredentials::Certificate { cert_file: "c".into(), key_file: "k".into() };
        let wrong = TenantConfig { upstream: Some(certificate), ..tenant("c") };
        let rows = || metrics.values(|name| name == "watershed_proxy_tenant_requests_total");
        of_file.replace(&[tenant("a")], &HashMap::new()).expect("taken");
        let before = rows();
        assert_eq!(before.len(), 1, "{before:?}");
        of_file.replace(&[tenant("a"), tenant("b"), wrong], &HashMap::new()).expect_err("refused");
        assert_eq!(rows(), before);
    }
}
