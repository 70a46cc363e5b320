use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::failure::{Exit, Failure};
use super::super::flags::Parsed;
use super::super::session::{Session, show};
use super::super::terminal;
use super::load::{self, Check, Puts, Summary};
use crate::pb::etcdserverpb::PutRequest;
use crate::shutdown::interrupted;

/// How long the load lasts.
const LENGTH: Duration = Duration::from_secs(60);
const KEY_BYTES: usize = 256;
const VALUE_BYTES: usize = 1024;
/// Puts that could not be sent in time are sent late up to this; what is later is left out.
const LATE_MAX: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
struct Load {
    per_second: u32,
    clients: usize,
}

const LOADS: [Load; 4] = [
    Load { per_second: 150, clients: 50 },
    Load { per_second: 1000, clients: 200 },
    Load { per_second: 8000, clients: 500 },
    Load { per_second: 15000, clients: 1000 },
];

pub(in super::super) async fn run(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let load = load::choose(parsed, LOADS)?;
    let check = Check::new(session, parsed, load.clients).await?;
    let summary = {
        let bar = terminal::bar(LENGTH.as_secs());
        let mut puts = Paced::new(check.prefix, load.per_second);
        let began = Instant::now();
        let moved = || bar.set_position(began.elapsed().as_secs());
        let sent = load::send(&check.client, load.clients, &mut puts, moved).await;
        bar.finish_and_clear();
        sent
    };
    let cleaned = check.clean().await;
    if let Err(error) = &cleaned {
        show(format!("FAIL: Cleanup failed during key deletion: ERROR({error})\n"))?;
    }
    check.tidy(cleaned.ok()).await?;
    let errors = summary.show_errors()?;
    let (lines, passed) = verdict(&summary, load);
    show(lines)?;
    if passed && !errors { show("PASS\n") } else { show("FAIL\n").and(Err(Failure::silent(Exit::Error as u8))) }
}

/// What each figure is worth, and whether all are good enough.
fn verdict(summary: &Summary, load: Load) -> (String, bool) {
    let Summary { per_second, slowest, deviation, .. } = *summary;
    let (enough, fast, even) = (per_second / f64::from(load.per_second) > 0.9, slowest <= 0.5, deviation <= 0.1);
    let whole = per_second as u64 + 1;
    let mut lines = match enough {
        true => format!("PASS: Throughput is {whole} writes/s\n"),
        false => format!("FAIL: Throughput too low: {whole} writes/s\n"),
    };
    lines += &match fast {
        true => format!("PASS: Slowest request took {slowest:.6}s\n"),
        false => format!("Slowest request took too long: {slowest:.6}s\n"),
    };
    lines += &match even {
        true => format!("PASS: Stddev is {deviation:.6}s\n"),
        false => format!("Stddev too high: {deviation:.6}s\n"),
    };
    (lines, enough && fast && even)
}

/// Puts at a steady rate, until the time is up or a signal comes.
struct Paced<'a> {
    prefix: &'a str,
    value: Bytes,
    between: Duration,
    due: Instant,
    end: Instant,
    stop: std::pin::Pin<Box<dyn Future<Output = ()>>>,
}

impl<'a> Paced<'a> {
    fn new(prefix: &'a str, per_second: u32) -> Self {
        let stop = Box::pin(async {
            // Without signals to wait for, the time alone ends the load.
            if interrupted().await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let (between, now) = (Duration::from_secs(1) / per_second, Instant::now());
        Self { prefix, value: vec![0; VALUE_BYTES].into(), between, due: now, end: now + LENGTH, stop }
    }
}

impl Puts for Paced<'_> {
    async fn next(&mut self) -> Option<PutRequest> {
        tokio::select! {
            () = &mut self.stop => {
                self.end = Instant::now();
                self.stop = Box::pin(std::future::pending());
                return None;
            }
            () = tokio::time::sleep_until(self.due.min(self.end)) => {}
        }
        let now = Instant::now();
        if now >= self.end {
            return None;
        }
        self.due = (self.due + self.between).max(now.checked_sub(LATE_MAX).unwrap_or(now));
        Some(load::put(self.prefix, KEY_BYTES, &self.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_has_etcdctls_bounds_and_lines() {
        let judge = |per_second, slowest, deviation| {
            verdict(&Summary { per_second, slowest, deviation, ..Summary::default() }, LOADS[0])
        };
        let good =
            "PASS: Throughput is 150 writes/s\nPASS: Slowest request took 0.500000s\nPASS: Stddev is 0.100000s\n";
        assert_eq!(judge(149.9, 0.5, 0.1), (good.to_owned(), true));
        let bad = "FAIL: Throughput too low: 136 writes/s\nSlowest request took too long: 0.500001s\n\
                   Stddev too high: 0.100001s\n";
        assert_eq!(judge(135.0, 0.500001, 0.100001), (bad.to_owned(), false));
    }

    #[tokio::test(start_paused = true)]
    async fn puts_come_at_their_rate_and_end() {
        for load in LOADS {
            let mut puts = Paced::new("/p/", load.per_second);
            let mut count = 0u32;
            while let Some(put) = puts.next().await {
                assert_eq!((put.key.len(), put.value.len()), (3 + KEY_BYTES, VALUE_BYTES));
                count += 1;
            }
            let wanted = load.per_second * 60;
            assert!(count >= wanted - 15 && count <= wanted + 15, "{count} of {wanted}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_lost_is_not_made_up_for() {
        let mut puts = Paced::new("/p/", 1000);
        puts.next().await;
        tokio::time::advance(Duration::from_secs(30)).await;
        let began = Instant::now();
        for _ in 0..20 {
            puts.next().await;
        }
        assert!(began.elapsed() >= Duration::from_millis(8), "{:?}", began.elapsed());
    }
}
