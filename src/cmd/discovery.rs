//! `watershed discovery serve`: a registry of discovery tokens as a process.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context;

use super::process::{notify_ready, raise_descriptor_limit, refuse, run_to_end, without_config};
use crate::config::{RegistryConfig, parse_registry_config};
use crate::registry;
use crate::shutdown::{Interruptions, Tasks};
use crate::telemetry::init_logging;

const GRACE: Duration = Duration::from_secs(2);

/// Runs a registry until SIGINT or SIGTERM. `args` are the flags.
pub fn run(args: &[OsString]) -> u8 {
    let config = match parse_registry_config(args) {
        Ok(config) => config,
        Err(error) => return without_config("discovery serve", &error),
    };
    let logging = init_logging(&config.log).context("--log-outputs");
    match logging.and_then(|()| run_to_end(serve(&config))) {
        Ok(()) => 0,
        Err(error) => refuse(format!("{error:#}")),
    }
}

async fn serve(config: &RegistryConfig) -> anyhow::Result<()> {
    raise_descriptor_limit();
    // From here on, so that one which comes early does not end the process.
    let mut interruptions = Interruptions::new().context("install the signal handlers")?;
    let tasks = Tasks::new();
    let registry = registry::start(config, &tasks)?;
    notify_ready();
    interruptions.next().await;
    tracing::info!("stopping");
    registry.finish().await;
    tasks.finish(GRACE).await;
    Ok(())
}
