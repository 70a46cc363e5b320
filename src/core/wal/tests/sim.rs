use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::disk::{WalDisk, WalFile};

/// A disk in memory that remembers what was synced and what was not.
#[derive(Clone, Debug)]
pub(super) struct SimDisk {
    state: Arc<Mutex<State>>,
    segment_bytes: u64,
}

#[derive(Clone, Debug, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, Option<usize>>,
    durable_names: BTreeMap<PathBuf, Option<usize>>,
    /// Changes of names since the folder was synced, in order.
    name_changes: Vec<NameChange>,
    /// Changing calls that still succeed.
    budget: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    durable: Vec<u8>,
    pending: Vec<Change>,
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
                    let file = names.remove(&name).unwrap();
                    let rest = name.strip_prefix(from).unwrap();
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
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.budget {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the disk is gone")),
            Some(left) => {
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
    pub(super) fn new(segment_bytes: u64) -> Self {
        Self { state: Arc::default(), segment_bytes }
    }

    /// Files in the log's folder.
    pub(super) fn names(&self) -> Vec<String> {
        self.list(super::dir()).unwrap()
    }

    /// From now on only this many changing calls succeed.
    pub(super) fn fail_after(&self, calls: u64) {
        self.state.lock().budget = Some(calls);
    }

    pub(super) fn heal(&self) {
        self.state.lock().budget = None;
    }

    /// The bytes of a file of the log's folder, and a way to replace them.
    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock();
        state.files[state.names[&super::dir().join(name)].unwrap()].current.clone()
    }

    pub(super) fn write(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        let file = state.names[&super::dir().join(name)].unwrap();
        state.files[file] = Contents { durable: bytes.clone(), pending: Vec::new(), current: bytes };
    }

    /// An independent disk with the same contents.
    pub(super) fn copy(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.state.lock().clone())), segment_bytes: self.segment_bytes }
    }

    /// What may be left after a power loss now: synced data, and of the rest what chance decides.
    pub(super) fn after_power_loss(&self, rng: &mut fastrand::Rng) -> Self {
        let mut state = self.state.lock().clone();
        state.budget = None;
        let kept_names = rng.usize(..=state.name_changes.len());
        let mut names = state.durable_names.clone();
        for change in &state.name_changes[..kept_names] {
            change.apply(&mut names);
        }
        state.names = names.clone();
        state.durable_names = names;
        state.name_changes.clear();
        for file in &mut state.files {
            let pending = std::mem::take(&mut file.pending);
            let kept = surviving(pending, rng);
            let mut bytes = file.durable.clone();
            kept.iter().for_each(|change| change.apply(&mut bytes));
            file.durable = bytes.clone();
            file.current = bytes;
        }
        Self { state: Arc::new(Mutex::new(state)), segment_bytes: self.segment_bytes }
    }
}

/// None, all, a prefix or any subset of the changes; of the last write perhaps only some sectors, or some bytes.
fn surviving(pending: Vec<Change>, rng: &mut fastrand::Rng) -> Vec<Change> {
    let len = pending.len();
    let mut kept: Vec<Change> = match rng.u8(..4) {
        0 => Vec::new(),
        1 => pending,
        2 => pending.into_iter().take(rng.usize(..=len)).collect(),
        _ => pending.into_iter().filter(|_| rng.bool()).collect(),
    };
    if let Some(Change::Write(offset, data)) = kept.pop_if(|change| matches!(change, Change::Write(..))) {
        match rng.u8(..3) {
            0 => kept.push(Change::Write(offset, data)),
            1 => kept.push(Change::Write(offset, data[..rng.usize(..=data.len())].to_vec())),
            _ => {
                let mut at = 0;
                while at < data.len() {
                    let to_sector_end = (512 - (offset as usize + at) % 512).min(data.len() - at);
                    if rng.bool() {
                        kept.push(Change::Write(offset + at as u64, data[at..at + to_sector_end].to_vec()));
                    }
                    at += to_sector_end;
                }
            }
        }
    }
    kept
}

impl WalDisk for SimDisk {
    type File = SimFile;

    fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.state.lock().names.contains_key(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend()?;
        state.rename(NameChange::Add(path.into(), None));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let names = state.names.keys().filter(|name| name.parent() == Some(dir));
        Ok(names.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<SimFile> {
        let mut state = self.state.lock();
        state.spend()?;
        let file = state.files.len();
        let current = vec![0; size as usize];
        state.files.push(Contents { durable: Vec::new(), pending: vec![Change::Size(size)], current });
        state.rename(NameChange::Add(path.into(), Some(file)));
        Ok(SimFile { disk: self.clone(), file })
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let file = self.state.lock().names.get(path).copied().flatten().ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { disk: self.clone(), file })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend()?;
        state.rename(NameChange::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend()?;
        state.rename(NameChange::Remove(path.into()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.spend()?;
        // As with a journal: what was changed before, anywhere, becomes durable with it.
        let synced = state.name_changes.iter().rposition(|change| change.is_in(dir)).map_or(0, |last| last + 1);
        let synced: Vec<_> = state.name_changes.drain(..synced).collect();
        synced.iter().for_each(|change| change.apply(&mut state.durable_names));
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let spent = state.spend();
        let file = &mut state.files[self.file];
        // A call that fails may have had its effect, or part of it.
        change.apply(&mut file.current);
        file.pending.push(change);
        spent
    }
}

impl WalFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().files[self.file].current.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.state.lock();
        let bytes = state.files[self.file].current.get(offset as usize..).unwrap_or_default();
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, bytes.to_vec()))
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.change(Change::Size(size))
    }

    fn reserve(&mut self, size: u64) -> io::Result<()> {
        if self.size()? < size { self.change(Change::Size(size)) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.spend()?;
        let file = &mut state.files[self.file];
        file.durable = file.current.clone();
        file.pending.clear();
        Ok(())
    }
}
