use std::sync::Arc;

use futures::future::ready;
use futures::{FutureExt, TryFutureExt};
use tokio::time::sleep;
use tonic::Status;

use super::broadcast::Broadcast;
use super::broadcast_handle::BroadcastHandle;
use super::group::{CredentialGroup, SharedWatch};
use super::hub::HubInner;
use super::open_permissions::OpenPermissions;
use super::permission::may_watch;
use super::read_index::{Read, ReadAnswer, StartPosition};
use super::status::is_refusal;
use crate::api_error::ApiError;
use crate::eventlog::{
    Admission, Admit, HistoryError, HistoryRequest, Refusal, Source, WatchAdmission, WatchPermission,
};
use crate::proxy::{Caller, Identity};
use crate::types::{KeyRange, Revision};

/// Admits the watches of one client. Cheap to clone.
#[derive(Clone)]
pub(super) struct ClientWatchAdmission {
    hub: Arc<HubInner>,
    caller: Caller,
    /// Whose upstream watches it reads: those of all who carry the same credentials, or the proxy's own.
    group: Arc<CredentialGroup>,
}

impl WatchAdmission for ClientWatchAdmission {
    fn admit(&mut self, range: &KeyRange, start: Revision) -> Admit {
        let held = match self.hub.config.tenant_limits.hold_watch() {
            Ok(held) => held,
            Err(reason) => return Admit::Now(Err(self.refusal(reason))),
        };
        let decision = self.clone().decide(range.clone(), start);
        Admit::Later(decision.map_ok(|admission| Admission { held, ..admission }).boxed())
    }

    fn revision(&self) -> Revision {
        self.hub.revision()
    }

    fn canceled(&self) -> Status {
        ApiError::WatchCanceled.into()
    }
}

impl ClientWatchAdmission {
    pub fn new(hub: &Arc<HubInner>, caller: Caller) -> Self {
        let identity = match hub.open_permissions.is_some() || hub.is_callers_user {
            true => Identity::of_proxy(),
            false => caller.identity.clone(),
        };
        Self { hub: hub.clone(), group: hub.group(identity), caller }
    }

    /// Finds or makes the source a watch reads, and the revision it begins behind.
    async fn decide(self, range: KeyRange, start: Revision) -> Result<Admission, Refusal> {
        if range.is_empty() {
            return Err(self.refusal("mvcc: watcher range is empty".to_owned()));
        }
        let Some(permissions) = &self.hub.open_permissions else {
            return self.admit_to_group(&range, start, ready(Ok(None))).await;
        };
        let permission = self.permission(permissions, &range).boxed().shared();
        let asked = permission.clone().map_ok(Some);
        match self.admit_to_group(&range, start, asked).await {
            Ok(admission) => Ok(admission),
            // The proxy's user may read less than the caller, or be refused altogether.
            Err(refusal) => {
                permission.await.map_err(|reason| self.refusal(reason))?;
                tracing::debug!(?refusal, ?range, "the proxy's own user cannot read for a client");
                let group = self.hub.group(self.caller.identity.clone());
                Self { group, ..self.clone() }.admit_to_group(&range, start, ready(Ok(None))).await
            }
        }
    }

    /// Admits a watch to a source of the group, under the permission if one is needed, or tells why there is none.
    async fn admit_to_group(
        &self,
        range: &KeyRange,
        start: Revision,
        permission: impl Future<Output = Result<Option<Arc<WatchPermission>>, String>>,
    ) -> Result<Admission, Refusal> {
        let source = async {
            let permission = permission.await.map_err(|reason| self.refusal(reason))?;
            Ok((self.source(range).await?, permission))
        };
        // At the same time: opening an upstream watch must not delay where a watch from now begins.
        let (mut position, (mut source, permission)) = tokio::try_join!(self.read_index(range, start), source)?;
        while source.ended().is_some() {
            // The cluster has lost its history, or refuses it; the next one shows which.
            (position, source) = tokio::try_join!(self.read_index(range, start), self.source(range))?;
        }
        // Known of the cluster, not only of compactions that passed.
        source.log().compact(position.compacted);
        Ok(Admission { source, after: position.revision, compacted: position.compacted, permission, held: None })
    }

    /// The caller's permission to read a range; tries until the cluster decides.
    async fn permission(
        &self,
        permissions: &OpenPermissions,
        range: &KeyRange,
    ) -> Result<Arc<WatchPermission>, String> {
        let wide = self.group.covering_range(range, self.hub.config.prefixes.iter());
        let upstream = |range| {
            let (key, range_end) = self.hub.config.namespace.upstream_range(range);
            KeyRange::from_wire(key, range_end)
        };
        let mut backoff = self.hub.config.periods.backoff();
        loop {
            match permissions.ask(&self.caller, upstream(&wide), upstream(range)).await {
                Ok(permission) => return Ok(permission),
                Err(Some(reason)) => return Err(reason),
                Err(None) => sleep(backoff.pause()).await,
            }
        }
    }

    fn refusal(&self, reason: String) -> Refusal {
        Refusal::Watch { revision: self.hub.revision(), reason }
    }

    /// A source that covers a range and that the group may read.
    async fn source(&self, range: &KeyRange) -> Result<Arc<Source>, Refusal> {
        loop {
            let watch = self.shared_watch(range);
            let source = match watch.broadcast.live().await {
                Ok(source) => source,
                // One of a wider range was removed when it ended; the watch of the client's own range decides.
                Err(end) if watch.range == *range && !end.reason.is_empty() => {
                    return Err(self.refusal(self.caller.told_reason(end.reason)));
                }
                Err(_) => continue,
            };
            // Without credentials the read index decides: nobody may read anything once the cluster requires some.
            if !self.group.identity.is_anonymous()
                && (!self.group.identity.is_proxy() || self.hub.is_callers_user)
                && let Err(reason) = self.verify(&watch).await
            {
                if watch.range == *range {
                    return Err(self.refusal(reason));
                }
                self.group.refuse(&watch.range);
                continue;
            }
            return Ok(source);
        }
    }

    /// The upstream watch that covers a range; opens one when there is none.
    fn shared_watch(&self, range: &KeyRange) -> SharedWatch {
        self.group.covering(range, self.hub.config.prefixes.iter(), |taken, narrower| self.open(taken, narrower))
    }

    /// Starts a broadcast of a range. Its log begins where the narrower ones stand, so that their watchers, which move to
    /// it once it is live, find in it what they still need.
    fn open(&self, range: &KeyRange, narrower: Vec<BroadcastHandle>) -> BroadcastHandle {
        let replaces = !narrower.is_empty();
        let (broadcast, handle) = Broadcast::new(self.hub.clone(), self.group.clone(), range.clone(), narrower);
        self.hub.start(broadcast.run());
        if replaces {
            let (group, range, wide) = (self.group.clone(), range.clone(), handle.clone());
            self.hub.start(async move { group.move_narrower(&range, &wide).await });
        }
        handle
    }

    /// Reads the revision behind which a watch begins, in one read for all watches that need it at the time; tries until the
    /// cluster answers. Without a quorum the client waits, as it would for a write.
    async fn read_index(&self, range: &KeyRange, start: Revision) -> Result<StartPosition, Refusal> {
        let mut backoff = self.hub.config.periods.backoff();
        loop {
            let known = self.hub.revision();
            let read = |at| self.clone().read_at(range.clone(), at);
            match self.group.read_index.read(start, |task| self.hub.start(task), read).await {
                // What is told of compaction alone has no revision.
                Ok(position) if position.revision.0 != 0 && position.revision < known => {
                    // A watch must not read what the cluster has no more. In a task of its own: others wait for it, and this is
                    // polled only while the client reads.
                    let (hub, identity, range) = (self.hub.clone(), self.group.identity.clone(), range.clone());
                    let ending = self.hub.run(async move { hub.end_lost_history(&identity, &range).await });
                    if let Err(status) = ending.await {
                        tracing::debug!(%status, "a restored cluster is asked again how far it is");
                        sleep(backoff.pause()).await;
                    }
                }
                Ok(position) => {
                    self.hub.note_revision(position.revision);
                    return Ok(position);
                }
                Err(status) if is_refusal(&status) => return Err(self.refusal(self.caller.told_as_reason(&status))),
                Err(status) => {
                    tracing::debug!(%status, "revision for a new watch is asked for again");
                    sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// One linearizable read of a key at a revision (0: the newest). It is refused as compacted exactly when a watch
    /// from there would be, by a member that has applied all that was acknowledged before.
    ///
    /// It is tried at the revision before: when that is compacted and this one is not, this one is where the cluster is compacted, and
    /// a member tells nothing of what was there before its events.
    async fn read_at(self, range: KeyRange, at: Revision) -> Result<Read, Status> {
        let key = self.hub.config.namespace.add_prefix(range.start());
        let read = |at| self.hub.upstream.read_index(&self.group.identity, key.clone(), at);
        let error_of =
            |answer: &Result<_, Status>| answer.as_ref().err().and_then(|status| ApiError::from_text(status.message()));
        let before = if at.0 > 1 { Revision(at.0 - 1) } else { at };
        let (mut answer, mut compacted) = (read(before).await, Revision(0));
        if before != at && error_of(&answer) == Some(ApiError::Compacted) {
            (answer, compacted) = (read(at).await, at);
        }
        let (header, at) = match answer {
            Ok(header) => (header, at),
            Err(status) => match ApiError::from_text(status.message()) {
                Some(ApiError::Compacted) => return Ok(Read::Compacted(self.compacted_above(&range, at).await?)),
                Some(ApiError::FutureRevision) => (read(Revision(0)).await?, Revision(0)),
                _ => return Err(status),
            },
        };
        Ok(Read::Answer(ReadAnswer { revision: Revision(header.revision), at, compacted }))
    }

    /// The compacted revision, which is known to be above `start`: only the answer to a watch names it.
    async fn compacted_above(&self, range: &KeyRange, start: Revision) -> Result<Revision, Status> {
        let request = HistoryRequest {
            range: range.clone(),
            from: start,
            up_to: start,
            prev_kv: false,
            revisions_max: 1,
            bytes_max: 1,
        };
        let mut backoff = self.hub.config.periods.backoff();
        loop {
            match self.hub.history.read(&self.group.identity, request.clone()).await {
                Err(HistoryError::Compacted(compacted)) => return Ok(compacted),
                Err(HistoryError::Refused(reason) | HistoryError::NotOnThisStream(reason)) => {
                    return Err(Status::unavailable(reason));
                }
                // A member that lags behind the compaction; the next one may not.
                Ok(_) => sleep(backoff.pause()).await,
            }
        }
    }

    /// Whether the group may still read the range of an upstream watch. The cluster decides; its permission holds for a
    /// second.
    async fn verify(&self, watch: &SharedWatch) -> Result<(), String> {
        let mut backoff = self.hub.config.periods.backoff();
        loop {
            let ended = watch.permission.turns.ended();
            let turn = watch.permission.turns.take();
            if watch.permission.is_fresh(self.hub.config.periods.permission_max) {
                return Ok(());
            }
            let Some(turn) = turn else {
                ended.await;
                continue;
            };
            let (upstream, identity) = (self.hub.upstream.clone(), self.group.identity.clone());
            let range = self.hub.config.namespace.upstream_range(&watch.range);
            let permission = watch.permission.clone();
            let asking = self.hub.run(async move {
                let answer = may_watch(&*upstream, &identity, range).await;
                if let Ok(None) = answer {
                    permission.permit();
                }
                drop(turn);
                answer
            });
            match asking.await {
                Ok(None) => return Ok(()),
                Ok(Some(reason)) => return Err(reason),
                Err(status) => {
                    tracing::debug!(%status, "permission for a watch is asked for again");
                    sleep(backoff.pause()).await;
                }
            }
        }
    }
}
