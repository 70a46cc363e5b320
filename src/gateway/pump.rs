use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::first_bytes::FirstBytes;
use super::flow::{Flow, FlowCounters, FlowError};
use super::limits::{Limit, LimitClock};
use super::stream::Stream;
use super::upstream::Assigned;
use crate::config::ConnectionLimits;

/// A client and its endpoint, once both are connected. Ready when the connection is over.
///
/// Everything an idle connection costs is in here: two sockets and two small states.
///
/// A half-close ends one direction and leaves the other open. A reset ends both and reaches the other side as a
/// reset, so that no reader takes a torn answer for a whole one. A side that only stops reading (its writes fail, its
/// own bytes end cleanly) still gets to say all it had to say. A connection that is dropped before its end (its endpoint is
/// gone, the time to drain is over) ends with a reset for the same reason. A unix socket knows no reset: there the end of the
/// bytes is all that can be told.
pub(super) struct Pump {
    client: Side,
    endpoint: Side,
    /// None once the direction is over.
    up: Option<Flow>,
    down: Option<Flow>,
    assigned: Assigned,
    /// Grows while bytes move, in either direction.
    activity: Cell<u64>,
}

struct Side {
    stream: Stream,
    /// A write failed because of a reset; the kernel reports that once, so it is kept for the reader.
    was_reset: bool,
}

/// A socket broke: the connection is over in both directions.
struct Broken;

impl Pump {
    /// `first` is what has been read of the client.
    pub(super) fn new(client: Stream, endpoint: Stream, first: Option<FirstBytes>, assigned: Assigned) -> Self {
        let side = |stream| Side { stream, was_reset: false };
        let (client, endpoint) = (side(client), side(endpoint));
        let read = first.as_ref().map_or(0, |first| first.end as u64);
        assigned.upstream().metrics.bytes_up.inc_by(read);
        let up = first.map_or_else(Flow::new, Flow::after);
        Self { client, endpoint, up: Some(up), down: Some(Flow::new()), assigned, activity: Cell::new(read) }
    }
}

impl Pump {
    /// Runs until the connection is over or a limit is reached, which is returned.
    pub(super) async fn within(mut self, limits: ConnectionLimits) -> Option<Limit> {
        let mut clock = LimitClock::new(limits, Instant::now());
        loop {
            let Some(look) = clock.next_look(Instant::now()) else {
                (&mut self).await;
                return None;
            };
            if tokio::time::timeout_at(look, &mut self).await.is_ok() {
                return None;
            }
            if let Some(limit) = clock.reached(Instant::now(), self.activity.get()) {
                return Some(limit);
            }
        }
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { client, endpoint, up, down, assigned, activity } = self.get_mut();
        let metrics = &assigned.upstream().metrics;
        let spliced = &metrics.spliced;
        let up_counters = FlowCounters { bytes: &metrics.bytes_up, activity, spliced };
        let down_counters = FlowCounters { bytes: &metrics.bytes_down, activity, spliced };
        let both = poll_direction(up, cx, client, endpoint, &up_counters)
            .and_then(|()| poll_direction(down, cx, endpoint, client, &down_counters));
        if both.is_err() {
            metrics.resets.inc();
            return Poll::Ready(());
        }
        if up.is_none() && down.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if self.up.is_some() || self.down.is_some() {
            self.client.stream.abort();
            self.endpoint.stream.abort();
        }
    }
}

fn poll_direction(
    flow: &mut Option<Flow>,
    cx: &mut Context<'_>,
    from: &mut Side,
    to: &mut Side,
    counters: &FlowCounters<'_>,
) -> Result<(), Broken> {
    let Some(running) = flow else { return Ok(()) };
    match running.poll(cx, (&mut from.stream, from.was_reset), &mut to.stream, counters) {
        Poll::Pending => {}
        Poll::Ready(Ok(())) => *flow = None,
        // The other side gets a reset when this is dropped.
        Poll::Ready(Err(FlowError::Read)) => return Err(Broken),
        Poll::Ready(Err(FlowError::Write(error))) => {
            // A broken pipe follows the reader's own clean end; anything else is a reset or a dead network.
            to.was_reset = error.kind() != io::ErrorKind::BrokenPipe;
            *flow = None;
        }
    }
    Ok(())
}
