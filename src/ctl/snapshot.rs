use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tonic::Status;

use super::failure::{Exit, Failure, status_text};
use super::flags::{Parsed, Word};
use super::session::{Session, show};
use super::{golang, terminal};
use crate::client::Client;
use crate::pb::etcdserverpb::SnapshotRequest;

/// Bytes of the SHA-256 digest at the end of a db snapshot.
const DIGEST_BYTES: u64 = 32;
/// Db snapshots are whole sectors before the digest.
const SECTOR_BYTES: u64 = 512;
/// Bytes that are synced at a time: a member on the same disk waits with its log while they are.
const SYNC_EVERY_BYTES: u64 = 4 * 1024 * 1024;

fn path_of(word: &Word) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(word.clone()).into()
}

/// Saves the db snapshot of one member under `FILE.part` and renames it once it is complete and on disk.
pub(super) async fn save(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [file] = parsed.args.as_slice() else {
        return Err(Failure::args("snapshot save expects one argument <filename>"));
    };
    let failed = |text: String| Failure::new(Exit::Interrupted, text);
    session.options.usable()?;
    let endpoints = &session.options.endpoints;
    if endpoints.len() != 1 {
        let list = endpoints.join(" ");
        return Err(failed(format!("snapshot must be requested to one selected node, not multiple [{list}]")));
    }
    let limit = session.options.command_timeout_given.then_some(session.options.command_timeout);
    let client = session.client().await?;
    let path = path_of(file);
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);

    let fetch = fetch(client, &part);
    let fetched = match limit {
        Some(limit) => tokio::time::timeout(limit, fetch)
            .await
            .unwrap_or_else(|_| Err(status_text(&Status::deadline_exceeded("snapshot")))),
        None => fetch.await,
    };
    let renamed = fetched.and_then(|fetched| {
        std::fs::rename(&part, &path)
            .and_then(|()| sync_directory(&path))
            .map_err(|error| format!("could not rename {} to {} ({error})", part.display(), path.display()))?;
        Ok(fetched)
    });
    let Fetched { version, .. } = renamed.map_err(|text| {
        // Half a db snapshot is worth nothing; that it could not be removed is worth no second error.
        let _ = std::fs::remove_file(&part);
        failed(text)
    })?;
    show(format!("Snapshot saved at {}\n", path.display()))?;
    if !version.is_empty() {
        show(format!("Server version {version}\n"))?;
    }
    Ok(())
}

/// What came over the wire.
struct Fetched {
    bytes: u64,
    version: String,
}

async fn fetch(client: Client, part: &Path) -> Result<Fetched, String> {
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part);
    let mut file = open.map_err(|error| {
        let (path, reason) = (part.display(), golang::reason(&error));
        format!("could not open {path} (open {path}: {reason})")
    })?;
    let progress = terminal::bytes();
    let call = |status: Status| status_text(&status);
    let mut pieces = client.maintenance().snapshot(SnapshotRequest {}).await.map_err(call)?.into_inner();
    let (mut fetched, mut synced) = (Fetched { bytes: 0, version: String::new() }, 0);
    let not_synced = |error| format!("could not fsync snapshot: {error}");
    while let Some(piece) = pieces.message().await.map_err(call)? {
        file.write_all(&piece.blob).map_err(|error| format!("could not write snapshot: {error}"))?;
        fetched.bytes += piece.blob.len() as u64;
        progress.set_position(fetched.bytes);
        if fetched.bytes - synced >= SYNC_EVERY_BYTES {
            file.sync_data().map_err(not_synced)?;
            synced = fetched.bytes;
        }
        if fetched.version.is_empty() {
            fetched.version = piece.version;
        }
    }
    progress.finish_and_clear();
    if fetched.bytes % SECTOR_BYTES != DIGEST_BYTES {
        return Err(format!("sha256 checksum not found [bytes: {}]", fetched.bytes));
    }
    file.sync_all().map_err(not_synced)?;
    Ok(fetched)
}

/// Makes the new name as durable as the content.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
