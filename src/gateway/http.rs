use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::status::GatewayStatus;
use crate::net::TcpSilence;
use crate::pages::{CheckQuery, Page, StatusPage, not_found, page, refused_method};
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, TEXT_CONTENT_TYPE};

/// Requests to the metrics address served at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// Time a client has for the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The endpoint table.
const STATUS_PATH: &str = "/gateway/status";
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `/metrics`, the checks, the endpoint table and the status page until `tasks` stop; returns the address.
pub(super) fn serve_metrics(
    listener: TcpListener,
    metrics: Metrics,
    status: GatewayStatus,
    tasks: &Tasks,
) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let (stop, connections) = (tasks.stop_signal(), tasks.clone());
    let status = Arc::new(status);
    tasks.spawn(async move {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // In this order: after a stop the next gateway, which may have the same socket, is the one to answer.
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = accept(&listener, &slots) => accepted,
            };
            match accepted {
                Ok((stream, slot)) => {
                    let (metrics, status, stop) = (metrics.clone(), status.clone(), stop.clone());
                    connections.spawn(async move {
                        let service = hyper::service::service_fn(async |request: Request<Incoming>| {
                            Ok::<_, Infallible>(answer(&request, &metrics, &status).await)
                        });
                        let connection = hyper::server::conn::http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEAD_TIMEOUT)
                            .serve_connection(TokioIo::new(stream), service);
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => {}
                            // A client that breaks off is its own affair.
                            _ = connection => {}
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

async fn answer(request: &Request<Incoming>, metrics: &Metrics, status: &GatewayStatus) -> Page {
    let path = request.uri().path();
    let known = matches!(path, "/metrics" | "/health" | "/livez" | "/readyz" | STATUS_PATH);
    if !known && !StatusPage::GATEWAY.has(path) {
        return not_found();
    }
    if let Some(refused) = refused_method(request.method(), path) {
        return refused;
    }
    let query = CheckQuery::parse(request.uri().query());
    match path {
        "/metrics" => page(StatusCode::OK, TEXT_CONTENT_TYPE, metrics.render()),
        "/health" => status.health().await,
        "/livez" => GatewayStatus::live(&query),
        "/readyz" => status.ready(&query).await,
        STATUS_PATH => status.table(),
        _ => StatusPage::GATEWAY.answer(path),
    }
}
