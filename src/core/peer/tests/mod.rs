//! Transports that meet over real sockets, with a proxy between them that cuts, stalls, slows and falsifies.

mod calls;
mod faults;
mod lanes;
mod node;
mod proxy;
mod snapshots;
mod tls;

use std::time::Duration;

/// After this long a test has failed; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what must come.
async fn soon<F: Future>(wait: F) -> F::Output {
    tokio::time::timeout(PATIENCE, wait).await.expect("came in time")
}

/// Waits until something holds that nobody announces.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let poll = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, poll).await.is_ok(), "never: {what}");
}
