//! A disk in memory that knows what was synced, what may be lost, and what refuses.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;
use watershed::core::backend::StateDisk;
use watershed::core::wal::{WalDisk, WalFile};

/// Small, so that logs have many segments.
const SEGMENT_BYTES: u64 = 16 * 1024;

/// The disk of one member, as one run of it sees it. Log and state share one order of writes.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// What an earlier run still holds open can do no harm any more.
    run: u64,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, Option<usize>>,
    durable_names: BTreeMap<PathBuf, Option<usize>>,
    /// Changes of names that are not durable.
    name_changes: Vec<NameChange>,
    /// Changing calls that still succeed, and what the others are told.
    fault: Option<(u64, io::ErrorKind)>,
    /// Answers "synced" and does nothing.
    lies: bool,
    /// The next loss of power takes everything that was not synced.
    keeps_nothing: bool,
    /// Order of all changes of contents.
    changes: u64,
    /// The run that may use the disk.
    run: u64,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    durable: Vec<u8>,
    pending: Vec<(u64, Change)>,
    current: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Size(u64),
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(PathBuf, Option<usize>),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let offset = *offset as usize;
                if bytes.len() < offset + data.len() {
                    bytes.resize(offset + data.len(), 0);
                }
                bytes[offset..offset + data.len()].copy_from_slice(data);
            }
            Self::Size(size) => bytes.resize(*size as usize, 0),
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Option<usize>>) {
        match self {
            Self::Add(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Remove(path) => names.retain(|name, _| !name.starts_with(path)),
            Self::Rename(from, to) => {
                let moved: Vec<_> = names.keys().filter(|name| name.starts_with(from)).cloned().collect();
                for name in moved {
                    let file = names.remove(&name).expect("just listed");
                    let rest = name.strip_prefix(from).expect("begins with it");
                    names.insert(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) }, file);
                }
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Rename(_, path) => path.parent() == Some(dir),
        }
    }
}

impl State {
    /// Only the run that goes on may read and write.
    fn admit(&self, run: u64) -> io::Result<()> {
        if run == self.run { Ok(()) } else { Err(io::Error::other("the process is gone")) }
    }

    fn spend(&mut self, run: u64) -> io::Result<()> {
        self.admit(run)?;
        match &mut self.fault {
            None => Ok(()),
            Some((0, kind)) => Err((*kind).into()),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn rename(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }
}

impl SimDisk {
    /// The disk for the next run of its member.
    pub fn next_run(&self) -> Self {
        let mut state = self.state.lock();
        state.run += 1;
        state.fault = None;
        Self { state: self.state.clone(), run: state.run }
    }

    /// Ends the run that goes on: nothing it still does reaches the files.
    pub fn end_run(&self) {
        self.state.lock().run += 1;
    }

    /// From now on only this many changing calls succeed.
    pub fn fail_after(&self, calls: u64, kind: io::ErrorKind) {
        self.state.lock().fault = Some((calls, kind));
    }

    /// Refuses nothing any more.
    pub fn heal(&self) {
        self.state.lock().fault = None;
    }

    /// A mutation: syncs are answered and not done.
    pub fn lie(&self) {
        self.state.lock().lies = true;
    }

    /// Lies until the next loss of power, which takes all it lied about.
    pub fn lie_once(&self) {
        let mut state = self.state.lock();
        (state.lies, state.keeps_nothing) = (true, true);
    }

    /// Loses power: synced data stays, and of the rest what chance decides. Whatever refused works again.
    pub fn lose_power(&self, random: &mut fastrand::Rng) {
        let state = &mut *self.state.lock();
        state.fault = None;
        let keeps_nothing = std::mem::take(&mut state.keeps_nothing);
        state.lies &= !keeps_nothing;
        let kept_names = if keeps_nothing { 0 } else { random.usize(..=state.name_changes.len()) };
        for change in state.name_changes.drain(..).take(kept_names) {
            change.apply(&mut state.durable_names);
        }
        state.names = state.durable_names.clone();
        let mut pending = Vec::new();
        for (file, contents) in state.files.iter_mut().enumerate() {
            pending.extend(contents.pending.drain(..).map(|(order, change)| (order, file, change)));
        }
        if keeps_nothing {
            pending.clear();
        }
        pending.sort_by_key(|(order, ..)| *order);
        for (file, change) in surviving(pending, random) {
            change.apply(&mut state.files[file].durable);
        }
        for contents in &mut state.files {
            contents.current = contents.durable.clone();
        }
        state.forget_unnamed();
    }
}

impl State {
    /// Frees files without a name. Nothing is open when this runs.
    fn forget_unnamed(&mut self) {
        for (file, contents) in self.files.iter_mut().enumerate() {
            if !self.names.values().any(|named| *named == Some(file)) {
                *contents = Contents::default();
            }
        }
    }
}

/// None, all, a prefix or any subset of the changes; of the last write perhaps only some sectors, or some bytes.
fn surviving(pending: Vec<(u64, usize, Change)>, random: &mut fastrand::Rng) -> Vec<(usize, Change)> {
    let pending: Vec<(usize, Change)> = pending.into_iter().map(|(_, file, change)| (file, change)).collect();
    let len = pending.len();
    let mut kept: Vec<(usize, Change)> = match random.u8(..4) {
        0 => Vec::new(),
        1 => pending,
        2 => pending.into_iter().take(random.usize(..=len)).collect(),
        _ => pending.into_iter().filter(|_| random.bool()).collect(),
    };
    if let Some((file, Change::Write(offset, data))) = kept.pop_if(|(_, change)| matches!(change, Change::Write(..))) {
        match random.u8(..3) {
            0 => kept.push((file, Change::Write(offset, data))),
            1 => kept.push((file, Change::Write(offset, data[..random.usize(..=data.len())].to_vec()))),
            _ => {
                let mut at = 0;
                while at < data.len() {
                    let to_sector_end = (512 - (offset as usize + at) % 512).min(data.len() - at);
                    if random.bool() {
                        let sector = data[at..at + to_sector_end].to_vec();
                        kept.push((file, Change::Write(offset + at as u64, sector)));
                    }
                    at += to_sector_end;
                }
            }
        }
    }
    kept
}

impl SimDisk {
    fn add(&self, path: &Path, size: u64) -> io::Result<SimFile> {
        let mut state = self.state.lock();
        state.spend(self.run)?;
        let file = state.files.len();
        state.changes += 1;
        let pending = vec![(state.changes, Change::Size(size))];
        state.files.push(Contents { durable: Vec::new(), pending, current: vec![0; size as usize] });
        state.rename(NameChange::Add(path.into(), Some(file)));
        Ok(SimFile { disk: self.clone(), file })
    }

    /// Makes a folder and those above it, all durable, or all but the last.
    fn make_dirs(&self, path: &Path, whole: bool) -> io::Result<()> {
        let missing: Vec<&Path> = {
            let state = self.state.lock();
            path.ancestors().take_while(|dir| *dir != Path::new("/") && !state.names.contains_key(*dir)).collect()
        };
        for dir in missing.into_iter().rev() {
            {
                let mut state = self.state.lock();
                state.spend(self.run)?;
                state.rename(NameChange::Add(dir.into(), None));
            }
            if (whole || dir != path)
                && let Some(parent) = dir.parent()
            {
                WalDisk::sync_dir(self, parent)?;
            }
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> io::Result<SimFile> {
        let state = self.state.lock();
        state.admit(self.run)?;
        let file = state.names.get(path).copied().flatten().ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { disk: self.clone(), file })
    }
}

impl StateDisk for SimDisk {
    fn exists(&self, path: &Path) -> io::Result<bool> {
        WalDisk::exists(self, path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.make_dirs(path, true)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        WalDisk::list(self, dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        if WalDisk::exists(self, path)? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(Box::new(self.add(path, 0)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.find(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        WalDisk::rename(self, from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !WalDisk::exists(self, path)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        WalDisk::remove(self, path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        WalDisk::sync_dir(self, dir)
    }
}

impl WalDisk for SimDisk {
    type File = SimFile;

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.state.lock().names.contains_key(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.make_dirs(path, false)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        if !state.names.contains_key(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = state.names.keys().filter(|name| name.parent() == Some(dir));
        Ok(names.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<SimFile> {
        self.add(path, size)
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        self.find(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend(self.run)?;
        state.rename(NameChange::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend(self.run)?;
        state.rename(NameChange::Remove(path.into()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        state.spend(self.run)?;
        if state.lies {
            return Ok(());
        }
        // As with a journal: what was changed before, anywhere, becomes durable with it.
        let synced = state.name_changes.iter().rposition(|change| change.is_in(dir)).map_or(0, |last| last + 1);
        for change in state.name_changes.drain(..synced) {
            change.apply(&mut state.durable_names);
        }
        Ok(())
    }
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let state = &mut *self.disk.state.lock();
        state.admit(self.disk.run)?;
        let spent = state.spend(self.disk.run);
        state.changes += 1;
        let file = &mut state.files[self.file];
        // A call that fails may have had its effect, or part of it.
        change.apply(&mut file.current);
        file.pending.push((state.changes, change));
        spent
    }

    fn length(&self) -> io::Result<u64> {
        let state = self.disk.state.lock();
        state.admit(self.disk.run)?;
        Ok(state.files[self.file].current.len() as u64)
    }

    fn load(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.state.lock();
        state.admit(self.disk.run)?;
        let bytes = state.files[self.file].current.get(offset as usize..).unwrap_or_default();
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.disk.state.lock();
        state.spend(self.disk.run)?;
        if state.lies {
            return Ok(());
        }
        let file = &mut state.files[self.file];
        for (_, change) in file.pending.drain(..) {
            change.apply(&mut file.durable);
        }
        Ok(())
    }
}

impl WalFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        self.length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.load(offset, into)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, bytes.to_vec()))
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.change(Change::Size(size))
    }

    fn reserve(&mut self, size: u64) -> io::Result<()> {
        if self.length()? < size { self.change(Change::Size(size)) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
}

impl StorageBackend for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let wanted = out.len();
        if self.load(offset, out)? < wanted { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Size(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, data.to_vec()))
    }
}
