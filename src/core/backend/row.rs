use super::change::Table;
use super::error::Fault;

/// Bytes that follow each value: CRC-32C over the table, the key and the value.
///
/// The database underneath checks its own sums only when it repairs a file; a flipped bit would be served as data.
const CHECKSUM_BYTES: usize = 4;

/// Fills `sealed` with the stored form of a row's value and returns its checksum.
pub(super) fn seal(table: Table, key: &[u8], value: &[u8], sealed: &mut Vec<u8>) -> u32 {
    let checksum = checksum(table, key, value);
    sealed.clear();
    sealed.extend_from_slice(value);
    sealed.extend_from_slice(&checksum.to_le_bytes());
    checksum
}

/// The value of a stored row.
pub(super) fn unseal<'a>(table: Table, key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], Fault> {
    let Some((value, suffix)) = stored.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(mismatch(table, key));
    };
    if checksum(table, key, value) != u32::from_le_bytes(*suffix) {
        return Err(mismatch(table, key));
    }
    Ok(value)
}

/// The checksum a stored row carries; zero when it is too short to have one.
pub(super) fn checksum_of(stored: &[u8]) -> u32 {
    stored.last_chunk().map_or(0, |suffix| u32::from_le_bytes(*suffix))
}

/// Stored form of the backend's own rows.
pub(super) fn seal_own(value: &[u8]) -> Vec<u8> {
    let mut sealed = value.to_vec();
    sealed.extend_from_slice(&crc32c::crc32c(value).to_le_bytes());
    sealed
}

/// Value of one of the backend's own rows.
pub(super) fn unseal_own(stored: &[u8]) -> Option<&[u8]> {
    let (value, suffix) = stored.split_last_chunk::<CHECKSUM_BYTES>()?;
    (crc32c::crc32c(value) == u32::from_le_bytes(*suffix)).then_some(value)
}

fn checksum(table: Table, key: &[u8], value: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(table as u32, key);
    // The length keeps a byte from moving between key and value.
    let length = crc32c::crc32c_append(head, &(key.len() as u32).to_le_bytes());
    crc32c::crc32c_append(length, value)
}

fn mismatch(table: Table, key: &[u8]) -> Fault {
    Fault::Corrupt(format!("row {} of {} does not match its checksum", key.escape_ascii(), table.name()))
}
