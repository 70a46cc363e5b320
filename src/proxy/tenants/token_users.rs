use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// Tokens that are remembered; the least recently used ones give way, and their clients log in again.
const TOKENS_MAX: u64 = 64 * 1024;
/// A token that is not used for so long is forgotten.
const UNUSED_MAX: Duration = Duration::from_secs(24 * 3600);

/// Which user each token was given to, by the logins that passed through this proxy.
///
/// A token says nothing by itself: a simple one is random, and whether a JWT is genuine only the cluster knows. But the
/// cluster gives a token to whoever shows the password of its user, so an answer to Authenticate proves whose it is.
#[derive(Debug)]
pub(super) struct TokenUsers {
    users: Cache<HeaderValue, Arc<str>>,
}

impl Default for TokenUsers {
    fn default() -> Self {
        Self::bounded(TOKENS_MAX)
    }
}

impl TokenUsers {
    fn bounded(tokens_max: u64) -> Self {
        // The usual policy would refuse tokens that are new, since they were used less often than those that are there.
        let users = Cache::builder().eviction_policy(EvictionPolicy::lru());
        Self { users: users.max_capacity(tokens_max).time_to_idle(UNUSED_MAX).build() }
    }
}

impl TokenUsers {
    /// The cluster has given `token` to `user`.
    pub fn note(&self, token: &str, user: &str) {
        if let Ok(mut token) = HeaderValue::from_str(token) {
            token.set_sensitive(true);
            self.users.insert(token, user.into());
        }
    }

    /// The user of a request.
    pub fn of(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        self.users.get(token(headers)?)
    }
}

/// The token that a member reads: the first `token`, else the first `authorization`.
pub(super) fn token(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get("token").or_else(|| headers.get("authorization"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_takes_the_place_of_one_that_is_used_less() {
        let users = TokenUsers::bounded(10);
        for token in 0..100 {
            users.note(&format!("old{token}"), "bob");
            users.users.run_pending_tasks();
            for _ in 0..5 {
                users.users.get(&HeaderValue::from_str(&format!("old{token}")).unwrap());
            }
        }
        users.note("new", "alice");
        users.users.run_pending_tasks();
        assert_eq!(users.users.get(&HeaderValue::from_static("new")).as_deref(), Some("alice"));
        assert_eq!(users.users.entry_count(), 10);
    }

    #[test]
    fn a_token_is_of_the_user_it_was_given_to() {
        let users = TokenUsers::default();
        users.note("t1", "alice");
        users.note("not\na header", "bob");
        let of = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_static(value));
            }
            users.of(&headers).map(|user| user.to_string())
        };
        assert_eq!(of(&[("token", "t1")]).as_deref(), Some("alice"));
        assert_eq!(of(&[("authorization", "t1")]).as_deref(), Some("alice"));
        assert_eq!(of(&[("authorization", "t1"), ("token", "t2")]), None, "a member reads the token");
        assert_eq!(of(&[("token", "t2"), ("token", "t1")]), None, "and of several the first");
        assert_eq!(of(&[]), None);
    }
}
