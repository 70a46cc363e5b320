use std::time::Duration;

use tokio::time::timeout;

use crate::net::{AddressTime, ClientTls, Endpoint, TcpDialer, TcpSilence};

/// For the connection and both handshakes.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Checks endpoints by a TLS handshake: each must have a certificate that is valid for its host or for the domain that
/// the operator named, as a DNS server can name any host.
#[derive(Clone, Debug)]
pub(super) struct Certificates {
    pub(super) tls: ClientTls,
    pub(super) domain: String,
}

impl Certificates {
    /// The endpoint with the name that its certificate has.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) async fn check(&self, endpoint: Endpoint) -> Result<Endpoint, String> {
        let described = |why: String| format!("{endpoint}: {why}");
        match timeout(TIME_MAX, self.name_of(&endpoint)).await {
            Ok(Ok(name)) => Ok(endpoint.clone().certified_as(&name)),
            Ok(Err(why)) => Err(described(why)),
            Err(_) => Err(described(format!("no TLS handshake within {TIME_MAX:?}"))),
        }
    }

    async fn name_of(&self, endpoint: &Endpoint) -> Result<String, String> {
        let names = [endpoint.host(), &self.domain];
        let mut refusals = Vec::new();
        for name in names {
            let stream = DIALER.connect_endpoint(endpoint, 0).await.map_err(|error| error.to_string())?;
            match self.tls.connect(name, stream).await {
                Ok(_) => return Ok(name.to_owned()),
                Err(error) => refusals.push(error.to_string()),
            }
        }
        refusals.dedup();
        Err(refusals.join("; "))
    }
}

const DIALER: TcpDialer =
    TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Each(Duration::from_secs(1)), from: None };
