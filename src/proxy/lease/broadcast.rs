use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::task::AtomicWaker;
use http_body::Body as HttpBody;
use parking_lot::Mutex;
use prost::Message;
use slab::Slab;
use tonic::{Code, Status};
use tracing::debug;

use super::client_stream::ClientStream;
use super::table::Table;
use crate::api_error::ApiError;
use crate::client::{Carried, Channel, Head, Lane, UpstreamStream};
use crate::net::Backoff;
use crate::pb::etcdserverpb::LeaseKeepAliveRequest;
use crate::pb::frame::{PREFIX_BYTES, Prefix, push_framed};
use crate::proxy::Identity;

const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// Requests a member may leave unanswered; more wait here, where they can still be merged.
const FLIGHT_MAX: usize = 16 * 1024;
/// An answer has some forty bytes. A member that sends much more does not speak our protocol.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long an upstream stream is kept for the next client after the last one left.
const LINGER: Duration = Duration::from_secs(10);
/// How long clients wait for a member to come back before their streams end.
const PATIENCE: Duration = Duration::from_secs(8);
/// Silence after which requests are tried at another member: a renewal may happen twice, so trying early costs little,
/// and a short lease has no time to lose.
const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// How often a stream looks for silence.
const TICK: Duration = Duration::from_millis(500);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Keep-alives of one identity: one table, one upstream stream.
#[derive(Debug)]
pub(super) struct KeepAliveBroadcast {
    identity: Identity,
    state: Mutex<State>,
    /// Wakes the task when there is something to send.
    wake: AtomicWaker,
    clients: AtomicUsize,
}

#[derive(Debug)]
struct State {
    table: Table<Arc<ClientStream>>,
    /// Every client's stream: an identity that asked for a leader loses idle streams too when there is none.
    client_streams: Slab<Arc<ClientStream>>,
}

/// A client's subscription to a broadcast; dropping it ends the subscription.
#[derive(Debug)]
pub(super) struct Subscription {
    broadcast: Arc<KeepAliveBroadcast>,
    client_stream: Arc<ClientStream>,
    number: usize,
}

/// How one upstream stream ended.
#[derive(Debug)]
enum End {
    /// It broke, or its member stopped: another one takes over.
    Lost(Status),
    /// The cluster refused.
    Refused(Status),
    /// No client is left.
    Idle,
}

/// Whether leaving a silent member makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// There is only one member.
    None,
    /// Another member may answer.
    Untried,
    /// All were silent, as the members of a cluster without a leader are until their requests time out. That answer is waited
    /// for.
    Tried,
}

/// Since when streams were lost one after the other while somebody waited for an answer.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// Notes that a stream was lost. Tells whether clients have waited long enough for another one; then it begins anew.
    fn note_loss(&mut self, is_wanted: bool, now: Instant) -> bool {
        if !is_wanted {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let is_over = now.saturating_duration_since(since) > PATIENCE;
        if is_over {
            self.since = None;
        }
        is_over
    }
}

impl KeepAliveBroadcast {
    pub(super) fn new(identity: Identity) -> Arc<Self> {
        Arc::new(Self {
            identity,
            state: Mutex::new(State { table: Table::new(Instant::now()), client_streams: Slab::new() }),
            wake: AtomicWaker::new(),
            clients: AtomicUsize::new(0),
        })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    pub(super) fn join(self: &Arc<Self>) -> Subscription {
        let client_stream = Arc::new(ClientStream::default());
        let number = self.state.lock().client_streams.insert(client_stream.clone());
        self.clients.fetch_add(1, Ordering::Relaxed);
        Subscription { broadcast: self.clone(), client_stream, number }
    }

    /// Serves until no client has been there for a while.
    pub(super) async fn run(&self, channel: &Channel) {
        let head = Head::grpc(KEEP_ALIVE, self.identity.metadata());
        let mut outage = Outage::default();
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut hops = 0;
        let mut last = None;
        while self.wanted().await {
            let others = match channel.endpoints().len() {
                0 | 1 => Others::None,
                members if hops + 1 < members => Others::Untried,
                _ => Others::Tried,
            };
            let mut carried = Carried::default();
            let (end, answered) = match channel.open_elsewhere(Lane::Lease, &head, last.as_ref()).await {
                Ok((stream, token)) => {
                    last = Some(stream.body.endpoint().clone());
                    carried = token;
                    self.serve(stream, others).await
                }
                Err(status) => (End::Lost(status), false),
            };
            if answered {
                (outage, hops) = (Outage::default(), 0);
                backoff.reset();
            }
            let end = match end {
                // The next stream has another token.
                End::Refused(status) if channel.refused(&carried, status.message()) => {
                    End::Lost(Status::unavailable("the token of the tenant's user is no longer accepted"))
                }
                // Clients of etcd give up their leases for what a learner says; the next stream goes to another endpoint.
                End::Refused(status) if others != Others::None && is_of_learner(&status) => {
                    End::Lost(Status::unavailable(format!("the endpoint keeps no lease alive: {}", status.message())))
                }
                end => end,
            };
            match end {
                End::Idle => return,
                End::Refused(status) => self.refused(&status),
                End::Lost(status) => {
                    debug!(%status, "keep-alive stream lost");
                    let is_wanted = self.lost();
                    hops = if is_wanted { hops + 1 } else { 0 };
                    if outage.note_loss(is_wanted, Instant::now()) {
                        self.give_up(&status);
                    }
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// Waits until there is something to send; false when no client subscribed.
    async fn wanted(&self) -> bool {
        loop {
            let asked = poll_fn(|cx| {
                self.wake.register(cx.waker());
                if self.state.lock().table.has_to_send() { Poll::Ready(()) } else { Poll::Pending }
            });
            if tokio::time::timeout(LINGER, asked).await.is_ok() {
                return true;
            }
            if self.clients() == 0 {
                return false;
            }
        }
    }

    /// Works one upstream stream until its end; tells whether it answered anything.
    async fn serve(&self, stream: UpstreamStream, others: Others) -> (End, bool) {
        let mut session = Session { stream, partial: BytesMut::new(), answered: false, heard: Instant::now() };
        loop {
            let work = poll_fn(|cx| session.poll(self, cx));
            if let Ok(end) = tokio::time::timeout(TICK, work).await {
                return (end, session.answered);
            }
            let may_hop = others == Others::Untried || others == Others::Tried && session.answered;
            let is_unanswered = self.state.lock().table.is_unanswered();
            let quiet = session.heard.elapsed();
            if may_hop && is_unanswered && quiet >= SILENCE_MAX {
                return (End::Lost(Status::unavailable("member answers no keep-alives")), session.answered);
            }
            if self.clients() == 0 && !is_unanswered && quiet >= LINGER {
                return (End::Idle, session.answered);
            }
        }
    }

    /// Decides which clients a refusal of the cluster concerns.
    fn refused(&self, status: &Status) {
        let mut state = self.state.lock();
        let State { table, client_streams } = &mut *state;
        match status.code() {
            // About the one lease whose answer was due: its keys are not this user's.
            Code::PermissionDenied => {
                table.refused(|client_stream| client_stream.end(status));
                table.lost();
            }
            _ => {
                table.give_up(|client_stream| client_stream.end(status));
                if self.identity.require_leader() {
                    client_streams.iter().for_each(|(_, client_stream)| client_stream.end(status));
                }
            }
        }
    }

    /// Ends every client's stream, those that wait for nothing too.
    pub(super) fn end_all(&self, status: &Status) {
        let mut state = self.state.lock();
        let State { table, client_streams } = &mut *state;
        table.give_up(|client_stream| client_stream.end(status));
        client_streams.iter().for_each(|(_, client_stream)| client_stream.end(status));
    }

    /// A stream was lost. Tells whether somebody waits for the next one.
    fn lost(&self) -> bool {
        let mut state = self.state.lock();
        state.table.lost();
        state.table.has_to_send()
    }

    fn give_up(&self, status: &Status) {
        self.state.lock().table.give_up(|client_stream| client_stream.end(status));
    }
}

impl Subscription {
    pub(super) fn client_stream(&self) -> &Arc<ClientStream> {
        &self.client_stream
    }

    /// Asks for these leases; each will be answered through the client stream, which already expects it.
    pub(super) fn ask(&self, ids: impl IntoIterator<Item = i64>) {
        let now = Instant::now();
        let mut state = self.broadcast.state.lock();
        for id in ids {
            state.table.ask(id, self.client_stream.clone(), now);
            if state.table.is_long() {
                state.table.forget_abandoned(|client_stream| client_stream.is_closed());
            }
        }
        drop(state);
        self.broadcast.wake.wake();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.client_stream.close();
        self.broadcast.state.lock().client_streams.try_remove(self.number);
        self.broadcast.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One upstream stream at work.
struct Session {
    stream: UpstreamStream,
    /// The beginning of an answer whose rest has not come yet.
    partial: BytesMut,
    answered: bool,
    /// When the member last answered, or was sent a request while none was unanswered.
    heard: Instant,
}

/// What the table needs to know of an answer; the rest of it passes unread.
#[derive(Clone, PartialEq, Message)]
struct AnswerHead {
    #[prost(int64, tag = "2")]
    id: i64,
    #[prost(int64, tag = "3")]
    ttl: i64,
}

impl Session {
    fn poll(&mut self, broadcast: &KeepAliveBroadcast, cx: &mut Context<'_>) -> Poll<End> {
        broadcast.wake.register(cx.waker());
        loop {
            if let Err(status) = self.send(broadcast) {
                return Poll::Ready(End::Lost(status));
            }
            match Pin::new(&mut self.stream.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        if let Err(status) = self.receive(broadcast, data) {
                            return Poll::Ready(End::Lost(status));
                        }
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Poll::Ready(self.end(Status::from_header_map(&trailers)));
                    }
                },
                Poll::Ready(Some(Err(status))) => return Poll::Ready(End::Lost(status)),
                Poll::Ready(None) => return Poll::Ready(self.end(None)),
            }
        }
    }

    /// Sends what waits, as one piece.
    fn send(&mut self, broadcast: &KeepAliveBroadcast) -> Result<(), Status> {
        let mut out = BytesMut::new();
        let mut state = broadcast.state.lock();
        let was_unanswered = state.table.is_unanswered();
        state.table.send(FLIGHT_MAX, |id| {
            push_framed(&LeaseKeepAliveRequest { id }, &mut out);
        });
        drop(state);
        if out.is_empty() {
            return Ok(());
        }
        if !was_unanswered {
            self.heard = Instant::now();
        }
        self.stream.send(out.freeze())
    }

    fn receive(&mut self, broadcast: &KeepAliveBroadcast, data: Bytes) -> Result<(), Status> {
        let now = Instant::now();
        self.heard = now;
        self.partial.extend_from_slice(&data);
        let mut state = broadcast.state.lock();
        while let Some((prefix, rest)) = Prefix::split(&self.partial) {
            if !prefix.is_plain() || prefix.length > ANSWER_BYTES_MAX {
                return Err(Status::internal("keep-alive answer in a form nobody asked for"));
            }
            let Some(message) = rest.get(..prefix.length) else { break };
            let head = AnswerHead::decode(message)
                .map_err(|error| Status::internal(format!("keep-alive answer does not decode: {error}")))?;
            let framed = self.partial.split_to(PREFIX_BYTES + prefix.length);
            state.table.answered(head.id, head.ttl, now, |client_stream| client_stream.answer(head.id, &framed));
            self.answered = true;
        }
        Ok(())
    }

    /// Reads how the stream ended. After a break, a member that stops or an end without an error another member is tried;
    /// any other status is passed on to the clients.
    fn end(&self, status: Option<Status>) -> End {
        let status = status.unwrap_or_else(|| Status::unavailable("keep-alive stream ended"));
        let said = ApiError::from_text(status.message());
        let moves_on = self.stream.body.is_broken()
            || match status.code() {
                Code::Ok => true,
                Code::Unavailable => matches!(said, None | Some(ApiError::Stopped)),
                _ => false,
            };
        if moves_on { End::Lost(status) } else { End::Refused(status) }
    }
}

fn is_of_learner(refusal: &Status) -> bool {
    ApiError::from_text(refusal.message()) == Some(ApiError::NotSupportedForLearner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cause: a stream that was lost while nobody waited began the time, so that whoever asked later was told at the next loss, at
    /// once, that no member is there.
    #[test]
    fn only_the_time_for_which_somebody_waits_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outage = Outage::default();
        assert!(!outage.note_loss(false, at(0)));
        assert!(!outage.note_loss(true, at(60)), "nobody waited before");
        assert!(!outage.note_loss(true, at(68)));
        assert!(outage.note_loss(true, at(69)));
        assert!(!outage.note_loss(true, at(70)), "those who waited were told");
        assert!(!outage.note_loss(false, at(75)), "they have left");
        assert!(!outage.note_loss(true, at(79)));
    }
}
