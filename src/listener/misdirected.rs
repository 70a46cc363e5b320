use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::first_bytes::Beginning;
use crate::net::linger;

/// The error code of HTTP/2 for a connection that is not protected enough.
const INADEQUATE_SECURITY: u8 = 0xc;

const WANTS_TLS: &str = "client sent a plain request to a port that speaks TLS: use an https endpoint";
const WANTS_PLAIN: &str = "client sent a TLS handshake to a port that speaks plain HTTP: use an http endpoint";

/// Answers a client that uses plain text where TLS is required, or the reverse, and waits until it closes.
pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, beginning: Beginning) {
    let bytes = match beginning {
        // Clients of TLS say that this is no TLS, and those of HTTPS that it is HTTP.
        Beginning::Tls => http1(WANTS_PLAIN),
        Beginning::Http2 => http2(WANTS_TLS),
        Beginning::Other => http1(WANTS_TLS),
    };
    if stream.write_all(&bytes).await.is_ok() {
        linger(stream).await;
    }
}

fn http1(text: &str) -> Vec<u8> {
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{text}\n", text.len() + 1).into_bytes()
}

/// Empty SETTINGS, then GOAWAY with the text.
fn http2(text: &str) -> Vec<u8> {
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let length = u8::try_from(text.len() + 8).unwrap_or(u8::MAX);
    frames.extend([0, 0, length, 7, 0, 0, 0, 0, 0]);
    frames.extend([0, 0, 0, 0, 0, 0, 0, INADEQUATE_SECURITY]);
    frames.extend(text.as_bytes());
    frames
}
