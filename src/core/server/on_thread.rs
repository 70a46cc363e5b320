use tokio::task::JoinError;

/// Runs what may take long, or blocks, on a thread that serves no connections. `stopped` says what it means that the work
/// panicked, or did not begin since the runtime ends.
pub(super) async fn on_thread<T, E>(
    stopped: impl FnOnce(JoinError) -> E,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(stopped(error)))
}
