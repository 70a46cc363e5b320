use std::sync::Arc;

const PAGE_BYTES: usize = 4096;

type Page = [u8; PAGE_BYTES];

/// Contents of a file. A copy shares its pages until one of the two changes them.
#[derive(Clone, Debug, Default)]
pub struct Bytes {
    /// None for a page of zeroes.
    pages: Arc<Vec<Option<Arc<Page>>>>,
    len: u64,
}

impl Bytes {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads up to `into.len()` bytes; fewer only at the end.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let available = self.len.saturating_sub(offset).min(into.len() as u64) as usize;
        let mut done = 0;
        while done < available {
            let at = offset as usize + done;
            let (page, within) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let part = (PAGE_BYTES - within).min(available - done);
            match &self.pages[page] {
                Some(page) => into[done..done + part].copy_from_slice(&page[within..within + part]),
                None => into[done..done + part].fill(0),
            }
            done += part;
        }
        available
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if self.len < offset + data.len() as u64 {
            self.resize(offset + data.len() as u64);
        }
        let pages = Arc::make_mut(&mut self.pages);
        let mut done = 0;
        while done < data.len() {
            let at = offset as usize + done;
            let (page, within) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let part = (PAGE_BYTES - within).min(data.len() - done);
            let page = Arc::make_mut(pages[page].get_or_insert_with(|| Arc::new([0; PAGE_BYTES])));
            page[within..within + part].copy_from_slice(&data[done..done + part]);
            done += part;
        }
    }

    pub fn resize(&mut self, len: u64) {
        let pages = Arc::make_mut(&mut self.pages);
        pages.resize((len as usize).div_ceil(PAGE_BYTES), None);
        let rest = len as usize % PAGE_BYTES;
        if len < self.len
            && rest > 0
            && let Some(Some(last)) = pages.last_mut()
        {
            // What is beyond the end reads as zeroes when the file grows again.
            Arc::make_mut(last)[rest..].fill(0);
        }
        self.len = len;
    }
}
