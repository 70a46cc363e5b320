//! What a listener watches on a connection: the heads of HTTP/2 frames in pieces of any size, pings that come too often, request
//! bodies of messages cut anywhere, and the heads of calls.
#![no_main]

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request};
use http_body::Frame;
use http_body_util::StreamBody;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use watershed::listener::{fuzzing, refused_head};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// The heads of the frames in a row of bytes, read in the plainest way, and where the last whole frame ends.
fn heads(bytes: &[u8]) -> (Vec<(u8, u8, u32)>, usize) {
    let (mut heads, mut at) = (Vec::new(), 0);
    while let Some(&[a, b, c, kind, flags, s, t, u, v]) = bytes.get(at..at + 9) {
        heads.push((kind, flags, u32::from_be_bytes([s, t, u, v]) & 0x7fff_ffff));
        at += 9 + u32::from_be_bytes([0, a, b, c]) as usize;
    }
    (heads, at)
}

fn frames(bytes: &[u8], step: usize) {
    let (expected, end) = heads(bytes);
    let (found, unfinished) = fuzzing::frames(bytes, step);
    assert_eq!(found, expected, "in pieces of {step}");
    // HEADERS and CONTINUATION without their flag go on.
    let goes_on = found.last().is_some_and(|(kind, flags, _)| matches!(kind, 1 | 9) && flags & 4 == 0);
    match bytes.len() {
        at if at < end => assert_eq!(unfinished, end - at),
        at if at == end => assert_eq!(unfinished, if goes_on { 9 } else { 0 }),
        at => assert_eq!(unfinished, 9 - (at - end)),
    }
}

/// Frames of the input's choice: of each three bytes a kind, flags and stream, and the length of the payload.
fn made_frames(choices: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    for choice in choices.chunks_exact(3) {
        let (kind, flags, stream) = (choice[0] % 10, choice[0] / 10, u32::from(choice[1]));
        let payload = usize::from(choice[2] % 32);
        wire.extend_from_slice(&[0, 0, payload as u8, kind, flags]);
        wire.extend_from_slice(&stream.to_be_bytes());
        wire.extend(std::iter::repeat_n(choice[2], payload));
    }
    wire
}

/// Reads what is there; none once the connection has ended.
async fn read_ready(stream: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> Option<()> {
    // Pacing lets others run from time to time.
    let mut pauses = 0;
    std::future::poll_fn(|cx| {
        loop {
            let mut room = [0; 1024];
            let mut buffer = ReadBuf::new(&mut room);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(None),
                Poll::Ready(Ok(())) => into.extend_from_slice(buffer.filled()),
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending if pauses == 3 => return Poll::Ready(Some(())),
                Poll::Pending => pauses += 1,
            }
        }
    })
    .await
}

/// A client and a server on one connection.
async fn connection(is_http2: bool, min_time: Duration, mut steps: &[u8]) {
    let (near, mut client) = tokio::io::duplex(1 << 18);
    let mut server = fuzzing::watched(near, min_time);
    let (mut sent, mut received, mut written, mut seen) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut open = true;
    if is_http2 {
        sent.extend_from_slice(PREFACE);
        client.write_all(PREFACE).await.expect("room");
    }
    let mut moved = false;
    while let Some((&step, rest)) = steps.split_first() {
        let (piece, rest) = rest.split_at(usize::from(step >> 3).min(rest.len()));
        steps = rest;
        match step % 7 {
            0 | 1 if open => {
                let bytes = if step % 7 == 0 { piece.to_vec() } else { made_frames(piece) };
                moved |= !bytes.is_empty();
                sent.extend_from_slice(&bytes);
                client.write_all(&bytes).await.expect("room");
            }
            2 if open => {
                let count = piece.len() * 2 + 1;
                let ping = [&[0, 0, 8, PING, 0, 0, 0, 0, 0][..], &[9; 8]].concat().repeat(count);
                sent.extend_from_slice(&ping);
                client.write_all(&ping).await.expect("room");
            }
            3 | 4 => {
                let bytes = if step % 7 == 3 { piece.to_vec() } else { made_frames(piece) };
                let mut rest = &bytes[..];
                // Once it has ended, writing takes all and sends nothing.
                while !rest.is_empty() {
                    let wrote = std::future::poll_fn(|cx| match Pin::new(&mut server).poll_write(cx, rest) {
                        Poll::Pending => Poll::Ready(None),
                        Poll::Ready(wrote) => Poll::Ready(wrote.ok()),
                    });
                    let Some(wrote) = wrote.await.filter(|wrote| *wrote > 0) else { break };
                    written.extend_from_slice(&rest[..wrote]);
                    rest = &rest[wrote..];
                    moved = true;
                }
            }
            _ if open => open = read_ready(&mut server, &mut received).await.is_some(),
            _ => {}
        }
        read_ready(&mut client, &mut seen).await;
    }
    open = open && read_ready(&mut server, &mut received).await.is_some();
    assert!(sent.starts_with(&received), "what was read is not what was sent");
    drop(server);
    client.read_to_end(&mut seen).await.expect("a pipe");
    let pings = match sent.strip_prefix(PREFACE) {
        Some(frames) => heads(frames).0.iter().filter(|(kind, flags, _)| *kind == PING && flags & 1 == 0).count(),
        None => 0,
    };
    let go_away = [0, 0, 22, GOAWAY, 0, 0, 0, 0, 0];
    let ended = seen
        .len()
        .checked_sub(31)
        .filter(|at| seen[*at..].starts_with(&go_away) && seen.ends_with(b"\0\0\0\x0btoo_many_pings"));
    let told = ended.filter(|_| !written.starts_with(&seen));
    match told {
        // After whole frames only.
        Some(at) => {
            assert!(written.starts_with(&seen[..at]), "output was changed");
            assert_eq!(heads(&seen[..at]).1, at, "GOAWAY in the middle of a frame");
            assert!(pings > 3, "ended after {pings} pings");
        }
        None => assert!(written.starts_with(&seen), "output was changed"),
    }
    // Without a stream there may be one in two hours.
    assert!(told.is_some() || !open || moved || pings <= 3, "{pings} pings without an end");
}

/// Messages go on unchanged, and nothing stays counted.
async fn body(rest: &[u8], step: usize, message_bytes_max: usize, framed: bool) {
    let wire: Vec<u8> = if framed {
        let message = |choice: &u8| [&[0, 0, 0, 0, choice % 64][..], &vec![*choice; usize::from(choice % 64)]].concat();
        rest.iter().flat_map(message).collect()
    } else {
        rest.to_vec()
    };
    let chunks: Vec<Result<Frame<Bytes>, _>> =
        wire.chunks(step).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
    let stream = futures::stream::iter(chunks);
    let (handed_on, counted) = fuzzing::arrived(StreamBody::new(stream), message_bytes_max).await;
    assert_eq!(handed_on.concat(), wire);
    assert_eq!(counted, 0);
}

fn head(rest: &[u8]) {
    let mut parts = rest.split(|byte| *byte == b'\n');
    let path = format!("/{}", String::from_utf8_lossy(parts.next().unwrap_or_default()));
    let Ok(uri) = path.parse::<http::Uri>() else { return };
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    *request.method_mut() = Method::POST;
    let timeout = parts.next().unwrap_or_default();
    for (name, value) in [("grpc-timeout", timeout), ("trace-bin", parts.next().unwrap_or_default())] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    if let Ok(method) = Method::from_bytes(parts.next().unwrap_or(b"POST")) {
        *request.method_mut() = method;
    }
    let Some(response) = refused_head(&request) else { return };
    assert!(response.headers().contains_key("grpc-status") || response.status() != http::StatusCode::OK);
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(tokio::task::unconstrained(test));
}

fuzz_target!(|data: &[u8]| {
    let [kind, step, rest @ ..] = data else { return };
    let step = usize::from(*step) + 1;
    match kind % 8 {
        0 => frames(rest, step),
        1 => frames(&made_frames(rest), step),
        2 | 3 => run(connection(true, Duration::from_secs(3600), rest)),
        4 => run(connection(true, Duration::ZERO, rest)),
        5 => run(connection(false, Duration::from_secs(3600), rest)),
        6 => run(body(rest, step, 32 * usize::from(kind >> 4), kind & 8 == 0)),
        _ => head(rest),
    }
});
