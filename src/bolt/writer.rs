use std::io::{self, Write};

use super::format::{BRANCH, BUCKET_ELEMENT, ELEMENT_BYTES, LEAF, META, Meta, PAGE_BYTES, PAGE_HEAD_BYTES, PageHead};
use super::plan::{Body, BranchPlan, BucketPlan, PagePlan, SnapshotPlan, SnapshotRows};

impl SnapshotPlan {
    /// Writes the db snapshot in a second walk over the same rows.
    ///
    /// # Errors
    /// The source's and the receiver's; rows that differ from those of the first walk.
    pub fn write<S>(&self, source: &S, out: &mut dyn Write) -> Result<(), S::Error>
    where
        S: SnapshotRows,
        S::Error: From<io::Error>,
    {
        let mut page = Vec::with_capacity(2 * PAGE_BYTES);
        for id in 0..2 {
            PageHead { id, flags: META, count: 0, overflow: 0 }.write(&mut page);
            let meta = Meta { page_bytes: PAGE_BYTES as u32, root: self.root, pages: self.pages, transaction: id };
            meta.write(&mut page);
            finish(&mut page, 1, out)?;
        }
        let mut entries = Elements::default();
        for bucket in &self.buckets {
            let inline = write_bucket(bucket, source, out)?;
            let mut value = Vec::with_capacity(16 + inline.len());
            value.extend_from_slice(&bucket.body.root().to_le_bytes());
            value.extend_from_slice(&0u64.to_le_bytes());
            value.extend_from_slice(&inline);
            entries.add(BUCKET_ELEMENT, bucket.name.as_bytes(), &value);
        }
        entries.write(self.root, 0, &mut page);
        finish(&mut page, 1, out)?;
        Ok(())
    }
}

/// Writes the pages of a bucket; answers with its one page when that goes into the entry instead.
fn write_bucket<S>(bucket: &BucketPlan, source: &S, out: &mut dyn Write) -> Result<Vec<u8>, S::Error>
where
    S: SnapshotRows,
    S::Error: From<io::Error>,
{
    let mut page = Vec::with_capacity(2 * PAGE_BYTES);
    let mut elements = Elements::default();
    let (leaves, branches) = match &bucket.body {
        Body::Inline => {
            source.rows(bucket.name, &mut |key, value| {
                elements.add(0, key, value);
                Ok(())
            })?;
            check(elements.count as u64 == bucket.rows, bucket)?;
            elements.write(0, 0, &mut page);
            return Ok(page);
        }
        Body::Pages { leaves, branches } => (leaves, branches),
    };
    let mut plans = leaves.iter();
    let mut plan = plans.next();
    source.rows(bucket.name, &mut |key, value| {
        elements.add(0, key, value);
        if let Some(full) = plan.filter(|plan| plan.count == elements.count) {
            write_leaf(full, &mut elements, &mut page, out)?;
            plan = plans.next();
        }
        Ok(())
    })?;
    check(plan.is_none() && elements.count == 0, bucket)?;
    let mut below: Vec<&PagePlan> = leaves.iter().collect();
    for level in branches {
        for branch in level {
            write_branch(branch, &below, &mut page, out)?;
        }
        below = level.iter().map(|branch| &branch.page).collect();
    }
    Ok(Vec::new())
}

fn write_leaf(plan: &PagePlan, elements: &mut Elements, page: &mut Vec<u8>, out: &mut dyn Write) -> io::Result<()> {
    if !elements.fits(plan) {
        return Err(io::Error::other("rows changed while the db snapshot was written"));
    }
    elements.write(plan.id, plan.pages - 1, page);
    elements.clear();
    finish(page, plan.pages, out)
}

fn write_branch(plan: &BranchPlan, below: &[&PagePlan], page: &mut Vec<u8>, out: &mut dyn Write) -> io::Result<()> {
    let children = &below[plan.children..plan.children + usize::from(plan.page.count)];
    let overflow = (plan.page.pages - 1) as u32;
    PageHead { id: plan.page.id, flags: BRANCH, count: plan.page.count, overflow }.write(page);
    let mut key_at = children.len() * ELEMENT_BYTES;
    for child in children {
        page.extend_from_slice(&(key_at as u32).to_le_bytes());
        page.extend_from_slice(&(child.first.len() as u32).to_le_bytes());
        page.extend_from_slice(&child.id.to_le_bytes());
        key_at = key_at + child.first.len() - ELEMENT_BYTES;
    }
    children.iter().for_each(|child| page.extend_from_slice(&child.first));
    finish(page, plan.page.pages, out)
}

/// Fills up to whole pages, writes them and empties the buffer.
fn finish(page: &mut Vec<u8>, pages: u64, out: &mut dyn Write) -> io::Result<()> {
    let size = pages as usize * PAGE_BYTES;
    if page.len() > size {
        return Err(io::Error::other("rows changed while the db snapshot was written"));
    }
    page.resize(size, 0);
    out.write_all(page)?;
    page.clear();
    page.shrink_to(64 * PAGE_BYTES);
    Ok(())
}

fn check(same: bool, bucket: &BucketPlan) -> io::Result<()> {
    match same {
        true => Ok(()),
        false => Err(io::Error::other(format!("rows of {} changed while the db snapshot was written", bucket.name))),
    }
}

/// Elements of the leaf page being filled.
#[derive(Default)]
struct Elements {
    /// Flags, key bytes, value bytes.
    sizes: Vec<(u32, u32, u32)>,
    data: Vec<u8>,
    count: u16,
}

impl Elements {
    fn add(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        self.sizes.push((flags, key.len() as u32, value.len() as u32));
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
        self.count += 1;
    }

    fn fits(&self, plan: &PagePlan) -> bool {
        let used = PAGE_HEAD_BYTES + self.sizes.len() * ELEMENT_BYTES + self.data.len();
        used.div_ceil(PAGE_BYTES) as u64 == plan.pages && self.data.starts_with(&plan.first)
    }

    fn write(&self, id: u64, overflow: u64, page: &mut Vec<u8>) {
        PageHead { id, flags: LEAF, count: self.count, overflow: overflow as u32 }.write(page);
        let mut key_at = self.sizes.len() * ELEMENT_BYTES;
        for (flags, key_len, value_len) in &self.sizes {
            for number in [*flags, key_at as u32, *key_len, *value_len] {
                page.extend_from_slice(&number.to_le_bytes());
            }
            key_at = key_at + (key_len + value_len) as usize - ELEMENT_BYTES;
        }
        page.extend_from_slice(&self.data);
    }

    fn clear(&mut self) {
        self.sizes.clear();
        self.data.clear();
        self.data.shrink_to(64 * PAGE_BYTES);
        self.count = 0;
    }
}
