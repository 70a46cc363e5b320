//! The offline tool: what etcdutl does, on the files of a member that does not run and on db snapshots.
//!
//! `restore.rs` makes a data directory of a db snapshot, ours or one of etcd's; `data_dir.rs` works on a data directory,
//! `hash_kv.rs` hashes a history. `command.rs` reads the command line, `print.rs` has the formats. `db_file.rs` tells the kinds of
//! file apart and reads them. All of it is synchronous;
//! progress is logged.

mod command;
mod data_dir;
mod db_file;
mod error;
mod hash_kv;
mod print;
mod restore;
#[cfg(test)]
mod tests;

pub use command::run;
pub use data_dir::{check_target_version, defragment, migrate};
pub use db_file::status;
pub use error::{Refusal, UtlError};
pub use hash_kv::{HashedFile, hash_kv};
pub use restore::{RestoreRequest, RevisionBump, restore};
