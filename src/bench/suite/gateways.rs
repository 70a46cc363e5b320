//! Rows that load forwarders of TCP connections. The far end is the generator's own (`bench tcp-…`).

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use super::load::{Sample, measure, words};
use super::loopback::{page, reaches};
use super::members::{Member, Security, both};
use super::programs::{Programs, Running, at, port};
use super::side::{Side, Sides};
use crate::bench::server::Reading;

pub(super) const HAPROXY: &str = "haproxy";
pub(super) const NGINX: &str = "nginx";
/// Without any forwarder.
pub(super) const DIRECT: &str = "direct";
/// Time from the end of an endpoint to the last connection that failed.
pub(super) const RECOVERY: &str = "s until connections succeed";

/// Connections in a row that have to succeed.
const IN_A_ROW: u32 = 50;
/// Longest time over which they are tried.
const TRY: Duration = Duration::from_secs(90);

/// A forwarder of TCP connections and the address of its far end.
pub(in crate::bench) struct Forwarder {
    /// None is the bare loopback interface.
    running: Option<Running>,
    address: String,
    far_end: String,
}

impl Forwarder {
    /// The words of a load through it.
    pub(in crate::bench) fn words(&self, line: &str) -> Vec<String> {
        let mut all = words(line);
        all.extend([format!("--addr={}", self.address), format!("--serve={}", self.far_end)]);
        all.extend(self.running.as_ref().map(|running| format!("--server-pid={}", running.pid())));
        all
    }

    /// Our gateway.
    pub(in crate::bench) fn gateway(programs: &Programs) -> Result<Self, String> {
        Self::start(programs, &programs.ours, |_, address, far_end| Ok(gateway_line(address, far_end)))
    }

    /// No forwarder.
    pub(in crate::bench) fn direct() -> Result<Self, String> {
        let far_end = format!("127.0.0.1:{}", port()?);
        Ok(Self { running: None, address: far_end.clone(), far_end })
    }

    /// Memory of the process.
    pub(in crate::bench) fn resident_bytes(&self) -> Result<f64, String> {
        let pid = self.running.as_ref().map(Running::pid).ok_or("there is no process")?;
        Ok(Reading::of(&pid.to_string())?.rss_bytes as f64)
    }

    /// Starts one with words that have the two addresses in them.
    fn start(
        programs: &Programs,
        program: &Path,
        line: impl Fn(&Path, &str, &str) -> Result<String, String>,
    ) -> Result<Self, String> {
        let (address, far_end) = (format!("127.0.0.1:{}", port()?), format!("127.0.0.1:{}", port()?));
        let folder = programs.folder("forwarder")?;
        let line = line(&folder, &address, &far_end)?;
        // Its endpoint has to be up from the first connection on.
        let listener = TcpListener::bind(&far_end).map_err(|error| format!("listen on {far_end}: {error}"))?;
        let mut running = Running::start(program, &words(&line), &folder)?;
        running.until(|| reaches(&address, &listener))?;
        Ok(Self { running: Some(running), address, far_end })
    }
}

fn gateway_line(address: &str, far_end: &str) -> String {
    format!("gateway start --listen-addr={address} --endpoints={far_end} --retry-delay=1s")
}

fn haproxy_line(folder: &Path, address: &str, far_end: &str) -> Result<String, String> {
    let text = format!(
        "global\n  nbthread 1\n  maxconn 6000\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  \
         timeout client 1h\n  timeout server 1h\nfrontend f\n  bind {address}\n  default_backend b\nbackend b\n  \
         server s {far_end}\n"
    );
    written(folder, "haproxy.cfg", &text)?;
    Ok("-db -f haproxy.cfg".into())
}

fn nginx_line(folder: &Path, address: &str, far_end: &str) -> Result<String, String> {
    // Debian has the module for TCP in a file of its own.
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = if Path::new(module).exists() { format!("load_module {module};\n") } else { String::new() };
    let text = format!(
        "{load}daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log stderr;\nevents {{ worker_connections 40000; }}\n\
         stream {{ server {{ listen {address}; proxy_pass {far_end}; proxy_timeout 1h; }} }}\n",
        folder.display()
    );
    written(folder, "nginx.conf", &text)?;
    Ok(format!("-c {}/nginx.conf -e stderr", folder.display()))
}

fn written(folder: &Path, name: &str, text: &str) -> Result<(), String> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(|error| at(&path, &error))
}

/// All forwarders that are there. With `is_new`, each round starts its own: for memory.
pub(super) fn forwarders(programs: &Programs, line: &str, is_new: bool) -> Result<Sides, String> {
    let mut sides = Sides::default();
    for (name, program) in both(programs) {
        let start = starter(programs, program, |_, address, far_end| Ok(gateway_line(address, far_end)));
        sides.sides.push(side(name, programs, line, is_new, start)?);
    }
    let others: [(&'static str, _, Line); 2] =
        [(HAPROXY, &programs.haproxy, haproxy_line), (NGINX, &programs.nginx, nginx_line)];
    for (name, program, words_of) in others {
        match program {
            None => sides.notes.push(format!("{name} not run: {name} not found")),
            Some(program) => match side(name, programs, line, is_new, starter(programs, program, words_of)) {
                Ok(side) => sides.sides.push(side),
                Err(error) => sides.notes.push(format!("{name} not run: {error}")),
            },
        }
    }
    if !is_new {
        sides.sides.push(side(DIRECT, programs, line, is_new, Forwarder::direct)?);
    }
    Ok(sides)
}

type Line = fn(&Path, &str, &str) -> Result<String, String>;

fn starter(programs: &Programs, program: &Path, line: Line) -> impl Fn() -> Result<Forwarder, String> + 'static {
    let (programs, program) = (programs.clone(), program.to_owned());
    move || Forwarder::start(&programs, &program, line)
}

fn side(
    name: &'static str,
    programs: &Programs,
    line: &str,
    is_new: bool,
    start: impl Fn() -> Result<Forwarder, String> + 'static,
) -> Result<Side, String> {
    if is_new {
        let (programs, line) = (programs.clone(), line.to_owned());
        return Ok(Side::new(name, move |_| measure(&programs, &start()?.words(&line))));
    }
    let forwarder = start()?;
    Ok(Side::of_load(name, programs, line, move |line| forwarder.words(line)))
}

/// New connections through the gateway of each program after one of two endpoints is killed.
pub(super) fn endpoint_dies(programs: &Programs) -> Result<Sides, String> {
    let side = |(name, program): (&'static str, &Path)| {
        let (programs, program) = (programs.clone(), program.to_owned());
        Side::new(name, move |_| {
            let start = || Member::start(&programs, &programs.peer, Security::Off);
            let (lives, dies) = (start()?, start()?);
            let address = format!("127.0.0.1:{}", port()?);
            let endpoints = [&dies, &lives].map(|member| member.endpoint.trim_start_matches("http://")).join(",");
            let folder = programs.folder("gateway")?;
            let mut running = Running::start(&program, &words(&gateway_line(&address, &endpoints)), &folder)?;
            running.until(|| is_answered(&address))?;
            drop(dies);
            let mut sample = Sample::default();
            sample.figures.insert(RECOVERY, last_failure(&address, Instant::now())?);
            Ok(sample)
        })
    };
    Ok(both(programs).into_iter().map(side).collect::<Vec<_>>().into())
}

fn is_answered(address: &str) -> bool {
    page(address, "/health").is_ok_and(|text| text.contains("200 OK"))
}

/// Seconds to the last connection that failed, once many in a row have succeeded.
fn last_failure(address: &str, begun: Instant) -> Result<f64, String> {
    let (mut last, mut in_a_row) = (0.0, 0);
    while in_a_row < IN_A_ROW {
        if begun.elapsed() > TRY {
            return Err(format!("connections to {address} still fail {TRY:?} after the end of an endpoint"));
        }
        if is_answered(address) {
            in_a_row += 1;
        } else {
            (last, in_a_row) = (begun.elapsed().as_secs_f64(), 0);
        }
    }
    Ok(last)
}
