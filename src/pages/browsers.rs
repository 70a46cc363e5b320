use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use tonic::body::Body;

use super::page::{Page, redirected, text};

/// Limits on requests from browsers.
#[derive(Clone, Debug, Default)]
pub struct BrowserRules {
    /// Origins whose scripts may read answers; empty or `*` for all.
    pub origins: Vec<String>,
    /// Names under which this member may be addressed, IPv6 addresses with or without brackets; empty or `*` for all.
    pub hosts: Vec<String>,
}

impl BrowserRules {
    /// The value of `Access-Control-Allow-Origin`.
    fn allowed_origin(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        if allows_all(&self.origins) {
            return Some(HeaderValue::from_static("*"));
        }
        origin.filter(|origin| self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())).cloned()
    }

    /// Applies the rules, and what every path has in common, to a request that `answer` answers.
    pub async fn guarded<B, F>(
        &self,
        is_over_tls: bool,
        request: Request<B>,
        answer: impl FnOnce(Request<B>) -> F,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>>,
    {
        // A page that reaches this server under another name has no certificate for it.
        if !is_over_tls && !self.allows_host(request.headers().get(header::HOST)) {
            let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
            return misdirected(&String::from_utf8_lossy(host)).map(Body::new);
        }
        let origin = self.allowed_origin(request.headers().get(header::ORIGIN));
        let mut response = match *request.method() {
            Method::OPTIONS => Response::new(Body::empty()),
            _ => match redirected(request.method(), request.uri()) {
                Some(page) => page.map(Body::new),
                None => answer(request).await,
            },
        };
        // etcd sends none of them to an origin that is not listed.
        let Some(origin) = origin else { return response };
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization"),
            (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn allows_host(&self, host: Option<&HeaderValue>) -> bool {
        if allows_all(&self.hosts) {
            return true;
        }
        let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
        self.hosts.iter().any(|allowed| without_brackets(allowed) == host_name(host))
    }
}

/// A Host header without its port and, as by Go's `net.SplitHostPort`, without the brackets of an IPv6 address.
fn host_name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        // Without brackets, more than one colon is an address without a port.
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    };
    without_brackets(name)
}

fn without_brackets(name: &str) -> &str {
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

/// The answer to a request for a name this member does not go by.
fn misdirected(host: &str) -> Page {
    let name = host_name(host);
    let help = format!(
        "the Host header names no host of --host-whitelist.\n\
         A page may be trying to reach this server through the browser (\"DNS Rebinding\", CVE-2018-5702).\n\
         If the name is meant to work, either enable TLS, where every name does, or list it:\n  \
         etcd --host-whitelist {name:?}\n"
    );
    text(StatusCode::MISDIRECTED_REQUEST, help)
}

fn allows_all(list: &[String]) -> bool {
    list.is_empty() || list.iter().any(|entry| entry == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_kept_to() {
        let rules = BrowserRules { origins: vec!["http://a".into()], hosts: vec!["a.example".into()] };
        let value = HeaderValue::from_static;
        assert_eq!(rules.allowed_origin(Some(&value("http://a"))), Some(value("http://a")));
        assert_eq!(rules.allowed_origin(Some(&value("http://b"))), None);
        assert!(rules.allows_host(Some(&value("a.example:2379"))));
        assert!(!rules.allows_host(Some(&value("b.example"))));
        assert!(!rules.allows_host(None));
        let open = BrowserRules { origins: vec!["*".into()], hosts: Vec::new() };
        assert_eq!(open.allowed_origin(None), Some(value("*")));
        assert!(open.allows_host(None));
    }

    #[test]
    fn an_ipv6_address_is_compared_without_brackets() {
        // Cause: only the port was cut off the header, so that `--host-whitelist=::1` refused every request.
        for listed in ["::1", "[::1]"] {
            let rules = BrowserRules { origins: Vec::new(), hosts: vec![listed.into()] };
            for host in ["[::1]:2379", "[::1]", "::1"] {
                assert!(rules.allows_host(Some(&HeaderValue::from_static(host))), "{listed} {host}");
            }
            for host in ["[::2]:2379", "[::2]", "[::1", "1", ":1", "localhost:2379"] {
                assert!(!rules.allows_host(Some(&HeaderValue::from_static(host))), "{listed} {host}");
            }
        }
    }
}
