use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::Status;

use crate::api_error::ApiError;
use crate::client::Turns;
use crate::types::Revision;

/// Shares reads of the cluster's revision among the watches that are being created.
///
/// A caller is served by a read that began after it called, never by one already in flight, which might miss a write
/// or a compaction acknowledged in between. Callers that arrive during a read share the next one.
#[derive(Debug, Default)]
pub(super) struct SharedReadIndex {
    waiting: Mutex<Waiting>,
    last: Mutex<Last>,
    /// One read at a time.
    turns: Arc<Turns>,
    /// Newest revision any read has told.
    newest: AtomicI64,
}

#[derive(Debug, Default)]
struct Waiting {
    arrived: u64,
    /// Start revisions of the callers that wait and have one, with their numbers.
    starts: BTreeSet<(Revision, u64)>,
}

/// What the last reads told, and whom: callers up to a number arrived before the read began.
#[derive(Debug, Default)]
struct Last {
    answer: (u64, ReadAnswer),
    compacted: (u64, Revision),
}

impl Last {
    /// Whether compaction answers the caller.
    fn is_compacted(&self, start: Revision, number: u64) -> bool {
        let (serves, compacted) = self.compacted;
        start.0 != 0 && start < compacted && number <= serves
    }

    fn position_of(&self, start: Revision, number: u64) -> Option<StartPosition> {
        if self.is_compacted(start, number) {
            return Some(StartPosition { revision: Revision(0), compacted: self.compacted.1 });
        }
        let (serves, answer) = self.answer;
        let kept = number <= serves && answer.keeps(start);
        kept.then_some(StartPosition { revision: answer.revision, compacted: answer.compacted })
    }
}

/// What a read told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Read {
    Answer(ReadAnswer),
    /// The revision read at is below the compacted one, which this is.
    Compacted(Revision),
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReadAnswer {
    /// The cluster's revision.
    pub revision: Revision,
    /// The revision read at, 0 for the newest; it is not compacted.
    pub at: Revision,
    /// The compacted revision if that is the one read at, else 0.
    pub compacted: Revision,
}

/// Where a watch stands against the cluster at a moment after it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StartPosition {
    /// A revision at or after every write acknowledged before the call; 0 when compaction answers the call.
    pub revision: Revision,
    /// The compacted revision when the start is below it, or when it is the lowest start of those that share the read; else 0.
    pub compacted: Revision,
}

impl ReadAnswer {
    /// Whether it proves that `start` (0: from now) is not compacted. What is not written yet cannot be.
    fn keeps(&self, start: Revision) -> bool {
        start.0 == 0 || start > self.revision || (self.at.0 != 0 && start >= self.at)
    }
}

impl SharedReadIndex {
    /// The cluster has not the revisions that were told before: it is another one, or was restored.
    pub fn forget(&self) {
        self.newest.store(0, Ordering::Relaxed);
    }

    /// Where a watch from `start` (0: from now) stands. `read` asks the cluster at a revision, 0 for the newest: that is
    /// the lowest start of all that wait, so that one read answers for all of them. It is run by `start_task`, until this
    /// call is dropped.
    ///
    /// # Errors
    /// Those of `read`, for the caller that began it; the next one tries again. That the hub has stopped.
    pub async fn read<F>(
        self: &Arc<Self>,
        start: Revision,
        start_task: impl Fn(BoxFuture<'static, ()>),
        read: impl Fn(Revision) -> F,
    ) -> Result<StartPosition, Status>
    where
        F: Future<Output = Result<Read, Status>> + Send + 'static,
    {
        let waiter = Waiter::take(self, start);
        loop {
            let ended = self.turns.ended();
            let turn = self.turns.take();
            if let Some(position) = self.last.lock().position_of(start, waiter.number) {
                return Ok(position);
            }
            let Some(turn) = turn else {
                ended.await;
                continue;
            };
            let (serves, at) = self.next_read();
            let (read, shared) = (read(at), self.clone());
            let (mut tell, told) = oneshot::channel();
            start_task(
                async move {
                    let outcome = tokio::select! {
                        outcome = read => outcome.map(|read| shared.note(serves, read)),
                        () = tell.closed() => return,
                    };
                    drop(turn);
                    // Nobody may wait any more.
                    let _ = tell.send(outcome);
                }
                .boxed(),
            );
            told.await.unwrap_or_else(|_| Err(ApiError::Stopped.into()))?;
        }
    }

    /// Whom a read that begins now serves, and at which revision it reads.
    fn next_read(&self) -> (u64, Revision) {
        let (waiting, last) = (self.waiting.lock(), self.last.lock());
        let lowest = waiting.starts.iter().find(|(start, number)| !last.is_compacted(*start, *number));
        // A start that may lie in the future would give no revision.
        let known = Revision(self.newest.load(Ordering::Relaxed));
        let at = lowest.map(|(start, _)| *start).filter(|lowest| *lowest <= known).unwrap_or_default();
        (waiting.arrived, at)
    }

    fn note(&self, serves: u64, read: Read) {
        let mut last = self.last.lock();
        match read {
            Read::Compacted(compacted) => last.compacted = (serves, compacted),
            Read::Answer(answer) => {
                self.newest.fetch_max(answer.revision.0, Ordering::Relaxed);
                last.answer = (serves, answer);
            }
        }
    }
}

/// A caller among those that wait; leaves when it is dropped.
struct Waiter<'a> {
    read_index: &'a SharedReadIndex,
    start: Revision,
    number: u64,
}

impl<'a> Waiter<'a> {
    fn take(read_index: &'a SharedReadIndex, start: Revision) -> Self {
        let mut waiting = read_index.waiting.lock();
        waiting.arrived += 1;
        let number = waiting.arrived;
        if start.0 != 0 {
            waiting.starts.insert((start, number));
        }
        Self { read_index, start, number }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.read_index.waiting.lock().starts.remove(&(self.start, self.number));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    fn start_task(task: BoxFuture<'static, ()>) {
        #[allow(clippy::disallowed_methods, reason = "ends with its test")]
        tokio::spawn(task);
    }

    #[tokio::test]
    async fn nobody_joins_a_read_that_has_begun() {
        let read_index = Arc::new(SharedReadIndex::default());
        let (gate, reads) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicI64::new(0)));
        let call = || {
            let (read_index, gate, reads) = (read_index.clone(), gate.clone(), reads.clone());
            async move {
                let read = |at| {
                    let (gate, reads) = (gate.clone(), reads.clone());
                    async move {
                        let number = reads.fetch_add(1, Ordering::SeqCst) + 1;
                        gate.acquire().await.unwrap().forget();
                        Ok(Read::Answer(ReadAnswer { revision: Revision(number), at, ..ReadAnswer::default() }))
                    }
                };
                read_index.read(Revision(0), start_task, read).await.unwrap().revision
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

    // Cause: the turn was a lock that the caller held, or was given: one that is not polled kept all others waiting.
    #[tokio::test]
    async fn a_caller_that_is_not_polled_holds_up_nobody() {
        let read_index = Arc::new(SharedReadIndex::default());
        let gate = Arc::new(Semaphore::new(0));
        let call = || {
            let read = |at| {
                let gate = gate.clone();
                async move {
                    gate.acquire().await.unwrap().forget();
                    Ok(Read::Answer(ReadAnswer { revision: Revision(7), at, ..ReadAnswer::default() }))
                }
            };
            read_index.read(Revision(0), start_task, read)
        };
        // One has begun a read, one waits for it.
        let mut stuck = [call().boxed(), call().boxed()];
        assert!(stuck.iter_mut().all(|call| call.now_or_never().is_none()));
        gate.add_permits(5);
        let in_time =
            async |call| tokio::time::timeout(std::time::Duration::from_secs(20), call).await.expect("in time");
        assert_eq!(in_time(call().boxed()).await.unwrap().revision, Revision(7));
        // Nor does one that is given up.
        let mut dropped = call().boxed();
        assert!((&mut dropped).now_or_never().is_none());
        drop(dropped);
        assert_eq!(in_time(call().boxed()).await.unwrap().revision, Revision(7));
        for call in stuck {
            assert_eq!(in_time(call).await.unwrap().revision, Revision(7));
        }
    }

    /// A store at a revision, compacted at another, behind a read_index that knows of `known`.
    async fn ask(known: i64, revision: i64, compacted: i64, starts: &[i64]) -> (Vec<(i64, i64)>, Vec<i64>) {
        let read_index = Arc::new(SharedReadIndex { newest: AtomicI64::new(known), ..SharedReadIndex::default() });
        let reads = Mutex::new(Vec::new());
        let read = |at: Revision| {
            reads.lock().push(at.0);
            assert!(reads.lock().len() < 20, "it goes round in circles");
            let gone = at.0 != 0 && at.0 < compacted;
            let answer = if gone {
                Read::Compacted(Revision(compacted))
            } else {
                Read::Answer(ReadAnswer { revision: Revision(revision), at, ..ReadAnswer::default() })
            };
            async move {
                tokio::task::yield_now().await;
                Ok(answer)
            }
        };
        let calls = starts.iter().map(|&start| read_index.read(Revision(start), start_task, read));
        let positions = futures::future::join_all(calls).await;
        let positions = positions.into_iter().map(|position| position.unwrap());
        let positions = positions.map(|position| (position.revision.0, position.compacted.0)).collect();
        assert!(read_index.waiting.lock().starts.is_empty());
        (positions, reads.into_inner())
    }

    #[tokio::test]
    async fn one_read_answers_for_many_starts() {
        // All that come after the first share one read, at the lowest of their starts.
        assert_eq!(ask(50, 60, 10, &[0, 30, 20, 0, 40, 61]).await, (vec![(60, 0); 6], vec![0, 20]));
        // Starts of the future, or that may be: the newest revision tells.
        assert_eq!(ask(50, 60, 10, &[61, 61, 70]).await, (vec![(60, 0); 3], vec![0, 0]));
        // A start that turned out to be written meanwhile is read at.
        assert_eq!(ask(50, 60, 10, &[55]).await, (vec![(60, 0)], vec![0, 55]));
    }

    #[tokio::test]
    async fn only_starts_below_the_compaction_are_compacted() {
        let (positions, reads) = ask(50, 60, 30, &[0, 29, 30, 31, 2, 0]).await;
        assert_eq!(positions, [(60, 0), (0, 30), (60, 0), (60, 0), (0, 30), (60, 0)]);
        assert_eq!(reads, [0, 2, 30]);
    }
}
