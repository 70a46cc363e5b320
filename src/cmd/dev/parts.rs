use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::config::{ServerConfig, Variables, parse_server_config};
use crate::listener;
use crate::telemetry::init_logging;

/// Ports for clients and peers of the first member, of the gateway and of the proxy.
pub(super) const CLIENTS: u16 = 2379;
pub(super) const PEERS: u16 = 2380;
pub(super) const GATEWAY: u16 = 23790;
pub(super) const PROXY: u16 = 23791;

/// The address on which all parts listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Host(Ipv4Addr);

impl Host {
    pub(super) fn at(self, port: u16) -> String {
        SocketAddrV4::new(self.0, port).to_string()
    }

    /// The folder of data that belongs to this address: it is in the URLs of members, and in the file of tenants.
    pub(super) fn folder(self, data_dir: &Path) -> PathBuf {
        if self.0 == Ipv4Addr::LOCALHOST { data_dir.to_owned() } else { data_dir.join(self.0.to_string()) }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse::<Ipv4Addr>().map_err(|error| error.to_string())?;
        if !address.is_loopback() {
            return Err("must be in 127.0.0.0/8: the tier has neither TLS nor users".to_owned());
        }
        Ok(Self(address))
    }
}

/// The configuration of a member with these addresses for clients and peers, and the flags that say who the others are.
pub(super) fn member(
    name: &str,
    data_dir: &Path,
    clients: &str,
    peers: &str,
    more: &[String],
) -> anyhow::Result<ServerConfig> {
    let mut data_flag = OsString::from("--data-dir=");
    data_flag.push(data_dir);
    let mut args = vec![data_flag];
    let flags = [
        format!("--name={name}"),
        format!("--listen-client-urls=http://{clients}"),
        format!("--advertise-client-urls=http://{clients}"),
        format!("--listen-peer-urls=http://{peers}"),
        format!("--initial-advertise-peer-urls=http://{peers}"),
        "--log-level=warn".to_owned(),
        "--log-format=console".to_owned(),
    ];
    args.extend(flags.into_iter().chain(more.iter().cloned()).map(OsString::from));
    let config = parse_server_config(&args, &Variables::none())?;
    init_logging_once(&config)?;
    Ok(config)
}

/// All members log in the same way.
fn init_logging_once(config: &ServerConfig) -> anyhow::Result<()> {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let mut outcome = Ok(());
    ONCE.call_once(|| outcome = init_logging(&config.log).map_err(anyhow::Error::from));
    outcome
}

/// Tries ports before anything is written.
pub(super) fn try_ports(host: Host, ports: impl IntoIterator<Item = u16>) -> anyhow::Result<()> {
    for port in ports {
        drop(listener::bind(SocketAddrV4::new(host.0, port).into())?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_on_loopback_and_each_address_has_data_of_its_own() {
        let host = |text: &str| text.parse::<Host>();
        assert_eq!(host("127.0.0.1").unwrap().at(GATEWAY), "127.0.0.1:23790");
        let folder = |text: &str| host(text).unwrap().folder(Path::new("d"));
        assert_eq!((folder("127.0.0.1"), folder("127.1.2.3")), ("d".into(), "d/127.1.2.3".into()));
        for refused in ["0.0.0.0", "10.0.0.1", "::1", "localhost", "127.0.0.1:1", ""] {
            assert!(host(refused).is_err(), "{refused}");
        }
    }
}
