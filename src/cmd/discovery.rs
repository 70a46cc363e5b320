//! `watershed discovery serve`: a registry of discovery tokens as a process.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;

use super::process::{notify_ready, raise_descriptor_limit, refuse, without_config};
use crate::config::{RegistryConfig, parse_registry_config};
use crate::registry;
use crate::shutdown::{Tasks, interrupted};
use crate::telemetry::init_logging;

const GRACE: Duration = Duration::from_secs(2);

/// Runs a registry until SIGINT or SIGTERM. `args` are the flags.
pub fn run(args: &[OsString]) -> u8 {
    let config = match parse_registry_config(args) {
        Ok(config) => config,
        Err(error) => return without_config("discovery serve", &error),
    };
    match init_logging(&config.log).context("--log-outputs").and_then(|()| serve(&config)) {
        Ok(()) => 0,
        Err(error) => refuse(format!("{error:#}")),
    }
}

fn serve(config: &RegistryConfig) -> anyhow::Result<()> {
    raise_descriptor_limit();
    Runtime::new().context("start the runtime")?.block_on(async {
        let tasks = Tasks::new();
        let registry = registry::start(config, &tasks)?;
        notify_ready();
        interrupted().await.context("wait for signals")?;
        tracing::info!("stopping");
        registry.finish().await;
        tasks.finish(GRACE).await;
        Ok(())
    })
}
