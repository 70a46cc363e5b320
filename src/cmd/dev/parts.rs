use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;

use crate::config::{ServerConfig, Variables, parse_server_config};
use crate::listener;
use crate::telemetry::init_logging;

pub(super) const GATEWAY: &str = "127.0.0.1:23790";
pub(super) const PROXY: &str = "127.0.0.1:23791";

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
pub(super) fn try_ports<'a>(addresses: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
    for address in addresses {
        drop(listener::bind(address.parse().with_context(|| address.to_owned())?)?);
    }
    Ok(())
}
