use std::fmt::Write as _;

use super::super::golang;
use super::printer::Printer;
use super::rows::EndpointHealth;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{
    AlarmResponse, AlarmType, DeleteRangeResponse, LeaseLeasesResponse, LeaseTimeToLiveResponse, MemberAddResponse,
    PutResponse, RangeResponse, ResponseHeader, TxnResponse, WatchResponse,
};
use crate::pb::mvccpb::KeyValue;
use crate::pb::mvccpb::event::EventType;

fn pair(printer: &Printer, kv: &KeyValue, out: &mut Vec<u8>) {
    let mut line = |bytes: &[u8]| {
        if printer.hex {
            out.extend(bytes.iter().flat_map(|byte| format!("\\x{byte:02x}").into_bytes()));
        } else {
            out.extend_from_slice(bytes);
        }
        out.push(b'\n');
    };
    if !printer.value_only {
        line(&kv.key);
    }
    line(&kv.value);
}

pub(super) fn range(printer: &Printer, answer: &RangeResponse) -> Vec<u8> {
    let mut out = Vec::new();
    answer.kvs.iter().for_each(|kv| pair(printer, kv, &mut out));
    out
}

pub(super) fn put(printer: &Printer, answer: &PutResponse) -> Vec<u8> {
    let mut out = b"OK\n".to_vec();
    answer.prev_kv.iter().for_each(|kv| pair(printer, kv, &mut out));
    out
}

pub(super) fn delete(printer: &Printer, answer: &DeleteRangeResponse) -> Vec<u8> {
    let mut out = format!("{}\n", answer.deleted).into_bytes();
    answer.prev_kvs.iter().for_each(|kv| pair(printer, kv, &mut out));
    out
}

pub(super) fn txn(printer: &Printer, answer: &TxnResponse) -> Vec<u8> {
    let mut out = if answer.succeeded { b"SUCCESS\n".to_vec() } else { b"FAILURE\n".to_vec() };
    for op in &answer.responses {
        out.push(b'\n');
        out.extend(match &op.response {
            Some(Response::ResponseRange(answer)) => range(printer, answer),
            Some(Response::ResponsePut(answer)) => put(printer, answer),
            Some(Response::ResponseDeleteRange(answer)) => delete(printer, answer),
            Some(Response::ResponseTxn(answer)) => txn(printer, answer),
            None => b"unexpected response without content\n".to_vec(),
        });
    }
    out
}

/// The name of an event type, number and all when it has none.
pub(super) fn event_type(number: i32) -> String {
    match EventType::try_from(number) {
        Ok(EventType::Put) => "PUT".to_owned(),
        Ok(EventType::Delete) => "DELETE".to_owned(),
        Err(_) => number.to_string(),
    }
}

pub(super) fn watch(printer: &Printer, answer: &WatchResponse) -> Vec<u8> {
    let mut out = Vec::new();
    for event in &answer.events {
        out.extend(event_type(event.r#type).into_bytes());
        out.push(b'\n');
        event.prev_kv.iter().for_each(|kv| pair(printer, kv, &mut out));
        pair(printer, event.kv.as_ref().unwrap_or(&KeyValue::default()), &mut out);
    }
    out
}

pub(super) fn time_to_live(answer: &LeaseTimeToLiveResponse, keys: bool) -> Vec<u8> {
    if answer.granted_ttl == 0 && answer.ttl == -1 {
        return format!("lease {} already expired\n", golang::lease_id(answer.id)).into_bytes();
    }
    let (id, granted, left) = (golang::lease_id(answer.id), answer.granted_ttl, answer.ttl);
    let mut out = format!("lease {id} granted with TTL({granted}s), remaining({left}s)").into_bytes();
    if keys {
        out.extend_from_slice(b", attached keys([");
        out.extend(answer.keys.join(&b' '));
        out.extend_from_slice(b"])");
    }
    out.push(b'\n');
    out
}

pub(super) fn leases(answer: &LeaseLeasesResponse) -> Vec<u8> {
    let mut text = format!("found {} leases\n", answer.leases.len());
    for lease in &answer.leases {
        text.push_str(&golang::lease_id(lease.id));
        text.push('\n');
    }
    text.into_bytes()
}

/// The name of an alarm, number and all when it has none.
pub(super) fn alarm_type(number: i32) -> String {
    match AlarmType::try_from(number) {
        Ok(AlarmType::None) => "NONE".to_owned(),
        Ok(AlarmType::Nospace) => "NOSPACE".to_owned(),
        Ok(AlarmType::Corrupt) => "CORRUPT".to_owned(),
        Err(_) => number.to_string(),
    }
}

pub(super) fn alarms(answer: &AlarmResponse) -> Vec<u8> {
    let mut text = String::new();
    for alarm in &answer.alarms {
        let mut fields = Vec::new();
        if alarm.member_id != 0 {
            fields.push(format!("memberID:{}", alarm.member_id));
        }
        if alarm.alarm != 0 {
            fields.push(format!("alarm:{}", alarm_type(alarm.alarm)));
        }
        let _ = writeln!(text, "{}", fields.join(" "));
    }
    text.into_bytes()
}

fn cluster(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.cluster_id)
}

pub(super) fn member_add(answer: &MemberAddResponse) -> Vec<u8> {
    let member = answer.member.clone().unwrap_or_default();
    let role = if member.is_learner { " as learner " } else { " " };
    format!("Member {:16x} added{role}to cluster {:16x}\n", member.id, cluster(answer.header.as_ref())).into_bytes()
}

pub(super) fn member_change(id: u64, done: &str, header: Option<&ResponseHeader>) -> Vec<u8> {
    format!("Member {id:16x} {done} cluster {:16x}\n", cluster(header)).into_bytes()
}

pub(super) fn healthy(endpoints: &[EndpointHealth]) -> Vec<u8> {
    let mut text = String::new();
    for health in endpoints.iter().filter(|health| health.error.is_none()) {
        let (endpoint, took) = (&health.endpoint, golang::duration(health.took));
        let _ = writeln!(text, "{endpoint} is healthy: successfully committed proposal: took = {took}");
    }
    text.into_bytes()
}
