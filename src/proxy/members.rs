use std::net::IpAddr;

use http::Response;
use tonic::body::Body;

use super::answer::unary;
use super::registration::RegisteredProxies;
use crate::pb::etcdserverpb::{Member, MemberListResponse};

/// The proxy as the only member in MemberList, so that clients which follow the list stay behind it.
#[derive(Clone, Debug)]
pub struct SelfMember {
    /// Host name.
    pub name: String,
    /// Where clients reach the proxy.
    pub client_url: String,
    /// Those that share a `--resolver-prefix` with it.
    pub registered: Option<RegisteredProxies>,
}

impl SelfMember {
    /// The proxy at this host and port, as a URL that every client can dial: with a scheme, and with its host name in place
    /// of a wildcard address.
    pub fn new(name: String, scheme: &str, host: &str, port: u16) -> Self {
        let host = match host.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() => name.clone(),
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => host.to_owned(),
        };
        Self { name, client_url: format!("{scheme}://{host}:{port}"), registered: None }
    }

    /// The URL without its scheme.
    pub fn address(&self) -> &str {
        self.client_url.split_once("://").map_or(&self.client_url, |(_, address)| address)
    }

    /// The list as etcd's proxy gives it: the registered proxies, or this one while none is known; ids 0, no header.
    pub(super) fn answer(&self) -> Response<Body> {
        if let Some(registered) = self.registered.as_ref().map(RegisteredProxies::members).filter(|all| !all.is_empty())
        {
            return unary(&MemberListResponse { header: None, members: registered.to_vec() });
        }
        let member =
            Member { name: self.name.clone(), client_ur_ls: vec![self.client_url.clone()], ..Default::default() };
        unary(&MemberListResponse { header: None, members: vec![member] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_advertised_url_can_be_dialled() {
        // Cause: MemberList gave the listen address as it was written: no scheme, and a wildcard or no host at all.
        for (host, url) in [
            ("127.0.0.1", "http://127.0.0.1:23790"),
            ("0.0.0.0", "http://proxy-1:23790"),
            ("::", "http://proxy-1:23790"),
            ("::1", "http://[::1]:23790"),
            ("etcd.example", "http://etcd.example:23790"),
        ] {
            let member = SelfMember::new("proxy-1".into(), "http", host, 23790);
            assert_eq!((member.name.as_str(), member.client_url.as_str()), ("proxy-1", url));
        }
    }
}
