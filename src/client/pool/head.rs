use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, Request, Uri, header};

use super::seen::Seen;
use crate::client::Endpoint;

/// What a request has of the connection it came on, with nothing for the member.
static OF_CONNECTION: [HeaderName; 7] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Path and metadata of a request.
#[derive(Clone, Debug)]
pub struct Head {
    /// `/package.Service/Method`.
    pub path: PathAndQuery,
    /// Metadata, passed on unchanged.
    pub headers: HeaderMap,
    /// What an answer from keys must not be older than.
    pub seen: Option<Seen>,
}

impl Head {
    /// Takes path, metadata and [`Seen`] from a request, without what belongs to the connection it came on.
    pub fn from_request(parts: http::request::Parts) -> Self {
        let seen = parts.extensions.get().cloned();
        let path = parts.uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut headers = parts.headers;
        for name in &OF_CONNECTION {
            headers.remove(name);
        }
        // The only value that HTTP/2 takes.
        if headers.get(header::TE).is_some_and(|value| value != "trailers") {
            headers.remove(header::TE);
        }
        Self { path, headers, seen }
    }

    /// A gRPC request of our own.
    pub fn grpc(path: &'static str, metadata: HeaderMap) -> Self {
        let mut headers = metadata;
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, header::HeaderValue::from_static("trailers"));
        Self { path: PathAndQuery::from_static(path), headers, seen: None }
    }

    pub(super) fn to_request(&self, scheme: Scheme, endpoint: &Endpoint) -> Request<()> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(scheme);
        uri.authority = Some(endpoint.authority().clone());
        uri.path_and_query = Some(self.path.clone());
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        // Scheme, authority and path together always make a URI.
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        request
    }
}
