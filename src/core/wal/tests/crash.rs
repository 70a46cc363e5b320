//! Power losses at every step of a log's life, and again while it recovers.

use super::*;

/// What may be read back: the entries when everything was last synced, and after each step since.
struct Model {
    possible: Vec<Vec<WalEntry>>,
}

impl Model {
    fn step(&mut self, entry: &WalEntry) {
        let mut next = self.possible.last().unwrap().clone();
        next.truncate(entry.index.0 as usize - 1);
        next.push(entry.clone());
        self.possible.push(next);
    }

    fn synced(&mut self) {
        let last = self.possible.pop().unwrap();
        self.possible = vec![last];
    }
}

/// Appends random groups until the disk fails or the steps run out.
fn live(wal: &mut Wal<SimDisk>, model: &mut Model, steps: usize, rng: &mut fastrand::Rng) {
    let mut term = model.possible.last().unwrap().last().map_or(1, |entry| entry.term.0);
    for _ in 0..steps {
        for _ in 0..rng.usize(1..4) {
            let log = model.possible.last().unwrap();
            let mut index = log.len() as u64 + 1;
            if rng.u8(..8) == 0 {
                // A new leader replaces the end of the log.
                term += 1;
                index -= rng.u64(..3).min(index - 1);
            }
            let entry = entry(index, term, rng.usize(..900));
            model.step(&entry);
            if wal.append(std::slice::from_ref(&entry), None).is_err() {
                return;
            }
        }
        let vote = HardState { term: Term(term), vote: None, commit: LogIndex(0) };
        if wal.append(&[], Some(&vote)).is_err() {
            return;
        }
        match wal.sync() {
            Ok(()) => model.synced(),
            Err(_) => return,
        }
    }
}

fn recovered(disk: &SimDisk, model: &Model, what: &str) -> Vec<WalEntry> {
    let (_, recovered) = match reopen(disk, LogPosition::default()) {
        Ok(opened) => opened,
        Err(error) => unreachable!("{what}: {error}"),
    };
    assert!(model.possible.contains(&recovered.entries), "{what}: {} entries fit no step", recovered.entries.len());
    recovered.entries
}

#[test]
fn every_power_loss_leaves_what_was_synced() {
    let mut states = 0;
    for seed in 0..24 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let segment_bytes = [900, 4096, 1 << 16][seed as usize % 3];
        for cut_at in 0..40 {
            let disk = SimDisk::new(segment_bytes);
            let mut model = Model { possible: vec![Vec::new()] };
            let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
            fail_after(&disk, cut_at);
            live(&mut wal, &mut model, 20, &mut rng);
            drop(wal);
            for variant in 0..4 {
                let what = format!("seed {seed} cut at {cut_at} variant {variant}");
                let mut left = after_power_loss(&disk, &mut rng);
                // Power fails again while the log is recovered, a few times.
                for again in 0..3 {
                    fail_after(&left, again);
                    let _ = reopen(&left, LogPosition::default());
                    left = after_power_loss(&left, &mut rng);
                    states += 1;
                }
                let entries = recovered(&left, &model, &what);
                let mut model = Model { possible: vec![entries] };
                let (mut wal, _) = reopen(&left, LogPosition::default()).unwrap();
                live(&mut wal, &mut model, 3, &mut rng);
                drop(wal);
                assert_eq!(recovered(&left, &model, &what), *model.possible.last().unwrap(), "{what}");
                states += 1;
            }
        }
    }
    assert!(states > 10_000, "{states}");
}

#[test]
fn a_power_loss_while_a_log_is_made_leaves_none_or_a_whole_one() {
    let whole = SimDisk::new(4096);
    Wal::create(whole.clone(), dir(), METADATA).unwrap();
    let operations = whole.changes();
    let mut made = 0;
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = SimDisk::new(4096);
        fail_after(&disk, seed % (operations + 1));
        let created = Wal::create(disk.clone(), dir(), METADATA).is_ok();
        let left = after_power_loss(&disk, &mut rng);
        if left.exists(dir()).unwrap() {
            reopen(&left, LogPosition::default()).unwrap();
            made += 1;
        } else {
            assert!(!created, "seed {seed}: a log that was made is gone");
            Wal::create(left, dir(), METADATA).unwrap();
        }
    }
    assert!((20..180).contains(&made), "{made}");
}
