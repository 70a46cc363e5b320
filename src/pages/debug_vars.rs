use http::StatusCode;
use rustix::process::{Resource, getrlimit};
use serde_json::{Map, Value};

use super::command_line::command_line;
use super::page::{Page, page};

/// The page at `/debug/vars`: what is known of the process, and `more`. etcd's has the memory statistics of Go as well.
pub fn debug_vars(more: impl IntoIterator<Item = (&'static str, Value)>) -> Page {
    let limit = getrlimit(Resource::Nofile).current.map_or(Value::Null, Value::from);
    let process = [("cmdline", command_line().into()), ("file_descriptor_limit", limit)];
    let vars: Map<String, Value> =
        process.into_iter().chain(more).map(|(name, value)| (name.to_owned(), value)).collect();
    page(StatusCode::OK, "application/json; charset=utf-8", Value::from(vars).to_string())
}
