use super::change::Table;

/// Pages a store has before the first row: what etcd's file has when it is new.
const BASE_BYTES: u64 = 5 * PAGE_BYTES;
const PAGE_BYTES: u64 = 4096;
/// Element header of a page in etcd's file.
const ELEMENT_BYTES: u64 = 16;

/// Logical cost of a row: what it takes in a page of etcd's file.
///
/// Sizes are logical so that a quota means the same as with etcd: the database underneath allocates in other
/// steps, and is 50 KiB and more when it is empty.
pub(super) fn row_cost(key_bytes: usize, value_bytes: usize) -> u64 {
    ELEMENT_BYTES + key_bytes as u64 + value_bytes as u64
}

/// Logical size of a store whose rows cost this much.
pub(super) fn logical_size(rows_bytes: u64) -> u64 {
    BASE_BYTES + rows_bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

/// What the rows of one table amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TableTotals {
    pub(super) rows: u64,
    /// Sum of the rows' checksums, so that a missing or repeated row shows in a walk over all.
    pub(super) digest: u64,
    pub(super) cost: u64,
}

impl TableTotals {
    pub(super) fn add(&mut self, row_bytes: u64, checksum: u32) {
        self.rows = self.rows.wrapping_add(1);
        self.digest = self.digest.wrapping_add(u64::from(checksum));
        self.cost = self.cost.wrapping_add(row_bytes);
    }

    pub(super) fn remove(&mut self, row_bytes: u64, checksum: u32) {
        self.rows = self.rows.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(u64::from(checksum));
        self.cost = self.cost.wrapping_sub(row_bytes);
    }
}

/// Totals of the whole store; stored with the rows they count, in the same commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    tables: [TableTotals; Table::ALL.len()],
    /// Largest logical size since the last defragmentation.
    pub(super) high_water: u64,
}

impl Totals {
    const BYTES: usize = Table::ALL.len() * 24 + 8;

    pub(super) fn table(&self, table: Table) -> &TableTotals {
        &self.tables[table.slot()]
    }

    pub(super) fn table_mut(&mut self, table: Table) -> &mut TableTotals {
        &mut self.tables[table.slot()]
    }

    pub(super) fn rows(&self) -> u64 {
        self.tables.iter().fold(0, |sum, table| sum.wrapping_add(table.rows))
    }

    pub(super) fn cost(&self) -> u64 {
        self.tables.iter().fold(0, |sum, table| sum.wrapping_add(table.cost))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::BYTES);
        for table in &self.tables {
            for number in [table.rows, table.digest, table.cost] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        out.extend_from_slice(&self.high_water.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let mut numbers = bytes.chunks_exact(8).map(|chunk| chunk.try_into().map(u64::from_le_bytes));
        let mut totals = Self::default();
        for table in &mut totals.tables {
            table.rows = numbers.next()?.ok()?;
            table.digest = numbers.next()?.ok()?;
            table.cost = numbers.next()?.ok()?;
        }
        totals.high_water = numbers.next()?.ok()?;
        Some(totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_store_is_as_large_as_one_of_etcd() {
        assert_eq!(logical_size(0), 20_480);
        assert_eq!(logical_size(1), 24_576);
    }

    #[test]
    fn stored_form_round_trips() {
        let mut totals = Totals { high_water: 7, ..Totals::default() };
        totals.table_mut(Table::Lease).add(100, 0xffff_ffff);
        totals.table_mut(Table::AuthRoles).add(1, 2);
        assert_eq!(Totals::decode(&totals.encode()), Some(totals.clone()));
        assert_eq!(Totals::decode(&totals.encode()[1..]), None);
    }
}
