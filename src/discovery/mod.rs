//! Where endpoints come from.
//!
//! A source is anything that implements [`Discovery`] (`source.rs`): it yields a set of endpoints with priorities and
//! weights, and later sets through the same channel. Sources fail soft: the last good set stays, and its age shows
//! ([`SourceStatus`], `metrics.rs`). [`StaticList`] is what a flag says, [`SrvRecords`] (`dns/`) what DNS says of a domain,
//! [`MemberList`] what the cluster says of itself, [`PeerMembers`] what it says on the peer ports of members that registered
//! under a URL or a token ([`KeptCluster`] outlives their registry). [`RegisteredEndpoints`] are proxies that registered in the cluster. Gateway, proxy, `ctl` and
//! `bench` take their endpoints from the trait, so a new source is a file here and its flag.
//!
//! A cluster that begins finds its members by SRV records, too, or by registering under a URL or a token (`bootstrap/`).

mod bootstrap;
mod dns;
mod endpoint_set;
mod kept_cluster;
mod member_list;
mod metrics;
mod naming;
mod peer_members;
mod source;
mod static_list;

pub use bootstrap::{JoinError, RegistryKeys, join_cluster, peer_urls};
pub use dns::{SrvError, SrvRecords, Unanswered, find_endpoints, find_members};
pub use endpoint_set::{EndpointSet, ListedEndpoint, Origin, dialled};
pub use kept_cluster::KeptCluster;
pub use member_list::MemberList;
pub use metrics::count_sources;
pub use naming::{NamingEntry, RegisteredEndpoints};
pub use peer_members::PeerMembers;
pub use source::{Discovery, Followed, SourceStatus, current_endpoints};
pub use static_list::StaticList;
