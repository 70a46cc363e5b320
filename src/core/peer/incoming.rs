//! An accepted connection: what a peer sends goes to the receiver.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::{MissedTickBehavior, interval};
use tonic::Code;

use super::calls::{IncomingCall, push_answer};
use super::dial::Dialed;
use super::frame::{Batch, ConnectionError, Frame, FrameReader, Kind};
use super::hello::{Greeting, Purpose};
use super::outgoing::send;
use super::receiver::CallFailure;
use super::transport::Shared;
use crate::api_error::ApiError;

/// Length of what a ping brings and takes back.
const PING_BYTES: usize = 8;

type Answer = (u64, Result<Bytes, CallFailure>);

/// Takes what comes until the connection ends.
pub(super) async fn serve(shared: &Arc<Shared>, greeting: Greeting, io: Dialed) -> Result<(), ConnectionError> {
    let limits = &shared.config.limits;
    let received = shared.metrics.received_bytes.with_label_values(&[&greeting.from.to_string()]);
    let mut connection = Incoming {
        shared,
        greeting,
        frames: FrameReader::new(&io.first, limits.frame_bytes_max),
        batch: Batch::default(),
        answers: FuturesUnordered::new(),
    };
    let mut io = io.io;
    let mut ticks = interval(limits.silence_max / 8);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = Pulse::new();
    loop {
        while let Some(frame) = connection.frames.take()? {
            connection.take(frame)?;
        }
        if connection.batch.bytes() > 0 {
            let began = Instant::now();
            send(&mut connection.batch, &mut io, limits.silence_max).await?;
            // Nothing was read meanwhile: that is no silence of the peer.
            pulse.at += began.elapsed();
        }
        tokio::select! {
            count = connection.frames.fill(&mut io) => received.inc_by(count? as u64),
            Some((id, answer)) = connection.answers.next(), if !connection.answers.is_empty() => {
                push_answer(&mut connection.batch, id, answer, limits.frame_bytes_max);
            }
            _ = ticks.tick() => {
                if pulse.is_due(connection.frames.received_bytes()) {
                    connection.batch.push(Kind::Alive, &[], &Bytes::new());
                } else if pulse.silence() > limits.silence_max * 2 {
                    return Err(ConnectionError::Silent);
                }
            }
        }
    }
}

/// Answers a ping.
pub(super) fn push_pong(batch: &mut Batch, ping: &Frame) -> Result<(), ConnectionError> {
    if ping.payload.len() != PING_BYTES {
        return Err(ConnectionError::Length(ping.payload.len()));
    }
    batch.push(Kind::Pong, &[], &ping.payload);
    Ok(())
}

/// Whether bytes arrive, so that the sender of a long message learns that it does.
pub(super) struct Pulse {
    seen_bytes: u64,
    at: Instant,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { seen_bytes: 0, at: Instant::now() }
    }

    /// Something arrived since the last time this was asked.
    pub(super) fn is_due(&mut self, received_bytes: u64) -> bool {
        let due = received_bytes != self.seen_bytes;
        if due {
            *self = Self { seen_bytes: received_bytes, at: Instant::now() };
        }
        due
    }

    pub(super) fn silence(&self) -> std::time::Duration {
        self.at.elapsed()
    }
}

struct Incoming<'a> {
    shared: &'a Arc<Shared>,
    greeting: Greeting,
    frames: FrameReader,
    batch: Batch,
    /// At most as many as the limits say.
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Incoming<'_> {
    fn take(&mut self, frame: Frame) -> Result<(), ConnectionError> {
        let Greeting { from, purpose, .. } = self.greeting;
        match (frame.kind, purpose) {
            (Kind::Ping, _) => push_pong(&mut self.batch, &frame)?,
            (Kind::Message, Purpose::Control | Purpose::Append) => {
                self.shared.receiver.message(from, frame.payload).map_err(ConnectionError::Message)?;
            }
            (Kind::Call, Purpose::Calls) => self.call(IncomingCall::parse(frame.payload)?),
            (kind, _) => return Err(ConnectionError::Unexpected(kind)),
        }
        Ok(())
    }

    fn call(&mut self, call: IncomingCall) {
        let limits = &self.shared.config.limits;
        if self.answers.len() >= limits.calls_served_max {
            let refused = CallFailure { code: Code::ResourceExhausted, text: ApiError::TooManyRequests.text().into() };
            push_answer(&mut self.batch, call.id, Err(refused), limits.frame_bytes_max);
            return;
        }
        let answer = self.shared.receiver.call(self.greeting.from, call.method, call.body);
        self.answers.push(Box::pin(async move { (call.id, answer.await) }));
    }
}
