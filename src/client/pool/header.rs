/// The first bytes of an answer that surely hold all of its header: a tag and a length, then four numbers.
pub const HEADER_BYTES_MAX: usize = WRAPPER_BYTES_MAX + 2 + 4 * 11;
/// Tag and length of what [`peek_wrapped_header`] looks into.
const WRAPPER_BYTES_MAX: usize = 1 + 5;

/// What an answer says of the cluster and of the member's position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeekedHeader {
    /// 0 when the answer does not name it.
    pub cluster_id: u64,
    /// The member's revision; 0 when the answer does not name it.
    pub revision: i64,
}

/// Reads the header of an answer of the API without decoding the rest, which may be missing: it is field 1 of every
/// answer, and every server writes fields in their order. None for anything else.
pub fn peek_header(message: &[u8]) -> Option<PeekedHeader> {
    const LENGTH_DELIMITED: u64 = 2;
    let mut rest = message;
    if varint(&mut rest)? != 1 << 3 | LENGTH_DELIMITED {
        return None;
    }
    let length = usize::try_from(varint(&mut rest)?).ok()?;
    let mut fields = rest.get(..length)?;
    let mut header = PeekedHeader::default();
    while !fields.is_empty() {
        let tag = varint(&mut fields)?;
        // All fields of a header are plain numbers.
        if tag & 7 != 0 {
            return None;
        }
        let value = varint(&mut fields)?;
        match tag >> 3 {
            1 => header.cluster_id = value,
            3 => header.revision = value as i64,
            _ => {}
        }
    }
    Some(header)
}

/// The same for an answer whose field 1 is an answer, as those of RangeStream.
pub fn peek_wrapped_header(message: &[u8]) -> Option<PeekedHeader> {
    let mut rest = message;
    let (_tag, _length) = (varint(&mut rest)?, varint(&mut rest)?);
    peek_header(rest)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader};

    #[test]
    fn the_header_is_read_and_nothing_else() {
        for revision in [0, 1, 127, 128, i64::MAX, -1] {
            let header = ResponseHeader { cluster_id: u64::MAX, member_id: u64::MAX, revision, raft_term: u64::MAX };
            let answer = RangeResponse { header: Some(header), count: 7, ..Default::default() }.encode_to_vec();
            let expected = PeekedHeader { cluster_id: u64::MAX, revision };
            assert_eq!(peek_header(&answer), Some(expected));
            assert_eq!(peek_header(&answer[..answer.len().min(HEADER_BYTES_MAX)]), Some(expected), "{revision}");
            assert_eq!(peek_header(&answer[..10]), None);
        }
        let answer =
            RangeResponse { header: Some(ResponseHeader { revision: 5, ..Default::default() }), ..Default::default() };
        let stream = RangeStreamResponse { range_response: Some(answer) }.encode_to_vec();
        assert_eq!(peek_wrapped_header(&stream), Some(PeekedHeader { cluster_id: 0, revision: 5 }));
        let no_header = RangeRequest { range_end: "x".into(), limit: 3, ..Default::default() }.encode_to_vec();
        assert_eq!((peek_header(&no_header), peek_header(b""), peek_header(&[0xff; 20])), (None, None, None));
    }
}
