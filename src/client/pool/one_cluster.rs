use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::cluster::ClusterMismatch;
use super::config::PoolConfig;
use super::connection::Connection;
use super::probe;
use crate::client::Endpoint;
use crate::shutdown::Tasks;

/// How much longer than the first endpoint the others may take to answer.
const FIRST_ANSWERS_WAIT: Duration = Duration::from_secs(1);

/// Asks all endpoints for their cluster. Those that cannot be reached now are not waited for: once they answer, an
/// [`UpstreamCluster`](super::cluster::UpstreamCluster) decides.
///
/// # Errors
/// When two of the answers differ.
pub async fn check_one_cluster(config: &PoolConfig, tasks: &Tasks) -> Result<(), ClusterMismatch> {
    let ask = async |endpoint: Endpoint| {
        let connection = Connection::open(&endpoint, config, tasks).await.ok()?;
        let id = probe::cluster_id(&connection, &endpoint).await.ok().flatten();
        connection.close();
        id.map(|id| (endpoint, id))
    };
    let mut answers: FuturesUnordered<_> = config.endpoints.iter().cloned().map(ask).collect();
    let mut until = tokio::time::Instant::now() + config.dial_timeout;
    let mut first: Option<(Endpoint, u64)> = None;
    while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
        let Some((endpoint, id)) = answer else { continue };
        match &first {
            None => {
                until = until.min(tokio::time::Instant::now() + FIRST_ANSWERS_WAIT);
                first = Some((endpoint, id));
            }
            Some((other, other_id)) if *other_id != id => {
                return Err(ClusterMismatch { endpoint, id, other: other.clone(), other_id: *other_id });
            }
            Some(_) => {}
        }
    }
    Ok(())
}
