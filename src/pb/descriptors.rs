//! What `proto/` says, at run time.

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, ExtensionDescriptor, MethodDescriptor};

/// The compiled files of `proto/` and what they import.
static FILES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Every message, enum, service and method of `proto/`, decoded once.
pub fn descriptors() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(FILES).expect("written by build.rs from checked files"))
}

/// Where `method` is reached over HTTP: the option `watershed.http_post`. Empty for a method without a path.
pub fn http_paths(method: &MethodDescriptor) -> Vec<String> {
    let options = method.options();
    let paths = options.get_extension(http_post());
    let paths = paths.as_list().unwrap_or_default();
    paths.iter().filter_map(|path| path.as_str()).map(str::to_owned).collect()
}

fn http_post() -> &'static ExtensionDescriptor {
    static EXTENSION: OnceLock<ExtensionDescriptor> = OnceLock::new();
    EXTENSION.get_or_init(|| {
        descriptors()
            .all_extensions()
            .find(|it| it.full_name() == "watershed.http_post")
            .expect("declared in http.proto")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::methods::METHODS;

    #[test]
    fn the_descriptors_hold_every_method() {
        let mut paths: Vec<String> = descriptors()
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()))
            .collect();
        paths.sort();
        assert_eq!(paths, METHODS.iter().map(|method| method.path).collect::<Vec<_>>());
    }

    #[test]
    fn a_method_names_its_http_paths() {
        let lease = descriptors().get_service_by_name("etcdserverpb.Lease").expect("a service");
        let revoke = lease.methods().find(|method| method.name() == "LeaseRevoke").expect("a method");
        assert_eq!(http_paths(&revoke), ["/v3/lease/revoke", "/v3/kv/lease/revoke"]);
        let kv = descriptors().get_service_by_name("etcdserverpb.KV").expect("a service");
        let stream = kv.methods().find(|method| method.name() == "RangeStream").expect("a method");
        assert!(http_paths(&stream).is_empty());
    }
}
