//! A dialled connection: frames of a source go out, pings find a peer that fell silent.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use prometheus::{Histogram, IntCounter};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::config::PeerLimits;
use super::dial::Dialed;
use super::frame::{Batch, ConnectionError, Frame, FrameReader, Kind};

/// Where the frames of a connection come from.
pub(super) trait Source: Send {
    /// Waits for something to send and adds it to the batch. Dropping the future before its end loses nothing.
    fn fill(&mut self, batch: &mut Batch) -> impl Future<Output = Result<(), ConnectionError>> + Send;
}

/// What a connection counts.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) sent_bytes: IntCounter,
    pub(super) received_bytes: IntCounter,
    /// For the lane whose round trips say something about the link.
    pub(super) round_trip: Option<Histogram>,
}

/// What a frame of the peer means for the connection.
pub(super) enum Next {
    /// It goes on.
    Read,
    /// It has served its purpose.
    Finish,
}

/// How a connection went.
pub(super) struct Ended {
    /// The peer answered at least once.
    pub(super) worked: bool,
    /// `Ok` after [`Next::Finish`].
    pub(super) outcome: Result<(), ConnectionError>,
}

/// Sends until the connection ends. `on_frame` gets what is not about the connection itself.
pub(super) async fn pump(
    dialed: Dialed,
    mut source: impl Source,
    limits: &PeerLimits,
    counts: &Counts,
    mut on_frame: impl FnMut(Frame) -> Result<Next, ConnectionError> + Send,
) -> Ended {
    let worked = AtomicBool::new(false);
    let began = Instant::now();
    let (reading, writing) = tokio::io::split(dialed.io);
    let mut frames = FrameReader::new(&dialed.first, limits.frame_bytes_max);
    let read = async {
        let mut reading = reading;
        loop {
            while let Some(frame) = frames.take()? {
                worked.store(true, Ordering::Relaxed);
                match frame.kind {
                    Kind::Pong => {
                        if let Some(trip) = round_trip(&frame.payload, began.elapsed())
                            && let Some(histogram) = &counts.round_trip
                        {
                            histogram.observe(trip.as_secs_f64());
                        }
                    }
                    Kind::Alive => {}
                    _ => {
                        if let Next::Finish = on_frame(frame)? {
                            return Ok(());
                        }
                    }
                }
            }
            let count = receive(&mut frames, &mut reading, limits.silence_max).await?;
            counts.received_bytes.inc_by(count as u64);
        }
    };
    let write = async {
        let mut writing = writing;
        let mut batch = Batch::default();
        let mut pings = interval(limits.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = pings.tick() => {
                    let sent_at = began.elapsed().as_micros() as u64;
                    batch.push(Kind::Ping, &sent_at.to_le_bytes(), &Bytes::new());
                }
                filled = source.fill(&mut batch) => filled?,
            }
            let bytes = batch.bytes();
            writing.write_all_buf(&mut batch).await?;
            writing.flush().await?;
            counts.sent_bytes.inc_by(bytes as u64);
        }
    };
    let outcome = tokio::select! {
        outcome = read => outcome,
        outcome = write => outcome,
    };
    Ended { worked: worked.into_inner(), outcome }
}

/// Waits for more bytes, but not for ever.
pub(super) async fn receive(
    frames: &mut FrameReader,
    io: &mut (impl AsyncRead + Unpin),
    silence_max: Duration,
) -> Result<usize, ConnectionError> {
    timeout(silence_max, frames.fill(io)).await.unwrap_or(Err(ConnectionError::Silent))
}

/// Writes what waits. Gives up when the peer takes nothing for `silence_max`; a long answer may take longer in all.
pub(super) async fn send(
    batch: &mut Batch,
    io: &mut (impl AsyncWrite + Unpin),
    silence_max: Duration,
) -> Result<(), ConnectionError> {
    let stalled = |_| io::Error::from(io::ErrorKind::TimedOut);
    while batch.has_remaining() {
        if timeout(silence_max, io.write_buf(batch)).await.map_err(stalled)?? == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
    }
    Ok(timeout(silence_max, io.flush()).await.map_err(stalled)??)
}

/// The time that a pong returns; none when it is not the answer to a ping of this connection.
fn round_trip(mut payload: &[u8], now: Duration) -> Option<Duration> {
    let sent_at = Duration::from_micros(payload.try_get_u64_le().ok()?);
    now.checked_sub(sent_at)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    // Cause: the whole of a batch had to be written within the time that a peer may be silent, so that a long answer on a
    // slow link ended the connection.
    #[tokio::test(start_paused = true)]
    async fn a_long_answer_takes_as_long_as_the_peer_reads() {
        const SILENCE_MAX: Duration = Duration::from_secs(2);
        let (mut near, mut far) = tokio::io::duplex(64);
        let mut batch = Batch::default();
        batch.push(Kind::Answer, &[], &Bytes::from(vec![0; 4096]));
        let slow = async {
            let mut read = [0; 64];
            for _ in 0..32 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                far.read_exact(&mut read).await.expect("there is more");
            }
            std::future::pending::<()>().await;
        };
        let began = tokio::time::Instant::now();
        tokio::select! {
            sent = send(&mut batch, &mut near, SILENCE_MAX) => {
                assert!(matches!(sent, Err(ConnectionError::Io(_))), "{sent:?}");
            }
            () = slow => {}
        }
        assert_eq!(began.elapsed().as_secs(), 34, "given up once nothing more was taken");
    }
}
