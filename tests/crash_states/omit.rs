//! Recordings in which a disk answers a sync and does not do it.

use std::collections::BTreeSet;

use crate::disk::Op;
use crate::workload::ISSUED;

/// The syncs that are left out, once the member has made its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Omitted {
    /// Contents of the log.
    Log,
    /// Names of segments.
    LogNames,
    /// A new segment, before it gets its name.
    NewSegment,
    /// Contents of the state in use.
    State,
    /// A prepared state, before it gets its name.
    Prepared,
    /// The name of a prepared state.
    PreparedName,
    /// The name of a state that takes the place of another one.
    InstalledName,
}

impl Omitted {
    pub const ALL: [Self; 7] = [
        Self::Log,
        Self::LogNames,
        Self::NewSegment,
        Self::State,
        Self::Prepared,
        Self::PreparedName,
        Self::InstalledName,
    ];

    /// The recording without these syncs.
    pub fn from(self, ops: Vec<Op>) -> Vec<Op> {
        let mut begun = false;
        let (mut log_files, mut log_folders) = (BTreeSet::new(), BTreeSet::new());
        let (mut new_segments, mut prepared) = (BTreeSet::new(), BTreeSet::new());
        let mut renamed_to = String::new();
        let mut kept = Vec::with_capacity(ops.len());
        for op in ops {
            match &op {
                Op::Note(kind, number) => begun |= *kind == ISSUED && *number > 0,
                Op::Make { name, inode, folder, .. } => {
                    match *folder {
                        true if name.starts_with("wal") => log_folders.insert(*inode),
                        false if name.ends_with(".wal") => log_files.insert(*inode),
                        false if name == "0.tmp" || name == "1.tmp" => {
                            log_files.insert(*inode) && new_segments.insert(*inode)
                        }
                        false if name.ends_with(".snap.db.tmp") => prepared.insert(*inode),
                        _ => true,
                    };
                }
                Op::Rename { to, .. } => {
                    renamed_to.clone_from(to);
                    if to.ends_with(".wal") {
                        new_segments.clear();
                    }
                    if to.ends_with(".snap.db") {
                        prepared.clear();
                    }
                }
                _ => {}
            }
            let omitted = match (self, &op) {
                (Self::Log, Op::Sync { file }) => log_files.contains(file),
                (Self::LogNames, Op::SyncDir { dir }) => log_folders.contains(dir),
                (Self::NewSegment, Op::Sync { file }) => new_segments.contains(file),
                (Self::State, Op::Sync { file }) => !log_files.contains(file) && !prepared.contains(file),
                (Self::Prepared, Op::Sync { file }) => prepared.contains(file),
                (Self::PreparedName, Op::SyncDir { .. }) => renamed_to.ends_with(".snap.db"),
                (Self::InstalledName, Op::SyncDir { .. }) => renamed_to == "db",
                _ => false,
            };
            if !begun || !omitted {
                kept.push(op);
            }
        }
        kept
    }
}
