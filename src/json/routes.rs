use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

use prost_reflect::MessageDescriptor;

use crate::pb::methods::{self, Method, MethodKind};
use crate::pb::{descriptors, http_paths};

/// Where the paths of the gateway are.
const ROOT: &str = "/v3/";
/// Where they once were.
const OLD_ROOT: &str = "/v3beta/";

/// A method that has a path.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: &'static Method,
    pub(super) input: MessageDescriptor,
    pub(super) output: MessageDescriptor,
}

impl Route {
    /// Whether the answer has any number of messages.
    pub(super) fn is_answered_by_stream(&self) -> bool {
        matches!(self.method.kind, MethodKind::ServerStream | MethodKind::BidiStream)
    }

    /// Whether the request has any number of messages.
    pub(super) fn is_asked_by_stream(&self) -> bool {
        matches!(self.method.kind, MethodKind::ClientStream | MethodKind::BidiStream)
    }
}

/// Whether a path is one of the JSON gateway, with a method behind it or not.
pub fn is_json_path(path: &str) -> bool {
    path.starts_with(ROOT) || path.starts_with(OLD_ROOT)
}

/// The method behind a path.
pub(super) fn find(path: &str) -> Option<&'static Route> {
    let path = decoded(path);
    match path.strip_prefix(OLD_ROOT) {
        Some(rest) => routes().get(&format!("{ROOT}{rest}")),
        None => routes().get(path.as_ref()),
    }
}

/// A path without `%`; one that cannot be read so is as it is.
fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let (mut out, mut rest) = (Vec::new(), path.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(out).map_or(Cow::Borrowed(path), Cow::Owned)
}

/// All of them, by path.
pub(super) fn routes() -> &'static HashMap<String, Route> {
    static ROUTES: OnceLock<HashMap<String, Route>> = OnceLock::new();
    ROUTES.get_or_init(|| {
        let mut routes = HashMap::new();
        for service in descriptors().services() {
            for described in service.methods() {
                let grpc_path = format!("/{}/{}", service.full_name(), described.name());
                // The table of methods is made of the same files.
                let Ok(method) = methods::find(&grpc_path) else { continue };
                for path in http_paths(&described) {
                    routes.insert(path, Route { method, input: described.input(), output: described.output() });
                }
            }
        }
        routes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_as_etcd_finds_them() {
        let name = |path: &str| find(path).map(|route| route.method.name);
        assert_eq!(name("/v3/kv/range"), Some("Range"));
        assert_eq!(name("/v3beta/kv/range"), Some("Range"));
        assert_eq!(name("/v3/kv%2Frange"), Some("Range"));
        assert_eq!(name("/v3/kv/lease/revoke"), Some("LeaseRevoke"));
        for unknown in ["/v3/kv/range/", "/v3/kv", "/v3/", "/v3alpha/kv/range", "/v3/kv/range%", "/v3/kv/range%zz"] {
            assert_eq!(name(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_paths_are_those_of_etcd() {
        // From the API description in etcd's repository at v3.7.1: path, service and method.
        let etcd: Vec<_> = include_str!("paths.txt").lines().filter_map(|line| line.split_once(' ')).collect();
        let mut ours: Vec<_> = routes().iter().collect();
        ours.sort_by_key(|(path, _)| path.as_str());
        let name =
            |route: &Route| format!("{}.{}", route.method.service.rsplit('.').next().unwrap_or(""), route.method.name);
        let ours: Vec<_> = ours.into_iter().map(|(path, route)| (path.clone(), name(route))).collect();
        assert_eq!(
            ours,
            etcd.into_iter().map(|(path, name)| (path.into(), name.into())).collect::<Vec<(String, String)>>()
        );
    }

    #[test]
    fn every_method_of_the_api_has_a_path_but_range_stream() {
        let routed: Vec<_> = routes().values().map(|route| route.method.path).collect();
        let absent: Vec<_> = methods::METHODS.iter().map(|it| it.path).filter(|path| !routed.contains(path)).collect();
        // etcd has none for the first; the health service has pages of its own.
        assert_eq!(
            absent,
            [
                "/etcdserverpb.KV/RangeStream",
                "/grpc.health.v1.Health/Check",
                "/grpc.health.v1.Health/List",
                "/grpc.health.v1.Health/Watch"
            ]
        );
    }
}
