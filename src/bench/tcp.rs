//! `bench tcp-pingpong`, `tcp-bulk`, `tcp-connect`, `tcp-idle`: what a TCP forwarder costs.
//!
//! The generator brings its own far end: `--serve` listens there, and the forwarder under test is pointed at it.
//! Without a forwarder, `--addr` equal to `--serve` gives the figure of the bare loopback. Client and far end have one
//! thread each.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::{CommandFactory, Parser};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, LocalSet};

use super::wire::TCP;
use crate::config::{ConfigError, FlagWords, GoDuration, Variables, parse_flags};
use crate::net::TcpSilence;

/// Latencies up to a minute, in nanoseconds, three digits.
const LATENCY_MAX_NANOS: u64 = 60_000_000_000;
const BULK_BYTES: usize = 256 * 1024;
const ECHO_BYTES: usize = 4096;
/// Bytes that the far end confirms at once.
const BATCH_BYTES: u64 = 256 * 1024 * 1024;
/// Connections opened at the same time while many are opened.
const OPENING_MAX: usize = 64;

#[derive(Clone, Debug, Parser)]
#[command(name = "watershed bench tcp-…", about = "Measures a TCP forwarder")]
struct RawTcpBench {
    /// Where to connect: the forwarder.
    #[arg(long, default_value = "127.0.0.1:23790")]
    addr: SocketAddr,
    /// Where the far end listens: the forwarder's endpoint.
    #[arg(long, default_value = "127.0.0.1:2379")]
    serve: SocketAddr,
    /// Connections.
    #[arg(long, default_value_t = 16)]
    conns: usize,
    /// Bytes of one message (tcp-pingpong, tcp-connect).
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// How long to measure.
    #[arg(long, default_value = "5s")]
    duration: GoDuration,
    /// Process whose CPU time and memory are reported: the forwarder.
    #[arg(long)]
    server_pid: Option<u32>,
}

impl RawTcpBench {
    /// No message is empty.
    fn message_bytes(&self) -> usize {
        self.size.max(1)
    }
}

/// Runs one of the measurements; `args` starts with its name. Prints one JSON object.
pub fn run(args: &[OsString]) -> u8 {
    let (Some(mode), flags) = (args.first().and_then(|mode| mode.to_str()), args.get(1..).unwrap_or_default()) else {
        return refuse("a mode is missing: tcp-pingpong, tcp-bulk, tcp-connect or tcp-idle");
    };
    let config = parse_flags(RawTcpBench::command(), flags, &Variables::none(), FlagWords::Cobra)
        .and_then(|parsed| parsed.read());
    let config: RawTcpBench = match config {
        Ok(config) => config,
        Err(ConfigError::Help(text)) => {
            print!("{text}");
            return 0;
        }
        Err(error) => return refuse(&error.to_string()),
    };
    let kind = match mode {
        "tcp-bulk" => FarEnd::Drain,
        "tcp-connect" => FarEnd::Once(config.message_bytes()),
        _ => FarEnd::Echo,
    };
    let outcome = serve(config.serve, kind).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        match mode {
            "tcp-pingpong" => local.block_on(&runtime, pingpong(&config)),
            "tcp-bulk" => local.block_on(&runtime, bulk(&config)),
            "tcp-connect" => local.block_on(&runtime, connections(&config)),
            "tcp-idle" => local.block_on(&runtime, idle(&config)),
            other => Err(io::Error::other(format!("unknown mode {other:?}"))),
        }
    });
    match outcome {
        Ok(report) => {
            println!("{report}");
            0
        }
        Err(error) => refuse(&format!("{mode} via {}: {error}", config.addr)),
    }
}

fn refuse(error: &str) -> u8 {
    eprintln!("watershed bench: {error}");
    1
}

/// What the far end does with a connection.
#[derive(Clone, Copy)]
enum FarEnd {
    /// Sends back what comes.
    Echo,
    /// Reads batches and confirms each.
    Drain,
    /// Sends one message of so many bytes back, and closes.
    Once(usize),
}

/// The far end, on a thread of its own that ends with the process.
fn serve(address: SocketAddr, kind: FarEnd) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("far-end".to_owned()).spawn(move || {
        let local = LocalSet::new();
        local.block_on(&runtime, async move {
            let listener = TcpListener::from_std(listener)?;
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await?;
                TcpSilence::CLIENT.prepare(&stream)?;
                connections.spawn_local(far_end(stream, kind));
                while connections.try_join_next().is_some() {}
            }
            #[allow(unreachable_code, reason = "names the type of the block")]
            io::Result::Ok(())
        })
    })?;
    Ok(())
}

async fn far_end(stream: TcpStream, kind: FarEnd) -> io::Result<()> {
    // An idle connection costs the far end no buffer.
    stream.readable().await?;
    match kind {
        FarEnd::Echo => echo(stream).await,
        FarEnd::Drain => drain(stream).await,
        FarEnd::Once(size) => once(stream, size).await,
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; ECHO_BYTES];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

async fn drain(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BYTES];
    loop {
        let mut left = stream.read_u64().await?;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match stream.read(&mut buffer[..most]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => left -= read as u64,
            }
        }
        stream.write_u8(1).await?;
    }
}

async fn once(mut stream: TcpStream, size: usize) -> io::Result<()> {
    let mut message = vec![0; size];
    stream.read_exact(&mut message).await?;
    stream.write_all(&message).await
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    TCP.connect(&address.ip().to_string(), address.port()).await.map_err(io::Error::other)
}

async fn pingpong(config: &RawTcpBench) -> io::Result<serde_json::Value> {
    let mut clients = JoinSet::new();
    for _ in 0..config.conns {
        // One round before the clock starts: the far end is connected then.
        let mut stream = connect(config.addr).await?;
        let mut message = vec![7; config.message_bytes()];
        round(&mut stream, &mut message).await?;
        let duration = config.duration.0;
        clients.spawn_local(async move {
            let mut latencies = histogram();
            let started = Instant::now();
            let mut last = started;
            while last.duration_since(started) < duration {
                round(&mut stream, &mut message).await?;
                let now = Instant::now();
                latencies.saturating_record(now.duration_since(last).as_nanos() as u64);
                last = now;
            }
            io::Result::Ok(latencies)
        });
    }
    let usage = Usage::of(config.server_pid);
    let started = Instant::now();
    let all = latencies_of(clients).await?;
    let elapsed = started.elapsed();
    let percentile = |at: f64| all.value_at_quantile(at) as f64 / 1e3;
    Ok(json!({
        "mode": "tcp-pingpong", "conns": config.conns, "size": config.size, "rounds": all.len(),
        "rounds_per_second": all.len() as f64 / elapsed.as_secs_f64(),
        "p50_us": percentile(0.5), "p90_us": percentile(0.9), "p99_us": percentile(0.99), "p999_us": percentile(0.999),
        "cpu_us_per_round": usage.cpu_since().map(|cpu| cpu.as_secs_f64() * 1e6 / all.len() as f64),
        "rss_kib": usage.rss_kib(),
    }))
}

async fn round(stream: &mut TcpStream, message: &mut [u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    stream.read_exact(message).await.map(drop)
}

/// The latencies of all clients, once the last one has ended.
async fn latencies_of(mut clients: JoinSet<io::Result<Histogram<u64>>>) -> io::Result<Histogram<u64>> {
    let mut all = histogram();
    while let Some(outcome) = clients.join_next().await {
        all.add(outcome.map_err(io::Error::other)??).map_err(io::Error::other)?;
    }
    Ok(all)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_MAX_NANOS, 3).expect("the bounds are constants that fit")
}

/// Sends batches as fast as it goes; the far end confirms each once all of it has arrived.
async fn bulk(config: &RawTcpBench) -> io::Result<serde_json::Value> {
    let usage = Usage::of(config.server_pid);
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..config.conns {
        let mut stream = connect(config.addr).await?;
        let duration = config.duration.0;
        clients.spawn_local(async move {
            let data = vec![7; BULK_BYTES];
            let started = Instant::now();
            let mut sent = 0;
            while started.elapsed() < duration {
                stream.write_u64(BATCH_BYTES).await?;
                for _ in 0..BATCH_BYTES / BULK_BYTES as u64 {
                    stream.write_all(&data).await?;
                }
                stream.read_u8().await?;
                sent += BATCH_BYTES;
            }
            io::Result::Ok(sent)
        });
    }
    let mut bytes = 0;
    while let Some(outcome) = clients.join_next().await {
        bytes += outcome.map_err(io::Error::other)??;
    }
    let gigabytes = bytes as f64 / 1e9;
    Ok(json!({
        "mode": "tcp-bulk", "conns": config.conns, "bytes": bytes,
        "gb_per_second": gigabytes / started.elapsed().as_secs_f64(),
        "cpu_s_per_gb": usage.cpu_since().map(|cpu| cpu.as_secs_f64() / gigabytes),
        "rss_kib": usage.rss_kib(),
    }))
}

/// Opens connections one after the other, from as many clients at once, with one round on each until the far end has closed it.
///
/// The side that closes first keeps the connection in TIME_WAIT. So it is the far end and, towards the client, the forwarder: both hold
/// it at the port where they listen. Clients and the forwarder would run out of ports to connect from if they closed first.
async fn connections(config: &RawTcpBench) -> io::Result<serde_json::Value> {
    let usage = Usage::of(config.server_pid);
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..config.conns {
        let (address, size, duration) = (config.addr, config.message_bytes(), config.duration.0);
        clients.spawn_local(async move {
            let mut latencies = histogram();
            let mut message = vec![7; size];
            while started.elapsed() < duration {
                let begin = Instant::now();
                let mut stream = connect(address).await?;
                round(&mut stream, &mut message).await?;
                if stream.read(&mut message).await? > 0 {
                    return Err(io::Error::other("bytes came after the message"));
                }
                latencies.saturating_record(begin.elapsed().as_nanos() as u64);
            }
            io::Result::Ok(latencies)
        });
    }
    let all = latencies_of(clients).await?;
    let elapsed = started.elapsed();
    let percentile = |at: f64| all.value_at_quantile(at) as f64 / 1e3;
    Ok(json!({
        "mode": "tcp-connect", "conns": config.conns, "connections": all.len(),
        "connections_per_second": all.len() as f64 / elapsed.as_secs_f64(),
        "p50_us": percentile(0.5), "p99_us": percentile(0.99),
        "cpu_us_per_connection": usage.cpu_since().map(|cpu| cpu.as_secs_f64() * 1e6 / all.len() as f64),
        "rss_kib": usage.rss_kib(),
    }))
}

/// Opens connections, does one round trip on each, and reads the forwarder's memory.
async fn idle(config: &RawTcpBench) -> io::Result<serde_json::Value> {
    let usage = Usage::of(config.server_pid);
    let before = usage.rss_kib();
    let mut open = Vec::with_capacity(config.conns);
    let mut opening = JoinSet::new();
    while open.len() < config.conns {
        while opening.len() < OPENING_MAX.min(config.conns - open.len()) {
            let address = config.addr;
            opening.spawn_local(async move {
                let mut stream = connect(address).await?;
                round(&mut stream, &mut [7; 128]).await?;
                io::Result::Ok(stream)
            });
        }
        if let Some(stream) = opening.join_next().await {
            open.push(stream.map_err(io::Error::other)??);
        }
    }
    let after = usage.rss_kib();
    let growth = before.zip(after).map(|(before, after)| after as f64 - before as f64);
    Ok(json!({
        "mode": "tcp-idle", "conns": config.conns, "rss_kib": after,
        "bytes_per_connection": growth.map(|growth| growth * 1024.0 / config.conns as f64),
    }))
}

/// CPU time and memory of another process, from `/proc`.
struct Usage {
    pid: Option<u32>,
    cpu_at_start: Option<Duration>,
}

impl Usage {
    fn of(pid: Option<u32>) -> Self {
        Self { pid, cpu_at_start: pid.and_then(cpu_time) }
    }

    fn cpu_since(&self) -> Option<Duration> {
        cpu_time(self.pid?)?.checked_sub(self.cpu_at_start?)
    }

    fn rss_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }
}

/// User and system time, all threads.
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; fields are counted after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_secs_f64((user + system) as f64 / per_second as f64))
}
