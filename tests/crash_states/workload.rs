//! A member's life on a recorded disk: what raft, apply and the checkpoint thread ask of log and state.

use std::path::Path;
use std::sync::Arc;

use watershed::bolt::BoltFile;
use watershed::core::backend::{Backend, BackendError, ChangeSet, LogPosition, Prepared};
use watershed::core::cluster::Member;
use watershed::core::server::{Bootstrap, Disks, Layout, Opened, Opening, recover};
use watershed::core::wal::{Wal, WalMetadata, WalSnapshot};
use watershed::types::{ClusterId, MemberId};

use crate::disk::{Op, SimDisk};
use crate::model::{History, LogVersion, at, changes, entry, hard_state};

/// Small, so that a short life has several segments.
pub const SEGMENT_BYTES: u64 = 3000;
/// Few, so that what is in front of the state has several beginnings.
const CATCH_UP_ENTRIES: u64 = 7;

/// Notes in the recording. All versions up to this one may be found from here on.
pub const ISSUED: &str = "issued";
/// No version before this one may be found from here on.
pub const ACKED: &str = "acked";
/// The stored state is at least here.
pub const STATE: &str = "state";
/// The stored state is at most here.
pub const APPLIED: &str = "applied";
/// From one to the other, files are closed; what fails then is told to nobody.
pub const CLOSING: &str = "closing";
pub const CLOSED: &str = "closed";
/// What the checkpoint thread does from `BEGIN` to `MEANWHILE` and the log's thread from there to `END` happens at the
/// same time.
const BEGIN: &str = "begin";
const MEANWHILE: &str = "meanwhile";
const END: &str = "end";

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// An entry is acknowledged before it is synced.
    EarlyAck,
    /// A state is installed before the log says so.
    InstallBeforeMark,
    /// The log says so before the state is prepared.
    MarkBeforePrepare,
    /// A checkpoint claims one entry more than it holds.
    PositionAhead,
    /// The log lets go of what no checkpoint covers.
    EarlyRelease,
}

pub fn open(disk: &SimDisk) -> Result<Opened<SimDisk>, String> {
    let layout = Layout::new(Path::new("/data"), Path::new("/data/member/wal"));
    let member = Member { id: 1, name: "m".into(), peer_urls: vec!["http://m:1".into()], ..Member::default() };
    let metadata = WalMetadata { member: MemberId(1), cluster: ClusterId(1) };
    let bootstrap = Bootstrap { metadata, first: vec![member], running: Vec::new() };
    let opening = Opening { bootstrap: Some(&bootstrap), catch_up_entries: CATCH_UP_ENTRIES, alone: None };
    let disks = Disks { state: Arc::new(disk.clone()), wal: disk.clone() };
    recover(&disks, &layout, &opening).map_err(|error| error.to_string())
}

/// Puts what two threads did at the same time into one of the orders in which it could have reached the disk.
pub fn interleave(ops: Vec<Op>, random: &mut fastrand::Rng) -> Vec<Op> {
    let mut ordered = Vec::with_capacity(ops.len());
    let mut ops = ops.into_iter();
    let is = |op: &Op, kind: &str| matches!(op, Op::Note(found, _) if *found == kind);
    while let Some(op) = ops.next() {
        if !is(&op, BEGIN) {
            ordered.push(op);
            continue;
        }
        let mut first: Vec<_> = ops.by_ref().take_while(|op| !is(op, MEANWHILE)).collect();
        let mut second: Vec<_> = ops.by_ref().take_while(|op| !is(op, END)).collect();
        first.reverse();
        second.reverse();
        while !first.is_empty() || !second.is_empty() {
            let from = if random.usize(..first.len() + second.len()) < first.len() { &mut first } else { &mut second };
            ordered.extend(from.pop());
        }
    }
    ordered
}

struct Life {
    disk: SimDisk,
    wal: Wal<SimDisk>,
    backend: Backend,
    history: History,
    random: fastrand::Rng,
    term: u64,
    vote: u64,
    /// Applied to the state in memory.
    applied: u64,
    mutation: Option<Mutation>,
    is_open: bool,
    refused: Option<String>,
    folder: tempfile::TempDir,
}

pub type Step = Result<(), String>;

/// What is left of a life.
pub struct Lived {
    pub history: History,
    /// How it ended.
    pub result: Step,
    /// The last error of a defragmentation or a preparation that could not write its file, after which life goes on.
    pub refused: Option<String>,
    /// The files, open as they were; none when they could not be opened.
    pub files: Option<(Wal<SimDisk>, Backend)>,
}

/// Lives one life on this disk, until the steps run out or the disk fails.
pub fn live(disk: &SimDisk, seed: u64, steps: usize, mutation: Option<Mutation>) -> Lived {
    let mut history = History::default();
    history.states.push(Default::default());
    history.commit(1);
    // Whatever a first start leaves, the next one makes the first entry.
    history.versions.push(LogVersion { base: at(0, 0), terms: vec![1], term: 1, vote: 0 });
    disk.note(ISSUED, 0);
    disk.note(ACKED, 0);
    let opened = match open(disk) {
        Ok(opened) => opened,
        Err(error) => return Lived { history, result: Err(error), refused: None, files: None },
    };
    let mut life = Life {
        disk: disk.clone(),
        wal: opened.wal,
        backend: opened.backend,
        history,
        random: fastrand::Rng::with_seed(seed),
        term: 1,
        vote: 0,
        applied: 0,
        mutation,
        is_open: true,
        refused: None,
        folder: tempfile::tempdir().expect("a folder for images"),
    };
    let result = (0..steps).try_for_each(|_| life.step());
    let Life { history, refused, wal, backend, is_open, .. } = life;
    Lived { history, result, refused, files: is_open.then_some((wal, backend)) }
}

impl Life {
    fn step(&mut self) -> Step {
        match self.random.u8(..20) {
            0..8 => self.group(),
            8..10 => self.checkpoint(),
            10..14 => self.both_threads(),
            14..16 => self.mark_and_release(),
            16 => self.replaced_state(),
            17 => self.prepared_in_vain(),
            18 => self.defragment(),
            _ => self.restart(),
        }
    }

    fn defragment(&mut self) -> Step {
        match self.backend.defragment() {
            Err(error @ BackendError::NotDefragmented { .. }) => self.refused = Some(text(error)),
            other => drop(other.map_err(text)?),
        }
        Ok(())
    }

    fn issue(&mut self, version: LogVersion) {
        self.history.versions.push(version);
        self.disk.note(ISSUED, self.history.versions.len() as u64 - 1);
    }

    fn acked(&self) {
        self.disk.note(ACKED, self.history.versions.len() as u64 - 1);
    }

    /// Appends some entries, syncs, commits most of what is there, applies it.
    fn group(&mut self) -> Step {
        let last = self.history.newest().last();
        let committed = self.history.commit_index();
        let mut next = last + 1;
        if last > committed && self.random.bool() {
            // A new leader replaces what was not committed.
            self.term += 1;
            self.vote = self.random.u64(1..4);
            next = committed + 1 + self.random.u64(..last - committed);
        }
        let mut entries = Vec::new();
        for index in next..next + self.random.u64(1..5) {
            let mut version = self.history.newest().clone();
            version.push(index, self.term);
            self.issue(version);
            entries.push(entry(index, self.term));
        }
        let version = LogVersion { term: self.term, vote: self.vote, ..self.history.newest().clone() };
        self.issue(version);
        if self.mutation == Some(Mutation::EarlyAck) {
            self.acked();
        }
        let state = hard_state(self.vote, self.term, committed);
        self.wal.append(&entries, Some(&state)).map_err(text)?;
        self.wal.sync().map_err(text)?;
        self.acked();
        let last = self.history.newest().last();
        let open = self.random.u64(..3).min(last - committed);
        self.commit(last - open);
        Ok(())
    }

    fn commit(&mut self, upto: u64) {
        for index in self.history.commit_index() + 1..=upto {
            let term = self.history.newest().term_of(index).expect("only what the log has is committed");
            self.history.commit(term);
        }
        self.apply();
    }

    fn apply(&mut self) {
        let upto = self.history.commit_index();
        self.disk.note(APPLIED, upto);
        for index in self.applied + 1..=upto {
            let mut position = self.history.position(index);
            let rows = if index == 1 { Vec::new() } else { changes(index, position.term.0) };
            if self.mutation == Some(Mutation::PositionAhead) && index < upto {
                position = self.history.position(index + 1);
            }
            self.backend.submit(ChangeSet { position, changes: rows });
            if self.mutation == Some(Mutation::PositionAhead) && self.random.u8(..4) == 0 {
                let _ = self.checkpoint();
            }
        }
        self.applied = upto;
    }

    fn checkpoint(&mut self) -> Step {
        let reached = self.backend.checkpoint().map_err(text)?;
        self.disk.note(STATE, reached.index.0);
        Ok(())
    }

    fn both_threads(&mut self) -> Step {
        self.disk.note(BEGIN, 0);
        self.checkpoint()?;
        self.disk.note(MEANWHILE, 0);
        self.group().and_then(|()| self.group())?;
        self.disk.note(END, 0);
        Ok(())
    }

    fn mark_and_release(&mut self) -> Step {
        let mut position = self.backend.durable();
        if self.mutation == Some(Mutation::EarlyRelease) {
            position = self.history.position(self.history.commit_index());
        }
        if position.index.0 == 0 {
            return Ok(());
        }
        let mark = WalSnapshot { index: position.index, term: position.term, conf_state: Default::default() };
        if self.mutation != Some(Mutation::EarlyRelease) {
            self.wal.mark_snapshot(&mark).map_err(text)?;
        }
        self.wal.release(position.index, 1 + self.random.usize(..2)).map_err(text)
    }

    /// The leader's state at a later position, under a newer term.
    fn leaders_state(&mut self) -> Result<(BoltFile, History), String> {
        let mut history = self.history.clone();
        let newest = self.history.newest().last();
        let ahead = self.random.u64(1..20);
        // It may be before the end of a log whose last entries were never committed.
        let index = if self.random.bool() { newest + ahead } else { history.commit_index() + ahead.min(3) };
        (history.commit_index()..index).for_each(|_| history.commit(self.term + 1));
        let source = Backend::in_memory().map_err(text)?;
        for index in 1..=index {
            let position = history.position(index);
            let rows = if index == 1 { Vec::new() } else { changes(index, position.term.0) };
            source.submit(ChangeSet { position, changes: rows });
        }
        let path = self.folder.path().join("image");
        let mut file = std::fs::File::create(&path).map_err(text)?;
        source.write_db_snapshot(&mut file).map_err(text)?;
        Ok((BoltFile::open(&path).map_err(text)?, history))
    }

    fn replaced_state(&mut self) -> Step {
        let (image, history) = self.leaders_state()?;
        let position = history.position(history.commit_index());
        let mutation = self.mutation;
        let mut prepared = None;
        if mutation != Some(Mutation::MarkBeforePrepare) {
            prepared = self.prepare(&image, position)?;
            if prepared.is_none() {
                return Ok(());
            }
            match self.random.u8(..3) {
                0 => self.checkpoint()?,
                1 => self.defragment()?,
                _ => {}
            }
        }
        self.history = history;
        self.term = position.term.0;
        self.vote = 0;
        if mutation == Some(Mutation::InstallBeforeMark)
            && let Some(prepared) = prepared.take()
        {
            self.install(prepared)?;
        }
        let version = LogVersion { base: position, terms: Vec::new(), ..self.history.newest().clone() };
        self.issue(version);
        // From here on a start may put it in place.
        self.disk.note(APPLIED, position.index.0);
        let mark = WalSnapshot { index: position.index, term: position.term, conf_state: Default::default() };
        self.wal.mark_snapshot(&mark).map_err(text)?;
        self.acked();
        if prepared.is_none() && mutation == Some(Mutation::MarkBeforePrepare) {
            prepared = Some(self.backend.prepare(&image, position).map_err(text)?);
        }
        if let Some(prepared) = prepared {
            self.install(prepared)?;
        }
        let version = LogVersion { term: self.term, vote: 0, ..self.history.newest().clone() };
        self.issue(version);
        self.wal.append(&[], Some(&hard_state(0, self.term, position.index.0))).map_err(text)?;
        self.wal.sync().map_err(text)?;
        self.acked();
        Ok(())
    }

    /// None if the disk has refused its file: it is not taken then.
    fn prepare(&mut self, image: &BoltFile, position: LogPosition) -> Result<Option<Prepared>, String> {
        match self.backend.prepare(image, position) {
            Err(error @ BackendError::NotPrepared { .. }) => {
                self.refused = Some(text(error));
                Ok(None)
            }
            other => other.map(Some).map_err(text),
        }
    }

    fn install(&mut self, prepared: Prepared) -> Step {
        let position = prepared.position();
        self.backend.install(prepared).map_err(text)?;
        self.disk.note(STATE, position.index.0);
        self.applied = position.index.0;
        Ok(())
    }

    /// A state that came, and that raft did not want any more.
    fn prepared_in_vain(&mut self) -> Step {
        let (image, history) = self.leaders_state()?;
        let Some(prepared) = self.prepare(&image, history.position(history.commit_index()))? else { return Ok(()) };
        match self.random.bool() {
            true => prepared.discard().map_err(text),
            false => {
                self.disk.note(CLOSING, 0);
                drop(prepared);
                self.disk.note(CLOSED, 0);
                Ok(())
            }
        }
    }

    /// The process ends, without a last checkpoint, and starts again; the system keeps running.
    fn restart(&mut self) -> Step {
        // The old handles go first: files have one user. Killed, it does not even close them.
        self.disk.note(CLOSING, 0);
        if self.random.bool() {
            self.disk.freeze();
        }
        self.backend = Backend::in_memory().map_err(text)?;
        self.disk.thaw();
        self.disk.note(CLOSED, 0);
        self.is_open = false;
        let opened = open(&self.disk)?;
        self.is_open = true;
        self.wal = opened.wal;
        self.backend = opened.backend;
        self.applied = opened.position.index.0;
        self.apply();
        Ok(())
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
