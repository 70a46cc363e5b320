//! How much else the machine does. Taken between runs, when nothing of the suite has work to do.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bench::statistics::median;

/// Rounds of the arithmetic that is timed: some 20 ms.
const SPINS: u64 = 20_000_000;
/// How much longer the same arithmetic may take at one time than at another.
const SPIN_SPREAD_MAX: f64 = 0.10;
/// Processors that others may keep busy.
const OTHERS_MAX: f64 = 0.15;
/// Share of time that the machine below may take.
const STEAL_MAX: f64 = 0.01;
const TICK: f64 = 0.01;
/// Time over which others' work is seen.
const LOOK: Duration = Duration::from_millis(200);

/// What was seen at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Moment {
    /// Time for a fixed piece of arithmetic.
    pub(super) spin_ms: f64,
    /// Processors that were busy with other things.
    pub(super) others: f64,
    /// Share of time that the host gave to other virtual machines.
    pub(super) steal: f64,
}

/// Seconds of all processors since the start, from `/proc/stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Spent {
    busy: f64,
    steal: f64,
    all: f64,
}

impl Spent {
    fn read() -> Self {
        std::fs::read_to_string("/proc/stat").ok().and_then(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // user nice system idle iowait irq softirq steal
        let ticks: Vec<f64> = line.split_whitespace().take(8).filter_map(|word| word.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks[..] else { return None };
        let busy = user + nice + system + irq + softirq;
        Some(Self { busy: busy * TICK, steal: steal * TICK, all: (busy + idle + iowait + steal) * TICK })
    }
}

impl Moment {
    /// Looks at the machine for a fifth of a second.
    pub(super) fn look() -> Self {
        let (before, began) = (Spent::read(), Instant::now());
        let spin_ms = spin();
        std::thread::sleep(LOOK.saturating_sub(began.elapsed()));
        let (after, took) = (Spent::read(), began.elapsed().as_secs_f64());
        let others = ((after.busy - before.busy) - spin_ms / 1e3) / took;
        let steal = (after.steal - before.steal) / (after.all - before.all).max(TICK);
        Self { spin_ms, others: others.max(0.0), steal }
    }
}

fn spin() -> f64 {
    let began = Instant::now();
    let mut sum = 1u64;
    for number in 0..SPINS {
        sum = black_box(sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number));
    }
    black_box(sum);
    began.elapsed().as_secs_f64() * 1e3
}

/// Why figures taken between these moments say little; none if they do.
pub(super) fn too_noisy(moments: &[Moment]) -> Option<String> {
    let of = |of: fn(&Moment) -> f64| median(&moments.iter().map(of).collect::<Vec<_>>()).unwrap_or(0.0);
    let (others, steal) = (of(|moment| moment.others), of(|moment| moment.steal));
    let least = moments.iter().map(|moment| moment.spin_ms).fold(f64::INFINITY, f64::min);
    let spread = if moments.is_empty() { 0.0 } else { of(|moment| moment.spin_ms) / least - 1.0 };
    if others > OTHERS_MAX {
        Some(format!("other work kept {others:.2} processors busy"))
    } else if steal > STEAL_MAX {
        Some(format!("the host took {:.1} % of the time", steal * 100.0))
    } else if spread > SPIN_SPREAD_MAX {
        Some(format!("the same arithmetic took {:.0} % longer at most times than at others", spread * 100.0))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Moment = Moment { spin_ms: 20.0, others: 0.02, steal: 0.0 };

    #[test]
    fn the_first_line_of_proc_stat_is_read() {
        let stat = "cpu  100 0 50 800 40 5 5 10 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        let spent = Spent::parse(stat).unwrap();
        assert!((spent.busy - 1.6).abs() < 1e-9 && (spent.all - 10.1).abs() < 1e-9, "{spent:?}");
        assert_eq!(Spent::parse("intr 1 2 3"), None);
    }

    #[test]
    fn a_quiet_machine_is_quiet() {
        assert_eq!(too_noisy(&[QUIET; 5]), None);
        assert_eq!(too_noisy(&[]), None);
        // One moment of many is no noise.
        assert_eq!(too_noisy(&[QUIET, QUIET, QUIET, Moment { others: 1.0, spin_ms: 60.0, ..QUIET }]), None);
    }

    #[test]
    fn other_work_steal_and_a_changing_clock_are_noise() {
        let noisy = |moment| too_noisy(&[QUIET, moment, moment, moment]).unwrap();
        assert!(noisy(Moment { others: 0.5, ..QUIET }).contains("0.50 processors"));
        assert!(noisy(Moment { steal: 0.05, ..QUIET }).contains("5.0 %"));
        assert!(noisy(Moment { spin_ms: 25.0, ..QUIET }).contains("25 % longer"));
    }
}
