use super::config::PoolConfig;
use super::connection::Connection;
use super::standing::Standing;
use crate::client::Endpoint;
use crate::net::{ByteStream, ClientTls};
use crate::shutdown::Tasks;

/// Asks the health service of an endpoint over `stream`, a connection to it on which TLS has not begun, and closes it.
/// Needs no rights; a member that knows no leader and a learner show it by what they refuse. The caller bounds the time.
///
/// # Errors
/// Why the endpoint cannot take any request.
pub async fn health_check(
    endpoint: &Endpoint,
    stream: Box<dyn ByteStream>,
    tls: Option<&ClientTls>,
    tasks: &Tasks,
) -> Result<(), String> {
    let config = PoolConfig { tls: tls.cloned(), ..PoolConfig::new(vec![endpoint.clone()]) };
    let connection = Connection::on(stream, endpoint, &config, tasks).await.map_err(|error| error.to_string())?;
    // Also when the caller gives up: a connection to a hung endpoint does not close by itself.
    let connection = Cut(connection);
    match connection.0.standing().await? {
        Standing::Full => Ok(()),
        other => Err(other.text().to_owned()),
    }
}

struct Cut(Connection);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.close();
    }
}
