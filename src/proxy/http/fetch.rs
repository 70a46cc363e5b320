use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;

use crate::client::Pool;
use crate::net::{AddressTime, Alpn, ClientTls, Endpoint, TcpDialer, TcpSilence, secure};
use crate::shutdown::Tasks;

const TCP: TcpDialer = TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Unbounded, from: None };
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// A page of metrics has some hundred kilobytes.
const PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The page as the first member that answers has it.
pub(super) async fn from_any_member(pool: &Pool, path: &str, tasks: &Tasks) -> Result<Response<Bytes>, String> {
    let mut reasons = Vec::new();
    for endpoint in pool.endpoints() {
        match tokio::time::timeout(FETCH_TIMEOUT, fetch(&endpoint, pool.tls(), path, tasks)).await {
            Ok(Ok(page)) => return Ok(page),
            Ok(Err(error)) => reasons.push(format!("{endpoint}: {error}")),
            Err(_) => reasons.push(format!("{endpoint}: no answer in time")),
        }
    }
    Err(reasons.join("; "))
}

async fn fetch(endpoint: &Endpoint, tls: Option<&ClientTls>, path: &str, tasks: &Tasks) -> io::Result<Response<Bytes>> {
    let stream = TCP.connect_endpoint(endpoint, 0).await.map_err(io::Error::other)?;
    let stream = secure(endpoint, stream, tls, Alpn::Http1).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tasks.spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, endpoint.authority().as_str())
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let (parts, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
    let body = Limited::new(body, PAGE_BYTES_MAX).collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Response::from_parts(parts, body))
}
