use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::admission::ClientWatchAdmission;
use super::hub::{HubInner, WatchHub};
use crate::api_error::ApiError;
use crate::eventlog::{WatchStream, WatcherSetHandle};
use crate::pb::encoded;
use crate::pb::etcdserverpb::WatchRequest;
use crate::proxy::Caller;
use crate::shutdown::Tasks;

/// The Watch service of one serving thread of the proxy.
#[derive(Clone)]
pub struct ProxyWatchService {
    hub: Arc<HubInner>,
    watchers: WatcherSetHandle,
}

impl ProxyWatchService {
    /// Starts the watcher set of a serving thread, on its runtime; `worker` is its number.
    pub fn start(hub: &WatchHub, worker: usize, tasks: &Tasks) -> Self {
        Self { hub: hub.inner.clone(), watchers: hub.inner.add_watcher_set(worker as u64, tasks) }
    }
}

#[tonic::async_trait]
impl encoded::watch_server::Watch for ProxyWatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<encoded::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(request.metadata().as_ref(), request.extensions());
        let require_leader = caller.identity.require_leader();
        if require_leader && self.hub.has_no_leader() {
            return Err(ApiError::NoLeader.into());
        }
        let admission = ClientWatchAdmission::new(&self.hub, caller);
        let stream = WatchStream::new(self.watchers.clone(), request.into_inner(), Box::new(admission), require_leader);
        Ok(Response::new(Box::pin(stream)))
    }
}
