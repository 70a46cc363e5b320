use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use prost_reflect::MessageDescriptor;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};

use super::status::{error_line, of_trailers};
use super::write::Writer;
use crate::pb::frame::{Messages, Part};

/// The answer of a call, as JSON.
///
/// Each chunk of the call's answer is written when the client has taken what came before it.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    output: MessageDescriptor,
    /// Each message a line of its own.
    stream: bool,
    frames: Messages,
    /// The message that is not written to its end.
    writer: Option<Writer>,
    /// Messages that were written.
    count: usize,
    /// What is written and not taken.
    out: VecDeque<Bytes>,
    /// How the call ended.
    status: Option<Status>,
    deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

/// What an answer begins with.
#[derive(Debug)]
pub(super) enum Beginning {
    /// Some of a message, or all of it.
    Message,
    /// The status of a call that was answered by nothing else.
    Status(Status),
}

impl Answer {
    /// Follows the answer of a call; `head` is its head.
    pub(super) fn new(body: Body, head: &HeaderMap, output: MessageDescriptor, stream: bool) -> Self {
        let status = of_trailers(head);
        Self {
            body,
            output,
            stream,
            frames: Messages::default(),
            writer: None,
            count: 0,
            out: VecDeque::new(),
            ended: status.is_some(),
            status,
            deadline: None,
        }
    }

    /// Ends the call at this time.
    pub(super) fn with_deadline(mut self, deadline: Option<Pin<Box<Sleep>>>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Waits until it is clear how the answer begins.
    ///
    /// An answer of one message waits for its end if that comes within `bytes_max`: then its length is known, and a
    /// status that comes after it still counts.
    pub(super) async fn begin(&mut self, bytes_max: usize) -> Beginning {
        loop {
            let written: usize = self.out.iter().map(Bytes::len).sum();
            if written > 0 && (self.stream || written > bytes_max) {
                return Beginning::Message;
            }
            if self.ended {
                break;
            }
            std::future::poll_fn(|cx| self.poll_more(cx)).await;
        }
        match &self.status {
            Some(status) if status.code() != Code::Ok && (!self.stream || self.out.is_empty()) => {
                Beginning::Status(status.clone())
            }
            Some(_) if self.stream || self.count == 1 => Beginning::Message,
            _ => Beginning::Status(Status::internal("the call was not answered")),
        }
    }

    /// All of the answer, if it is there.
    pub(super) fn whole(&mut self) -> Option<Bytes> {
        if !self.ended {
            return None;
        }
        let chunks: Vec<u8> = self.out.drain(..).flatten().collect();
        Some(chunks.into())
    }

    /// Takes the next part of the call's answer in.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.end(Status::deadline_exceeded("context deadline exceeded"));
            return Poll::Ready(());
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => {
                    if let Err(status) = self.data(chunk) {
                        self.end(status);
                    }
                }
                Err(frame) => {
                    let status = frame.trailers_ref().and_then(of_trailers);
                    self.end(status.unwrap_or_else(no_status));
                }
            },
            Some(Err(status)) => self.end(status),
            None => self.end(no_status()),
        }
        Poll::Ready(())
    }

    fn data(&mut self, mut chunk: Bytes) -> Result<(), Status> {
        let mut out = Vec::new();
        while !chunk.is_empty() {
            let (taken, part) = self.frames.next(&chunk);
            let part_bytes = chunk.split_to(taken);
            match part {
                Part::Prefix => continue,
                Part::Begin(prefix) => {
                    if !prefix.is_plain() {
                        return Err(Status::internal("the answer is compressed"));
                    }
                    if !self.stream && self.count > 0 {
                        return Err(Status::internal("the call was answered twice"));
                    }
                    if self.stream {
                        out.extend(b"{\"result\":");
                    }
                    let mut writer = Writer::new(self.output.clone(), prefix.length, &mut out);
                    // An empty message ends at once.
                    writer.push(Bytes::new(), &mut out).map_err(|error| Status::internal(error.to_string()))?;
                    self.writer = Some(writer);
                }
                Part::Message => {
                    let Some(writer) = &mut self.writer else { return Err(Status::internal("no message has begun")) };
                    writer.push(part_bytes, &mut out).map_err(|error| Status::internal(error.to_string()))?;
                }
            }
            if self.frames.at_end() {
                if !self.writer.take().is_some_and(|writer| writer.is_done()) {
                    return Err(Status::internal("a message was cut off"));
                }
                self.count += 1;
                if self.stream {
                    out.extend(b"}\n");
                }
            }
        }
        if !out.is_empty() {
            self.out.push_back(out.into());
        }
        Ok(())
    }

    /// The call has ended, or is given up.
    fn end(&mut self, status: Status) {
        self.ended = true;
        // Half a message cannot be completed: the connection ends with it.
        let between = self.writer.is_none();
        if self.stream && between && status.code() != Code::Ok && self.count > 0 {
            self.out.push_back(error_line(&status).into());
        }
        self.status = Some(status);
    }
}

fn no_status() -> Status {
    Status::unavailable("the call ended without a status")
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(chunk) = self.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if self.ended {
                let complete = self.writer.is_none() && (self.stream || self.count > 0);
                return match self.status.take() {
                    Some(status) if status.code() != Code::Ok && (!complete || !self.stream) => {
                        Poll::Ready(Some(Err(status)))
                    }
                    _ => Poll::Ready(None),
                };
            }
            ready!(self.poll_more(cx));
        }
    }
}
