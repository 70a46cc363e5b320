use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Time the other side has to take what was said and to leave.
const LIMIT: Duration = Duration::from_secs(1);
/// Bytes that are read and thrown away meanwhile.
const DISCARDED_BYTES_MAX: u64 = 64 * 1024;

/// Ends a connection so that the other side gets the last words: a socket that is closed with unread bytes takes them
/// with it.
pub async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let ended = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(DISCARDED_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // One that leaves without reading misses them.
    let _ = timeout(LIMIT, ended).await;
}
