//! Requests to one member and their answers, many at a time on one connection.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::config::PeerLimits;
use super::frame::{Batch, ConnectionError, Frame, Kind};
use super::outgoing::{Next, Source};
use super::receiver::{CallError, CallFailure};
use crate::types::MemberId;

/// Id and length of the method.
const CALL_HEAD_BYTES: usize = 9;
/// Id and code.
const ANSWER_HEAD_BYTES: usize = 9;

/// The calls to one member.
pub(super) struct CallQueue {
    member: MemberId,
    state: Mutex<State>,
    ready: Notify,
    /// One for each call without an answer.
    permits: Semaphore,
}

#[derive(Default)]
struct State {
    next: u64,
    unsent: VecDeque<Unsent>,
    /// Every call that waits, sent or not.
    waiting: HashMap<u64, Waiting>,
    closed: bool,
}

struct Unsent {
    id: u64,
    method: &'static str,
    body: Bytes,
}

struct Waiting {
    sent: bool,
    reply: oneshot::Sender<Result<Bytes, CallError>>,
}

impl CallQueue {
    pub(super) fn new(member: MemberId, limits: &PeerLimits) -> Self {
        Self { member, state: Mutex::default(), ready: Notify::new(), permits: Semaphore::new(limits.calls_max) }
    }

    /// Makes one call. Dropping the future ends the waiting only.
    pub(super) async fn call(
        self: &Arc<Self>,
        method: &'static str,
        body: Bytes,
        limits: &PeerLimits,
    ) -> Result<Bytes, CallError> {
        let Ok(_permit) = self.permits.try_acquire() else { return Err(CallError::Refused(self.member)) };
        if CALL_HEAD_BYTES + 1 + method.len() + body.len() > limits.frame_bytes_max {
            return Err(CallError::Refused(self.member));
        }
        let began = Instant::now();
        let (reply, mut answer) = oneshot::channel();
        let forget = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(CallError::UnknownPeer(self.member));
            }
            let id = state.next;
            state.next += 1;
            state.waiting.insert(id, Waiting { sent: false, reply });
            state.unsent.push_back(Unsent { id, method, body });
            self.ready.notify_one();
            Forget { calls: self.clone(), id }
        };
        let connect_timeout = limits.call_connect_timeout.min(limits.call_timeout);
        if let Ok(answered) = timeout_at(began + connect_timeout, &mut answer).await {
            return answered.unwrap_or(Err(CallError::Stopped));
        }
        if !forget.is_sent() {
            return Err(CallError::Unreachable(self.member));
        }
        match timeout_at(began + limits.call_timeout, answer).await {
            Ok(answered) => answered.unwrap_or(Err(CallError::Stopped)),
            Err(_) => Err(CallError::Lost(self.member)),
        }
    }

    /// The connection broke: calls that were sent will have no answer.
    pub(super) fn broke(&self) {
        let lost: Vec<Waiting> =
            self.state.lock().waiting.extract_if(|_, call| call.sent).map(|(_, call)| call).collect();
        for call in lost {
            let _ = call.reply.send(Err(CallError::Lost(self.member)));
        }
    }

    /// The member is no peer any more.
    pub(super) fn close(&self) {
        self.broke();
        let unsent = {
            let mut state = self.state.lock();
            state.closed = true;
            state.unsent.clear();
            std::mem::take(&mut state.waiting)
        };
        for call in unsent.into_values() {
            let _ = call.reply.send(Err(CallError::UnknownPeer(self.member)));
        }
    }

    /// Takes an answer of the peer to the call it belongs to, which may have been given up.
    pub(super) fn on_frame(&self, frame: Frame) -> Result<Next, ConnectionError> {
        if frame.kind != Kind::Answer {
            return Err(ConnectionError::Unexpected(frame.kind));
        }
        let mut payload = frame.payload;
        if payload.len() < ANSWER_HEAD_BYTES {
            return Err(ConnectionError::Length(payload.len()));
        }
        let id = payload.get_u64_le();
        let code = payload.get_u8();
        let answer = match Code::from(i32::from(code)) {
            Code::Ok => Ok(payload),
            code => Err(CallError::Failed(CallFailure { code, text: String::from_utf8_lossy(&payload).into_owned() })),
        };
        if let Some(call) = self.state.lock().waiting.remove(&id) {
            let _ = call.reply.send(answer);
        }
        Ok(Next::Read)
    }

    fn drain_into(&self, batch: &mut Batch, batch_bytes_max: usize) -> bool {
        let mut state = self.state.lock();
        let mut any = false;
        while batch.bytes() < batch_bytes_max {
            let Some(call) = state.unsent.pop_front() else { break };
            // Given up calls are no longer there.
            let Some(waiting) = state.waiting.get_mut(&call.id) else { continue };
            waiting.sent = true;
            let mut head = Vec::with_capacity(CALL_HEAD_BYTES + call.method.len());
            head.put_u64_le(call.id);
            head.put_u8(u8::try_from(call.method.len()).expect("methods have short names"));
            head.put_slice(call.method.as_bytes());
            batch.push(Kind::Call, &head, &call.body);
            any = true;
        }
        any
    }
}

/// Takes a call out of the tables when its caller is gone.
struct Forget {
    calls: Arc<CallQueue>,
    id: u64,
}

impl Forget {
    fn is_sent(&self) -> bool {
        self.calls.state.lock().waiting.get(&self.id).is_none_or(|call| call.sent)
    }
}

impl Drop for Forget {
    fn drop(&mut self) {
        let mut state = self.calls.state.lock();
        if let Some(call) = state.waiting.remove(&self.id)
            && !call.sent
            && let Ok(at) = state.unsent.binary_search_by_key(&self.id, |unsent| unsent.id)
        {
            state.unsent.remove(at);
        }
    }
}

/// The calls as the source of a connection.
pub(super) struct Calls<'a> {
    pub(super) queue: &'a CallQueue,
    pub(super) batch_bytes_max: usize,
}

impl Source for Calls<'_> {
    async fn fill(&mut self, batch: &mut Batch) -> Result<(), ConnectionError> {
        while !self.queue.drain_into(batch, self.batch_bytes_max) {
            self.queue.ready.notified().await;
        }
        Ok(())
    }
}

/// A call as it arrived.
pub(super) struct IncomingCall {
    pub(super) id: u64,
    pub(super) method: String,
    pub(super) body: Bytes,
}

impl IncomingCall {
    pub(super) fn parse(mut payload: Bytes) -> Result<Self, ConnectionError> {
        let whole = payload.len();
        let malformed = ConnectionError::Length(whole);
        if whole < CALL_HEAD_BYTES {
            return Err(malformed);
        }
        let id = payload.get_u64_le();
        let length = usize::from(payload.get_u8());
        if payload.len() < length {
            return Err(malformed);
        }
        let method = String::from_utf8(payload.split_to(length).into())
            .map_err(|_| ConnectionError::Message("method is no text".into()))?;
        Ok(Self { id, method, body: payload })
    }
}

/// Adds the answer to a call. An answer that is too long for a frame becomes an error.
pub(super) fn push_answer(batch: &mut Batch, id: u64, answer: Result<Bytes, CallFailure>, frame_bytes_max: usize) {
    let (code, body) = match answer {
        Ok(body) if body.len() + ANSWER_HEAD_BYTES + 1 > frame_bytes_max => {
            (Code::ResourceExhausted, Bytes::from_static(b"answer is too long"))
        }
        Ok(body) => (Code::Ok, body),
        // An error is never sent with the code of success.
        Err(CallFailure { code: Code::Ok, text }) => (Code::Unknown, text.into()),
        Err(CallFailure { code, text }) => (code, text.into()),
    };
    let mut head = Vec::with_capacity(ANSWER_HEAD_BYTES);
    head.put_u64_le(id);
    head.put_u8(code as i32 as u8);
    batch.push(Kind::Answer, &head, &body);
}
