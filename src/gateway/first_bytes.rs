use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::pool::{self, CHUNK_BYTES};
use super::stream::Stream;
use crate::net::{ClientHello, ClientHelloReader, HelloProgress};

/// Time in which a client has to send its ClientHello, or the first byte of something else.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What was read of a client before its endpoint was chosen: `chunk[..end]`, which goes to the endpoint first.
#[derive(Debug)]
pub(super) struct FirstBytes {
    pub(super) chunk: Box<[u8]>,
    pub(super) end: usize,
}

/// Reads what a client says first, up to the end of its ClientHello. None of it where the client speaks no TLS, sends more than
/// a chunk, or ends before.
///
/// # Errors
/// When the connection breaks, or the client is not quick enough.
pub(super) async fn read_hello(client: &Stream) -> io::Result<(Option<ClientHello>, FirstBytes)> {
    let too_slow = |_| io::Error::new(io::ErrorKind::TimedOut, "did not come in time");
    timeout(HELLO_TIMEOUT, read(client)).await.map_err(too_slow)?
}

async fn read(client: &Stream) -> io::Result<(Option<ClientHello>, FirstBytes)> {
    // A client that says nothing holds no memory.
    client.readable().await?;
    let mut first = FirstBytes { chunk: pool::take_chunk(), end: 0 };
    let mut reader = ClientHelloReader::default();
    while first.end < CHUNK_BYTES {
        let read = match client.try_read(&mut first.chunk[first.end..]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                client.readable().await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let begin = first.end;
        first.end += read;
        if !ClientHelloReader::may_begin_with(first.chunk[0]) {
            break;
        }
        match reader.feed(&first.chunk[begin..first.end]) {
            HelloProgress::Incomplete => {}
            HelloProgress::Complete(hello) => return Ok((Some(hello), first)),
            HelloProgress::Other => break,
        }
    }
    Ok((None, first))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::net::testing::client_hello;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_say_where_it_wants_to_go_is_not_waited_for() {
        let hello = client_hello("a.example", &[]);
        for sent in [&[][..], &hello[..hello.len() - 1]] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            client.write_all(sent).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            // Time passes by itself, as nothing else happens.
            let error = read_hello(&accepted.into()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }
}
