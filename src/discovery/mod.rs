//! Where endpoints come from.
//!
//! A source is anything that implements [`Discovery`]: it yields a set of endpoints with priorities and weights, and
//! later sets through the same channel. Sources fail soft: the last good set stays. The one source so far is
//! [`StaticList`]; gateway and proxy only see the trait.

mod endpoint_set;
mod static_list;

pub use endpoint_set::{Discovery, EndpointSet, ListedEndpoint};
pub use static_list::StaticList;
