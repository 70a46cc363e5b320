//! Starts the real program on free ports and hands out clients.
//!
//! A [`Deployment`] is one member, alone or behind the gateway or the proxy. Feature tests take a `Deployment` and do not
//! depend on which; `on_every_target!` makes a test of each. Setting
//! `WATERSHED_TEST_SERVER` to another server that understands etcd's flags (a stock etcd, say) runs the same tests
//! with that server in place of ours: what holds for both is compatible, and a test that fails there is wrong.
//!
//! A [`Cluster`] is several members with a [`Network`] between them that can delay, hold, cut and damage.

mod between;
mod certificates;
mod cluster;
mod deployment;
mod dns;
mod frames;
mod http;
mod http_proxy;
mod issuer;
mod json;
mod network;
mod process;
mod proxy;
mod raw;
mod registry;
mod scrape;
mod share;
mod stream;
mod watching;

pub use between::{Between, Passed};
pub use certificates::{Authority, Certificates, client_tls, https};
pub use cluster::Cluster;
pub use dns::DnsServer;
pub use frames::{RawHttp2, cancel_frame, data_frame, frame, grpc_headers, grpc_message};
pub use http::{HttpAnswer, http_get, metric};
pub use http_proxy::HttpProxy;
pub use json::{JsonCall, json};
pub use network::Network;
pub use process::{Process, free_loopback, free_port};
pub use proxy::Proxy;

pub use deployment::{Deployment, Target, client, is_stock, member_args, own_binary, prefix, run, server_binary};
pub use registry::Registry;

pub use raw::{raw_answers, raw_body, raw_call, raw_first, raw_stream};
pub use scrape::Scrape;
pub use share::Share;
pub use stream::Answers;
pub use watching::{Watching, in_words};

use std::fmt::Debug;
use std::time::Duration;

use tonic::{Code, Response, Status};

/// How long anything that must happen may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Three tests of each of the named functions: on a member, behind the gateway, behind the proxy.
#[macro_export]
macro_rules! on_every_target {
    (flags = $flags:tt; $($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn core() {
                $crate::harness::run($crate::harness::Target::Core, &$flags, super::$name);
            }

            #[test]
            fn gateway() {
                $crate::harness::run($crate::harness::Target::Gateway, &$flags, super::$name);
            }

            #[test]
            fn proxy() {
                $crate::harness::run($crate::harness::Target::Proxy, &$flags, super::$name);
            }
        }
    )*};
    ($($name:ident),* $(,)?) => {
        $crate::on_every_target! { flags = []; $($name),* }
    };
}

/// Asserts an error by code and text.
#[track_caller]
pub fn refused<T: Debug>(answer: Result<Response<T>, Status>, code: Code, text: &str) {
    match answer {
        Ok(answer) => panic!("expected {code:?} {text:?}, got {:?}", answer.into_inner()),
        Err(status) => assert_eq!((status.code(), status.message()), (code, text)),
    }
}

/// Waits for something that must happen soon.
#[track_caller]
pub fn soon<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let message = format!("{what} did not happen within {PATIENCE:?} ({caller})");
    async move { tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{message}")) }
}

/// Asks again until the answer is there.
#[track_caller]
pub fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> impl Future<Output = T> {
    soon(what, async move {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}
