use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::check::health;
use super::dial::Dialer;
use crate::net::TcpSilence;
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, TEXT_CONTENT_TYPE};

/// Requests to the metrics address served at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// Time a client has for the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `/metrics` and `/health` until `tasks` stop; returns the address.
pub(super) async fn serve_metrics(
    address: SocketAddr,
    metrics: Metrics,
    dialer: Arc<Dialer>,
    tasks: &Tasks,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let (stop, connections) = (tasks.stop_signal(), tasks.clone());
    tasks.spawn(async move {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accept(&listener, &slots) => accepted,
            };
            match accepted {
                Ok((stream, slot)) => {
                    let (metrics, dialer, stop) = (metrics.clone(), dialer.clone(), stop.clone());
                    connections.spawn(async move {
                        let service = hyper::service::service_fn(async |request: Request<Incoming>| {
                            Ok::<_, Infallible>(answer(&request, &metrics, &dialer).await)
                        });
                        let connection = hyper::server::conn::http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEAD_TIMEOUT)
                            .serve_connection(TokioIo::new(stream), service);
                        tokio::select! {
                            // A client that breaks off is its own affair.
                            _ = connection => {}
                            () = stop.cancelled() => {}
                        }
                        drop(slot);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    });
    Ok(address)
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    TcpSilence::CLIENT.prepare(&stream)?;
    Ok((stream, slot))
}

async fn answer(request: &Request<Incoming>, metrics: &Metrics, dialer: &Dialer) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, TEXT_CONTENT_TYPE, metrics.render()),
        (&Method::GET, "/health") => match health(dialer).await {
            Ok(()) => (StatusCode::OK, "application/json", r#"{"health":"true","reason":""}"#.to_owned()),
            Err(reasons) => {
                let reason = serde_json::Value::from(format!("NO LIVE ENDPOINT ({reasons})"));
                let body = format!(r#"{{"health":"false","reason":{reason}}}"#);
                (StatusCode::SERVICE_UNAVAILABLE, "application/json", body)
            }
        },
        (_, "/metrics" | "/health") => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "Method Not Allowed\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
