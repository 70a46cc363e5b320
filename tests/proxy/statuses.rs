//! Upstream watch streams that end with any status.

use tonic::Code;
use watershed::client::Client;
use watershed::pb::etcdserverpb::WatchCreateRequest;

use super::{put, under};
use crate::harness::{Between, Deployment, Proxy, Target, Watching, client, in_words, run, until};

/// What a watcher got: the event of this revision, or that its watch has ended and why.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Event,
    Ended(String),
}

async fn told(watching: &mut Watching, word: &str) -> Told {
    let answer = watching.next().await;
    if answer.canceled {
        assert!(answer.events.is_empty() && !answer.cancel_reason.is_empty(), "{answer:?}");
        return Told::Ended(answer.cancel_reason);
    }
    assert_eq!(in_words(&answer), [word], "the next event and no other");
    Told::Event
}

/// Watches of the same keys, of keys beside them, and of the past.
async fn watchers(clients: &[Client], since: i64) -> Vec<(&'static str, Watching)> {
    let past = WatchCreateRequest { start_revision: since, ..under("k/") };
    let requests = [("k/", under("k/")), ("k/", under("k/")), ("l", under("l")), ("k/", past)];
    let mut watchers = Vec::new();
    for (client, (prefix, request)) in clients.iter().cycle().zip(requests) {
        let (watching, created) = Watching::create(client, request).await;
        assert!(!created.canceled, "{created:?}");
        watchers.push((prefix, watching));
    }
    watchers
}

/// A proxy that hands on what its upstream says of itself, or hears nothing any more, leaves watchers behind that wait for ever.
#[test]
fn a_watch_stream_that_ends_is_resumed_whatever_its_status() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let between = Between::start(&deployment.endpoint).await;
        let proxy = Proxy::start(&[&between.endpoint]).await;
        let clients = [client(&proxy.endpoint), client(&proxy.endpoint)];
        let member = client(&deployment.endpoint);
        let codes = [
            Code::Unauthenticated,
            Code::Cancelled,
            Code::Unknown,
            Code::Internal,
            Code::ResourceExhausted,
            Code::PermissionDenied,
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Ok,
        ];
        for code in codes {
            let since = put(&member, "k/before").await;
            let mut watchers = watchers(&clients, since).await;
            let word = format!("+k/before=v@{since}");
            assert_eq!(told(&mut watchers[3].1, &word).await, Told::Event);
            // The stream ends, and so does the one in its place.
            between.end_watches(code, 1);
            until("the stream is opened again", async || (between.refusals_left() == 0).then_some(())).await;
            for key in ["k/after", "l"] {
                let revision = put(&member, key).await;
                let word = format!("+{key}=v@{revision}");
                for (_, watching) in watchers.iter_mut().filter(|(prefix, _)| key.starts_with(prefix)) {
                    assert_eq!(told(watching, &word).await, Told::Event, "{code:?}");
                }
            }
        }
    });
}
