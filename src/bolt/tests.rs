use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use super::format::{BRANCH, BUCKET_ELEMENT, LEAF, META, Meta, PAGE_BYTES, PageHead};
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

/// A leaf with one row.
fn leaf(id: u64, overflow: u32, flags: u32, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut page = Vec::new();
    PageHead { id, flags: LEAF, count: 1, overflow }.write(&mut page);
    for number in [flags, 16, key.len() as u32, value.len() as u32] {
        page.extend_from_slice(&number.to_le_bytes());
    }
    page.extend_from_slice(key);
    page.extend_from_slice(value);
    page
}

/// A bucket of `leaves` leaves, one page apart, to each of which `overflow(place)` more pages belong.
fn with_runs(leaves: u64, overflow: impl Fn(u64) -> u64) -> Vec<u8> {
    const FIRST: u64 = 4;
    let mut pages = Vec::new();
    for id in 0..2 {
        let mut page = Vec::new();
        PageHead { id, flags: META, count: 0, overflow: 0 }.write(&mut page);
        Meta { page_bytes: PAGE_BYTES as u32, root: 2, pages: FIRST + leaves, transaction: id }.write(&mut page);
        pages.push(page);
    }
    let bucket = [3u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
    pages.push(leaf(2, 0, BUCKET_ELEMENT, b"key", &bucket));
    let mut branch = Vec::new();
    PageHead { id: 3, flags: BRANCH, count: leaves as u16, overflow: 0 }.write(&mut branch);
    for id in FIRST..FIRST + leaves {
        // The reader does not look at the keys of a branch.
        branch.extend_from_slice(&[0; 8]);
        branch.extend_from_slice(&id.to_le_bytes());
    }
    pages.push(branch);
    pages.extend((0..leaves).map(|place| leaf(FIRST + place, overflow(place) as u32, 0, &place.to_be_bytes(), b"")));
    pages.iter_mut().for_each(|page| page.resize(PAGE_BYTES, 0));
    pages.concat()
}

#[test]
fn pages_that_overlap_are_refused_before_they_are_read_again_and_again() {
    assert_eq!(read(&with_runs(9, |_| 0)).unwrap().len(), 9);
    // The last two leaves fit in front of each other: the file has pages that nothing needs.
    assert_eq!(read(&with_runs(9, |place| u64::from(place == 7))).unwrap().len(), 9);
    let refused = read(&with_runs(9, |place| 8 - place)).unwrap_err().to_string();
    assert!(refused.ends_with("the tree has more pages than the file"), "{refused}");
}
