//! The generated protobuf modules, and their twins over already encoded parts.
//!
//! `proto/` holds the sources, `build.rs` compiles them. [`encoded`] has responses whose key-values and events are
//! kept as the bytes that go on the wire, and [`pieces`] cuts long ones; [`codec`] carries both over gRPC with small
//! buffers per stream; [`frame`] has the prefix of messages in gRPC bodies; [`methods`] lists every method by path; [`descriptors()`]
//! describes all of it at run time; [`txn`] has the operations of transactions, which nest; [`key_value`] reads an encoded pair,
//! and [`selection`] says which pairs of a range a request wants.

pub mod codec;
mod descriptors;
pub mod encoded;
pub mod frame;
pub mod key_value;
pub mod methods;
pub mod pieces;
mod secrets;
pub mod selection;
pub mod txn;

pub use descriptors::{descriptors, http_paths};

/// The client API.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod etcdserverpb {
    pub use super::txn::{RequestOp, ResponseOp, request_op, response_op};
    tonic::include_proto!("etcdserverpb");
}
/// Key-value records and events.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
/// Users, roles, permissions.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod authpb {
    tonic::include_proto!("authpb");
}
/// Server-side locks.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
/// Server-side elections.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
/// Membership changes as log entries.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod membershippb {
    tonic::include_proto!("membershippb");
}
/// Stored leases.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod leasepb {
    tonic::include_proto!("leasepb");
}
/// Frames of the write-ahead log.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod walpb {
    tonic::include_proto!("walpb");
}
/// Profiles, as pprof reads them.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod profiles {
    tonic::include_proto!("perftools.profiles");
}
/// The standard health service.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod healthpb {
    tonic::include_proto!("grpc.health.v1");
}
