//! Walks along a recording, loses power everywhere, starts the member on what is left, and looks at what it finds.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use watershed::core::backend::{StateDisk, Table};
use watershed::core::server::Opened;
use watershed::types::{RecordId, Revision};

use crate::disk::{Image, Kept, Lie, Op, SimDisk};
use crate::model::{History, LogVersion, Rows, entry, hard_state};
use crate::workload::{ACKED, APPLIED, ISSUED, SEGMENT_BYTES, STATE, open};

/// Power losses inside recoveries, one in the recovery from another.
const DEPTH_MAX: usize = 3;

/// What may be found at a place of the recording.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    pub acked: u64,
    pub issued: u64,
    pub state: u64,
    pub applied: u64,
}

impl Bounds {
    pub fn note(&mut self, op: &Op) {
        match op {
            Op::Note(kind, number) if *kind == ISSUED => self.issued = *number,
            Op::Note(kind, number) if *kind == ACKED => self.acked = *number,
            Op::Note(kind, number) if *kind == STATE => self.state = *number,
            Op::Note(kind, number) if *kind == APPLIED => self.applied = *number,
            _ => {}
        }
    }
}

/// How closely to look.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Tries of each kind of loss at each place.
    pub tries: usize,
    /// One in so many of the states found is left again by a power loss within its recovery.
    pub nested_one_in: usize,
}

/// What was seen on the way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub states: u64,
    pub nested: u64,
    pub places: u64,
    pub cut_tails: u64,
    pub adopted: u64,
    /// Lives that went on after a defragmentation without its copy.
    pub went_on: u64,
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.states += other.states;
        self.nested += other.nested;
        self.places += other.places;
        self.cut_tails += other.cut_tails;
        self.adopted += other.adopted;
        self.went_on += other.went_on;
    }
}

pub struct Explorer<'a> {
    pub history: &'a History,
    pub effort: Effort,
    /// A sync that starts only claim to do.
    pub lie: Option<Lie>,
    pub random: fastrand::Rng,
    pub seen: Seen,
}

/// What a start found.
struct Found {
    version: LogVersion,
    position: u64,
}

impl Explorer<'_> {
    /// Every place of a recording.
    ///
    /// # Errors
    /// Words for the first violation.
    pub fn walk(&mut self, ops: &[Op]) -> Result<(), String> {
        let (mut image, mut bounds) = (Image::default(), Bounds::default());
        for (place, op) in ops.iter().enumerate() {
            image.apply(op);
            bounds.note(op);
            if matches!(op, Op::Note(kind, _) if *kind != ACKED && *kind != STATE) {
                continue;
            }
            self.seen.places += 1;
            self.leave(&image, bounds, 0).map_err(|what| format!("place {place} behind {op}: {what}"))?;
        }
        Ok(())
    }

    /// Loses power now, in every way.
    pub fn leave(&mut self, image: &Image, bounds: Bounds, depth: usize) -> Result<(), String> {
        if image.is_settled() {
            return self.arrive(image.clone(), bounds, depth);
        }
        let mut known = BTreeSet::new();
        for kept in Kept::ALL {
            let tries = if matches!(kept, Kept::Nothing | Kept::Everything) { 1 } else { self.effort.tries };
            for _ in 0..tries {
                let mut left = image.clone();
                if known.insert(left.lose_power(kept, &mut self.random)) {
                    self.arrive(left, bounds, depth).map_err(|what| format!("{kept:?}, {what}"))?;
                }
            }
        }
        Ok(())
    }

    /// Starts on what is left; now and then power is lost within the start, or behind it.
    fn arrive(&mut self, image: Image, bounds: Bounds, depth: usize) -> Result<(), String> {
        let versions = &self.history.versions[bounds.acked as usize..=bounds.issued as usize];
        let disk = self.disk(image.clone());
        let found = self.start(&disk, bounds, versions, depth)?.found;
        // Closing is no part of it.
        if depth == DEPTH_MAX || self.random.usize(..self.effort.nested_one_in) > 0 {
            return Ok(());
        }
        let operations = disk.changes();
        let after = disk.image();
        self.again(&after, bounds, &found, depth + 1).map_err(|what| format!("behind a start, {what}"))?;
        for _ in 0..2 {
            let disk = self.disk(image.clone());
            let stop = self.random.u64(..=operations);
            disk.stop_after(stop);
            drop(open(&disk));
            let left = self.lose(&disk.image());
            self.arrive(left, bounds, depth + 1)
                .map_err(|what| format!("after operation {stop} of {operations} of a start: {what}"))?;
        }
        Ok(())
    }

    /// A process starts on what another one left, and the system kept running; then power is lost.
    ///
    /// # Errors
    /// Words for the first violation.
    pub fn restart(&mut self, image: &Image, bounds: Bounds) -> Result<(), String> {
        let versions = &self.history.versions[bounds.acked as usize..=bounds.issued as usize];
        let disk = self.disk(image.clone());
        let found = self.start(&disk, bounds, versions, 0).map_err(|what| format!("next process: {what}"))?.found;
        let image = disk.image();
        self.again(&image, bounds, &found, 1).map_err(|what| format!("power lost behind the next process: {what}"))
    }

    /// All that a start found was served, or promised to a leader: it is found again, and the log goes on from there.
    fn again(&mut self, image: &Image, bounds: Bounds, found: &Found, depth: usize) -> Result<(), String> {
        let bounds = Bounds { state: found.position, ..bounds };
        let left = self.lose(image);
        let disk = self.disk(left);
        let mut started = self.start(&disk, bounds, std::slice::from_ref(&found.version), depth)?;
        disk.thaw();
        let mut version = found.version.clone();
        let (index, term) = (version.last() + 1, version.term + 1);
        version.push(index, term);
        (version.term, version.vote) = (term, 0);
        let wal = &mut started.opened.wal;
        let written = wal.append(&[entry(index, term)], Some(&hard_state(0, term, found.position)));
        written.and_then(|()| wal.sync()).map_err(|error| format!("the log does not go on: {error}"))?;
        disk.freeze();
        let left = self.lose(&disk.image());
        let disk = self.disk(left);
        self.start(&disk, bounds, &[version], depth).map_err(|what| format!("gone on, {what}"))?;
        Ok(())
    }

    fn disk(&self, image: Image) -> SimDisk {
        let disk = SimDisk::with(image, SEGMENT_BYTES);
        if let Some(lie) = self.lie {
            disk.lie(lie);
        }
        disk
    }

    fn lose(&mut self, image: &Image) -> Image {
        let mut left = image.clone();
        let kept = self.random.choice(Kept::ALL).unwrap_or(Kept::Nothing);
        left.lose_power(kept, &mut self.random);
        left
    }

    /// Opens the files and compares all that is in them with what may be there. The disk stands still then, so that
    /// closing files changes nothing.
    fn start(
        &mut self,
        disk: &SimDisk,
        bounds: Bounds,
        versions: &[LogVersion],
        depth: usize,
    ) -> Result<Started, String> {
        self.seen.states += 1;
        self.seen.nested += u64::from(depth > 0);
        let prepared = StateDisk::list(disk, Path::new("/data/member/snap")).unwrap_or_default();
        let opened = open(disk).map_err(|error| format!("the start is refused: {error}"))?;
        disk.freeze();
        self.seen.cut_tails += u64::from(opened.recovered.cut.is_some());
        let installed = format!("{:016x}-{:016x}.snap.db", opened.position.index.0, opened.position.term.0);
        self.seen.adopted += u64::from(prepared.contains(&installed));
        let found = check(self.history, &opened, bounds, versions)?;
        Ok(Started { opened, found })
    }
}

struct Started {
    opened: Opened<SimDisk>,
    found: Found,
}

fn check(
    history: &History,
    opened: &Opened<SimDisk>,
    bounds: Bounds,
    versions: &[LogVersion],
) -> Result<Found, String> {
    let position = opened.position;
    let index = position.index.0;
    if index < bounds.state || index > bounds.applied {
        return Err(format!("the state is at {index}, {bounds:?}"));
    }
    if position != history.position(index) {
        return Err(format!("the state is at {position:?}, and that entry is {:?}", history.position(index)));
    }
    let Some(version) = versions.iter().rev().find(|version| is_version(opened, version)) else {
        let log: Vec<_> = opened.recovered.entries.iter().map(|entry| (entry.index.0, entry.term.0)).collect();
        let (first, last, state) = (&versions[0], &versions[versions.len() - 1], &opened.recovered.hard_state);
        return Err(format!(
            "the log is {log:?} behind {:?}, {state:?}; acknowledged was {first:?}, issued {last:?}",
            opened.log_base
        ));
    };
    for found in opened.recovered.entries.iter().filter(|found| found.index.0 > 1) {
        if *found != entry(found.index.0, found.term.0) {
            return Err(format!("entry {} has other data", found.index));
        }
    }
    check_rows(history, opened, index)?;
    Ok(Found { version: version.clone(), position: index })
}

/// Whether a log that was read is this one.
fn is_version(opened: &Opened<SimDisk>, version: &LogVersion) -> bool {
    let (base, read) = (opened.log_base, &opened.recovered);
    let hard_state = &read.hard_state;
    let vote = hard_state.vote.map_or(0, |vote| vote.0);
    (hard_state.term.0, vote) == (version.term, version.vote)
        && base.index >= version.base.index
        && version.term_of(base.index.0) == Some(base.term.0)
        && version.last() == base.index.0 + read.entries.len() as u64
        && version.last() >= opened.position.index.0
        && hard_state.commit >= opened.position.index
        && hard_state.commit.0 <= version.last()
        && read.entries.iter().all(|entry| version.term_of(entry.index.0) == Some(entry.term.0))
}

fn check_rows(history: &History, opened: &Opened<SimDisk>, index: u64) -> Result<(), String> {
    let expected = &history.states[index as usize];
    let mut records = Rows::new();
    opened
        .backend
        .scan(RecordId::default(), Revision(i64::MAX), &mut |id, _, value| {
            records.insert(bytes::Bytes::copy_from_slice(&id.to_bytes()), value.clone());
            ControlFlow::Continue(())
        })
        .map_err(|error| format!("records at {index}: {error}"))?;
    if records != expected.records {
        return Err(format!(
            "at {index} there are {} records, {} expected, or others",
            records.len(),
            expected.records.len()
        ));
    }
    let leases: Rows =
        opened.backend.rows(Table::Lease).map_err(|error| format!("leases at {index}: {error}"))?.into_iter().collect();
    if leases != expected.leases {
        return Err(format!("at {index} the leases are {leases:?}, expected {:?}", expected.leases));
    }
    Ok(())
}
