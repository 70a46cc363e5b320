use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;
use tonic::Status;

use crate::types::Revision;

/// Shares reads of the cluster's revision.
///
/// A caller is served by a read that began after it called, never by one already under way, which might miss a write
/// acknowledged in between. Callers that arrive during a read share the next one.
#[derive(Debug, Default)]
pub(super) struct Fence {
    arrived: AtomicU64,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// Callers up to this number arrived before the read began.
    serves: u64,
    revision: Revision,
}

impl Fence {
    /// A revision at or after every write acknowledged before the call. `read` asks the cluster.
    ///
    /// # Errors
    /// Those of `read`, for the caller that ran it; the next one tries again.
    pub async fn pass<F>(&self, read: impl FnOnce() -> F) -> Result<Revision, Status>
    where
        F: Future<Output = Result<Revision, Status>>,
    {
        let number = self.arrived.fetch_add(1, Ordering::AcqRel) + 1;
        let mut last = self.last.lock().await;
        if last.serves >= number {
            return Ok(last.revision);
        }
        let serves = self.arrived.load(Ordering::Acquire);
        let revision = read().await?;
        *last = Last { serves, revision: revision.max(last.revision) };
        Ok(last.revision)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicI64;

    use futures::FutureExt;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn nobody_joins_a_read_that_has_begun() {
        let fence = Arc::new(Fence::default());
        let (gate, reads) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicI64::new(0)));
        let call = || {
            let (fence, gate, reads) = (fence.clone(), gate.clone(), reads.clone());
            async move {
                let read = || async move {
                    let number = reads.fetch_add(1, Ordering::SeqCst) + 1;
                    gate.acquire().await.unwrap().forget();
                    Ok(Revision(number))
                };
                fence.pass(read).await.unwrap()
            }
        };
        let mut calls: Vec<_> = (0..10).map(|_| call().boxed()).collect();
        for call in &mut calls {
            assert!(call.now_or_never().is_none(), "the first has begun its read, the others wait");
        }
        gate.add_permits(2);
        let answers = futures::future::join_all(calls).await;
        assert_eq!(answers[0], Revision(1));
        assert!(answers[1..].iter().all(|&revision| revision == Revision(2)), "{answers:?}");
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }
}
