use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::setup::runtime;
use super::timeline::Timeline;
use super::wire::CallError;
use crate::shutdown::Tasks;

/// Pause between two checks of the threads.
const LOOK: Duration = Duration::from_millis(50);

/// Runs `work` once on each of `threads` threads, each with a runtime of its own, and `aside` on one more, which is
/// told to `stop` when the work is done. Notes how far `done` has come, and shows it on a terminal.
///
/// # Errors
/// The first error of any thread.
pub(super) fn run<T, F>(
    threads: u32,
    work: impl Fn(u32, Tasks) -> F + Sync,
    aside: impl FnOnce() + Send,
    stop: &CancellationToken,
    total: Option<u64>,
    done: impl Fn() -> u64,
    json: bool,
) -> Result<(Vec<T>, Timeline), CallError>
where
    T: Send,
    F: Future<Output = Result<T, CallError>>,
{
    let bar = progress(total, json);
    std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let runtime = runtime()?;
                    let tasks = Tasks::new();
                    let outcome = runtime.block_on(work(thread, tasks.clone()));
                    tasks.stop();
                    outcome
                })
            })
            .collect();
        let aside = scope.spawn(aside);
        let mut timeline = Timeline::default();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(LOOK);
            let done = done();
            timeline.note(Instant::now(), done);
            bar.set_position(done);
        }
        bar.finish_and_clear();
        let outcomes: Result<Vec<T>, CallError> = workers.into_iter().map(joined).collect();
        stop.cancel();
        joined_unit(aside);
        outcomes.map(|outcomes| (outcomes, timeline))
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, CallError>>) -> Result<T, CallError> {
    // A panic of a thread is a fault of the generator; it is resumed here.
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn joined_unit(thread: std::thread::ScopedJoinHandle<'_, ()>) {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A progress bar on standard error, if that is a terminal.
fn progress(total: Option<u64>, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = match total {
        Some(_) => "{bar:40} {pos}/{len} {per_sec} {eta}",
        None => "{spinner} {pos} {per_sec} {elapsed}",
    };
    bar.set_style(ProgressStyle::with_template(template).expect("a constant template"));
    bar
}
