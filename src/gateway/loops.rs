//! Loops: connections to an endpoint that come back to this gateway, through any number of others that pass bytes on.
//!
//! The gateway cannot know one by the bytes of its clients, so it asks: on a connection of its own, which begins with a request of HTTP
//! that has a random number in it. A member answers that or closes; in a loop, a connection that begins with the same bytes is
//! accepted here a moment later. It is looked at without being read, and connections are looked at only while a question is open.
//! Questions are asked when so many connections are open as a loop makes at once, and again at each doubling.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::dial::Dialer;
use super::loop_questions::WINDOW;
use super::upstream::Upstream;
use crate::net::Backoff;

/// Asks whenever it is wanted, and leaves out the endpoints from which connections come back.
pub(super) async fn search_for_loops(dialer: Arc<Dialer>, stop: CancellationToken) {
    let search = async {
        loop {
            dialer.loops.wanted().await;
            let listed = dialer.routes.load().endpoints().into_iter().map(|listed| listed.upstream);
            let used: Vec<Arc<Upstream>> = listed.filter(|upstream| !upstream.is_down()).collect();
            let mut questions: FuturesUnordered<_> =
                used.iter().map(async |upstream| (upstream, comes_back(&dialer, upstream).await)).collect();
            while let Some((upstream, came_back)) = questions.next().await {
                if came_back {
                    upstream.mark_looped();
                }
            }
        }
    };
    stop.run_until_cancelled(search).await;
}

/// Asks once whether connections to the endpoint come back.
pub(super) async fn comes_back(dialer: &Dialer, upstream: &Upstream) -> bool {
    let Some(mut question) = dialer.loops.ask() else { return false };
    let bytes = question.bytes();
    let answered = async {
        let mut stream = dialer.connect(upstream).await?;
        dialer.rules.introduce(None, &mut stream).await?;
        stream.write_all(&bytes).await?;
        // Whatever it says, or its end.
        stream.read(&mut [0]).await
    };
    tokio::select! {
        biased;
        came_back = &mut question.came_back => came_back.is_ok(),
        _ = timeout(WINDOW, answered) => question.came_back.try_recv().is_ok(),
    }
}

/// Waits until connections to the endpoint do not come back any more, or it is no longer listed.
pub(super) async fn until_no_loop(dialer: &Dialer, upstream: &Upstream, pauses: &mut Backoff) {
    while upstream.is_looped() && !upstream.is_removed() {
        tokio::select! {
            () = upstream.changed.notified() => continue,
            () = sleep(pauses.pause()) => {}
        }
        if !comes_back(dialer, upstream).await {
            info!(endpoint = %upstream.endpoint(), "connections to the endpoint do not come back any more");
            upstream.leave_loop();
        }
    }
}
