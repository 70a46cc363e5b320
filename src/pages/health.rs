use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};

use crate::pb::healthpb::health_check_response::ServingStatus;
use crate::pb::healthpb::health_server::Health;
use crate::pb::healthpb::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};

/// `grpc.health.v1`: the one service, named "", serves for as long as the port does. Whether the cluster behind it
/// does is for `/readyz`.
#[derive(Clone, Debug, Default)]
pub struct HealthService;

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::Serving as i32 }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if request.get_ref().service.is_empty() {
            return Ok(Response::new(serving()));
        }
        Err(Status::not_found("unknown service"))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Ok(Response::new(HealthListResponse { statuses: [(String::new(), serving())].into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut first = serving();
        if !request.get_ref().service.is_empty() {
            first.status = ServingStatus::ServiceUnknown as i32;
        }
        // The status never changes while the port serves, so one answer stands until the client leaves.
        let answers = stream::iter([Ok(first)]).chain(stream::pending());
        Ok(Response::new(Box::pin(answers)))
    }
}
