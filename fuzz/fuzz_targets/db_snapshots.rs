//! A db snapshot (bbolt file) with any bytes, whole or changed in places: reading it, and preparing a state from it, ends in
//! a state or in an error.
#![no_main]

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use watershed::bolt::BoltFile;
use watershed::core::backend::Backend;
use watershed::types::{LogIndex, LogPosition, Term};

/// One that is in order, to be changed.
fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let backend = Backend::in_memory().expect("a state");
        let mut bytes = Vec::new();
        backend.db_snapshot().expect("a snapshot").write(&mut bytes).expect("memory");
        bytes
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if kind % 4 != 0 {
        bytes = sample().to_vec();
        for change in data.chunks_exact(4) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
            bytes[at] = change[2];
            let next = (at + 1) % bytes.len();
            bytes[next] ^= change[3];
        }
    }
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
    file.write_all(&bytes).expect("a file");
    let Ok(snapshot) = BoltFile::open(file.path()) else { return };
    for name in snapshot.bucket_names().unwrap_or_default() {
        let mut rows = 0;
        let _ = snapshot.bucket(&name, &mut |_, _| {
            rows += 1;
            if rows < 10_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
    let backend = Backend::in_memory().expect("a state");
    let position = LogPosition { index: LogIndex(10), term: Term(1) };
    if let Ok(prepared) = backend.prepare(&snapshot, position) {
        prepared.discard().expect("a state in memory");
    }
});
