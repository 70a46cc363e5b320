use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;

use prost::Message;

use super::error::BoltError;
use super::reader::BoltFile;
use crate::pb::mvccpb::KeyValue;
use crate::types::{RecordId, Revision};

/// What `snapshot status` shows of a db snapshot, computed as etcdutl does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// CRC-32C over bucket names, keys and values.
    pub hash: u32,
    /// Revision of the last record.
    pub revision: Revision,
    /// Keys that exist at that revision.
    pub total_keys: u64,
    /// Bytes of the database within the file.
    pub total_bytes: u64,
    /// Storage version, when the db snapshot names one.
    pub version: Option<String>,
}

/// Reads a db snapshot from end to end.
///
/// Memory is that of the live keys.
///
/// # Errors
/// As [`BoltFile::open`] and [`BoltFile::bucket`]; a record whose name or value cannot be read.
pub fn status(path: &Path) -> Result<SnapshotStatus, BoltError> {
    let db_snapshot = BoltFile::open(path)?;
    let mut hash = 0;
    let mut revision = Revision(0);
    let mut live: HashSet<bytes::Bytes> = HashSet::new();
    let mut version = None;
    for name in db_snapshot.bucket_names()? {
        hash = crc32c::crc32c_append(hash, &name);
        let mut wrong = None;
        db_snapshot.bucket(&name, &mut |key, value| {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
            match name.as_ref() {
                b"key" => match (RecordId::from_bytes(key), KeyValue::decode(value)) {
                    (Some((id, tombstone)), Ok(record)) => {
                        revision = id.main;
                        match tombstone {
                            true => live.remove(&record.key),
                            false => live.insert(record.key),
                        };
                    }
                    _ => {
                        wrong = Some(key.escape_ascii().to_string());
                        return ControlFlow::Break(());
                    }
                },
                b"meta" if key == b"storageVersion" => version = Some(String::from_utf8_lossy(value).into_owned()),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        if let Some(key) = wrong {
            let what = format!("record {key} cannot be read");
            return Err(BoltError::Corrupt { path: path.into(), page: 0, what });
        }
    }
    let (total_keys, total_bytes) = (live.len() as u64, db_snapshot.size_bytes());
    Ok(SnapshotStatus { hash, revision, total_keys, total_bytes, version })
}
