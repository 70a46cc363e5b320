use std::collections::VecDeque;
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tonic::Status;

/// One client's stream as the broadcast sees it: where its answers go.
#[derive(Debug, Default)]
pub(super) struct ClientStream {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    out: BytesMut,
    /// Requests without an answer in `out`, in the order they came: a member answers in that order, so we do, however
    /// requests were merged upstream.
    waiting: VecDeque<Request>,
    end: Option<Status>,
    waker: Option<Waker>,
    closed: bool,
}

#[derive(Debug)]
struct Request {
    id: i64,
    /// Answered already, but not yet its turn.
    answer: Option<Bytes>,
}

/// What a client's stream does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Framed answers.
    Answers(Bytes),
    /// The stream ends with this status.
    End(Status),
    /// Nothing to send, and this many requests wait for their answers.
    Waiting(usize),
}

impl ClientStream {
    /// Notes a request that will be answered.
    pub(super) fn expect(&self, id: i64) {
        self.state.lock().waiting.push_back(Request { id, answer: None });
    }

    /// Requests without an answer yet.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Hands over the framed answer to one request for this lease.
    pub(super) fn answer(&self, id: i64, framed: &[u8]) {
        let mut guard = self.state.lock();
        let State { out, waiting, closed, .. } = &mut *guard;
        if *closed {
            return;
        }
        match waiting.iter().position(|request| request.id == id && request.answer.is_none()) {
            // The usual case, and the only one that copies nothing twice.
            Some(0) => {
                waiting.pop_front();
                out.extend_from_slice(framed);
            }
            Some(later) => {
                waiting[later].answer = Some(Bytes::copy_from_slice(framed));
                return;
            }
            None => return,
        }
        while let Some(answer) = waiting.front().and_then(|request| request.answer.as_ref()) {
            out.extend_from_slice(answer);
            waiting.pop_front();
        }
        wake(guard);
    }

    /// Ends the stream after the answers it has. The first reason counts.
    pub(super) fn end(&self, status: &Status) {
        let mut state = self.state.lock();
        if state.end.is_none() {
            state.end = Some(status.clone());
        }
        wake(state);
    }

    /// The client has closed its stream.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.out = BytesMut::new();
        state.waiting = VecDeque::new();
        state.waker = None;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// What to do; when that is waiting, the task is woken by the next answer or the end.
    pub(super) fn next(&self, cx: &mut Context<'_>) -> Next {
        let mut state = self.state.lock();
        if !state.out.is_empty() {
            return Next::Answers(state.out.split().freeze());
        }
        if let Some(status) = state.end.take() {
            return Next::End(status);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Next::Waiting(state.waiting.len())
    }
}

/// Wakes outside the lock.
fn wake(mut state: parking_lot::MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(client_stream: &ClientStream) -> String {
        match client_stream.next(&mut Context::from_waker(Waker::noop())) {
            Next::Answers(answers) => String::from_utf8(answers.to_vec()).unwrap(),
            Next::End(status) => format!("end {}", status.message()),
            Next::Waiting(requests) => format!("waiting {requests}"),
        }
    }

    #[test]
    fn answers_keep_the_order_of_the_requests() {
        let client_stream = ClientStream::default();
        [1, 2, 3, 1].into_iter().for_each(|id| client_stream.expect(id));
        client_stream.answer(2, b"b");
        assert_eq!(said(&client_stream), "waiting 4", "the first request is not answered yet");
        client_stream.answer(1, b"a");
        client_stream.answer(1, b"d");
        assert_eq!(said(&client_stream), "ab");
        client_stream.answer(9, b"?");
        client_stream.answer(3, b"c");
        assert_eq!(said(&client_stream), "cd");
        assert_eq!(said(&client_stream), "waiting 0");
    }

    #[test]
    fn the_end_comes_after_the_answers() {
        let client_stream = ClientStream::default();
        client_stream.expect(1);
        client_stream.answer(1, b"a");
        client_stream.end(&Status::unavailable("first"));
        client_stream.end(&Status::unavailable("second"));
        assert_eq!(said(&client_stream), "a");
        assert_eq!(said(&client_stream), "end first");
    }
}
