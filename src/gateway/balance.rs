//! Which of the endpoints of one priority gets a connection: pure functions over what is known about them.

use std::time::Duration;

use fastrand::Rng;

use crate::config::Balance;

/// How connections are divided among the endpoints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Division {
    pub(super) balance: Balance,
    /// Time in which an endpoint that came back gets to its full share.
    pub(super) slow_start: Duration,
    /// Whether an endpoint that goes down loses its connections.
    pub(super) closes_when_down: bool,
    /// Whether only health checks bring an endpoint back.
    pub(super) checked: bool,
}

/// An endpoint that may be chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// As in SRV records.
    pub(super) weight: u16,
    /// Connections that it has or that are on their way to it.
    pub(super) open: usize,
    /// How much of its full share it gets, above 0, at most 1; less while it has just come back.
    pub(super) slow_start_factor: f64,
}

impl Candidate {
    /// Its share by RFC 2782: proportional to the weight. A weight of 0 beside others gets "a very small chance", here
    /// a 256th of what a weight of 1 gets.
    fn share(self) -> f64 {
        let weight = if self.weight == 0 { 1.0 / 256.0 } else { f64::from(self.weight) };
        weight * self.slow_start_factor
    }

    /// Connections it would have with one more, for each unit of its share.
    fn load(self, weighted: bool) -> f64 {
        let share = if weighted { self.share() } else { self.slow_start_factor };
        (self.open as f64 + 1.0) / share
    }
}

/// The position of the candidate that is chosen; `turn` counts the choices made so far. None without candidates.
pub(super) fn choose(policy: Balance, candidates: &[Candidate], turn: usize, random: &mut Rng) -> Option<usize> {
    let last = candidates.len().checked_sub(1)?;
    let weighted = candidates.iter().any(|candidate| candidate.weight > 0);
    Some(match policy {
        Balance::Listed if weighted => by_weight(candidates, random),
        Balance::Weighted => by_weight(candidates, random),
        Balance::Listed | Balance::RoundRobin => by_turn(candidates, turn, random),
        Balance::LeastConn => {
            // Begins at another one each time, so that equals take turns.
            let rotated = (0..=last).map(|at| (turn + at) % (last + 1));
            rotated
                .min_by(|&a, &b| candidates[a].load(weighted).total_cmp(&candidates[b].load(weighted)))
                .unwrap_or_default()
        }
        Balance::P2c if last == 0 => 0,
        Balance::P2c => {
            let first = random.usize(..=last);
            let second = (first + random.usize(1..=last)) % (last + 1);
            let is_lighter = candidates[second].load(weighted) < candidates[first].load(weighted);
            if is_lighter { second } else { first }
        }
    })
}

fn by_weight(candidates: &[Candidate], random: &mut Rng) -> usize {
    let total: f64 = candidates.iter().map(|candidate| candidate.share()).sum();
    let mut ticket = random.f64() * total;
    let drawn = candidates.iter().position(|candidate| {
        ticket -= candidate.share();
        ticket < 0.0
    });
    // Rounding may leave a rest that belongs to nobody.
    drawn.unwrap_or(candidates.len() - 1)
}

/// The one whose turn it is; one that has just come back leaves part of its turns to the next.
fn by_turn(candidates: &[Candidate], turn: usize, random: &mut Rng) -> usize {
    let largest = candidates.iter().map(|candidate| candidate.slow_start_factor).fold(0.0, f64::max);
    let count = candidates.len();
    let takes_it = |&at: &usize| {
        let factor = candidates[at].slow_start_factor;
        factor >= largest || random.f64() * largest < factor
    };
    (0..count).map(|skipped| (turn + skipped) % count).find(takes_it).unwrap_or(turn % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PICKS: usize = 10_000;

    fn candidates(weights: &[u16]) -> Vec<Candidate> {
        weights.iter().map(|&weight| Candidate { weight, open: 0, slow_start_factor: 1.0 }).collect()
    }

    fn counts(policy: Balance, candidates: &[Candidate]) -> Vec<usize> {
        let mut random = Rng::with_seed(2782);
        let mut counts = vec![0; candidates.len()];
        for turn in 0..PICKS {
            counts[choose(policy, candidates, turn, &mut random).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn ten_thousand_picks_have_the_shares_of_rfc_2782() {
        // Etcd's gateway gives 1:1 as 100:0 and 1:1:1 as 67:33:0.
        // The bounds are those of the chi-square distribution at p = 0.001 for one to four degrees of freedom.
        const BOUNDS: [f64; 4] = [10.83, 13.82, 16.27, 18.47];
        for weights in [&[1, 1][..], &[1, 1, 1], &[2, 2, 2], &[10, 1], &[1, 2, 3], &[60, 20, 20], &[5, 65_535, 9, 1, 1]]
        {
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            for policy in [Balance::Listed, Balance::Weighted] {
                let counts = counts(policy, &candidates(weights));
                let expected = weights.iter().map(|&weight| f64::from(weight) / total * PICKS as f64);
                let chi_square: f64 = counts
                    .iter()
                    .zip(expected)
                    .map(|(&count, expected)| (count as f64 - expected).powi(2) / expected)
                    .sum();
                assert!(chi_square < BOUNDS[weights.len() - 2], "{weights:?}: {counts:?}, chi-square {chi_square}");
            }
        }
    }

    #[test]
    fn a_weight_of_0_beside_others_gets_a_very_small_chance() {
        let counts = counts(Balance::Listed, &candidates(&[0, 10, 0]));
        assert!(counts[0] < 20 && counts[2] < 20 && counts[0] + counts[2] > 0, "{counts:?}");
    }

    #[test]
    fn without_weights_shares_are_equal() {
        assert_eq!(counts(Balance::Listed, &candidates(&[0; 4])), [2_500; 4]);
        assert_eq!(counts(Balance::RoundRobin, &candidates(&[9, 1])), [5_000; 2]);
        assert!(counts(Balance::Weighted, &candidates(&[0; 4])).iter().all(|count| count.abs_diff(2_500) < 200));
    }

    #[test]
    fn the_fewest_connections_for_its_share_win() {
        let open = |weight, open| Candidate { weight, open, slow_start_factor: 1.0 };
        for (candidates, expected) in [
            (vec![open(0, 3), open(0, 1), open(0, 2)], 1),
            (vec![open(1, 1), open(4, 4)], 1),
            (vec![open(1, 1), open(4, 9)], 0),
        ] {
            for policy in [Balance::LeastConn, Balance::P2c] {
                let counts = counts(policy, &candidates);
                let most = counts.iter().enumerate().max_by_key(|&(_, count)| count).unwrap();
                assert_eq!(most.0, expected, "{policy:?} {candidates:?}: {counts:?}");
                assert!(policy == Balance::P2c || *most.1 == PICKS, "{candidates:?}: {counts:?}");
            }
        }
        assert_eq!(counts(Balance::LeastConn, &candidates(&[0; 4])), [2_500; 4], "equals take turns");
    }

    #[test]
    fn of_two_at_random_the_one_with_more_connections_loses() {
        let open = |open| Candidate { weight: 0, open, slow_start_factor: 1.0 };
        let counts = counts(Balance::P2c, &[open(0), open(5), open(10)]);
        // Of three pairs the first is in two, the last in none that it wins.
        assert!(counts[0].abs_diff(6_667) < 200 && counts[1].abs_diff(3_333) < 200 && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn an_endpoint_that_has_just_come_back_gets_less() {
        let pair = [
            Candidate { weight: 2, open: 9, slow_start_factor: 1.0 },
            Candidate { weight: 2, open: 9, slow_start_factor: 0.25 },
        ];
        for policy in [Balance::Listed, Balance::RoundRobin, Balance::Weighted] {
            let share = counts(policy, &pair)[1] as f64 / PICKS as f64;
            // By turns it has a quarter of its half, by weight a fifth of all.
            assert!((0.10..0.22).contains(&share), "{policy:?}: {share}");
        }
        for policy in [Balance::LeastConn, Balance::P2c] {
            let empty = Candidate { open: 3, ..pair[1] };
            assert_eq!(counts(policy, &[pair[0], empty])[1], 0, "{policy:?}: 4 connections at a quarter are 16");
        }
        let all_back = [Candidate { slow_start_factor: 0.1, ..pair[0] }; 2];
        assert_eq!(counts(Balance::RoundRobin, &all_back), [5_000; 2]);
    }

    #[test]
    fn nothing_to_choose_from_is_no_choice() {
        for policy in [Balance::Listed, Balance::RoundRobin, Balance::Weighted, Balance::LeastConn, Balance::P2c] {
            assert_eq!(choose(policy, &[], 7, &mut Rng::with_seed(1)), None);
            assert_eq!(choose(policy, &candidates(&[0]), 7, &mut Rng::with_seed(1)), Some(0));
        }
    }
}
