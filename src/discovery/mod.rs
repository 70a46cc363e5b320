//! Where endpoints come from.
//!
//! A source is anything that implements [`Discovery`]: it yields a set of endpoints with priorities and weights, and
//! later sets through the same channel. Sources fail soft: the last good set stays. [`StaticList`] is what a flag says,
//! [`MemberList`] what the cluster says of itself. Gateway, proxy, `ctl` and `bench` take their endpoints from the trait,
//! so a new source is a file here and its flag.

mod endpoint_set;
mod member_list;
mod static_list;

pub use endpoint_set::{Discovery, EndpointSet, ListedEndpoint, current_endpoints, dialled};
pub use member_list::MemberList;
pub use static_list::StaticList;
