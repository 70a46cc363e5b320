use std::cell::Cell;
use std::sync::LazyLock;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Members that run at once for each processor. Most of what they do in a test is to wait; many more would be late
/// with their heartbeats.
const MEMBERS_PER_PROCESSOR: usize = 8;
/// The largest cluster that must fit.
const MEMBERS_MIN: usize = 6;

static MEMBERS: LazyLock<(Semaphore, usize)> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let members = (processors * MEMBERS_PER_PROCESSOR).max(MEMBERS_MIN);
    (Semaphore::new(members), members)
});

thread_local! {
    static HAS_SHARE: Cell<bool> = const { Cell::new(false) };
}

/// The right to run some members, until it is dropped. However many tests run at once, only so many members do.
pub struct Share(Option<SemaphorePermit<'static>>);

impl Share {
    /// Waits for it. A test that has one already gets no second one, so that tests do not wait for each other.
    pub async fn of(members: usize) -> Self {
        if HAS_SHARE.replace(true) {
            return Self(None);
        }
        let (semaphore, all) = &*MEMBERS;
        let permits = u32::try_from(members.min(*all)).expect("a small number");
        Self(Some(semaphore.acquire_many(permits).await.expect("never closed")))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.0.is_some() {
            HAS_SHARE.set(false);
        }
    }
}
