use std::pin::Pin;

use futures::{Stream, StreamExt};
use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Status};

use super::keys::Namespace;
use super::view::{View, clean};
use crate::client::UpstreamWatch;
use crate::pb::etcdserverpb::kv_server::Kv;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse, watch_request,
};
use crate::proxy::Identity;
use crate::recipes::RecipeStore;

/// The tenant's keys as locks and elections see them, with one caller's credentials.
#[derive(Clone)]
pub(super) struct ViewStore {
    view: View,
    metadata: MetadataMap,
}

impl ViewStore {
    pub(super) fn new(view: View) -> Self {
        Self { view, metadata: MetadataMap::new() }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        super::ownership::with(&self.metadata, message)
    }
}

impl RecipeStore for ViewStore {
    type Watch = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    fn for_caller(&self, metadata: &MetadataMap, _: &Extensions) -> Self {
        let mut caller = Request::new(());
        *caller.metadata_mut() = metadata.clone();
        let mut metadata = clean(caller).into_parts().0;
        // The caller's deadline is for the whole recipe, which keeps it itself.
        metadata.remove("grpc-timeout");
        Self { view: self.view.clone(), metadata }
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Ok(Kv::range(&self.view, self.request(request)).await?.into_inner())
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        Ok(Kv::txn(&self.view, self.request(request)).await?.into_inner())
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        Ok(Kv::delete_range(&self.view, self.request(request)).await?.into_inner())
    }

    async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        Ok(self.view.grant_to_the_end(self.metadata.clone(), request).await?.into_inner())
    }

    async fn watch(&self, mut request: WatchCreateRequest) -> Result<Self::Watch, Status> {
        let held = self.view.limits.hold_watch().map_err(Status::resource_exhausted)?;
        let namespace = self.view.namespace.clone();
        (request.key, request.range_end) = namespace.add_prefix_to_watch(&request.key, &request.range_end);
        let headers: HeaderMap = self.metadata.clone().into_headers();
        let UpstreamWatch { requests, answers, .. } =
            self.view.channel.open_watch(&Identity::of(&headers).metadata()).await?;
        let create = WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(request)) };
        requests.send(create).await.map_err(|_| Status::unavailable("upstream watch ended before it began"))?;
        // The sender travels with the answers: dropping it would end the requests, which is no reason to end the watch,
        // but dropping both cancels it.
        Ok(Box::pin(answers.map(move |answer| {
            let _open = (&requests, &held);
            answer.map(|answer| strip_prefix_in_watch(&namespace, answer))
        })))
    }
}

fn strip_prefix_in_watch(namespace: &Namespace, mut answer: WatchResponse) -> WatchResponse {
    for event in &mut answer.events {
        event.kv = event.kv.take().and_then(|kv| namespace.strip_prefix_in_kv(kv));
        event.prev_kv = event.prev_kv.take().and_then(|kv| namespace.strip_prefix_in_kv(kv));
    }
    answer.events.retain(|event| event.kv.is_some());
    answer
}
