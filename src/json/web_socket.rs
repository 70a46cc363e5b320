use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, COOKIE, HeaderValue, ORIGIN, REFERER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame as SocketFrame};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tonic::body::Body;
use tonic::codegen::StdError;

use super::body::CallBody;
use super::routes;
use crate::shutdown::Tasks;

/// What RFC 6455 appends to a key before it is hashed.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The longest message of a client, which is held until it is whole; requests of streams are short.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Messages that have come and are not read yet.
const MESSAGES_WAITING_MAX: usize = 1;
/// How long the other side may take to read the end.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// The buffer of each direction; most connections are quiet.
const BUFFER_BYTES: usize = 4096;

/// The body of a request as a port got it.
#[derive(Debug)]
pub enum Asked<B> {
    /// Of HTTP.
    Http(B),
    /// The messages of a web socket, a line each.
    Socket(mpsc::Receiver<Bytes>),
}

impl<B> HttpBody for Asked<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        match self.get_mut() {
            Self::Http(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Socket(messages) => messages.poll_recv(cx).map(|message| message.map(|line| Ok(Frame::data(line)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Socket(_) => false,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Http(body) => body.size_hint(),
            Self::Socket(_) => http_body::SizeHint::default(),
        }
    }
}

/// The body of a call at a port, whichever way it came.
pub type AskedBody = CallBody<Asked<Incoming>>;

/// Whether a request asks for a web socket.
pub fn is_web_socket<B>(request: &Request<B>) -> bool {
    has_token(request.headers(), &CONNECTION, "upgrade") && has_token(request.headers(), &UPGRADE, "websocket")
}

/// Answers a request for a web socket at a path of the gateway, and carries a call over it: each message that comes is a part of
/// the body of a POST, each line of its answer is a message. `call` answers that POST; it is dropped when the client goes.
///
/// As with etcd the token of a user comes as the protocol `Bearer, TOKEN` or in the cookie `token`: scripts in browsers cannot
/// set headers. Where etcd waits for the end of a request that has one message, here it ends with the first one.
pub fn web_socket<B, C, F>(mut request: Request<B>, tasks: &Tasks, call: C) -> Response<Body>
where
    B: Send + 'static,
    C: FnOnce(Request<Asked<B>>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let accepted = match accepted(&request) {
        Ok(accepted) => accepted,
        Err(status) => return refused(status),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let goes_on = routes::find(request.uri().path()).is_none_or(routes::Route::is_asked_by_stream);
    let (messages, asked) = mpsc::channel(MESSAGES_WAITING_MAX);
    let request = as_post(request, Asked::Socket(asked));
    let stop = tasks.stop_signal();
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = carry(upgrade, messages, goes_on, call(request)) => {}
        }
    });
    accepted
}

/// The answer that makes the connection a web socket.
fn accepted<B>(request: &Request<B>) -> Result<Response<Body>, StatusCode> {
    if request.method() != Method::GET {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16)).ok_or(StatusCode::BAD_REQUEST)?;
    if !has_token(headers, &SEC_WEBSOCKET_VERSION, "13") {
        return Err(StatusCode::BAD_REQUEST);
    }
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(KEY_SUFFIX).finalize());
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answers = response.headers_mut();
    answers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(accept).map_err(|_| StatusCode::BAD_REQUEST)?);
    if headers.get(SEC_WEBSOCKET_PROTOCOL).is_some_and(|protocol| protocol.as_bytes().starts_with(b"Bearer")) {
        answers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("Bearer"));
    }
    Ok(response)
}

fn refused(status: StatusCode) -> Response<Body> {
    let text = format!("{}\n", status.canonical_reason().unwrap_or_default());
    let mut response = Response::new(Body::new(Full::from(text)));
    *response.status_mut() = status;
    for (name, value) in [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (SEC_WEBSOCKET_VERSION, "13"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether one of the comma lists of this name has this entry.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|entry| entry.trim().eq_ignore_ascii_case(token))
}

/// The request that is carried: a POST without the headers of the connection.
fn as_post<B>(request: Request<B>, body: Asked<B>) -> Request<Asked<B>> {
    let (mut parts, _) = request.into_parts();
    let mut headers = HeaderMap::new();
    if let Some(token) = token(&parts.headers) {
        headers.insert(AUTHORIZATION, token);
    }
    for name in [ORIGIN, REFERER] {
        if let Some(value) = parts.headers.remove(&name) {
            headers.insert(name, value);
        }
    }
    parts.headers = headers;
    parts.method = Method::POST;
    Request::from_parts(parts, body)
}

/// The token of a user, in the form of the header that calls have.
fn token(headers: &HeaderMap) -> Option<HeaderValue> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut cookies = cookies.flat_map(|value| value.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    let cookie = cookies.find(|(name, _)| *name == "token").map(|(_, value)| value);
    let protocol = || headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?.split_once("Bearer,").map(|(_, token)| token);
    let token = cookie.or_else(protocol)?;
    HeaderValue::try_from(format!("Bearer {}", token.trim_matches(' '))).ok()
}

async fn carry(
    upgrade: OnUpgrade,
    messages: mpsc::Sender<Bytes>,
    goes_on: bool,
    answer: impl Future<Output = Response<Body>>,
) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => {
            tracing::debug!(%error, "no web socket");
            return;
        }
    };
    carry_over(upgraded, messages, goes_on, answer).await;
}

/// Carries the call over this connection until its answer or the connection ends.
async fn carry_over<S: AsyncRead + AsyncWrite + Unpin>(
    connection: S,
    messages: mpsc::Sender<Bytes>,
    goes_on: bool,
    answer: impl Future<Output = Response<Body>>,
) {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
    let (mut out, incoming) = socket.split();
    let closed = tokio::select! {
        end = read(incoming, messages, goes_on) => end,
        sent = write(&mut out, answer) => {
            if sent.is_err() {
                return;
            }
            CloseCode::Normal
        }
    };
    let close = CloseFrame { code: closed, reason: Default::default() };
    let _ = tokio::time::timeout(CLOSE_TIME, out.send(Message::Close(Some(close)))).await;
}

/// Passes messages on until the client closes, or sends what it may not; returns what to say about that.
async fn read(
    mut incoming: impl Stream<Item = Result<Message, SocketError>> + Unpin,
    messages: mpsc::Sender<Bytes>,
    goes_on: bool,
) -> CloseCode {
    let mut messages = Some(messages);
    while let Some(message) = incoming.next().await {
        let data = match message {
            Ok(Message::Text(text)) => Bytes::from(text),
            Ok(Message::Binary(data)) => data,
            // Pings are answered by the library, and so is the end, which comes next.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => continue,
            Err(SocketError::Capacity(_)) => return CloseCode::Size,
            Err(_) => return CloseCode::Protocol,
        };
        let Some(sender) = &messages else { continue };
        let mut line = BytesMut::with_capacity(data.len() + 1);
        line.put(data);
        line.put_u8(b'\n');
        // Nobody reads on when the answer ends.
        let taken = sender.send(line.freeze()).await;
        if !goes_on || taken.is_err() {
            messages = None;
        }
    }
    CloseCode::Normal
}

/// Sends each line of the answer as a message. A line that comes in parts is sent in as many frames, so that none is held.
async fn write(
    out: &mut (impl Sink<Message, Error = SocketError> + Unpin),
    answer: impl Future<Output = Response<Body>>,
) -> Result<(), SocketError> {
    let mut body = answer.await.into_body();
    let mut line = Line::default();
    // The status of a call that fails stands in its last line.
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(mut data) = frame.into_data() else { continue };
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let part = data.split_to(end);
            data = data.split_off(1);
            for frame in line.part(part).into_iter().chain(line.end()) {
                out.send(Message::Frame(frame)).await?;
            }
        }
        if let Some(frame) = line.part(data) {
            out.send(Message::Frame(frame)).await?;
        }
    }
    if let Some(frame) = line.end() {
        out.send(Message::Frame(frame)).await?;
    }
    Ok(())
}

/// The line that is being sent. Its last part is kept until it is known whether there are more.
#[derive(Debug, Default)]
struct Line {
    waiting: Bytes,
    begun: bool,
}

impl Line {
    /// Adds a part; returns the frame of the one before, if there is one.
    fn part(&mut self, part: Bytes) -> Option<SocketFrame> {
        if part.is_empty() {
            return None;
        }
        let before = std::mem::replace(&mut self.waiting, part);
        (!before.is_empty()).then(|| self.frame(before, false))
    }

    /// The last frame; none for an empty line.
    fn end(&mut self) -> Option<SocketFrame> {
        let last = std::mem::take(&mut self.waiting);
        let frame = (!last.is_empty()).then(|| self.frame(last, true));
        self.begun = false;
        frame
    }

    fn frame(&mut self, part: Bytes, is_last: bool) -> SocketFrame {
        let kind = if self.begun { Data::Continue } else { Data::Text };
        self.begun = true;
        SocketFrame::message(part, OpCode::Data(kind), is_last)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::StreamBody;
    use tokio::io::DuplexStream;

    use super::*;

    fn asked(headers: &[(&str, &str)]) -> Request<()> {
        let request =
            Request::get("/v3/watch").header("Connection", "keep-alive, Upgrade").header("Upgrade", "websocket");
        let request = request.header("Sec-WebSocket-Version", "13");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request")
    }

    #[test]
    fn a_web_socket_is_agreed_on() {
        // The example of RFC 6455.
        let key = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        let request = asked(&[key, ("Sec-WebSocket-Protocol", "Bearer, abc.1")]);
        assert!(is_web_socket(&request) && !is_web_socket(&Request::get("/").body(()).expect("a request")));
        let accepted = accepted(&request).expect("accepted");
        assert_eq!(accepted.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accepted.headers()[SEC_WEBSOCKET_PROTOCOL], "Bearer");
        let mut posted = asked(&[key]);
        *posted.method_mut() = Method::POST;
        for (request, status) in [
            (asked(&[]), StatusCode::BAD_REQUEST),
            (asked(&[("Sec-WebSocket-Key", "c2hvcnQ=")]), StatusCode::BAD_REQUEST),
            (posted, StatusCode::METHOD_NOT_ALLOWED),
        ] {
            assert_eq!(super::accepted(&request).expect_err("refused"), status);
        }
    }

    #[test]
    fn tokens_come_as_protocol_or_cookie() {
        let token =
            |headers: &[(&str, &str)]| token(asked(headers).headers()).map(|token| token.to_str().map(str::to_owned));
        for (headers, expected) in [
            (vec![("Sec-WebSocket-Protocol", "Bearer, abc.1")], Some("Bearer abc.1")),
            (vec![("Sec-WebSocket-Protocol", "Bearer,abc.1")], Some("Bearer abc.1")),
            (vec![("Sec-WebSocket-Protocol", "other")], None),
            (vec![("Cookie", "a=b; token=def.2"), ("Sec-WebSocket-Protocol", "Bearer, abc.1")], Some("Bearer def.2")),
            (vec![], None),
        ] {
            assert_eq!(token(&headers).transpose().expect("text").as_deref(), expected, "{headers:?}");
        }
    }

    /// A call over a connection: what the client has, and what the call reads.
    async fn carried(
        goes_on: bool,
        answer: Vec<&'static str>,
    ) -> (WebSocketStream<DuplexStream>, mpsc::Receiver<Bytes>) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (messages, asked) = mpsc::channel(MESSAGES_WAITING_MAX);
        let pieces =
            stream::iter(answer).map(|piece| Ok::<_, StdError>(Frame::data(Bytes::from_static(piece.as_bytes()))));
        let body = match goes_on {
            true => Body::new(StreamBody::new(pieces.chain(stream::pending())).map_err(tonic::Status::from_error)),
            false => Body::new(StreamBody::new(pieces).map_err(tonic::Status::from_error)),
        };
        let tasks = Tasks::new();
        tasks.spawn(carry_over(far, messages, goes_on, async { Response::new(body) }));
        (WebSocketStream::from_raw_socket(near, Role::Client, None).await, asked)
    }

    #[tokio::test]
    async fn lines_are_messages_however_they_come() {
        let (mut client, _asked) = carried(false, vec!["{\"a\":1}\n{\"b\"", ":", "2}\n\n", "\nlast"]).await;
        for expected in ["{\"a\":1}", "{\"b\":2}", "last"] {
            let message = client.next().await.expect("a message").expect("a message");
            assert_eq!(message, Message::text(expected));
        }
        let end = client.next().await.expect("the end").expect("the end");
        assert!(matches!(end, Message::Close(Some(close)) if close.code == CloseCode::Normal));
    }

    #[tokio::test]
    async fn messages_are_lines_until_the_client_goes() {
        let (mut client, mut asked) = carried(true, vec!["{}\n"]).await;
        for text in ["{\"a\":", "1}"] {
            client.send(Message::text(text)).await.expect("sent");
            assert_eq!(asked.recv().await, Some(Bytes::from(format!("{text}\n"))));
        }
        client.send(Message::Ping(Bytes::from_static(b"p"))).await.expect("sent");
        assert_eq!(client.next().await.expect("a line").expect("a line"), Message::text("{}"));
        assert_eq!(client.next().await.expect("a pong").expect("a pong"), Message::Pong(Bytes::from_static(b"p")));
        client.close(None).await.expect("sent");
        assert_eq!(asked.recv().await, None);
    }

    #[tokio::test]
    async fn a_request_of_one_message_ends_with_it() {
        let (mut client, mut asked) = carried(false, vec![]).await;
        let _ = client.send(Message::text("{}")).await;
        assert!(asked.recv().await.is_none_or(|line| line == "{}\n"));
        assert_eq!(asked.recv().await, None);
    }

    #[tokio::test]
    async fn a_message_has_a_bound() {
        let (mut client, _asked) = carried(true, vec![]).await;
        client.send(Message::text("x".repeat(MESSAGE_BYTES_MAX + 1))).await.expect("sent");
        let end = client.next().await.expect("the end").expect("the end");
        assert!(matches!(end, Message::Close(Some(close)) if close.code == CloseCode::Size), "too long");
    }
}
