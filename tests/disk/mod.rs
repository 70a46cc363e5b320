//! A disk in memory for the log and the state of one member: one order for the operations of both, power losses that
//! keep any part of what was not synced, operations that fail, and syncs that lie.
//!
//! `bytes.rs` holds contents that are cheap to copy, `image.rs` what is seen, what is durable and what a power loss
//! leaves, this file the disk that the program works on.

#![allow(dead_code, reason = "each test that includes this uses a part of it")]

mod bytes;
mod image;

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use redb::StorageBackend;
use watershed::core::backend::StateDisk;
use watershed::core::wal::{Preparing, WalDisk, WalFile};

use image::Inode;
pub use image::{Image, Kept, Op};

/// A disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    segment_bytes: u64,
    prepares: bool,
    /// Handles of earlier runs fail.
    run: u64,
}

#[derive(Debug, Default)]
struct Inner {
    image: Image,
    made: Inode,
    /// The operations so far, while they are recorded.
    trace: Option<Vec<Op>>,
    /// Operations that changed something, or tried to.
    changes: u64,
    fault: Option<Fault>,
    lie: Option<Lie>,
    frozen: bool,
    /// The run that may use the files.
    run: u64,
    /// The last operation that failed.
    failed: Option<Op>,
}

/// An input or output error.
pub const EIO: i32 = 5;
/// No space is left.
pub const ENOSPC: i32 = 28;

/// An operation that fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Operations that succeed before.
    pub after: u64,
    /// The system's number for what is wrong.
    pub code: i32,
    /// What is done nevertheless.
    pub effect: Effect,
    /// Whether later operations fail, too.
    pub lasts: bool,
}

/// What an operation that fails has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// All; of a write one half. A failed sync has forgotten what it was to write, as Linux does.
    Some,
}

/// A sync that is answered and not done, to prove that a test notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    WalContents,
    WalNames,
    StateContents,
    StateNames,
    Everything,
}

/// The part of the program that a file or folder belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Wal,
    State,
}

impl SimDisk {
    /// An empty disk, on which segments of the log have this size.
    pub fn new(segment_bytes: u64) -> Self {
        Self::with(Image::default(), segment_bytes)
    }

    /// A disk that begins like this.
    pub fn with(image: Image, segment_bytes: u64) -> Self {
        let inner = Inner { made: image.last_inode(), image, ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)), segment_bytes, prepares: false, run: 0 }
    }

    /// The same disk, on which the next segment of the log is prepared ahead.
    pub fn preparing(self) -> Self {
        Self { prepares: true, ..self }
    }

    /// An independent disk that begins with what this one has.
    pub fn copy(&self) -> Self {
        Self::with(self.image(), self.segment_bytes)
    }

    /// The files and folders as they are now.
    pub fn image(&self) -> Image {
        self.inner.lock().image.clone()
    }

    /// Records every operation from now on.
    pub fn record(&self) {
        self.inner.lock().trace = Some(Vec::new());
    }

    /// The recorded operations; ends the recording.
    pub fn recorded(&self) -> Vec<Op> {
        self.inner.lock().trace.take().unwrap_or_default()
    }

    /// Records a note of the caller.
    pub fn note(&self, kind: &'static str, number: u64) {
        if let Some(trace) = &mut self.inner.lock().trace {
            trace.push(Op::Note(kind, number));
        }
    }

    /// Operations so far, with those that failed.
    pub fn changes(&self) -> u64 {
        self.inner.lock().changes
    }

    /// Lets an operation fail, counted from now.
    pub fn fail(&self, fault: Fault) {
        let mut inner = self.inner.lock();
        inner.fault = Some(Fault { after: inner.changes + fault.after, ..fault });
    }

    /// From now on only this many operations succeed: the process ends there.
    pub fn stop_after(&self, operations: u64) {
        self.fail(Fault { after: operations, code: EIO, effect: Effect::Nothing, lasts: true });
    }

    /// The last operation that failed.
    pub fn failed(&self) -> Option<Op> {
        self.inner.lock().failed.clone()
    }

    /// No operation changes anything from now on: the process has ended.
    pub fn freeze(&self) {
        self.inner.lock().frozen = true;
    }

    /// The next process.
    pub fn thaw(&self) {
        self.inner.lock().frozen = false;
    }

    /// The disk for the next run of its member, which refuses nothing. What earlier runs hold open is of no use any more.
    pub fn next_run(&self) -> Self {
        let mut inner = self.inner.lock();
        inner.run += 1;
        inner.fault = None;
        Self { run: inner.run, ..self.clone() }
    }

    /// Ends the present run: nothing it still does reaches the files.
    pub fn end_run(&self) {
        self.inner.lock().run += 1;
    }

    /// A mutation for tests of tests; none for a disk that is honest again.
    pub fn lie(&self, lie: impl Into<Option<Lie>>) {
        self.inner.lock().lie = lie.into();
    }

    /// Refuses nothing any more.
    pub fn heal(&self) {
        self.inner.lock().fault = None;
    }

    /// Loses power and comes back. Whoever had files open must not use them any more.
    pub fn lose_power(&self, kept: Kept, random: &mut fastrand::Rng) {
        let mut inner = self.inner.lock();
        inner.fault = None;
        inner.image.lose_power(kept, random);
    }

    fn change(&self, part: Part, op: impl FnOnce(&mut Inner) -> io::Result<Op>) -> io::Result<()> {
        let inner = &mut *self.usable()?;
        if inner.frozen {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let mut op = op(inner)?;
        if inner.lies(part, &op) {
            return Ok(());
        }
        let number = inner.changes;
        inner.changes += 1;
        match inner.fault {
            Some(fault) if number == fault.after || number > fault.after && fault.lasts => {
                inner.failed = Some(op.clone());
                if fault.effect == Effect::Some {
                    match &mut op {
                        Op::Sync { file } => {
                            inner.image.forget_pending(*file);
                            return Err(io::Error::from_raw_os_error(fault.code));
                        }
                        Op::SyncDir { .. } => return Err(io::Error::from_raw_os_error(fault.code)),
                        Op::Write { data, .. } => *data = data[..data.len() / 2].into(),
                        _ => {}
                    }
                    inner.apply(op);
                }
                Err(io::Error::from_raw_os_error(fault.code))
            }
            _ => {
                inner.apply(op);
                Ok(())
            }
        }
    }

    /// The contents, for the present run only.
    fn usable(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.inner.lock();
        if self.run == inner.run { Ok(inner) } else { Err(io::Error::other("the process is gone")) }
    }

    fn make(&self, part: Part, path: &Path, folder: bool) -> io::Result<Inode> {
        let mut made = 0;
        self.change(part, |inner| {
            let (dir, name) = inner.parent(path)?;
            if inner.image.names(dir)?.contains(&name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            inner.made += 1;
            made = inner.made;
            Ok(Op::Make { dir, name, inode: made, folder })
        })?;
        Ok(made)
    }

    fn find(&self, path: &Path) -> io::Result<Inode> {
        self.usable()?.image.find(path)
    }

    fn is_there(&self, path: &Path) -> io::Result<bool> {
        match self.find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.usable()?;
        inner.image.names(inner.image.find(dir)?)
    }

    fn renamed(&self, part: Part, from: &Path, to: &Path) -> io::Result<()> {
        self.change(part, |inner| {
            inner.image.find(from)?;
            let ((dir, from), (other, to)) = (inner.parent(from)?, inner.parent(to)?);
            assert_eq!(dir, other, "a rename out of a folder is not simulated");
            Ok(Op::Rename { dir, from, to })
        })
    }

    fn unlink(&self, part: Part, path: &Path) -> io::Result<()> {
        self.change(part, |inner| {
            inner.image.find(path)?;
            let (dir, name) = inner.parent(path)?;
            Ok(Op::Unlink { dir, name })
        })
    }

    fn synced(&self, part: Part, dir: &Path) -> io::Result<()> {
        self.change(part, |inner| Ok(Op::SyncDir { dir: inner.image.find(dir)? }))
    }

    /// Makes a folder and those above it, all durable but for the last one's own name.
    fn make_folders(&self, part: Part, path: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        for above in path.ancestors() {
            match self.is_there(above)? {
                true => break,
                false => missing.push(above),
            }
        }
        for (left, folder) in missing.iter().enumerate().rev() {
            self.make(part, folder, true)?;
            if left > 0 {
                self.synced(part, folder.parent().unwrap_or(Path::new("/")))?;
            }
        }
        Ok(())
    }
}

impl Inner {
    fn apply(&mut self, op: Op) {
        self.image.apply(&op);
        if let Some(trace) = &mut self.trace {
            trace.push(op);
        }
    }

    fn lies(&self, part: Part, op: &Op) -> bool {
        matches!(
            (self.lie, part, op),
            (Some(Lie::Everything), _, Op::Sync { .. } | Op::SyncDir { .. })
                | (Some(Lie::WalContents), Part::Wal, Op::Sync { .. })
                | (Some(Lie::WalNames), Part::Wal, Op::SyncDir { .. })
                | (Some(Lie::StateContents), Part::State, Op::Sync { .. })
                | (Some(Lie::StateNames), Part::State, Op::SyncDir { .. })
        )
    }

    fn parent(&self, path: &Path) -> io::Result<(Inode, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.image.find(path.parent().unwrap_or(Path::new("/")))?, name.to_owned()))
    }
}

impl WalDisk for SimDisk {
    type File = SimFile;

    fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.is_there(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.make_folders(Part::Wal, path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.names(dir)
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<SimFile> {
        WalDisk::remove(self, path)?;
        let file = SimFile { disk: self.clone(), part: Part::Wal, inode: self.make(Part::Wal, path, false)? };
        file.resize(size)?;
        Ok(file)
    }

    fn prepare(&self, path: &Path, size: u64) -> Option<Box<dyn Preparing<SimFile>>> {
        let made = self.prepares.then(|| WalDisk::create(self, path, size))?;
        Some(Box::new(PreparedFile { made: Some(made), size, allowed: 0 }))
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        Ok(SimFile { disk: self.clone(), part: Part::Wal, inode: self.find(path)? })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.renamed(Part::Wal, from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.unlink(Part::Wal, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.synced(Part::Wal, dir)
    }
}

impl StateDisk for SimDisk {
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.is_there(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.is_there(path)? {
            return Ok(());
        }
        self.make_folders(Part::State, path)?;
        self.synced(Part::State, path.parent().unwrap_or(Path::new("/")))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.names(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let inode = self.make(Part::State, path, false)?;
        Ok(Box::new(SimFile { disk: self.clone(), part: Part::State, inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(SimFile { disk: self.clone(), part: Part::State, inode: self.find(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.renamed(Part::State, from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.unlink(Part::State, path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.synced(Part::State, dir)
    }
}

/// A file that is made at once, and finished when all of it is allowed.
#[derive(Debug)]
struct PreparedFile {
    made: Option<io::Result<SimFile>>,
    size: u64,
    allowed: u64,
}

impl Preparing<SimFile> for PreparedFile {
    fn allow(&mut self, bytes: u64) {
        self.allowed = self.allowed.max(bytes);
    }

    fn finished(&mut self) -> Option<io::Result<SimFile>> {
        self.made.take_if(|_| self.allowed >= self.size)
    }
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    part: Part,
    inode: Inode,
}

impl SimFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.usable()?.image.contents(self.inode).len())
    }

    fn read_some(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        Ok(self.disk.usable()?.image.contents(self.inode).read(offset, into))
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.change(self.part, |_| Ok(Op::Write { file: self.inode, offset, data: bytes.into() }))
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.disk.change(self.part, |_| Ok(Op::SetLen { file: self.inode, len }))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(self.part, |_| Ok(Op::Sync { file: self.inode }))
    }
}

impl WalFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        self.length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.read_some(offset, into)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.put(offset, bytes)
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.resize(size)
    }

    fn reserve(&mut self, size: u64) -> io::Result<()> {
        if self.length()? < size { self.resize(size) } else { Ok(()) }
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
        match self.read_some(offset, out)? == out.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.resize(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.put(offset, data)
    }
}
