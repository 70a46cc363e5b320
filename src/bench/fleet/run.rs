use super::costs::Costs;
use super::model::{Capacity, Demand, Shape, fleet};
use super::{check, measure, report};
use crate::bench::args::FleetArgs;
use crate::bench::suite::programs::Programs;
use crate::bench::suite::run::machine;
use crate::bench::wire::CallError;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Computes a fleet, measures the costs or runs small fleets; gives the text to print.
pub(in crate::bench) fn run(args: &FleetArgs) -> Result<(String, bool), CallError> {
    text(args).map(|text| (text, true)).map_err(CallError)
}

fn text(args: &FleetArgs) -> Result<String, String> {
    checked(args)?;
    let costs = if args.measure {
        let costs = on_stage(args, |programs| measure::all(programs, args.seconds, setup()))?;
        let json = serde_json::to_string_pretty(&costs).expect("numbers and strings are JSON");
        if let Some(path) = &args.costs {
            std::fs::write(path, json + "\n").map_err(|error| format!("--costs {}: {error}", path.display()))?;
        }
        costs
    } else {
        Costs::load(args.costs.as_deref())?
    };
    if args.check {
        return on_stage(args, |programs| check::run(programs, args.seconds, &costs));
    }
    let (demand, shape, capacity) = (demand(args), shape(args), capacity(args));
    let fleet = fleet(&demand, &shape, &capacity, &costs);
    if args.json {
        let json = serde_json::json!({ "demand": demand, "shape": shape, "capacity": capacity, "fleet": fleet });
        return Ok(json.to_string() + "\n");
    }
    let mut text = report::text(&demand, &capacity, &fleet, &costs);
    if args.measure || args.show_costs {
        text = text + "\n" + &report::costs_text(&costs);
    }
    Ok(text)
}

/// This build and this machine.
fn setup() -> String {
    let build = if cfg!(debug_assertions) { "debug build" } else { "release build" };
    format!("watershed {} ({build}), {}", env!("CARGO_PKG_VERSION"), machine())
}

/// Does something with processes of this program, whose data is in the folder meanwhile.
fn on_stage<T>(args: &FleetArgs, act: impl FnOnce(&Programs) -> Result<T, String>) -> Result<T, String> {
    let at_folder = |error: std::io::Error| format!("--folder {}: {error}", args.folder.display());
    let folder = tempfile::tempdir_in(&args.folder).map_err(at_folder)?;
    let path = std::fs::canonicalize(folder.path()).map_err(at_folder)?;
    let ours = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    act(&Programs { peer: ours.clone(), ours, folder: path, haproxy: None, nginx: None })
}

/// Refuses what would make the computation meaningless.
fn checked(args: &FleetArgs) -> Result<(), String> {
    let shares = [("watched-share", args.watched_share), ("cached-share", args.cached_share)];
    for (flag, share) in shares {
        if !(0.0..=1.0).contains(&share) {
            return Err(format!("--{flag} {share}: must be from 0 to 1"));
        }
    }
    let positive = [
        ("watchers-per-stream", args.watchers_per_stream),
        ("cores", args.cores),
        ("memory-gib", args.memory_gib),
        ("network-mbit", args.network_mbit),
        ("seconds", args.seconds),
    ];
    let counts = [
        ("watchers", args.watchers),
        ("events", args.events),
        ("reads", args.reads),
        ("keepalives", args.keepalives),
        ("connections-per-host", args.connections_per_host),
    ];
    for (flag, number) in positive {
        if !(number > 0.0 && number.is_finite()) {
            return Err(format!("--{flag} {number}: must be above 0"));
        }
    }
    for (flag, number) in counts {
        if !(number >= 0.0 && number.is_finite()) {
            return Err(format!("--{flag} {number}: must not be below 0"));
        }
    }
    if args.levels.contains(&0) {
        return Err("--levels 0: a level has one proxy at least".into());
    }
    Ok(())
}

fn demand(args: &FleetArgs) -> Demand {
    Demand {
        watchers: args.watchers,
        watchers_per_stream: args.watchers_per_stream,
        events: args.events,
        watched_share: args.watched_share,
        reads: args.reads,
        cached_share: args.cached_share,
        keepalives: args.keepalives,
        key_bytes: f64::from(args.key_size),
        value_bytes: f64::from(args.val_size),
    }
}

fn shape(args: &FleetArgs) -> Shape {
    Shape {
        members: args.members,
        levels: args.levels.clone(),
        hosts: args.hosts,
        connections_per_host: args.connections_per_host,
    }
}

fn capacity(args: &FleetArgs) -> Capacity {
    Capacity { cores: args.cores, memory_bytes: args.memory_gib * GIB, network: args.network_mbit * 1e6 / 8.0 }
}
