use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::pb::healthpb::health_check_response::ServingStatus;
use crate::pb::healthpb::health_server::Health;
use crate::pb::healthpb::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};

/// `grpc.health.v1`: the one service, named "", serves for as long as the port does, unless it is told otherwise.
/// Whether the cluster behind it does is for `/readyz`.
#[derive(Clone, Debug, Default)]
pub struct HealthService {
    /// Whether the service is paused; none when it never is.
    paused: Option<watch::Receiver<bool>>,
}

impl HealthService {
    /// One that follows `paused`.
    pub fn following(paused: watch::Receiver<bool>) -> Self {
        Self { paused: Some(paused) }
    }

    fn status(&self) -> HealthCheckResponse {
        response(self.paused.as_ref().is_some_and(|paused| *paused.borrow()))
    }
}

fn response(paused: bool) -> HealthCheckResponse {
    let status = if paused { ServingStatus::NotServing } else { ServingStatus::Serving };
    HealthCheckResponse { status: status as i32 }
}

/// The status now, then each one that differs from the last.
fn changes(paused: watch::Receiver<bool>) -> impl Stream<Item = Result<HealthCheckResponse, Status>> + Send {
    stream::unfold((paused, None), async |(mut paused, last)| {
        let now = match last {
            None => *paused.borrow_and_update(),
            Some(last) => match paused.wait_for(|now| *now != last).await {
                Ok(now) => *now,
                // Its member stops, and with it the port.
                Err(_) => return None,
            },
        };
        Some((Ok(response(now)), (paused, Some(now))))
    })
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if request.get_ref().service.is_empty() {
            return Ok(Response::new(self.status()));
        }
        Err(Status::not_found("unknown service"))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Ok(Response::new(HealthListResponse { statuses: [(String::new(), self.status())].into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !request.get_ref().service.is_empty() {
            // That never changes, so one answer stands until the client leaves.
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown as i32 };
            return Ok(Response::new(Box::pin(stream::iter([Ok(unknown)]).chain(stream::pending()))));
        }
        Ok(Response::new(match self.paused.clone() {
            None => Box::pin(stream::iter([Ok(response(false))]).chain(stream::pending())),
            Some(paused) => Box::pin(changes(paused)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_is_seen_by_those_who_watch_and_who_ask() {
        let pause = watch::Sender::new(false);
        let service = HealthService::following(pause.subscribe());
        let all = || Request::new(HealthCheckRequest::default());
        let (serving, not_serving) = (ServingStatus::Serving as i32, ServingStatus::NotServing as i32);
        let mut watched = service.watch(all()).await.expect("a stream").into_inner();
        assert_eq!(watched.next().await.expect("the status now").expect("an answer").status, serving);
        for (paused, status) in [(true, not_serving), (false, serving)] {
            pause.send_replace(paused);
            assert_eq!(watched.next().await.expect("a change").expect("an answer").status, status);
            assert_eq!(service.check(all()).await.expect("an answer").into_inner().status, status);
        }
        drop(pause);
        assert!(watched.next().await.is_none(), "the member has stopped");
    }
}
