use bytes::Bytes;

use super::format::{BUCKET_BYTES, ELEMENT_BYTES, PAGE_BYTES, PAGE_HEAD_BYTES};

/// Takes one row: key, value.
pub type Visit<'a, E> = dyn FnMut(&[u8], &[u8]) -> Result<(), E> + 'a;

/// Rows for a db snapshot: one state, which two walks see alike.
pub trait SnapshotRows {
    /// Why a walk may fail.
    type Error;

    /// Names of the buckets.
    fn buckets(&self) -> Vec<&'static str>;
    /// Shows the rows of a bucket in ascending order of their keys.
    ///
    /// # Errors
    /// The source's own, and whatever `visit` returns.
    fn rows(&self, bucket: &str, visit: &mut Visit<'_, Self::Error>) -> Result<(), Self::Error>;
}

/// Buckets up to this size lie within the page of bucket names, as etcd has them.
const INLINE_BYTES_MAX: usize = 256;
/// Pages before the first bucket's.
const META_PAGES: u64 = 2;

/// Where everything goes in a db snapshot; made in the first walk over the rows.
///
/// Holds the first key of every leaf page: some 100 bytes for each 4 KiB of the db snapshot.
#[derive(Debug)]
pub struct SnapshotPlan {
    pub(super) buckets: Vec<BucketPlan>,
    pub(super) root: u64,
    pub(super) pages: u64,
}

#[derive(Debug)]
pub(super) struct BucketPlan {
    pub(super) name: &'static str,
    pub(super) rows: u64,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Inline,
    Pages {
        leaves: Vec<PagePlan>,
        /// Lowest first; the last one has one page, the root. None when there is a single leaf.
        branches: Vec<Vec<BranchPlan>>,
    },
}

#[derive(Debug)]
pub(super) struct PagePlan {
    pub(super) id: u64,
    /// Pages taken.
    pub(super) pages: u64,
    pub(super) first: Bytes,
    pub(super) count: u16,
}

#[derive(Debug)]
pub(super) struct BranchPlan {
    pub(super) page: PagePlan,
    /// Index of its first child in the level below.
    pub(super) children: usize,
}

impl Body {
    /// The page that a bucket's entry names; 0 when the bucket lies within the entry.
    pub(super) fn root(&self) -> u64 {
        match self {
            Self::Inline => 0,
            Self::Pages { leaves, branches } => {
                let root = branches.last().and_then(|level| level.last()).map(|branch| &branch.page).or(leaves.last());
                root.map_or(0, |page| page.id)
            }
        }
    }
}

impl SnapshotPlan {
    /// Walks over the rows once.
    ///
    /// # Errors
    /// The source's.
    pub fn measure<S: SnapshotRows>(source: &S) -> Result<Self, S::Error> {
        let mut names = source.buckets();
        names.sort_unstable();
        let mut next = META_PAGES;
        let mut buckets = Vec::with_capacity(names.len());
        for name in names {
            let mut filling = Filling::default();
            let mut rows = 0;
            source.rows(name, &mut |key, value| {
                rows += 1;
                filling.add(key, value.len());
                Ok(())
            })?;
            buckets.push(BucketPlan { name, rows, body: filling.finish(&mut next) });
        }
        Ok(Self { buckets, root: next, pages: next + 1 })
    }

    /// Size of the db snapshot.
    pub fn size_bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// Rows in all buckets.
    pub fn rows(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.rows).sum()
    }
}

/// Packs rows into leaf pages: as many as fit, or one that takes several pages.
#[derive(Default)]
struct Filling {
    done: Vec<PagePlan>,
    first: Option<Bytes>,
    used: usize,
    count: u16,
    bytes: usize,
}

impl Filling {
    fn add(&mut self, key: &[u8], value_len: usize) {
        let cost = ELEMENT_BYTES + key.len() + value_len;
        if self.first.is_some() && self.used + cost > PAGE_BYTES {
            self.close();
        }
        if self.first.is_none() {
            self.first = Some(Bytes::copy_from_slice(key));
            self.used = PAGE_HEAD_BYTES;
        }
        self.used += cost;
        self.bytes += cost;
        self.count += 1;
    }

    fn close(&mut self) {
        if let Some(first) = self.first.take() {
            let pages = self.used.div_ceil(PAGE_BYTES) as u64;
            self.done.push(PagePlan { id: 0, pages, first, count: self.count });
            self.count = 0;
        }
    }

    fn finish(mut self, next: &mut u64) -> Body {
        if BUCKET_BYTES + PAGE_HEAD_BYTES + self.bytes <= INLINE_BYTES_MAX {
            return Body::Inline;
        }
        self.close();
        let mut leaves = self.done;
        leaves.iter_mut().for_each(|leaf| place(leaf, next));
        let mut branches: Vec<Vec<BranchPlan>> = Vec::new();
        loop {
            let level = match branches.last() {
                None => level_above(&leaves, next),
                Some(below) => level_above(below.iter().map(|branch| &branch.page), next),
            };
            if level.is_empty() {
                return Body::Pages { leaves, branches };
            }
            branches.push(level);
        }
    }
}

fn place(page: &mut PagePlan, next: &mut u64) {
    page.id = *next;
    *next += page.pages;
}

/// Branch pages over the pages of a level; none when that is a single page.
fn level_above<'a>(below: impl IntoIterator<Item = &'a PagePlan>, next: &mut u64) -> Vec<BranchPlan> {
    let costs: Vec<_> = below.into_iter().map(|page| (ELEMENT_BYTES + page.first.len(), page.first.clone())).collect();
    if costs.len() < 2 {
        return Vec::new();
    }
    let mut starts = vec![0];
    let (mut used, mut count) = (PAGE_HEAD_BYTES, 0);
    for (place, (cost, _)) in costs.iter().enumerate() {
        // Two children at least: a branch with one would be no branch.
        if count >= 2 && used + cost > PAGE_BYTES {
            starts.push(place);
            (used, count) = (PAGE_HEAD_BYTES, 0);
        }
        used += cost;
        count += 1;
    }
    if count == 1 && starts.len() > 1 {
        // The page before has two or more; with exactly two there is nothing to spare, so that they become one page.
        let last = starts.len() - 1;
        if starts[last] - starts[last - 1] > 2 {
            starts[last] -= 1;
        } else {
            starts.pop();
        }
    }
    let ends = starts.iter().copied().skip(1).chain([costs.len()]);
    let level = starts.iter().zip(ends).map(|(&start, end)| {
        let used: usize = PAGE_HEAD_BYTES + costs[start..end].iter().map(|(cost, _)| cost).sum::<usize>();
        let pages = used.div_ceil(PAGE_BYTES) as u64;
        let mut page = PagePlan { id: 0, pages, first: costs[start].1.clone(), count: (end - start) as u16 };
        place(&mut page, next);
        BranchPlan { page, children: start }
    });
    level.collect()
}
