//! Replies of the raft and apply threads to tasks of the serving threads.
//!
//! A value that is sent to a task of another thread wakes that thread, which costs a system call. What becomes ready
//! together goes to each serving thread as one job here, and a task there passes it on to the others without one.

use std::cell::RefCell;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::shutdown::Tasks;

/// Sends the values of one call of [`send_all`] to the tasks that wait for them.
type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    static HERE: RefCell<Option<Arc<ServingThread>>> = const { RefCell::new(None) };
}

/// A thread that serves clients.
struct ServingThread {
    /// None once the task that runs them has ended.
    jobs: Mutex<Option<Vec<Job>>>,
    ready: Notify,
}

impl ServingThread {
    /// Runs a job on the thread, or here when it runs none any more.
    fn run(&self, job: Job) {
        if let Some(jobs) = &mut *self.jobs.lock() {
            jobs.push(job);
        } else {
            return job();
        }
        self.ready.notify_one();
    }

    fn take(&self) -> Vec<Job> {
        self.jobs.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }
}

/// Ends the jobs of a thread with the task that runs them: those that are left run here.
struct Running(Arc<ServingThread>);

impl Drop for Running {
    fn drop(&mut self) {
        let left = self.0.jobs.lock().take();
        left.into_iter().flatten().for_each(|job| job());
    }
}

/// Has replies to tasks of this thread, whose runtime calls this, sent together from now on, until `tasks` stop.
pub fn serve_here(tasks: &Tasks) {
    let thread = Arc::new(ServingThread { jobs: Mutex::new(Some(Vec::new())), ready: Notify::new() });
    HERE.set(Some(thread.clone()));
    let stop = tasks.stop_signal();
    let running = Running(thread);
    tasks.spawn(async move {
        while stop.run_until_cancelled(running.0.ready.notified()).await.is_some() {
            running.0.take().into_iter().for_each(|job| job());
        }
    });
}

/// Where the value for a waiting task goes.
#[derive(Debug)]
pub struct Reply<T> {
    sender: oneshot::Sender<T>,
    thread: Option<Arc<ServingThread>>,
}

/// A reply, and what the calling task waits for.
pub fn channel<T>() -> (Reply<T>, oneshot::Receiver<T>) {
    let (sender, receiver) = oneshot::channel();
    (Reply { sender, thread: HERE.with_borrow(Clone::clone) }, receiver)
}

impl<T> Reply<T> {
    /// Sends the value by itself. That nobody waits any more is no error.
    pub fn send(self, value: T) {
        let _ = self.sender.send(value);
    }

    /// Whether nobody waits any more.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Values that are ready, and who waits for each.
type Ready<T> = Vec<(oneshot::Sender<T>, T)>;

/// Sends values that are ready together, with one wake-up for each thread.
pub fn send_all<T: Send + 'static>(ready: impl IntoIterator<Item = (Reply<T>, T)>) {
    let mut by_thread: Vec<(Arc<ServingThread>, Ready<T>)> = Vec::new();
    for (Reply { sender, thread }, value) in ready {
        let Some(thread) = thread else {
            let _ = sender.send(value);
            continue;
        };
        match by_thread.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &thread)) {
            Some((_, values)) => values.push((sender, value)),
            None => by_thread.push((thread, vec![(sender, value)])),
        }
    }
    for (thread, mut values) in by_thread {
        if values.len() == 1 {
            // One wake-up either way, and no second task.
            values.drain(..).for_each(|(sender, value)| drop(sender.send(value)));
        } else {
            thread.run(Box::new(move || values.into_iter().for_each(|(sender, value)| drop(sender.send(value)))));
        }
    }
}

impl std::fmt::Debug for ServingThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingThread").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Arc<ServingThread> {
        HERE.with_borrow(Clone::clone).expect("serves")
    }

    type Numbered = Vec<(Reply<usize>, usize)>;

    fn waiting<const N: usize>() -> (Numbered, Vec<oneshot::Receiver<usize>>) {
        (0..N)
            .map(|value| {
                let (reply, receiver) = channel();
                ((reply, value), receiver)
            })
            .unzip()
    }

    async fn received(receivers: Vec<oneshot::Receiver<usize>>) -> Vec<usize> {
        let received: Result<Vec<_>, _> = futures::future::try_join_all(receivers).await;
        received.expect("every value is sent")
    }

    #[tokio::test]
    async fn values_that_are_ready_together_are_one_job_of_their_thread() {
        let tasks = Tasks::new();
        serve_here(&tasks);
        let (replies, mut receivers) = waiting::<100>();
        std::thread::spawn(move || send_all(replies)).join().unwrap();
        assert_eq!(here().jobs.lock().as_ref().map(Vec::len), Some(1));
        assert!(receivers[0].try_recv().is_err(), "sent by the thread's own task");
        assert_eq!(received(receivers).await, (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn one_value_and_one_for_a_thread_that_does_not_serve_are_sent_at_once() {
        let (replies, receivers) = waiting::<2>();
        send_all(replies);
        assert_eq!(received(receivers).await, [0, 1]);
        serve_here(&Tasks::new());
        let (replies, mut receivers) = waiting::<1>();
        send_all(replies);
        assert_eq!(receivers[0].try_recv(), Ok(0));
        assert_eq!(here().jobs.lock().as_ref().map(Vec::len), Some(0));
    }

    #[tokio::test]
    async fn nothing_is_lost_when_tasks_stop_before_or_after_it_is_ready() {
        let tasks = Tasks::new();
        serve_here(&tasks);
        let (before, receivers_before) = waiting::<3>();
        let (after, receivers_after) = waiting::<3>();
        send_all(before);
        assert!(tasks.finish(std::time::Duration::from_secs(30)).await);
        send_all(after);
        assert!(here().jobs.lock().is_none());
        for receivers in [receivers_before, receivers_after] {
            assert_eq!(received(receivers).await, [0, 1, 2]);
        }
    }

    #[tokio::test]
    async fn threads_get_their_own_values() {
        let (replies, threads): (Vec<_>, Vec<_>) = (0..3)
            .map(|thread| {
                let (own, given) = std::sync::mpsc::channel();
                let thread = std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(async {
                        serve_here(&Tasks::new());
                        let (replies, receivers) = waiting::<4>();
                        let replies = replies.into_iter().map(|(reply, value)| (reply, 10 * thread + value));
                        own.send(replies.collect::<Vec<_>>()).unwrap();
                        received(receivers).await
                    })
                });
                (given.recv().unwrap(), thread)
            })
            .unzip();
        // In turns, as they come from a log.
        let mut replies: Vec<_> = replies.into_iter().flatten().collect();
        replies.sort_by_key(|(_, value)| value % 10);
        send_all(replies);
        for (number, thread) in threads.into_iter().enumerate() {
            assert_eq!(thread.join().unwrap(), (0..4).map(|value| 10 * number + value).collect::<Vec<_>>());
        }
    }
}
