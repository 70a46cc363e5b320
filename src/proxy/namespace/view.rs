use std::sync::Arc;

use http::HeaderMap;
use tonic::Request;

use super::keys::Namespace;
use super::ownership::{KnownLeases, OwnLeases, Ownership};
use super::response_memory::{BoundedChannel, ResponseMemory};
use crate::client::{Channel, Seen};
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::proxy::lease::LeaseOwnership;
use crate::proxy::limits::Limits;
use crate::shutdown::Tasks;

/// What the clients of a namespace may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Calls that reach beyond the namespace.
    pub admin: bool,
    /// Compaction of the cluster, among them.
    pub compact: bool,
    /// Nothing that changes something.
    pub read_only: bool,
}

/// The API as one tenant sees it. Cheap to clone.
#[derive(Clone)]
pub(in crate::proxy) struct View {
    pub(super) namespace: Namespace,
    pub(super) rights: Rights,
    pub(super) limits: Arc<Limits>,
    pub(super) kv: KvClient<BoundedChannel>,
    /// For what no client is answered with.
    pub(super) own_kv: KvClient<BoundedChannel>,
    pub(super) lease: LeaseClient<BoundedChannel>,
    pub(super) ownership: Arc<Ownership>,
    pub(super) channel: Channel,
    pub(super) tasks: Tasks,
}

impl View {
    /// The view of a tenant, whose requests go through `channel`.
    pub(in crate::proxy) fn new(
        namespace: &Namespace,
        rights: Rights,
        limits: Arc<Limits>,
        channel: Channel,
        memory: ResponseMemory,
        known_leases: KnownLeases,
        tasks: &Tasks,
    ) -> Self {
        let bounded = BoundedChannel::new(channel.clone(), memory, limits.clone());
        let kv = KvClient::new(bounded.clone()).max_decoding_message_size(i32::MAX as usize);
        let own_kv = KvClient::new(bounded.clone().of_any_length()).max_decoding_message_size(i32::MAX as usize);
        let ownership = Ownership::new(own_kv.clone(), KvClient::new(channel.clone()), namespace, known_leases);
        let lease = LeaseClient::new(bounded).max_decoding_message_size(i32::MAX as usize);
        Self {
            namespace: namespace.clone(),
            rights,
            limits,
            ownership: Arc::new(ownership),
            kv,
            own_kv,
            lease,
            channel,
            tasks: tasks.clone(),
        }
    }

    /// Decides which leases the tenant may keep alive.
    pub(in crate::proxy) fn ownership(&self) -> Arc<dyn LeaseOwnership> {
        Arc::new(OwnLeases(self.ownership.clone()))
    }
}

/// The request as it goes on: metadata and connection of the caller, without what belongs to its connection and its encoding.
pub(super) fn clean<T>(request: Request<T>) -> Request<T> {
    let (metadata, mut extensions, message) = request.into_parts();
    let mut headers = metadata.into_headers();
    clean_headers(&mut headers);
    let mut request = Request::new(message);
    *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
    if let Some(seen) = extensions.remove::<Seen>() {
        request.extensions_mut().insert(seen);
    }
    request
}

pub(in crate::proxy) fn clean_headers(headers: &mut HeaderMap) {
    for name in ["grpc-encoding", "grpc-accept-encoding", "host", "connection", "content-length", "transfer-encoding"] {
        headers.remove(name);
    }
}
