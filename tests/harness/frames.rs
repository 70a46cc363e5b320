use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::soon;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// END_STREAM on DATA and HEADERS, ACK on SETTINGS and PING.
const FLAG: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 connection whose frames are written by hand: what a client library would never send, or never so fast.
///
/// Answers are read all the time, and flow control is kept to by [`data`](Self::data) alone.
pub struct RawHttp2 {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
}

/// What came from the other side.
#[derive(Debug, Default)]
pub struct Seen {
    /// Code and debug text of a GOAWAY.
    pub goaway: Option<(u32, String)>,
    /// Bytes of DATA by stream.
    pub data: BTreeMap<u32, Vec<u8>>,
    /// Streams that were ended by the other side, without RST_STREAM.
    pub ended: BTreeSet<u32>,
    /// Codes of RST_STREAM by stream.
    pub resets: BTreeMap<u32, u32>,
    /// The connection is over.
    pub closed: bool,
    /// Streams that this side may have open, if the other side limits them.
    pub streams_max: Option<u32>,
    pongs: u64,
    settings: bool,
    initial_window: i64,
    connection_window: i64,
    windows: BTreeMap<u32, i64>,
}

impl Seen {
    /// Messages of a stream that have come whole.
    pub fn messages(&self, stream: u32) -> Vec<&[u8]> {
        let mut rest = self.data.get(&stream).map_or(&[][..], Vec::as_slice);
        let mut messages = Vec::new();
        while let Some((head, after)) = rest.split_at_checked(5) {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let Some((message, after)) = after.split_at_checked(length) else { break };
            messages.push(message);
            rest = after;
        }
        messages
    }
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The HEADERS frame of a gRPC call, with more header fields as given.
pub fn grpc_headers(stream: u32, path: &str, more: &[(&str, &[u8])], end: bool) -> Vec<u8> {
    // Indexed: `:method: POST` and `:scheme: http`; the rest are literals without Huffman coding.
    let mut block = vec![0x83, 0x86];
    let fields: [(&str, &[u8]); 4] = [
        (":path", path.as_bytes()),
        (":authority", b"localhost"),
        ("content-type", b"application/grpc"),
        ("te", b"trailers"),
    ];
    for (name, value) in fields.into_iter().chain(more.iter().copied()) {
        block.push(0);
        for text in [name.as_bytes(), value] {
            hpack_length(text.len(), &mut block);
            block.extend(text);
        }
    }
    frame(HEADERS, END_HEADERS | if end { FLAG } else { 0 }, stream, &block)
}

fn hpack_length(length: usize, to: &mut Vec<u8>) {
    let Some(mut rest) = length.checked_sub(127) else {
        to.push(length as u8);
        return;
    };
    to.push(127);
    while rest >= 128 {
        to.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    to.push(rest as u8);
}

/// A DATA frame.
pub fn data_frame(stream: u32, payload: &[u8], end: bool) -> Vec<u8> {
    frame(DATA, if end { FLAG } else { 0 }, stream, payload)
}

/// A RST_STREAM frame with CANCEL.
pub fn cancel_frame(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// A message as gRPC frames it.
pub fn grpc_message(message: &impl prost::Message) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend((message.encoded_len() as u32).to_be_bytes());
    framed.extend(message.encode_to_vec());
    framed
}

impl RawHttp2 {
    /// Connects, with windows so large that answers never wait for this side.
    pub async fn connect(endpoint: &str) -> Self {
        let stream = TcpStream::connect(endpoint).await.expect("connects");
        stream.set_nodelay(true).expect("a socket");
        let (reader, mut writer) = stream.into_split();
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
        hello.extend(frame(WINDOW_UPDATE, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes()));
        writer.write_all(&hello).await.expect("writes");
        let seen = Seen { initial_window: 65_535, connection_window: 65_535, ..Seen::default() };
        let (seen, changed) = (Arc::new(Mutex::new(seen)), Arc::new(Notify::new()));
        #[allow(clippy::disallowed_methods, reason = "ends with the connection")]
        tokio::spawn(read(reader, seen.clone(), changed.clone()));
        let raw = Self { writer: tokio::sync::Mutex::new(writer), seen, changed };
        raw.wait("the settings", |seen| seen.settings.then_some(())).await;
        raw.write(&frame(SETTINGS, FLAG, 0, &[])).await;
        raw
    }

    /// Sends bytes as they are; a connection that is over takes none.
    pub async fn write(&self, bytes: &[u8]) -> bool {
        self.writer.lock().await.write_all(bytes).await.is_ok()
    }

    /// Sends DATA once the windows allow it. False when the connection is over.
    pub async fn data(&self, stream: u32, payload: &[u8]) -> bool {
        let length = payload.len() as i64;
        let allowed = self
            .wait("room to send", |seen| {
                if seen.closed || seen.goaway.is_some() {
                    return Some(false);
                }
                let initial = seen.initial_window;
                let window = seen.windows.entry(stream).or_insert(initial);
                if *window < length || seen.connection_window < length {
                    return None;
                }
                *window -= length;
                seen.connection_window -= length;
                Some(true)
            })
            .await;
        allowed && self.write(&data_frame(stream, payload, false)).await
    }

    /// Whether the connection still answers: a PING comes back.
    pub async fn alive(&self) -> bool {
        let before = self.seen.lock().pongs;
        self.write(&frame(PING, 0, 0, &[7; 8])).await;
        self.wait("the answer to a PING", |seen| {
            if seen.pongs > before {
                return Some(seen.goaway.is_none());
            }
            (seen.closed || seen.goaway.is_some()).then_some(false)
        })
        .await
    }

    /// Waits until `look` finds what it looks for.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut(&mut Seen) -> Option<T>) -> impl Future<Output = T> {
        soon(what, async move {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = look(&mut self.seen.lock()) {
                    return found;
                }
                changed.await;
            }
        })
    }
}

/// Reads frames until the connection ends.
async fn read(mut reader: OwnedReadHalf, seen: Arc<Mutex<Seen>>, changed: Arc<Notify>) {
    let mut buffer = Vec::new();
    while let Ok(1..) = reader.read_buf(&mut buffer).await {
        let mut rest = buffer.as_slice();
        let mut seen = seen.lock();
        while let Some((head, after)) = rest.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, after)) = after.split_at_checked(length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            seen.take(head[3], head[4], stream, payload);
            rest = after;
        }
        let taken = buffer.len() - rest.len();
        buffer.drain(..taken);
        drop(seen);
        changed.notify_waiters();
    }
    seen.lock().closed = true;
    changed.notify_waiters();
}

impl Seen {
    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let word = |at: usize| {
            payload.get(at..at + 4).map_or(0, |four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
        };
        match kind {
            DATA | HEADERS => {
                if kind == DATA {
                    self.data.entry(stream).or_default().extend(payload);
                }
                if flags & FLAG != 0 {
                    self.ended.insert(stream);
                }
            }
            RST_STREAM => {
                self.resets.insert(stream, word(0));
            }
            SETTINGS if flags & FLAG == 0 => {
                self.settings = true;
                for setting in payload.chunks_exact(6).filter(|setting| setting[..2] == [0, 3]) {
                    self.streams_max = Some(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
                }
                for setting in payload.chunks_exact(6).filter(|setting| setting[..2] == [0, 4]) {
                    let window = i64::from(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
                    self.windows.values_mut().for_each(|open| *open += window - self.initial_window);
                    self.initial_window = window;
                }
            }
            PING if flags & FLAG != 0 => self.pongs += 1,
            GOAWAY => {
                self.goaway = Some((word(4), String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into()))
            }
            WINDOW_UPDATE if stream == 0 => self.connection_window += i64::from(word(0)),
            WINDOW_UPDATE => {
                let initial = self.initial_window;
                *self.windows.entry(stream).or_insert(initial) += i64::from(word(0));
            }
            _ => {}
        }
    }
}
