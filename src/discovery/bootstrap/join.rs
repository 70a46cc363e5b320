use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::error::JoinError;
use super::registered::Registered;
use super::token::OfToken;
use super::url::OfUrl;
use crate::config::MemberRegistry;
use crate::net::Backoff;
use crate::types::MemberId;

/// Pauses between two looks while members are missing, where changes cannot be waited for.
const LOOK_FIRST: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Where members register.
pub(in crate::discovery) enum Registry {
    Token(OfToken),
    Url(Box<OfUrl>),
}

impl Registry {
    pub(in crate::discovery) fn new(config: &MemberRegistry) -> Result<Self, JoinError> {
        Ok(match config {
            MemberRegistry::Token(config) => Self::Token(OfToken::connect(config)?),
            MemberRegistry::Url(config) => Self::Url(Box::new(OfUrl::new(config)?)),
        })
    }

    /// Who is registered. Asks for ever while there is no answer.
    pub(in crate::discovery) async fn look(&self) -> Result<Registered, JoinError> {
        match self {
            Self::Token(registry) => registry.look().await,
            Self::Url(registry) => registry.look().await,
        }
    }

    /// Registers a member that is not.
    async fn register(&self, id: &str, entry: &str) -> Result<(), JoinError> {
        match self {
            Self::Token(registry) => registry.register(id, entry).await,
            Self::Url(registry) => registry.register(id, entry).await,
        }
    }

    /// A member that has registered before keeps its place under a token. Under a URL it may not begin once more, as in etcd:
    /// it may have been one of a cluster that goes on, and have lost what it promised there.
    fn check_not_registered(&self, registered: &Registered, id: &str) -> Result<(), JoinError> {
        match self {
            Self::Url(_) if registered.has(id) => Err(JoinError::DuplicateId(id.to_owned())),
            _ => Ok(()),
        }
    }

    /// Returns when others may be registered. Whoever has a token looks again instead of watching: neither a compaction nor a
    /// restart of the etcd cluster is noticed.
    pub(in crate::discovery) async fn wait(&self, registered: &Registered, pauses: &mut Backoff) {
        if let Self::Url(registry) = self {
            match registry.changed_after(registered.index).await {
                Ok(()) => return,
                Err(reason) => warn!(reason, "changes of the registered members cannot be waited for"),
            }
        }
        sleep(pauses.pause()).await;
    }
}

/// Pauses between two looks.
pub(in crate::discovery) fn look_pauses() -> Backoff {
    Backoff::new(LOOK_FIRST, LOOK_MAX)
}

/// Registers a member under `entry`, which is `NAME=URL` for each of its peer URLs, and waits until the cluster is complete. The
/// answer has the form of `--initial-cluster`. A registry that does not answer is asked again, for ever.
///
/// # Errors
/// See [`JoinError`].
pub async fn join_cluster(config: &MemberRegistry, member: MemberId, entry: &str) -> Result<String, JoinError> {
    let (registry, id, flag) = (Registry::new(config)?, member.to_string(), config.flag());
    let mut registered = registry.look().await?;
    registry.check_not_registered(&registered, &id)?;
    if !registered.has(&id) {
        registered.refuse_when_full(&id)?;
        registry.register(&id, entry).await?;
        info!(id, entry, "registered for the cluster of --{flag}");
        registered = registry.look().await?;
    }
    let (mut pauses, mut seen) = (look_pauses(), 0);
    while !registered.is_complete() {
        if seen != registered.len() {
            seen = registered.len();
            info!(
                registered = seen,
                size = registered.size(),
                "waiting for the other members of the cluster (--{flag})"
            );
        }
        registry.wait(&registered, &mut pauses).await;
        registered = registry.look().await?;
    }
    // Others may have been faster.
    registered.refuse_when_full(&id)?;
    let cluster = registered.initial_cluster()?;
    info!(initial_cluster = cluster, "found the initial cluster by --{flag}");
    Ok(cluster)
}
