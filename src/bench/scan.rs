//! Reads the few fields of answers that the generator uses, without decoding the rest.

/// A field's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Eight or four bytes, skipped.
    Fixed,
}

/// The fields of a message in wire order; `None` inside marks bytes that are no message.
pub(super) struct Fields<'a>(&'a [u8]);

pub(super) fn fields(message: &[u8]) -> Fields<'_> {
    Fields(message)
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<(u32, Field<'a>)> {
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        Some((u32::try_from(tag >> 3).ok()?, field))
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for (at, &byte) in self.0.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

/// The fields of a watch answer that the generator uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WatchAnswer<'a> {
    pub(super) watch_id: i64,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) reason: &'a [u8],
}

/// One event: where it stands and what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub(super) mod_revision: i64,
    pub(super) value: &'a [u8],
}

/// Reads a watch answer and hands each event to `visit`. `None` when the bytes are no such message.
pub(super) fn watch_answer<'a>(message: &'a [u8], mut visit: impl FnMut(i64, Event<'a>)) -> Option<WatchAnswer<'a>> {
    let mut answer = WatchAnswer::default();
    // Fields may come in any order, and events belong to a watch: first the head, then the events.
    for field in fields(message) {
        match field? {
            (2, Field::Number(id)) => answer.watch_id = id as i64,
            (3, Field::Number(flag)) => answer.created = flag != 0,
            (4, Field::Number(flag)) => answer.canceled = flag != 0,
            (6, Field::Bytes(reason)) => answer.reason = reason,
            _ => {}
        }
    }
    for field in fields(message) {
        if let (11, Field::Bytes(bytes)) = field? {
            visit(answer.watch_id, event(bytes)?);
        }
    }
    Some(answer)
}

fn event(message: &[u8]) -> Option<Event<'_>> {
    let mut event = Event::default();
    for field in fields(message) {
        let (2, Field::Bytes(kv)) = field? else { continue };
        for field in fields(kv) {
            match field? {
                (3, Field::Number(revision)) => event.mod_revision = revision as i64,
                (5, Field::Bytes(value)) => event.value = value,
                _ => {}
            }
        }
    }
    Some(event)
}

/// Id and TTL of a keep-alive answer.
pub(super) fn keep_alive_answer(message: &[u8]) -> Option<(i64, i64)> {
    let (mut id, mut ttl) = (0, 0);
    for field in fields(message) {
        match field? {
            (2, Field::Number(number)) => id = number as i64,
            (3, Field::Number(number)) => ttl = number as i64,
            _ => {}
        }
    }
    Some((id, ttl))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::{LeaseKeepAliveResponse, ResponseHeader, WatchResponse};
    use crate::pb::mvccpb;

    #[test]
    fn a_watch_answer_is_read_as_prost_wrote_it() {
        let kv = |mod_revision, value: &'static str| mvccpb::KeyValue {
            key: "k".into(),
            value: value.into(),
            mod_revision,
            ..Default::default()
        };
        let wire = WatchResponse {
            header: Some(ResponseHeader { cluster_id: u64::MAX, revision: 300, ..Default::default() }),
            watch_id: -1,
            events: vec![
                mvccpb::Event { kv: Some(kv(299, "a")), prev_kv: Some(kv(1, "old")), ..Default::default() },
                mvccpb::Event { kv: Some(kv(300, "b")), ..Default::default() },
            ],
            ..Default::default()
        }
        .encode_to_vec();
        let mut seen = Vec::new();
        let answer = watch_answer(&wire, |id, event| seen.push((id, event.mod_revision, event.value))).unwrap();
        assert_eq!(answer, WatchAnswer { watch_id: -1, ..Default::default() });
        assert_eq!(seen, [(-1, 299, &b"a"[..]), (-1, 300, &b"b"[..])]);
    }

    #[test]
    fn a_keep_alive_answer_is_read() {
        let wire = LeaseKeepAliveResponse { id: -5, ttl: 60, ..Default::default() }.encode_to_vec();
        assert_eq!(keep_alive_answer(&wire), Some((-5, 60)));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        for bytes in [&[0xff][..], &[0x12, 0x05, 0x00], &[0x0b], &[0x80; 12]] {
            assert_eq!(keep_alive_answer(bytes), None, "{bytes:?}");
            assert!(watch_answer(bytes, |_, _| {}).is_none());
        }
    }
}
