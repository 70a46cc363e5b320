use std::io;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;

use crate::net::{AddressTime, Alpn, ByteStream, ClientTls, Endpoint, TcpDialer, TcpSilence, secure};

/// Opens connections that carry one page.
pub const PAGE_DIALER: TcpDialer =
    TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Unbounded, from: None };
/// A page of metrics has some hundred kilobytes.
const PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A page of an endpoint over HTTP/1.1, on a connection of its own that is closed once the whole answer has come. The caller
/// bounds the time.
///
/// # Errors
/// No connection, or an answer that is not HTTP or longer than 64 MiB.
pub async fn http_page(endpoint: &Endpoint, tls: Option<&ClientTls>, path: &str) -> io::Result<Response<Bytes>> {
    let stream = PAGE_DIALER.connect_endpoint(endpoint, 0).await.map_err(io::Error::other)?;
    http_page_on(stream, endpoint, tls, path).await
}

/// The same on a connection to the endpoint that is there already, on which TLS has not begun.
///
/// # Errors
/// An answer that is not HTTP or longer than 64 MiB.
pub async fn http_page_on(
    stream: Box<dyn ByteStream>,
    endpoint: &Endpoint,
    tls: Option<&ClientTls>,
    path: &str,
) -> io::Result<Response<Bytes>> {
    let stream = secure(endpoint, stream, tls, Alpn::Http1).await?;
    let request = Request::get(path)
        .header(header::HOST, endpoint.authority().as_str())
        .body(Bytes::new())
        .map_err(io::Error::other)?;
    http_answer_on(stream, request, PAGE_BYTES_MAX).await
}

/// The answer to a request over HTTP/1.1 on a connection that is open already and serves no other.
///
/// # Errors
/// An answer that is not HTTP or longer than `bytes_max`.
pub async fn http_answer_on(
    stream: Box<dyn ByteStream>,
    request: Request<Bytes>,
    bytes_max: usize,
) -> io::Result<Response<Bytes>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let answer = async {
        let request = request.map(Full::new);
        let (parts, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let body = Limited::new(body, bytes_max).collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        page = &mut answer => return page,
        ended = &mut connection => ended.map_err(io::Error::other)?,
    }
    answer.await
}
