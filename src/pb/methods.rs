//! Every method of the API, taken from `proto/` when building.

/// How messages flow in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MethodKind {
    /// One request, one answer.
    Unary,
    /// Many requests, one answer.
    ClientStream,
    /// One request, many answers.
    ServerStream,
    /// Many of both.
    BidiStream,
}

impl MethodKind {
    /// The name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ClientStream => "client_stream",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// One method.
#[derive(Debug, PartialEq, Eq)]
pub struct Method {
    /// `/package.Service/Name`.
    pub path: &'static str,
    /// `package.Service`.
    pub service: &'static str,
    /// `Name`.
    pub name: &'static str,
    /// How messages flow.
    pub kind: MethodKind,
}

/// All methods, sorted by path.
pub static METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// What the text about an unknown method repeats of its path.
const UNKNOWN_PATH_BYTES_MAX: usize = 1024;

/// Finds a method by its path; otherwise the text of the status that etcd answers.
///
/// # Errors
/// Names the unknown method or service.
pub fn find(path: &str) -> Result<&'static Method, String> {
    if let Ok(found) = METHODS.binary_search_by(|method| method.path.cmp(path)) {
        return Ok(&METHODS[found]);
    }
    // The text goes back in a header, which no flow control holds up.
    let path = path.get(..UNKNOWN_PATH_BYTES_MAX).unwrap_or(path);
    let Some((service, name)) = path.strip_prefix('/').and_then(|rest| rest.rsplit_once('/')) else {
        return Err(format!("malformed method name: {path:?}"));
    };
    if METHODS.iter().any(|method| method.service == service) {
        return Err(format!("unknown method {name} for service {service}"));
    }
    Err(format!("unknown service {service}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_path() {
        for method in METHODS {
            assert_eq!(find(method.path), Ok(method));
        }
        assert_eq!(find("/etcdserverpb.Watch/Watch").map(|method| method.kind), Ok(MethodKind::BidiStream));
    }

    #[test]
    fn unknown_names_are_worded_as_etcd_does() {
        assert_eq!(find("/etcdserverpb.KV/Nope"), Err("unknown method Nope for service etcdserverpb.KV".into()));
        assert_eq!(find("/foo.Bar/Baz"), Err("unknown service foo.Bar".into()));
    }
}
