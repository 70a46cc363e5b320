use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;

use super::set::Tenants;
use super::tenant::Tenant;
use crate::listener::ConnectionInfo;

/// That a call belongs to a tenant, for as long as the call is open.
#[derive(Clone)]
pub(in crate::proxy) struct Membership {
    pub(in crate::proxy) tenants: Tenants,
    pub(in crate::proxy) tenant: Arc<Tenant>,
    pub(in crate::proxy) connection: Option<Arc<ConnectionInfo>>,
    /// Of the request.
    pub(in crate::proxy) headers: HeaderMap,
    /// Whose token they have.
    pub(in crate::proxy) user: Option<Arc<str>>,
}

impl Membership {
    /// An answer that takes long: ends when the call is no longer the tenant's.
    pub(in crate::proxy) async fn while_it_lasts(
        self,
        answering: impl Future<Output = Response<Body>>,
    ) -> Response<Body> {
        if self.tenants.is_everybody() {
            return answering.await;
        }
        tokio::select! {
            answer = answering => answer,
            () = self.over() => moved().into_http(),
        }
    }

    /// An answer stream, which ends when the call is no longer the tenant's.
    pub(in crate::proxy) fn of_stream(self, answer: Response<Body>) -> Response<Body> {
        if self.tenants.is_everybody() {
            return answer;
        }
        answer.map(|body| Body::new(MemberBody { body: Some(body), over: self.over().boxed() }))
    }

    /// Completes when the tenants were replaced and the call is not the same tenant's any more.
    async fn over(self) {
        let mut changes = self.tenants.changes();
        loop {
            let now = self.tenants.still_of(self.connection.as_deref(), &self.headers, self.user.as_ref());
            if !now.is_ok_and(|now| Arc::ptr_eq(&now, &self.tenant)) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

fn moved() -> Status {
    Status::unavailable("the tenants of the gRPC proxy have changed")
}

struct MemberBody {
    /// None once the membership is over.
    body: Option<Body>,
    over: BoxFuture<'static, ()>,
}

impl HttpBody for MemberBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, over } = &mut *self;
        let Some(open) = body else { return Poll::Ready(None) };
        if over.poll_unpin(cx).is_ready() {
            *body = None;
            let status = moved();
            let mut trailers = HeaderMap::new();
            if status.add_header(&mut trailers).is_err() {
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(open).poll_frame(cx)
    }
}
