use super::args::{Load, WatchArgs};
use super::report::{Measured, Report};
use super::requests::{Job, Mixed, Puts, Ranges, TxnPuts};
use super::setup::Setup;
use super::wire::CallError;
use super::{keepalive, unary, watch};

/// Runs one load.
pub(super) fn measure(load: &Load) -> Result<Report, CallError> {
    let common = load.common();
    let setup = Setup::prepare(common)?;
    let measured = measured(load, &setup)?;
    Ok(Report::new(load.name(), setup.endpoints(), (common.conns, common.clients), measured, &setup.meter))
}

fn measured(load: &Load, setup: &Setup) -> Result<Measured, CallError> {
    match load {
        Load::Put(args) => unary::run(setup, &Job::new(&args.common, Puts::new(args)?)),
        Load::Range(args) => unary::run(setup, &Job::new(&args.common, Ranges::new(args))),
        Load::TxnPut(args) => unary::run(setup, &Job::new(&args.common, TxnPuts::new(args)?)),
        Load::Mixed(args) => unary::run(setup, &Job::new(&args.common, Mixed::new(args)?)),
        Load::Watch(args) => watch::run(setup, args, fan_out(args)),
        Load::WatchLatency(args) => watch::run(setup, args, latency(args)),
        Load::LeaseKeepalive(args) => keepalive::run(setup, args),
    }
}

/// What `watch` leaves open: one watcher on each stream, puts as fast as they are answered.
fn fan_out(args: &WatchArgs) -> watch::Shape {
    watch::Shape { watchers_per_stream: args.watchers_per_stream.unwrap_or(1), put_rate: args.put_rate.unwrap_or(0.0) }
}

/// What `watch-latency` leaves open: etcd's shape.
fn latency(args: &WatchArgs) -> watch::Shape {
    watch::Shape {
        watchers_per_stream: args.watchers_per_stream.unwrap_or(10),
        put_rate: args.put_rate.unwrap_or(100.0),
    }
}
