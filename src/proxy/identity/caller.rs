use std::sync::Arc;

use http::{Extensions, Request, Response};
use tonic::Status;
use tonic::body::Body;

use super::credentials::Identity;
use crate::api_error::{ApiError, cancel_reason};
use crate::listener::ConnectionInfo;

/// A client as the cluster would know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The credentials that its requests carry.
    pub identity: Identity,
    /// The common name of its certificate. A member takes it for the name of the user when there is no token; the proxy has no
    /// means to be that user for the cluster, so it counts for nothing here.
    pub common_name: Option<Arc<str>>,
}

impl Caller {
    /// Who sent a request with these headers and extensions.
    pub fn of(headers: &http::HeaderMap, extensions: &Extensions) -> Self {
        Self { identity: Identity::of(headers), common_name: certificate_name(extensions) }
    }

    /// The sender of a request that has a certificate with a name and no token, if it is one.
    pub(in crate::proxy) fn with_certificate<B>(request: &Request<B>) -> Option<Self> {
        let common_name = certificate_name(request.extensions())?;
        let identity = Identity::of(request.headers());
        identity.is_anonymous().then_some(Self { identity, common_name: Some(common_name) })
    }

    /// An answer of the cluster as the caller is told it.
    pub(in crate::proxy) fn told_in(&self, answer: Response<Body>) -> Response<Body> {
        match Status::from_header_map(answer.headers()) {
            Some(status) if status.message() == ApiError::UserEmpty.text() => self.told(&status).into_http(),
            _ => answer,
        }
    }

    /// What the caller is told when the cluster answers `status`.
    ///
    /// "user name is empty" would be a riddle to a client whose certificate has a name, and which a member would know by it.
    #[must_use]
    pub fn told(&self, status: &Status) -> Status {
        match &self.common_name {
            Some(name)
                if self.identity.is_anonymous()
                    && ApiError::from_text(status.message()) == Some(ApiError::UserEmpty) =>
            {
                certificate_refusal(name)
            }
            _ => status.clone(),
        }
    }

    /// The same as the reason for which a watch is canceled.
    #[must_use]
    pub fn told_as_reason(&self, status: &Status) -> String {
        cancel_reason(&self.told(status))
    }

    /// What the caller is told when the cluster cancels a watch for `reason`.
    #[must_use]
    pub fn told_reason(&self, reason: String) -> String {
        match ApiError::from_cancel_reason(&reason) {
            Some(error @ ApiError::UserEmpty) if self.common_name.is_some() => self.told_as_reason(&error.into()),
            _ => reason,
        }
    }
}

/// The common name of the certificate that a client showed on its connection.
fn certificate_name(extensions: &Extensions) -> Option<Arc<str>> {
    let connection = extensions.get::<Arc<ConnectionInfo>>()?;
    connection.common_name.as_deref().filter(|name| !name.is_empty()).map(Into::into)
}

/// Why a client whose certificate names a user is nobody behind the proxy.
fn certificate_refusal(name: &str) -> Status {
    let name: String = name.chars().take(64).collect();
    Status::unauthenticated(format!(
        "the gRPC proxy does not pass on the user of a client certificate: log in as {name:?} with its password and send the \
         token"
    ))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_certificate_is_explained_only_where_it_would_have_counted() {
        let empty: Status = ApiError::UserEmpty.into();
        let caller = |name: Option<&str>, headers: &http::HeaderMap| Caller {
            identity: Identity::of(headers),
            common_name: name.map(Into::into),
        };
        let (none, mut token) = (http::HeaderMap::new(), http::HeaderMap::new());
        token.insert("token", "t".parse().unwrap());
        let told = caller(Some("alice"), &none).told(&empty);
        assert_eq!(told.code(), Code::Unauthenticated);
        assert!(told.message().contains("\"alice\""), "{told}");
        assert_eq!(caller(Some("alice"), &token).told(&empty).code(), empty.code());
        assert_eq!(caller(None, &none).told(&empty).message(), empty.message());
        let denied: Status = ApiError::PermissionDenied.into();
        assert_eq!(caller(Some("alice"), &none).told(&denied).code(), Code::PermissionDenied);
    }
}
