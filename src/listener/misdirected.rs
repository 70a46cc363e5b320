use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::first_bytes::Beginning;

/// Time a client has to take the answer and to leave.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of its request that are read and thrown away: what is unread at the end would take the answer with it.
const DISCARDED_BYTES_MAX: u64 = 64 * 1024;
/// The error code of HTTP/2 for a connection that is not protected enough.
const INADEQUATE_SECURITY: u8 = 0xc;

const WANTS_TLS: &str = "client sent a plain request to a port that speaks TLS: use an https endpoint";
const WANTS_PLAIN: &str = "client sent a TLS handshake to a port that speaks plain HTTP: use an http endpoint";

/// Tells a client that it speaks plain where TLS is wanted, or the reverse, and waits until it leaves.
pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, beginning: Beginning) {
    let bytes = match beginning {
        // Clients of TLS say that this is no TLS, and those of HTTPS that it is HTTP.
        Beginning::Tls => http1(WANTS_PLAIN),
        Beginning::Http2 => http2(WANTS_TLS),
        Beginning::Other => http1(WANTS_TLS),
    };
    let said = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(DISCARDED_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // A client that leaves without reading misses its answer.
    let _ = timeout(ANSWER_TIMEOUT, said).await;
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
