use std::pin::Pin;

use futures::{Stream, StreamExt};
use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Status};

use super::keys::Namespace;
use super::view::{View, clean};
use crate::client::{Carried, Channel, UpstreamWatch};
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
        let channel = self.view.channel.clone();
        let (watch, carried) = channel.open_watch(&Identity::of(&headers).metadata()).await?;
        let UpstreamWatch { requests, answers, .. } = watch;
        let create = WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(request)) };
        requests.send(create).await.map_err(|_| Status::unavailable("upstream watch ended before it began"))?;
        // The sender travels with the answers: dropping it would end the requests, which is no reason to end the watch,
        // but dropping both cancels it.
        Ok(Box::pin(answers.map(move |answer| {
            let _open = (&requests, &held);
            note_refusal(&channel, &carried, &answer);
            answer.map(|answer| strip_prefix_in_watch(&namespace, answer))
        })))
    }
}

/// Has the next request of the tenant's user log in where a member has refused a watch for the token.
fn note_refusal(channel: &Channel, carried: &Carried, answer: &Result<WatchResponse, Status>) {
    match answer {
        Err(status) => channel.refused(carried, status.message()),
        Ok(answer) if answer.canceled => channel.refused_watch(carried, &answer.cancel_reason),
        Ok(_) => false,
    };
}

fn strip_prefix_in_watch(namespace: &Namespace, mut answer: WatchResponse) -> WatchResponse {
    for event in &mut answer.events {
        event.kv = event.kv.take().and_then(|kv| namespace.strip_prefix_in_kv(kv));
        event.prev_kv = event.prev_kv.take().and_then(|kv| namespace.strip_prefix_in_kv(kv));
    }
    answer.events.retain(|event| event.kv.is_some());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api_error::{ApiError, cancel_reason};
    use crate::client::testing::{FakeMember, Reply};
    use crate::client::{Credentials, Pool, PoolConfig, framed};
    use crate::pb::etcdserverpb::AuthenticateResponse;
    use crate::pb::etcdserverpb::kv_client::KvClient;
    use crate::shutdown::Tasks;

    /// Cause: nobody took notice when a member that had forgotten the token of the tenant's user refused a watch for it, so that the
    /// next watch had the same token.
    #[tokio::test]
    async fn a_watch_that_is_refused_for_its_token_has_the_next_request_log_in() {
        let member = FakeMember::start(|received| match received.path.as_str() {
            "/etcdserverpb.Auth/Authenticate" => {
                let answer = AuthenticateResponse { token: "t".to_owned(), ..Default::default() };
                Reply::Message(framed(&answer).to_vec())
            }
            _ => Reply::Message(framed(&RangeResponse::default()).to_vec()),
        })
        .await;
        let pool = Pool::new(PoolConfig::new(vec![member.endpoint.clone()]), &Tasks::new());
        let channel = Channel::of_user(pool, Credentials { name: "u".to_owned(), password: "p".to_owned() });
        let read = async || KvClient::new(channel.clone()).range(RangeRequest::default()).await.map(drop);
        let logins = || member.received().iter().filter(|one| one.path.ends_with("/Authenticate")).count();
        for _ in 0..2 {
            read().await.expect("an answer");
        }
        assert_eq!(logins(), 1);
        let refusal = Status::from(ApiError::InvalidAuthToken);
        let canceled = WatchResponse { canceled: true, cancel_reason: cancel_reason(&refusal), ..Default::default() };
        for (answer, expected) in [(Ok(canceled), 2), (Err(refusal), 3), (Ok(WatchResponse::default()), 3)] {
            note_refusal(&channel, &Carried::default(), &answer);
            read().await.expect("an answer");
            assert_eq!(logins(), expected, "{answer:?}");
        }
        member.stop();
    }
}
