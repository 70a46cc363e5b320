use tokio::runtime::Handle;

use crate::shutdown::Tasks;

/// Starts tasks, most of them on the cache's own runtime, where its connections live.
#[derive(Clone)]
pub(super) struct Spawner {
    runtime: Handle,
    tasks: Tasks,
}

impl Spawner {
    /// On the current runtime.
    pub fn new(tasks: &Tasks) -> Self {
        Self { runtime: Handle::current(), tasks: tasks.clone() }
    }

    /// Starts a task that ends with the process.
    pub fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start_on(&self.runtime, task);
    }

    /// Starts it on another runtime.
    pub fn start_on(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.tasks.stop_signal();
        let _runtime = runtime.enter();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }
}
