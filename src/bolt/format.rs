//! Layout of pages, all numbers little endian:
//!
//! ```text
//! page    id u64 | flags u16 | elements u16 | pages that follow and belong to it u32 | elements | data
//! meta    magic u32 | version u32 | page size u32 | flags u32 | root page u64 | root sequence u64
//!         | free list page u64 | pages in use u64 | transaction u64 | FNV-1a of all that u64
//! leaf    flags u32 | where the key is, from here u32 | key bytes u32 | value bytes u32   (value follows the key)
//! branch  where the key is, from here u32 | key bytes u32 | page u64
//! bucket  root page u64, or 0 when the page follows right here | sequence u64            (value of a leaf element)
//! ```

pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const PAGE_HEAD_BYTES: usize = 16;
pub(super) const ELEMENT_BYTES: usize = 16;
pub(super) const BUCKET_BYTES: usize = 16;
pub(super) const META_BYTES: usize = 64;

pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;
pub(super) const META: u16 = 0x04;
/// Mark of a leaf element whose value is a bucket.
pub(super) const BUCKET_ELEMENT: u32 = 0x01;

pub(super) const MAGIC: u32 = 0xED0C_DAED;
pub(super) const VERSION: u32 = 2;
/// Says that the free list is not stored; readers find free pages by walking.
pub(super) const NO_FREE_LIST: u64 = u64::MAX;

/// Head of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageHead {
    pub(super) id: u64,
    pub(super) flags: u16,
    pub(super) count: u16,
    pub(super) overflow: u32,
}

impl PageHead {
    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.overflow.to_le_bytes());
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            id: u64_at(bytes, 0)?,
            flags: u16_at(bytes, 8)?,
            count: u16_at(bytes, 10)?,
            overflow: u32_at(bytes, 12)?,
        })
    }
}

/// What a meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) page_bytes: u32,
    pub(super) root: u64,
    pub(super) pages: u64,
    pub(super) transaction: u64,
}

impl Meta {
    pub(super) fn write(self, out: &mut Vec<u8>) {
        let start = out.len();
        for number in [MAGIC, VERSION, self.page_bytes, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.root, 0, NO_FREE_LIST, self.pages, self.transaction] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let sum = fnv1a(&out[start..]);
        out.extend_from_slice(&sum.to_le_bytes());
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let valid = u32_at(bytes, 0)? == MAGIC
            && u32_at(bytes, 4)? == VERSION
            && u64_at(bytes, META_BYTES - 8)? == fnv1a(&bytes[..META_BYTES - 8]);
        let meta = Self {
            page_bytes: u32_at(bytes, 8)?,
            root: u64_at(bytes, 16)?,
            pages: u64_at(bytes, 40)?,
            transaction: u64_at(bytes, 48)?,
        };
        (valid && meta.page_bytes.is_power_of_two() && (512..=65536).contains(&meta.page_bytes)).then_some(meta)
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
