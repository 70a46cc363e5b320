use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

/// A request as JSON over HTTP/1.1, written by hand, and its answer as it comes.
pub struct JsonCall {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Status of the answer; 0 before it came.
    pub status: u16,
    /// Head of the answer, in lower case.
    pub head: String,
    chunked: bool,
    /// Bytes of the answer, without the marks between chunks.
    body: Vec<u8>,
    ended: bool,
}

impl JsonCall {
    /// Sends all of a request.
    pub async fn post(address: &str, path: &str, body: &str) -> Self {
        Self::post_with(address, path, "", body).await
    }

    /// Sends all of a request, with more headers.
    pub async fn post_with(address: &str, path: &str, headers: &str, body: &str) -> Self {
        let mut call = Self::open(address, path, &format!("{headers}Content-Length: {}\r\n", body.len())).await;
        call.stream.write_all(body.as_bytes()).await.expect("writes");
        call
    }

    /// Begins a request whose body comes in chunks.
    pub async fn begin(address: &str, path: &str) -> Self {
        Self::open(address, path, "Transfer-Encoding: chunked\r\n").await
    }

    async fn open(address: &str, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.expect("writes");
        let (buffer, body) = (Vec::new(), Vec::new());
        Self { stream, buffer, status: 0, head: String::new(), chunked: false, body, ended: false }
    }

    /// Sends another chunk of the body.
    pub async fn send(&mut self, chunk: &str) {
        let framed = format!("{:x}\r\n{chunk}\r\n", chunk.len());
        self.stream.write_all(framed.as_bytes()).await.expect("writes");
    }

    /// The next line of the answer; none at its end.
    pub async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.body.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.body.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line of JSON"));
            }
            if self.ended {
                assert!(self.body.is_empty(), "half a line: {:?}", String::from_utf8_lossy(&self.body));
                return None;
            }
            soon("a line", self.more()).await;
        }
    }

    /// All of the answer.
    pub async fn whole(&mut self) -> Value {
        while !self.ended {
            soon("the end of the answer", self.more()).await;
        }
        serde_json::from_slice(&self.body).expect("JSON")
    }

    async fn more(&mut self) {
        let read = self.stream.read_buf(&mut self.buffer).await.expect("reads");
        if read == 0 {
            assert!(!self.chunked, "the answer is cut off");
            self.ended = true;
        }
        if self.status == 0 {
            let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return };
            self.head = String::from_utf8_lossy(&self.buffer[..end]).to_lowercase();
            self.status = self.head.split(' ').nth(1).expect("a status").parse().expect("a number");
            self.buffer.drain(..end + 4);
            self.chunked = self.head.contains("transfer-encoding: chunked");
        }
        if !self.chunked {
            self.body.append(&mut self.buffer);
            let length = self.head.lines().find_map(|line| line.strip_prefix("content-length: "));
            self.ended |= length.is_some_and(|length| length.parse() == Ok(self.body.len()));
            return;
        }
        while let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
            let size = std::str::from_utf8(&self.buffer[..end]).expect("text");
            let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
            if self.buffer.len() < end + 2 + size + 2 {
                return;
            }
            self.body.extend_from_slice(&self.buffer[end + 2..end + 2 + size]);
            self.buffer.drain(..end + 2 + size + 2);
            self.ended |= size == 0;
        }
    }
}

/// The answer to a request as JSON, and its status.
pub async fn json(address: &str, path: &str, body: &str) -> (u16, Value) {
    let mut call = JsonCall::post(address, path, body).await;
    let answer = call.whole().await;
    (call.status, answer)
}
