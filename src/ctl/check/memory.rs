use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;

use super::super::session::Session;
use crate::client::Endpoint;
use crate::net::{AddressTime, Alpn, ClientTls, TcpDialer, TcpSilence, secure};

const TCP: TcpDialer = TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Unbounded, from: None };
const METRIC: &str = "process_resident_memory_bytes";
const PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long the page may take; a member under load answers late.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the metrics page of the first endpoint says about its memory, in bytes.
pub(super) async fn resident(session: &Session) -> Result<f64, String> {
    let endpoint = session.options.endpoints.first().ok_or("no endpoint")?;
    let endpoint: Endpoint = endpoint.parse().map_err(|error| format!("fetch error: {error}"))?;
    let tls = session.options.tls.as_ref().map(ClientTls::new).transpose();
    let tls = tls.map_err(|error| format!("fetch error: {error}"))?;
    let page = match tokio::time::timeout(PATIENCE, page(&endpoint, tls.as_ref())).await {
        Ok(page) => page.map_err(|error| format!("fetch error: {error}"))?,
        Err(_) => return Err("fetch error: no answer in time".to_owned()),
    };
    value(&String::from_utf8_lossy(&page))
}

async fn page(endpoint: &Endpoint, tls: Option<&ClientTls>) -> io::Result<Bytes> {
    let stream = TCP.connect_endpoint(endpoint, 0).await.map_err(io::Error::other)?;
    let stream = secure(endpoint, stream, tls, Alpn::Http1).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get("/metrics")
        .header(header::HOST, endpoint.authority().as_str())
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = async {
        let body = sender.send_request(request).await.map_err(io::Error::other)?.into_body();
        Limited::new(body, PAGE_BYTES_MAX).collect().await.map(|page| page.to_bytes()).map_err(io::Error::other)
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        page = &mut answer => return page,
        ended = &mut connection => ended.map_err(io::Error::other)?,
    }
    // The connection is closed once the whole answer has come.
    answer.await
}

fn value(page: &str) -> Result<f64, String> {
    let line = page.lines().find_map(|line| line.strip_prefix(METRIC));
    let text =
        line.map(str::trim).filter(|text| !text.is_empty()).ok_or_else(|| format!("could not find: {METRIC}"))?;
    match text.parse() {
        Ok(0.0) => Err(format!("{METRIC} is 0")),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("parse error: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_found_among_the_metrics() {
        let page =
            "# HELP process_resident_memory_bytes x\nprocess_open_fds 3\nprocess_resident_memory_bytes 2.5e+07\n";
        assert_eq!(value(page), Ok(2.5e7));
        assert_eq!(value("a 1\n"), Err("could not find: process_resident_memory_bytes".into()));
        assert!(value("process_resident_memory_bytes x\n").is_err());
    }
}
