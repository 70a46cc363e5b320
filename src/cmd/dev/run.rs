use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser};

use super::parts::Host;
use super::several::Several;
use super::single::Single;
use crate::cmd::process::{answer, raise_descriptor_limit, refuse, without_config};
use crate::config::{FlagWords, Variables, parse_flags};
use crate::shutdown::{Interruptions, Tasks};

/// How long parts get to end at a stop.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// Flags of `watershed dev`.
#[derive(Debug, Parser)]
#[command(name = "watershed dev", about = "Runs members, gateway and proxy on loopback, to try things out.")]
#[command(override_usage = "watershed dev [flags]")]
struct RawDevConfig {
    /// Folder of all data; it stays when the tier stops.
    #[arg(long, default_value = "default.watershed", value_name = "DIR")]
    data_dir: PathBuf,
    /// Keep data in a temporary folder that is removed at the end.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    ephemeral: bool,
    /// Address of the loopback interface on which everything listens; with one of its own, a second tier runs beside the first.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    host: Host,
    /// Members of the cluster: 1 to 5.
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=5))]
    members: u8,
    /// Have members, gateway and proxy find each other by a registry of discovery tokens, which runs too.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    discovery: bool,
}

/// Runs the tier until SIGINT or SIGTERM; returns the exit code.
pub fn run(args: &[OsString]) -> u8 {
    let parsed = match parse_flags(RawDevConfig::command(), args, &Variables::none(), FlagWords::Cobra) {
        Ok(parsed) => parsed,
        Err(error) => return without_config("dev", &error),
    };
    let raw = match parsed.read::<RawDevConfig>() {
        Ok(raw) => raw,
        Err(error) => return refuse(error),
    };
    if raw.ephemeral && parsed.is_given("data-dir") {
        return refuse("--ephemeral and --data-dir exclude each other");
    }
    match serve(&raw) {
        Ok(()) => 0,
        Err(error) => refuse(format!("{error:#}")),
    }
}

fn serve(raw: &RawDevConfig) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(run_until_told(raw));
    runtime.shutdown_background();
    outcome
}

async fn run_until_told(raw: &RawDevConfig) -> anyhow::Result<()> {
    // From here on, so that a signal which comes during the start leaves no temporary folder behind.
    let mut interruptions = Interruptions::new().context("install the signal handlers")?;
    let temporary = if raw.ephemeral { Some(tempfile::tempdir().context("make a temporary folder")?) } else { None };
    let data_dir = raw.host.folder(temporary.as_ref().map_or(raw.data_dir.as_path(), |folder| folder.path()));
    let (tasks, mut is_told) = (Tasks::new(), false);
    let start = Tier::start(raw, &data_dir, &tasks);
    tokio::pin!(start);
    let tier = loop {
        tokio::select! {
            tier = &mut start => break tier?,
            _ = interruptions.next() => {
                if is_told {
                    return Ok(());
                }
                is_told = true;
                answer("\nstopping once it has started; a second signal ends it at once\n");
            }
        }
    };
    if !is_told {
        answer(&tier.screen(&data_dir, raw.ephemeral));
        interruptions.next().await;
    }
    answer("\nstopping\n");
    match tier {
        Tier::Single(tier) => tier.stop().await,
        Tier::Several(tier) => tier.stop().await,
    }
    tasks.finish(STOP_GRACE).await;
    Ok(())
}

enum Tier {
    Single(Single),
    Several(Several),
}

impl Tier {
    async fn start(raw: &RawDevConfig, data_dir: &Path, tasks: &Tasks) -> anyhow::Result<Self> {
        if raw.members == 1 && !raw.discovery {
            return Single::start(raw.host, data_dir, tasks).await.map(Self::Single);
        }
        Several::start(raw.host, data_dir, raw.members.into(), raw.discovery, tasks).await.map(Self::Several)
    }

    fn screen(&self, data_dir: &Path, ephemeral: bool) -> String {
        let program = std::env::args_os().next().map_or_else(|| "watershed".into(), PathBuf::from);
        let program = program.display().to_string();
        let data = format!("{} ({})", data_dir.display(), if ephemeral { "removed at the end" } else { "kept" });
        match self {
            Self::Single(tier) => tier.screen(&program, &data),
            Self::Several(tier) => tier.screen(&program, &data),
        }
    }
}
