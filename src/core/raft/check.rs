//! What is checked before a peer's message reaches the library, which panics on impossible ones.
//!
//! Here: everything that can be told from the message alone. What depends on this member's log is checked by
//! [`RaftNode::step`](super::RaftNode::step).

use bytes::Bytes;
use prost::encoding::{WireType, decode_key, decode_varint};
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::log::{conf_state_from_raft, conf_state_to_raft};
use super::members::ProposedChange;
use super::peer::RefusedMessage;
use crate::pb::walpb;
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Bytes of a read request's context: member, boot nonce, counter.
pub(super) const CONTEXT_BYTES: usize = 24;
/// Terms and indexes a real cluster never reaches; beyond them sums could overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// A message of a peer that may be stepped.
#[derive(Clone, Debug)]
pub struct PeerMessage(pub(super) Message);

impl PeerMessage {
    /// Reads a message that came from `from` and must be for `to`. Snapshots come by their own way, see
    /// [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// When no honest member sends this.
    pub fn parse(to: MemberId, from: MemberId, bytes: &Bytes) -> Result<Self, RefusedMessage> {
        let message = read(to, from, bytes)?;
        if message.get_msg_type() == MessageType::MsgSnapshot {
            return refuse("a snapshot message without its db snapshot");
        }
        Ok(Self(message))
    }

    /// Reads the message that goes with the db snapshot of a state.
    ///
    /// # Errors
    /// When it is not one.
    pub fn snapshot(to: MemberId, from: MemberId, bytes: &Bytes) -> Result<Self, RefusedMessage> {
        let message = read(to, from, bytes)?;
        match message.get_msg_type() {
            MessageType::MsgSnapshot => Ok(Self(message)),
            other => refuse(format!("{other:?} in the place of a snapshot")),
        }
    }

    /// Whether it brings requests that would grow the state: not membership changes, nor what a new leader begins with.
    pub(super) fn has_requests(&self) -> bool {
        let is_request = |entry: &Entry| entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty();
        matches!(self.0.get_msg_type(), MessageType::MsgAppend | MessageType::MsgPropose)
            && self.0.get_entries().iter().any(is_request)
    }

    /// Position of the state a snapshot announces.
    pub fn snapshot_position(&self) -> LogPosition {
        let metadata = self.0.get_snapshot().get_metadata();
        LogPosition { index: LogIndex(metadata.index), term: Term(metadata.term) }
    }
}

/// Rewrites a snapshot message to the position of the db snapshot that really goes with it.
///
/// # Errors
/// When `bytes` is no snapshot message.
pub fn snapshot_message(
    bytes: &[u8],
    position: LogPosition,
    conf_state: &walpb::ConfState,
) -> Result<Bytes, RefusedMessage> {
    let mut message = Message::default();
    if !is_flat(bytes, MESSAGE)
        || message.merge_from_bytes(bytes).is_err()
        || message.get_msg_type() != MessageType::MsgSnapshot
    {
        return refuse("not a snapshot message");
    }
    let metadata = message.mut_snapshot().mut_metadata();
    metadata.index = position.index.0;
    metadata.term = position.term.0;
    metadata.set_conf_state(conf_state_to_raft(conf_state));
    message.write_to_bytes().map(Bytes::from).or_else(|error| refuse(error.to_string()))
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, RefusedMessage> {
    Err(RefusedMessage(reason.into()))
}

fn read(to: MemberId, from: MemberId, bytes: &Bytes) -> Result<Message, RefusedMessage> {
    if !is_flat(bytes, MESSAGE) {
        return refuse("not a message, or one with groups");
    }
    let mut message = Message::default();
    let mut input = protobuf::CodedInputStream::from_carllerche_bytes(bytes);
    if message.merge_from(&mut input).is_err() {
        return refuse("not a message");
    }
    if message.from != from.0 || message.to != to.0 {
        return refuse(format!("from {:x} to {:x}, but it came from {from} to {to}", message.from, message.to));
    }
    check(&message)?;
    Ok(message)
}

/// Which fields of a message are messages themselves.
struct Shape(&'static [(u32, &'static Shape)]);

const LEAF: &Shape = &Shape(&[]);
const METADATA: &Shape = &Shape(&[(1, LEAF)]);
const SNAPSHOT: &Shape = &Shape(&[(2, METADATA)]);
const MESSAGE: &Shape = &Shape(&[(7, LEAF), (9, SNAPSHOT)]);

/// Whether there is no group anywhere: the library's protobuf follows nested groups until the stack is used up
/// (RUSTSEC-2024-0437), and no member sends any.
fn is_flat(mut bytes: &[u8], shape: &Shape) -> bool {
    while !bytes.is_empty() {
        let Ok((field, wire_type)) = decode_key(&mut bytes) else { return false };
        let length = match wire_type {
            WireType::Varint => match decode_varint(&mut bytes) {
                Ok(_) => 0,
                Err(_) => return false,
            },
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => match decode_varint(&mut bytes) {
                Ok(length) => usize::try_from(length).unwrap_or(usize::MAX),
                Err(_) => return false,
            },
            WireType::StartGroup | WireType::EndGroup => return false,
        };
        let Some((content, rest)) = bytes.split_at_checked(length) else { return false };
        let inner = shape.0.iter().find(|(number, _)| *number == field);
        if wire_type == WireType::LengthDelimited
            && let Some((_, inner)) = inner
            && !is_flat(content, inner)
        {
            return false;
        }
        bytes = rest;
    }
    true
}

fn check(message: &Message) -> Result<(), RefusedMessage> {
    use MessageType::*;
    let kind = message.get_msg_type();
    let numbers = [message.term, message.index, message.log_term, message.commit, message.reject_hint];
    if numbers.iter().any(|number| *number > NUMBER_MAX) {
        return refuse("a number no log reaches");
    }
    if message.request_snapshot != 0 || message.priority != 0 || message.deprecated_priority != 0 {
        return refuse("a field that no member sets");
    }
    let has_term = message.term != 0;
    if has_term == matches!(kind, MsgReadIndex) {
        return refuse(format!("{kind:?} in term {}", message.term));
    }
    if !matches!(kind, MsgAppend | MsgPropose | MsgReadIndex | MsgReadIndexResp) && !message.entries.is_empty() {
        return refuse(format!("{kind:?} with entries"));
    }
    match kind {
        MsgAppend => check_append(message),
        MsgPropose => check_proposal(message),
        MsgReadIndex | MsgReadIndexResp => check_read(message),
        MsgHeartbeat | MsgHeartbeatResponse if !matches!(message.context.len(), 0 | CONTEXT_BYTES) => {
            refuse("a context of odd length")
        }
        MsgSnapshot => check_snapshot(message),
        MsgAppendResponse
        | MsgRequestVote
        | MsgRequestVoteResponse
        | MsgRequestPreVote
        | MsgRequestPreVoteResponse
        | MsgHeartbeat
        | MsgHeartbeatResponse
        | MsgTimeoutNow => Ok(()),
        MsgHup | MsgBeat | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum | MsgTransferLeader => {
            refuse(format!("{kind:?} is not for peers"))
        }
    }
}

fn check_append(message: &Message) -> Result<(), RefusedMessage> {
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        return refuse(format!("append after index {} of term {}", message.index, message.log_term));
    }
    let mut last_term = message.log_term;
    for (expected, entry) in (message.index + 1..).zip(message.entries.iter()) {
        if entry.index != expected || entry.term == 0 || entry.term < last_term || entry.term > message.term {
            return refuse(format!("entry {} of term {} in the place of {expected}", entry.index, entry.term));
        }
        last_term = entry.term;
        check_content(entry)?;
    }
    Ok(())
}

fn check_proposal(message: &Message) -> Result<(), RefusedMessage> {
    if message.entries.is_empty() {
        return refuse("a proposal of nothing");
    }
    for entry in message.entries.iter() {
        if entry.index != 0 || entry.term != 0 || entry.data.is_empty() {
            return refuse("a proposal that claims a place in the log, or is empty");
        }
        check_content(entry)?;
        if entry.get_entry_type() == EntryType::EntryConfChange
            && ProposedChange::from_entry(&entry.data).is_some_and(|change| change.member == MemberId(0))
        {
            // What is in the log already is applied (and refused), but earlier versions cannot read it.
            return refuse("a membership change of nobody");
        }
    }
    Ok(())
}

/// Membership changes must be readable: one that is not would stop every member that applies it.
fn check_content(entry: &Entry) -> Result<(), RefusedMessage> {
    match entry.get_entry_type() {
        EntryType::EntryNormal => Ok(()),
        EntryType::EntryConfChange if ProposedChange::from_entry(&entry.data).is_some() => Ok(()),
        EntryType::EntryConfChange => refuse("an unreadable membership change"),
        EntryType::EntryConfChangeV2 => refuse("a membership change of a kind no member proposes"),
    }
}

fn check_read(message: &Message) -> Result<(), RefusedMessage> {
    match message.entries.as_ref() {
        [context] if context.data.len() == CONTEXT_BYTES => Ok(()),
        _ => refuse("a read request without its context"),
    }
}

fn check_snapshot(message: &Message) -> Result<(), RefusedMessage> {
    let metadata = message.get_snapshot().get_metadata();
    if !(1..=NUMBER_MAX).contains(&metadata.index) || metadata.term == 0 || metadata.term > message.term {
        return refuse(format!("snapshot at index {} of term {}", metadata.index, metadata.term));
    }
    let state = conf_state_from_raft(metadata.get_conf_state());
    let joint = !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() || state.auto_leave == Some(true);
    let mut ids: Vec<u64> = state.voters.iter().chain(&state.learners).copied().collect();
    ids.sort_unstable();
    let distinct = ids.windows(2).all(|pair| pair[0] != pair[1]) && ids.first() != Some(&0);
    if state.voters.is_empty() || joint || !distinct {
        return refuse("snapshot with an impossible membership");
    }
    Ok(())
}
