use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use serde_json::Value;

use super::super::state::Identity;

/// Bytes of the tokens that are kept, with their entries; the least used are dropped for others.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Of an entry, beside the token.
const ENTRY_BYTES: usize = 256;
/// After so long without a request, a token is dropped.
const IDLE: Duration = Duration::from_secs(600);

/// Tokens whose signature has been verified, so that it costs nothing the next time: an RSA or ECDSA signature takes longer
/// than most requests.
///
/// Only what a key has signed gets in. The key is the whole token: another signature, or another claim, is another token.
/// Nothing but its own time ends a token, which is why its time is all that is looked at again; the auth revision that
/// it stands for is compared where permissions are checked.
pub(super) struct VerifiedTokens(Cache<Arc<str>, Verified>);

#[derive(Clone)]
struct Verified {
    identity: Identity,
    /// Seconds since 1970. Before then it is valid; from then on it is verified as if it had never been.
    until: u64,
}

impl VerifiedTokens {
    pub(super) fn new() -> Self {
        let weigh = |token: &Arc<str>, _: &Verified| u32::try_from(token.len() + ENTRY_BYTES).unwrap_or(u32::MAX);
        Self(Cache::builder().weigher(weigh).max_capacity(BYTES_MAX).time_to_idle(IDLE).build())
    }

    pub(super) fn get(&self, token: &str, now: u64) -> Option<Identity> {
        let verified = self.0.get(token)?;
        (now < verified.until).then_some(verified.identity)
    }

    /// Keeps a token that is valid now. One with a time that is no whole number, or that begins later, is not kept: these
    /// are rules of the library that verifies.
    pub(super) fn add(&self, token: &str, identity: &Identity, claims: &Value) {
        let until = match claims.get("exp") {
            None => u64::MAX,
            Some(end) => match end.as_u64() {
                Some(end) => end,
                None => return,
            },
        };
        if claims.get("nbf").is_none() {
            self.0.insert(token.into(), Verified { identity: identity.clone(), until });
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.weighted_size()
    }
}
