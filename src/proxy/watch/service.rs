use std::pin::Pin;
use std::sync::Arc;

use futures::{FutureExt, Stream};
use tonic::{Request, Response, Status, Streaming};

use super::hub::{CredentialGroup, HubInner, WatchHub};
use crate::api_error::ApiError;
use crate::eventlog::{Admit, WatchAdmission, WatchStream, WatcherSetHandle};
use crate::pb::encoded;
use crate::pb::etcdserverpb::WatchRequest;
use crate::proxy::Identity;
use crate::shutdown::Tasks;
use crate::types::{KeyRange, Revision};

/// The Watch service of one serving thread of the proxy.
#[derive(Clone)]
pub struct ProxyWatchService {
    hub: Arc<HubInner>,
    watchers: WatcherSetHandle,
}

impl ProxyWatchService {
    /// Starts the watchers' side of a serving thread, on its runtime. `worker` tells the threads apart.
    pub fn start(hub: &WatchHub, worker: usize, tasks: &Tasks) -> Self {
        Self { hub: hub.inner.clone(), watchers: hub.inner.add_watcher_set(worker as u64, tasks) }
    }

    /// To be called before a compaction is passed on; waits a moment at most.
    pub async fn before_compaction(&self) {
        self.hub.before_compaction().await;
    }
}

#[tonic::async_trait]
impl encoded::watch_server::Watch for ProxyWatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<encoded::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let identity = Identity::of(request.metadata().as_ref());
        let require_leader = identity.require_leader();
        if require_leader && self.hub.is_leaderless() {
            return Err(ApiError::NoLeader.into());
        }
        let admission = GroupWatchAdmission::new(&self.hub, identity);
        let stream = WatchStream::new(self.watchers.clone(), request.into_inner(), Box::new(admission), require_leader);
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Admits the watches of one stream.
pub(super) struct GroupWatchAdmission {
    hub: Arc<HubInner>,
    group: Arc<CredentialGroup>,
}

impl GroupWatchAdmission {
    pub fn new(hub: &Arc<HubInner>, identity: Identity) -> Self {
        Self { hub: hub.clone(), group: hub.group(identity) }
    }
}

impl WatchAdmission for GroupWatchAdmission {
    fn admit(&mut self, range: &KeyRange, start: Revision) -> Admit {
        Admit::Later(self.hub.clone().admit(self.group.clone(), range.clone(), start).boxed())
    }

    fn revision(&self) -> Revision {
        self.hub.revision()
    }

    fn canceled(&self) -> Status {
        ApiError::WatchCanceled.into()
    }
}
