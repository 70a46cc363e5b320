use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use super::*;

#[derive(Default)]
struct Rows(BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>);

impl SnapshotRows for Rows {
    type Error = io::Error;

    fn buckets(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    fn rows(&self, bucket: &str, visit: &mut Visit<'_, io::Error>) -> io::Result<()> {
        self.0[bucket].iter().try_for_each(|(key, value)| visit(key, value))
    }
}

fn db_snapshot(rows: &Rows) -> Vec<u8> {
    let plan = SnapshotPlan::measure(rows).unwrap();
    let mut out = Vec::new();
    plan.write(rows, &mut out).unwrap();
    assert_eq!(out.len() as u64, plan.size_bytes());
    out
}

fn opened(bytes: &[u8]) -> (tempfile::NamedTempFile, Result<BoltFile, BoltError>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let db_snapshot = BoltFile::open(file.path());
    (file, db_snapshot)
}

type Row = (Vec<u8>, Vec<u8>, Vec<u8>);

fn read(bytes: &[u8]) -> Result<Vec<Row>, BoltError> {
    let (_file, db_snapshot) = opened(bytes);
    let db_snapshot = db_snapshot?;
    let mut seen = Vec::new();
    for bucket in db_snapshot.bucket_names()? {
        db_snapshot.bucket(&bucket, &mut |key, value| {
            seen.push((bucket.to_vec(), key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
    }
    Ok(seen)
}

fn sample(rows: u64, value: impl Fn(u64) -> usize) -> Rows {
    let mut sample = Rows::default();
    for name in ["key", "auth", "meta", "lease"] {
        sample.0.entry(name).or_default();
    }
    let keys = sample.0.get_mut("key").unwrap();
    for row in 0..rows {
        keys.insert(row.to_be_bytes().to_vec(), vec![row as u8; value(row)]);
    }
    sample.0.get_mut("meta").unwrap().insert(b"term".to_vec(), vec![7]);
    sample
}

#[test]
fn db_snapshots_read_back_what_was_written() {
    for (rows, value) in [(0, 0), (1, 10), (3, 9000), (40, 300), (60_000, 20)] {
        let sample = sample(rows, |row| value + (row as usize % 3) * value);
        let seen = read(&db_snapshot(&sample)).unwrap();
        let expected: Vec<_> = sample
            .0
            .iter()
            .flat_map(|(bucket, rows)| {
                rows.iter().map(|(key, value)| (bucket.as_bytes().to_vec(), key.clone(), value.clone()))
            })
            .collect();
        assert!(seen == expected, "{rows} rows of {value} bytes");
    }
}

#[test]
fn long_keys_still_make_a_tree() {
    let mut sample = sample(0, |_| 0);
    let keys = sample.0.get_mut("key").unwrap();
    for row in 0..50u8 {
        let mut key = vec![b'k'; 3000];
        key.push(row);
        keys.insert(key, vec![row]);
    }
    assert_eq!(read(&db_snapshot(&sample)).unwrap().len(), 51);
}

#[test]
fn bytes_behind_the_db_snapshot_do_not_matter() {
    let mut bytes = db_snapshot(&sample(100, |_| 50));
    bytes.extend_from_slice(&[9; 32]);
    assert_eq!(read(&bytes).unwrap().len(), 101);
}

#[test]
fn damaged_db_snapshots_are_refused_or_read_and_never_more() {
    let sample = sample(300, |_| 100);
    let good = db_snapshot(&sample);
    assert!(good.len() > 40_000);
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..rng.usize(1..4) {
            // Heads of pages are where it hurts.
            let page = rng.usize(..bytes.len() / 4096) * 4096;
            let at = if rng.bool() { page + rng.usize(..300) } else { page + rng.usize(..4096) };
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(bytes.len() - if rng.u8(..4) == 0 { rng.usize(..9000) } else { 0 });
        if let Ok(seen) = read(&bytes) {
            assert!(seen.len() < 1000);
        }
    }
    assert!(matches!(opened(b"").1, Err(BoltError::NotADbSnapshot { .. })));
    assert!(matches!(opened(&[0; 8192]).1, Err(BoltError::NotADbSnapshot { .. })));
}
