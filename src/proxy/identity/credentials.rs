use http::{HeaderMap, HeaderName, HeaderValue};

const TOKEN: HeaderName = HeaderName::from_static("token");
const AUTHORIZATION: HeaderName = HeaderName::from_static("authorization");
const REQUIRE_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// Whose requests may share an upstream stream: those that carry the same credentials.
///
/// The text of the credentials is the identity. The proxy cannot check it, so it shares nothing between two tokens,
/// even of one user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    token: Option<HeaderValue>,
    authorization: Option<HeaderValue>,
    require_leader: bool,
    /// The proxy's own user, whose credentials are added where the connection is.
    is_proxy: bool,
}

impl Identity {
    /// Reads the metadata of a request the way a member does: the first `token`, else the first `authorization`;
    /// `hasleader` only when it is exactly `true`.
    pub fn of(headers: &HeaderMap) -> Self {
        let first = |name| {
            headers.get(name).cloned().map(|mut value: HeaderValue| {
                value.set_sensitive(true);
                value
            })
        };
        let token = first(TOKEN);
        let authorization = if token.is_some() { None } else { first(AUTHORIZATION) };
        let require_leader = headers.get(REQUIRE_LEADER).is_some_and(|value| value == "true");
        Self { token, authorization, require_leader, is_proxy: false }
    }

    /// The user that the proxy itself is for the cluster. No client has this identity, whatever it sends.
    pub fn of_proxy() -> Self {
        Self { is_proxy: true, ..Self::default() }
    }

    /// Whether it is the proxy's own.
    pub fn is_proxy(&self) -> bool {
        self.is_proxy
    }

    /// Whether it carries no credentials at all.
    pub fn is_anonymous(&self) -> bool {
        !self.is_proxy && self.token.is_none() && self.authorization.is_none()
    }

    /// Whether requests are refused, and streams ended, while the member knows no leader.
    pub fn require_leader(&self) -> bool {
        self.require_leader
    }

    /// Whether the credentials are the same, whatever the wish about the leader.
    pub fn has_credentials_of(&self, other: &Self) -> bool {
        self.is_proxy == other.is_proxy && self.token == other.token && self.authorization == other.authorization
    }

    /// The same credentials with another wish about the leader.
    #[must_use]
    pub fn with_require_leader(mut self, require_leader: bool) -> Self {
        self.require_leader = require_leader;
        self
    }

    /// Length of the text.
    pub(super) fn bytes(&self) -> usize {
        [&self.token, &self.authorization].into_iter().flatten().map(HeaderValue::len).sum()
    }

    /// The metadata of an upstream stream for this identity.
    pub fn metadata(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            headers.insert(TOKEN, token.clone());
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if self.require_leader {
            headers.insert(REQUIRE_LEADER, HeaderValue::from_static("true"));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> Identity {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        Identity::of(&headers)
    }

    #[test]
    fn the_token_outranks_the_authorization() {
        assert_eq!(of(&[("token", "t"), ("authorization", "a")]), of(&[("token", "t")]));
        assert_ne!(of(&[("token", "t")]), of(&[("authorization", "t")]));
        assert_eq!(of(&[("token", "t"), ("token", "u")]), of(&[("token", "t")]));
    }

    #[test]
    fn only_the_exact_word_asks_for_a_leader() {
        assert!(of(&[("hasleader", "true")]).require_leader());
        assert!(!of(&[("hasleader", "True")]).require_leader());
    }

    #[test]
    fn metadata_gives_the_same_identity_again() {
        for pairs in [&[][..], &[("token", "t")], &[("authorization", "a"), ("hasleader", "true")]] {
            let identity = of(pairs);
            assert_eq!(Identity::of(&identity.metadata()), identity);
        }
    }

    #[test]
    fn nobody_is_the_proxy_by_what_it_sends() {
        assert!(Identity::of_proxy().is_proxy() && !Identity::of_proxy().is_anonymous());
        let anonymous = of(&[]);
        assert!(anonymous.is_anonymous() && anonymous != Identity::of_proxy());
        assert!(!Identity::of(&Identity::of_proxy().metadata()).is_proxy());
    }

    #[test]
    fn the_wish_about_the_leader_is_no_credential() {
        let one = of(&[("token", "t")]);
        assert!(one.has_credentials_of(&one.clone().with_require_leader(true)));
        for other in [of(&[]), of(&[("token", "u")]), of(&[("authorization", "t")])] {
            assert!(!one.has_credentials_of(&other));
        }
        assert!(!Identity::of_proxy().has_credentials_of(&of(&[])));
    }

    #[test]
    fn a_token_is_not_printed() {
        assert!(!format!("{:?}", of(&[("token", "secret")])).contains("secret"));
    }
}
