use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::error::BoltError;
use super::format::{
    BRANCH, BUCKET_BYTES, BUCKET_ELEMENT, ELEMENT_BYTES, LEAF, META_BYTES, Meta, PAGE_BYTES, PAGE_HEAD_BYTES, PageHead,
    u32_at, u64_at,
};

/// Levels that a tree may have: far more than any file can fill.
const DEPTH_MAX: usize = 32;
/// Largest page with those that belong to it: a value may be no larger.
const PAGE_RUN_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Takes one row: key, value. Breaking off ends the walk.
pub type VisitRow<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A db snapshot file, read page by page. Every number in it is checked before it is used.
#[derive(Debug)]
pub struct BoltFile {
    file: File,
    path: PathBuf,
    file_bytes: u64,
    meta: Meta,
}

impl BoltFile {
    /// Opens a db snapshot; bytes behind it, such as a trailing checksum, do not matter.
    ///
    /// # Errors
    /// The system's; a file that does not begin with a valid meta page.
    pub fn open(path: &Path) -> Result<Self, BoltError> {
        let io = |source| BoltError::Io { path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let meta_at = |offset: u64| {
            let mut bytes = [0; PAGE_HEAD_BYTES + META_BYTES];
            file.read_exact_at(&mut bytes, offset).ok()?;
            Meta::read(&bytes[PAGE_HEAD_BYTES..])
        };
        let first = meta_at(0);
        let second = meta_at(first.map_or(PAGE_BYTES as u64, |meta| u64::from(meta.page_bytes)));
        let newest = first.into_iter().chain(second).max_by_key(|meta| meta.transaction);
        let meta = newest.ok_or_else(|| BoltError::NotADbSnapshot { path: path.into() })?;
        Ok(Self { file, path: path.into(), file_bytes, meta })
    }

    /// Opens a db snapshot that must have all of its pages.
    ///
    /// # Errors
    /// As for [`open`](Self::open); the end of the file is missing.
    pub fn open_whole(path: &Path) -> Result<Self, BoltError> {
        let opened = Self::open(path)?;
        let (bytes, expected) = (opened.file_bytes, opened.size_bytes());
        match bytes < expected {
            true => Err(BoltError::Truncated { path: path.into(), bytes, expected }),
            false => Ok(opened),
        }
    }

    /// Bytes of the pages in use.
    pub fn size_bytes(&self) -> u64 {
        self.meta.pages.saturating_mul(u64::from(self.meta.page_bytes))
    }

    /// Names of the buckets, ascending.
    ///
    /// # Errors
    /// The system's, and any page that is not what it may be.
    pub fn bucket_names(&self) -> Result<Vec<Bytes>, BoltError> {
        Ok(self.buckets()?.into_iter().map(|(name, _)| name).collect())
    }

    /// Shows the rows of one bucket, keys ascending, if it exists. Breaking off ends the walk.
    ///
    /// # Errors
    /// As [`bucket_names`](Self::bucket_names).
    pub fn bucket(&self, name: &[u8], visit: &mut VisitRow<'_>) -> Result<(), BoltError> {
        match self.buckets()?.into_iter().find(|(found, _)| found == name) {
            Some((_, root)) => self.rows(&root, visit),
            None => Ok(()),
        }
    }

    fn buckets(&self) -> Result<Vec<(Bytes, Root)>, BoltError> {
        let mut found: Vec<(Bytes, Bytes)> = Vec::new();
        let mut plain = false;
        let mut walk = Walk { db_snapshot: self, pages_left: self.pages_max(), last: None };
        let _ = walk.page(self.meta.root, 0, &mut |flags, key, value| {
            plain |= flags & BUCKET_ELEMENT == 0;
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })?;
        if plain {
            return Err(self.corrupt(self.meta.root, "a row outside any bucket"));
        }
        let roots = found.into_iter().map(|(name, value)| {
            let root = u64_at(&value, 0).filter(|_| value.len() >= BUCKET_BYTES);
            let root = match root.ok_or_else(|| self.corrupt(self.meta.root, "a bucket without its head"))? {
                0 => Root::Inline(value.slice(BUCKET_BYTES..)),
                id => Root::Page(id),
            };
            Ok((name, root))
        });
        roots.collect()
    }

    fn rows(&self, root: &Root, visit: &mut VisitRow<'_>) -> Result<(), BoltError> {
        let mut walk = Walk { db_snapshot: self, pages_left: self.pages_max(), last: None };
        let mut nested = false;
        let mut rows_only = |flags: u32, key: &[u8], value: &[u8]| {
            // A bucket within a bucket is nothing that etcd has.
            nested |= flags & BUCKET_ELEMENT != 0;
            if nested { ControlFlow::Break(()) } else { visit(key, value) }
        };
        // Whoever broke off knows.
        let _ = match root {
            Root::Page(id) => walk.page(*id, 0, &mut rows_only)?,
            Root::Inline(page) => walk.leaf(0, page, &mut rows_only)?,
        };
        match nested {
            true => Err(self.corrupt(self.meta.root, "a bucket within a bucket")),
            false => Ok(()),
        }
    }

    /// Pages that the file really has.
    fn pages_max(&self) -> u64 {
        self.meta.pages.min(self.file_bytes / u64::from(self.meta.page_bytes))
    }

    fn corrupt(&self, page: u64, what: &str) -> BoltError {
        BoltError::Corrupt { path: self.path.clone(), page, what: what.into() }
    }

    /// A page with all that belong to it, which are taken from `pages_left` before they are read.
    fn load(&self, id: u64, pages_left: &mut u64) -> Result<Vec<u8>, BoltError> {
        let io = |source| BoltError::Io { path: self.path.clone(), source };
        let page_bytes = u64::from(self.meta.page_bytes);
        let in_file = |pages: u64| {
            let end = id.checked_add(pages).filter(|end| *end <= self.meta.pages)?;
            end.checked_mul(page_bytes).filter(|end| *end <= self.file_bytes)?;
            Some(pages * page_bytes).filter(|size| *size <= PAGE_RUN_BYTES_MAX)
        };
        if id < 2 || in_file(1).is_none() {
            return Err(self.corrupt(id, "no such page"));
        }
        let mut head = [0; PAGE_HEAD_BYTES];
        self.file.read_exact_at(&mut head, id * page_bytes).map_err(io)?;
        let head = PageHead::read(&head).filter(|head| head.id == id);
        let head = head.ok_or_else(|| self.corrupt(id, "the page has another number"))?;
        let pages = u64::from(head.overflow) + 1;
        let size = in_file(pages).ok_or_else(|| self.corrupt(id, "the page runs past the end"))?;
        let left = pages_left.checked_sub(pages);
        *pages_left = left.ok_or_else(|| self.corrupt(id, "the tree has more pages than the file"))?;
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, id * page_bytes).map_err(io)?;
        Ok(bytes)
    }
}

enum Root {
    Page(u64),
    Inline(Bytes),
}

type Element<'a> = dyn FnMut(u32, &[u8], &[u8]) -> ControlFlow<()> + 'a;

/// One walk over a tree: no more pages than the file has, however they overlap, keys ascending.
struct Walk<'a> {
    db_snapshot: &'a BoltFile,
    pages_left: u64,
    last: Option<Vec<u8>>,
}

impl Walk<'_> {
    fn page(&mut self, id: u64, depth: usize, visit: &mut Element<'_>) -> Result<ControlFlow<()>, BoltError> {
        if depth == DEPTH_MAX {
            return Err(self.db_snapshot.corrupt(id, "the tree runs in a circle"));
        }
        let bytes = self.db_snapshot.load(id, &mut self.pages_left)?;
        let head = PageHead::read(&bytes).ok_or_else(|| self.db_snapshot.corrupt(id, "the page is too short"))?;
        match head.flags {
            LEAF => self.leaf(id, &bytes, visit),
            BRANCH => {
                for place in 0..usize::from(head.count) {
                    let at = PAGE_HEAD_BYTES + place * ELEMENT_BYTES;
                    let child = u64_at(&bytes, at + 8);
                    let child = child.ok_or_else(|| self.db_snapshot.corrupt(id, "elements run past the page"))?;
                    if self.page(child, depth + 1, visit)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            }
            _ => Err(self.db_snapshot.corrupt(id, "neither a leaf nor a branch")),
        }
    }

    fn leaf(&mut self, id: u64, bytes: &[u8], visit: &mut Element<'_>) -> Result<ControlFlow<()>, BoltError> {
        let corrupt = |what| self.db_snapshot.corrupt(id, what);
        let head = PageHead::read(bytes).filter(|head| head.flags == LEAF);
        let head = head.ok_or_else(|| corrupt("not a leaf"))?;
        for place in 0..usize::from(head.count) {
            let at = PAGE_HEAD_BYTES + place * ELEMENT_BYTES;
            let row = element(bytes, at).ok_or_else(|| corrupt("an element points outside the page"))?;
            let (flags, key, value) = row;
            if self.last.as_deref().is_some_and(|last| last >= key) {
                return Err(corrupt("keys are out of order"));
            }
            let last = self.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            if visit(flags, key, value).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn element(bytes: &[u8], at: usize) -> Option<(u32, &[u8], &[u8])> {
    let flags = u32_at(bytes, at)?;
    let key_at = at.checked_add(u32_at(bytes, at + 4)? as usize)?;
    let value_at = key_at.checked_add(u32_at(bytes, at + 8)? as usize)?;
    let end = value_at.checked_add(u32_at(bytes, at + 12)? as usize)?;
    Some((flags, bytes.get(key_at..value_at)?, bytes.get(value_at..end)?))
}
