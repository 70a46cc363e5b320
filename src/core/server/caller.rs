use std::fmt;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request};

use crate::listener::ConnectionInfo;

// A name that is text would be parsed for each call.
static TOKEN: HeaderName = HeaderName::from_static("token");

/// Where a request comes from: this member itself, or a client.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A member of the cluster on its own account: expired leases, alarms, automatic compaction, its name and URLs.
    Member,
    /// A client, with what its connection and its request say. Nothing of it is verified but the certificates.
    Client {
        /// The connection; none for a request that came over none, as in tests.
        connection: Option<Arc<ConnectionInfo>>,
        /// The value of `token` or `authorization`.
        token: Option<HeaderValue>,
        /// Whether it came through the JSON gateway: the connection is not the client's then.
        through_gateway: bool,
    },
}

impl Caller {
    /// The caller of a request. Costs no allocation: the connection is shared, and so are the bytes of the token.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        Self::from_parts(request.metadata(), request.extensions())
    }

    /// The caller of a request, and its message.
    pub(super) fn split<T>(request: Request<T>) -> (Self, T) {
        (Self::of(&request), request.into_inner())
    }

    /// The caller of a request with this metadata and these extensions.
    pub(super) fn from_parts(metadata: &MetadataMap, extensions: &Extensions) -> Self {
        let headers = metadata.as_ref();
        // The first value of the first of the two, as in etcd.
        let token = headers.get(&TOKEN).or_else(|| headers.get(AUTHORIZATION)).cloned();
        let token = token.map(|mut token| {
            // Never shown by `Debug`.
            token.set_sensitive(true);
            token
        });
        let through_gateway = headers.contains_key("grpcgateway-accept");
        Self::Client { connection: extensions.get().cloned(), token, through_gateway }
    }

    /// Whether the request has a token, be it one that is no text.
    pub(super) fn has_token(&self) -> bool {
        matches!(self, Self::Client { token: Some(_), .. })
    }

    /// The token of the request, without `Bearer `.
    pub fn token(&self) -> Option<&str> {
        let Self::Client { token: Some(token), .. } = self else { return None };
        let token = token.to_str().ok()?;
        Some(token.strip_prefix("Bearer ").unwrap_or(token))
    }
}

/// For logs: where the request came from.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member => f.write_str("local"),
            Self::Client { connection: Some(connection), .. } => write!(f, "{}", connection.peer),
            Self::Client { connection: None, .. } => f.write_str("client"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(headers: &[(&'static str, &str)]) -> Option<String> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.metadata_mut().append(*name, value.parse().expect("ascii"));
        }
        Caller::of(&request).token().map(str::to_owned)
    }

    #[test]
    fn the_token_is_read_as_etcd_reads_it() {
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("authorization", "Bearer a"), ("token", "t")]).as_deref(), Some("t"));
        assert_eq!(token(&[("authorization", "Bearer a"), ("authorization", "b")]).as_deref(), Some("a"));
        assert_eq!(Caller::Member.token(), None);
        let mut request = Request::new(());
        request.metadata_mut().insert("token", "secret".parse().expect("ascii"));
        assert!(!format!("{:?}", Caller::of(&request)).contains("secret"));
    }
}
