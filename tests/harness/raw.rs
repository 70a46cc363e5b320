use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures::{Stream, StreamExt};
use http::uri::PathAndQuery;
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Response, Status};
use watershed::client::Client;

use super::soon;

/// Sends these bytes as the message of a unary request, whatever they are.
pub async fn raw_call(client: &Client, path: &'static str, message: Bytes) -> Result<Response<Bytes>, Status> {
    let mut grpc = Grpc::new(client.channel());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    grpc.unary(Request::new(message), PathAndQuery::from_static(path), AsIs).await
}

/// Sends these bytes as the messages of a request of any kind, takes so many answers at most, and tells how the call
/// ended. One that does not end by itself is cancelled after `limit`.
pub async fn raw_stream(
    client: &Client,
    path: &'static str,
    messages: Vec<Bytes>,
    answers_max: usize,
    limit: Duration,
) -> Result<(), Status> {
    let path = PathAndQuery::from_static(path);
    let call = async { raw_answers(client, path, Request::new(tokio_stream::iter(messages)), answers_max).await.1 };
    tokio::time::timeout(limit, call).await.unwrap_or(Ok(()))
}

/// Sends the messages of `request` as they are, and takes so many answers at most: the answers, and how the call ended.
pub async fn raw_answers(
    client: &Client,
    path: PathAndQuery,
    request: Request<impl Stream<Item = Bytes> + Send + 'static>,
    answers_max: usize,
) -> (Vec<Bytes>, Result<(), Status>) {
    let mut answers = Vec::new();
    let call = async {
        let mut grpc = Grpc::new(client.channel());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut stream = grpc.streaming(request, path, AsIs).await?.into_inner();
        while answers.len() < answers_max
            && let Some(answer) = stream.message().await?
        {
            answers.push(answer);
        }
        Ok(())
    };
    let end = call.await;
    (answers, end)
}

/// Sends one message with a token, if there is one, and returns the first answer; `ends` tells whether that was all of the
/// request.
pub async fn raw_first(
    client: &Client,
    path: &'static str,
    token: &str,
    message: Bytes,
    ends: bool,
) -> Result<Option<Bytes>, Status> {
    let mut grpc = Grpc::new(client.channel());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let more = (!ends).then(tokio_stream::pending::<Bytes>);
    let rest = futures::stream::iter(more).flatten();
    let mut request = Request::new(futures::stream::iter([message]).chain(rest));
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("ascii"));
    }
    let call =
        async { grpc.streaming(request, PathAndQuery::from_static(path), AsIs).await?.into_inner().message().await };
    soon(path, call).await
}

/// Sends these bytes as the whole body of a gRPC request, prefix included; answers with code and text.
pub async fn raw_body(endpoint: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (Code, String) {
    let socket = TcpStream::connect(endpoint).await.expect("connects");
    let (mut requests, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    let mut request =
        http::Request::post(format!("http://{endpoint}{path}")).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let talk = async {
        let (answer, mut send) = requests.send_request(request.body(()).expect("a request"), false)?;
        send.send_data(Bytes::copy_from_slice(body), true)?;
        let (head, mut body) = answer.await?.into_parts();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        Ok::<_, h2::Error>(Status::from_header_map(&trailers).or_else(|| Status::from_header_map(&head.headers)))
    };
    let status = tokio::select! {
        status = soon("an answer", talk) => status.expect("an answer").expect("a status"),
        ended = connection => panic!("the connection ended: {ended:?}"),
    };
    (status.code(), status.message().to_owned())
}

/// Messages are bytes.
#[derive(Clone, Copy, Default)]
struct AsIs;

impl Codec for AsIs {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for AsIs {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
