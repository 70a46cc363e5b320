use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::warn;

use super::error::JoinError;
use crate::net::Backoff;

/// What came in place of an answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// It may come later.
    Later(String),
    /// It will not be another one.
    Never(JoinError),
}

/// Asks until there is an answer.
///
/// # Errors
/// When there will not be one.
pub(super) async fn until_answered<T, F: Future<Output = Result<T, Unanswered>>>(
    what: &str,
    limit: Duration,
    pauses: &Backoff,
    ask: impl Fn() -> F,
) -> Result<T, JoinError> {
    let mut pauses = pauses.clone();
    loop {
        let reason = match timeout(limit, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(Unanswered::Never(error))) => return Err(error),
            Ok(Err(Unanswered::Later(reason))) => reason,
            Err(_) => "no answer in time".to_owned(),
        };
        let pause = pauses.pause();
        warn!(what, reason, ?pause, "the registry of members does not answer, it is asked again");
        sleep(pause).await;
    }
}
