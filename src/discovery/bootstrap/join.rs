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

/// Pauses between two looks while members are missing, where changes cannot be waited for, or a wait has returned without one.
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
    pub(in crate::discovery) async fn wait(&self, registered: &Registered, looks: &mut Looks) {
        let was_for_nothing = looks.note(registered);
        if let Self::Url(registry) = self {
            if was_for_nothing {
                sleep(looks.pauses.pause()).await;
            }
            match registry.changed_after(registered.index).await {
                Ok(()) => {
                    looks.has_waited = true;
                    return;
                }
                Err(reason) => warn!(reason, "changes of the registered members cannot be waited for"),
            }
        }
        sleep(looks.pauses.pause()).await;
    }
}

/// The looks at who is registered while members are missing.
#[derive(Debug)]
pub(in crate::discovery) struct Looks {
    pauses: Backoff,
    last: Option<Registered>,
    /// A wait for a change has returned since the last look.
    has_waited: bool,
}

impl Looks {
    pub(in crate::discovery) fn new() -> Self {
        Self { pauses: Backoff::new(LOOK_FIRST, LOOK_MAX), last: None, has_waited: false }
    }

    /// Takes note of a look. Tells whether a wait for a change returned before it, and there is none: a registry may answer such a
    /// request at once each time, which must not make it a loop without a pause.
    fn note(&mut self, registered: &Registered) -> bool {
        let is_same = self.last.as_ref().is_some_and(|last| last.has_same_entries(registered));
        if !is_same {
            self.pauses.reset();
            self.last = Some(registered.clone());
        }
        std::mem::take(&mut self.has_waited) && is_same
    }
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
    let (mut looks, mut seen) = (Looks::new(), 0);
    while !registered.is_complete() {
        if seen != registered.len() {
            seen = registered.len();
            info!(
                registered = seen,
                size = registered.size(),
                "waiting for the other members of the cluster (--{flag})"
            );
        }
        registry.wait(&registered, &mut looks).await;
        registered = registry.look().await?;
    }
    // Others may have been faster.
    registered.refuse_when_full(&id)?;
    let cluster = registered.initial_cluster()?;
    info!(initial_cluster = cluster, "found the initial cluster by --{flag}");
    Ok(cluster)
}

#[cfg(test)]
mod tests {
    use super::super::registered::Entry;
    use super::*;

    fn registered(count: i64, index: i64) -> Registered {
        let entry = |at| Entry { id: format!("{at}"), value: format!("m{at}=http://h:{at}"), created: at };
        Registered::new(3, Some(index), (0..count).map(entry).collect())
    }

    #[test]
    fn a_wait_that_returns_without_a_change_is_followed_by_a_pause() {
        // Cause: a registry that answers a wait at once was asked again at once, without end.
        let mut looks = Looks::new();
        let mut after_wait = |registered: &Registered| {
            looks.has_waited = true;
            if looks.note(registered) { Some(looks.pauses.pause()) } else { None }
        };
        assert_eq!(after_wait(&registered(1, 5)), None, "the first look");
        for (index, bound) in (6..).zip([200, 400, 800, 1600, 2000, 2000]) {
            let pause = after_wait(&registered(1, index)).expect("the registry has changed, the members have not");
            assert!(pause > Duration::ZERO && pause <= Duration::from_millis(bound), "{pause:?} for {bound}");
        }
        assert_eq!(after_wait(&registered(2, 19)), None, "one more has registered");
        assert!(after_wait(&registered(2, 19)).is_some_and(|pause| pause <= LOOK_FIRST), "the pauses begin anew");
        // Where there was no wait, there was a pause.
        assert!(!looks.note(&registered(2, 19)));
    }
}
