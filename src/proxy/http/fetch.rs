use std::time::Duration;

use bytes::Bytes;
use http::Response;

use crate::client::{Pool, http_page};

const FETCH_TIMEOUT: Duration = Duration::from_secs(2);

/// The page as the first member that answers has it.
pub(super) async fn from_any_member(pool: &Pool, path: &str) -> Result<Response<Bytes>, String> {
    let mut reasons = Vec::new();
    for endpoint in pool.endpoints() {
        match tokio::time::timeout(FETCH_TIMEOUT, http_page(&endpoint, pool.tls(), path)).await {
            Ok(Ok(page)) => return Ok(page),
            Ok(Err(error)) => reasons.push(format!("{endpoint}: {error}")),
            Err(_) => reasons.push(format!("{endpoint}: no answer in time")),
        }
    }
    Err(reasons.join("; "))
}
