use std::pin::Pin;

use futures::Stream;
use tonic::{Request, Response, Status};

use crate::pb::healthpb::health_check_response::ServingStatus;
use crate::pb::healthpb::health_server::Health;
use crate::pb::healthpb::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};

/// `grpc.health.v1`: the one service, named "", serves as soon as the port does.
#[derive(Clone, Debug, Default)]
pub struct HealthService;

impl HealthService {
    /// Builds the service.
    pub fn new() -> Self {
        Self
    }
}

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
        use futures::StreamExt;
        let mut first = serving();
        if !request.get_ref().service.is_empty() {
            first.status = ServingStatus::ServiceUnknown as i32;
        }
        // The status never changes while the port serves, so one answer stands until the client leaves.
        let answers = futures::stream::iter([Ok(first)]).chain(futures::stream::pending());
        Ok(Response::new(Box::pin(answers)))
    }
}
