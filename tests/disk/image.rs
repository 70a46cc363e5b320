use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::sync::Arc;
use std::{fmt, io};

use super::bytes::Bytes;

/// Number of a file or folder; the first one is the root folder.
pub type Inode = u64;

/// Something that happened to a disk, in the order in which it was asked for.
#[derive(Clone, Debug)]
pub enum Op {
    Make {
        dir: Inode,
        name: String,
        inode: Inode,
        folder: bool,
    },
    Rename {
        dir: Inode,
        from: String,
        to: String,
    },
    Unlink {
        dir: Inode,
        name: String,
    },
    SyncDir {
        dir: Inode,
    },
    Write {
        file: Inode,
        offset: u64,
        data: Arc<[u8]>,
    },
    SetLen {
        file: Inode,
        len: u64,
    },
    Sync {
        file: Inode,
    },
    /// A note of the caller at this point: a kind and a number.
    Note(&'static str, u64),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { file, offset, data } => write!(f, "write of {} bytes at {offset} of file {file}", data.len()),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Op {
    /// The file whose contents or size change.
    pub fn file(&self) -> Option<Inode> {
        match self {
            Self::Write { file, .. } | Self::SetLen { file, .. } | Self::Sync { file } => Some(*file),
            _ => None,
        }
    }
}

/// Files and folders: their current contents, their durable contents, and the changes in between.
#[derive(Clone, Debug)]
pub struct Image {
    nodes: BTreeMap<Inode, Node>,
    changes: u64,
}

#[derive(Clone, Debug)]
enum Node {
    File(FileNode),
    Folder(Folder),
}

#[derive(Clone, Debug, Default)]
struct FileNode {
    current: Bytes,
    durable: Bytes,
    pending: Vec<Pending>,
    /// Whether a failed sync has left something that is seen and will never be durable.
    forgot: bool,
}

#[derive(Clone, Debug)]
struct Pending {
    /// Orders the changes of all files.
    number: u64,
    change: Change,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Arc<[u8]>),
    SetLen(u64),
}

impl Change {
    fn apply(&self, bytes: &mut Bytes) {
        match self {
            Self::Write(offset, data) => bytes.write(*offset, data),
            Self::SetLen(len) => bytes.resize(*len),
        }
    }
}

/// Changes of one folder's names keep their order; those of different folders do not.
#[derive(Clone, Debug, Default)]
struct Folder {
    current: BTreeMap<String, Inode>,
    durable: BTreeMap<String, Inode>,
    pending: Vec<NameChange>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, Inode),
    Rename(String, String),
    Unlink(String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, Inode>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
        }
    }
}

impl Folder {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }

    fn settle(&mut self, kept: usize) {
        self.pending.drain(..).take(kept).for_each(|change| change.apply(&mut self.durable));
    }
}

/// What reaches the disk of that which was not synced when power is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    Everything,
    /// The first of the changes, in the order in which they were made.
    First,
    /// The last of the changes without those before.
    Last,
    /// Any of the changes.
    Some,
    /// The first changes; the last of them is written in parts of 512 bytes, and any of these may be there.
    TornSectors,
    /// The first changes; the last of them ends at any byte.
    TornByte,
}

impl Kept {
    pub const ALL: [Self; 7] =
        [Self::Nothing, Self::Everything, Self::First, Self::Last, Self::Some, Self::TornSectors, Self::TornByte];
}

impl Default for Image {
    fn default() -> Self {
        Self { nodes: [(0, Node::Folder(Folder::default()))].into(), changes: 0 }
    }
}

impl Image {
    /// Carries out what an operation asks for.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Make { dir, name, inode, folder } => {
                let node = if *folder { Node::Folder(Folder::default()) } else { Node::File(FileNode::default()) };
                self.nodes.insert(*inode, node);
                self.folder(*dir).change(NameChange::Link(name.clone(), *inode));
            }
            Op::Rename { dir, from, to } => self.folder(*dir).change(NameChange::Rename(from.clone(), to.clone())),
            Op::Unlink { dir, name } => self.folder(*dir).change(NameChange::Unlink(name.clone())),
            Op::SyncDir { dir } => self.folder(*dir).settle(usize::MAX),
            Op::Write { file, offset, data } => self.change(*file, Change::Write(*offset, data.clone())),
            Op::SetLen { file, len } => self.change(*file, Change::SetLen(*len)),
            Op::Sync { file } => {
                let file = self.file(*file);
                if file.forgot {
                    file.pending.drain(..).for_each(|pending| pending.change.apply(&mut file.durable));
                } else {
                    file.pending.clear();
                    file.durable = file.current.clone();
                }
            }
            Op::Note(..) => {}
        }
    }

    /// A sync that failed: the system keeps the pages, calls them clean, and never writes them.
    pub fn forget_pending(&mut self, file: Inode) {
        let file = self.file(file);
        file.forgot |= !file.pending.is_empty();
        file.pending.clear();
    }

    fn change(&mut self, file: Inode, change: Change) {
        self.changes += 1;
        let number = self.changes;
        let file = self.file(file);
        change.apply(&mut file.current);
        file.pending.push(Pending { number, change });
    }

    fn folder(&mut self, inode: Inode) -> &mut Folder {
        match self.nodes.get_mut(&inode) {
            Some(Node::Folder(folder)) => folder,
            other => unreachable!("{inode} is no folder: {other:?}"),
        }
    }

    fn file(&mut self, inode: Inode) -> &mut FileNode {
        match self.nodes.get_mut(&inode) {
            Some(Node::File(file)) => file,
            other => unreachable!("{inode} is no file: {other:?}"),
        }
    }

    /// Contents of a file as they are seen.
    pub fn contents(&self, inode: Inode) -> &Bytes {
        match self.nodes.get(&inode) {
            Some(Node::File(file)) => &file.current,
            other => unreachable!("{inode} is no file: {other:?}"),
        }
    }

    /// The largest number in use.
    pub fn last_inode(&self) -> Inode {
        self.nodes.keys().next_back().copied().unwrap_or(0)
    }

    /// Number of the file or folder of this name.
    pub fn find(&self, path: &Path) -> io::Result<Inode> {
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        let mut at = 0;
        for name in names {
            let Some(Node::Folder(folder)) = self.nodes.get(&at) else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            at = *folder.current.get(name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// Names in a folder.
    pub fn names(&self, inode: Inode) -> io::Result<Vec<String>> {
        match self.nodes.get(&inode) {
            Some(Node::Folder(folder)) => Ok(folder.current.keys().cloned().collect()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Whether everything is durable.
    pub fn is_settled(&self) -> bool {
        self.nodes.values().all(|node| match node {
            Node::File(file) => file.pending.is_empty(),
            Node::Folder(folder) => folder.pending.is_empty(),
        })
    }

    /// Loses power: what is durable stays, and of the rest what `kept` and chance say. Answers with a number that
    /// differs when what was kept does.
    pub fn lose_power(&mut self, kept: Kept, random: &mut fastrand::Rng) -> u64 {
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        let mut pending: Vec<(Inode, Pending)> = Vec::new();
        for (inode, node) in &mut self.nodes {
            match node {
                Node::File(file) => pending.extend(file.pending.drain(..).map(|change| (*inode, change))),
                Node::Folder(folder) if folder.pending.is_empty() => {}
                Node::Folder(folder) => {
                    let kept = match kept {
                        Kept::Nothing => 0,
                        Kept::Everything => folder.pending.len(),
                        _ => random.usize(..=folder.pending.len()),
                    };
                    digest.add(kept as u64);
                    folder.settle(kept);
                    folder.current = folder.durable.clone();
                }
            }
        }
        pending.sort_by_key(|(_, pending)| pending.number);
        for (inode, change) in survivors(pending, kept, random, &mut digest) {
            change.apply(&mut self.file(inode).durable);
        }
        for node in self.nodes.values_mut() {
            if let Node::File(file) = node {
                file.current = file.durable.clone();
                file.forgot = false;
            }
        }
        self.forget_unnamed();
        digest.0
    }

    /// Drops what no name leads to. Nothing is open when this runs.
    fn forget_unnamed(&mut self) {
        let named = self.named();
        self.nodes.retain(|inode, _| named.contains(inode));
    }

    /// Whether a name leads to a file.
    pub fn is_named(&self, inode: Inode) -> bool {
        self.named().contains(&inode)
    }

    fn named(&self) -> BTreeSet<Inode> {
        let (mut named, mut left) = (BTreeSet::new(), vec![0]);
        while let Some(inode) = left.pop() {
            named.insert(inode);
            if let Some(Node::Folder(folder)) = self.nodes.get(&inode) {
                left.extend(folder.current.values());
            }
        }
        named
    }
}

fn survivors(
    pending: Vec<(Inode, Pending)>,
    kept: Kept,
    random: &mut fastrand::Rng,
    digest: &mut Digest,
) -> Vec<(Inode, Change)> {
    let len = pending.len();
    let mut chosen: Vec<(Inode, Pending)> = match kept {
        Kept::Nothing => Vec::new(),
        Kept::Everything => pending,
        Kept::First | Kept::TornSectors | Kept::TornByte => pending.into_iter().take(random.usize(..=len)).collect(),
        Kept::Last => pending.into_iter().skip(random.usize(..=len)).collect(),
        Kept::Some => pending.into_iter().filter(|_| random.bool()).collect(),
    };
    let torn = match kept {
        Kept::TornSectors | Kept::TornByte => chosen.pop_if(|(_, pending)| matches!(pending.change, Change::Write(..))),
        _ => None,
    };
    let mut changes: Vec<_> = Vec::with_capacity(chosen.len());
    for (inode, pending) in chosen {
        digest.add(pending.number);
        changes.push((inode, pending.change));
    }
    if let Some((inode, Pending { number, change: Change::Write(offset, data) })) = torn {
        digest.add(number);
        for part in parts(offset, &data, kept, random) {
            digest.add(part.start as u64);
            digest.add(part.end as u64);
            changes.push((inode, Change::Write(offset + part.start as u64, data[part].into())));
        }
    }
    changes
}

/// The parts of a torn write that are on the disk.
fn parts(offset: u64, data: &[u8], kept: Kept, random: &mut fastrand::Rng) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::new();
    if kept == Kept::TornByte {
        parts.push(0..random.usize(..=data.len()));
        return parts;
    }
    let mut at = 0;
    while at < data.len() {
        let end = (at + 512 - (offset as usize + at) % 512).min(data.len());
        if random.bool() {
            parts.push(at..end);
        }
        at = end;
    }
    parts
}

/// FNV-1a over the choices made.
struct Digest(u64);

impl Digest {
    fn add(&mut self, number: u64) {
        for byte in number.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
