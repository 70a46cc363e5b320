use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};

use crate::pb::healthpb::health_check_response::ServingStatus;
use crate::pb::healthpb::health_server::Health;
use crate::pb::healthpb::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};

/// The standard health service: the proxy itself serves for as long as it answers. Whether the cluster behind it does
/// is `/readyz`'s business.
#[derive(Clone, Debug, Default)]
pub(super) struct HealthService;

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if request.get_ref().service.is_empty() {
            return Ok(Response::new(answer(ServingStatus::Serving)));
        }
        Err(Status::not_found("unknown service"))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = [(String::new(), answer(ServingStatus::Serving))];
        Ok(Response::new(HealthListResponse { statuses: statuses.into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let status =
            if request.get_ref().service.is_empty() { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        let never = stream::pending();
        Ok(Response::new(Box::pin(stream::iter([Ok(answer(status))]).chain(never))))
    }
}
