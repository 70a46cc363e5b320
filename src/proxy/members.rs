use http::Response;
use tonic::body::Body;

use super::answer::unary;
use crate::pb::etcdserverpb::{Member, MemberListResponse};

/// The proxy as the only member in MemberList, so that clients which follow the list stay behind it.
#[derive(Clone, Debug)]
pub struct SelfMember {
    /// Host name.
    pub name: String,
    /// Where clients reach the proxy.
    pub client_url: String,
}

impl SelfMember {
    /// The list as etcd's proxy gives it: one entry with id 0, no header.
    pub(super) fn answer(&self) -> Response<Body> {
        let member =
            Member { name: self.name.clone(), client_ur_ls: vec![self.client_url.clone()], ..Default::default() };
        unary(&MemberListResponse { header: None, members: vec![member] })
    }
}
