use std::path::{Path, PathBuf};
use std::time::Duration;

use super::db_file::{kind_of, must_exist, open_own};
use super::error::UtlError;
use crate::core::backend::StateFileKind;
use crate::core::cluster::{ClusterVersion, STORAGE_VERSION};

/// The database of a data directory.
fn database_of(data_dir: &Path) -> PathBuf {
    data_dir.join("member").join("snap").join("db")
}

/// Refuses a directory without a database of ours.
fn check(data_dir: &Path, for_stock: &'static str) -> Result<PathBuf, UtlError> {
    let path = database_of(data_dir);
    must_exist(&path)?;
    match kind_of(&path)? {
        StateFileKind::Own => Ok(path),
        StateFileKind::Bbolt => Err(UtlError::StockEtcd { path: data_dir.into(), what: for_stock }),
        StateFileKind::Other => Err(UtlError::Foreign { path }),
    }
}

/// Gives unused space in the database of a member that does not run back to the disk.
///
/// # Errors
/// No such directory; a member runs in it; it is stock etcd's; damage; no room for a second copy.
pub fn defragment(data_dir: &Path, timeout: Duration) -> Result<(), UtlError> {
    let path = check(data_dir, "defragment it with that etcd's own etcdutl")?;
    let backend = open_own(&path, timeout)?;
    let bytes = || std::fs::metadata(&path).map(|file| file.len()).map_err(UtlError::file("stat", &path));
    let before = bytes()?;
    tracing::info!(path = %path.display(), current_db_size_bytes = before, "defragmenting");
    backend.defragment()?;
    drop(backend);
    let after = bytes()?;
    tracing::info!(
        path = %path.display(), current_db_size_bytes_diff = after as i64 - before as i64, current_db_size_bytes = after,
        "finished defragmenting directory"
    );
    Ok(())
}

/// The storage version that `migrate` is asked for.
///
/// # Errors
/// etcdutl's texts for what is no version, or too old.
pub fn check_target_version(text: &str) -> Result<(), String> {
    if text.matches('.').count() != 1 {
        return Err(format!("wrong target version format, expected \"X.Y\", got {text:?}"));
    }
    let target = ClusterVersion::parse(text).ok_or_else(|| format!("failed to parse target version: {text}"))?;
    if target < ClusterVersion::parse("3.5").unwrap_or(ClusterVersion::LOWEST) {
        return Err(format!("target version {text:?} not supported. Minimal \"3.5\""));
    }
    Ok(())
}

/// Changes the storage version of a data directory, for which there is one choice.
///
/// # Errors
/// Any other version than the one there is; the same as for [`defragment`].
pub fn migrate(data_dir: &Path, target: &str, timeout: Duration) -> Result<(), UtlError> {
    let path = check(data_dir, "migrate it with that etcd's own etcdutl")?;
    drop(open_own(&path, timeout)?);
    if ClusterVersion::parse(target) == ClusterVersion::parse(STORAGE_VERSION) {
        tracing::info!(storage_version = target, "storage version up-to-date");
        return Ok(());
    }
    Err(UtlError::NoMigration { path: data_dir.into(), target: target.into(), known: "3.7" })
}
