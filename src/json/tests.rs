//! The mapping against that of `prost-reflect`, for arbitrary messages of every method.

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions, Value};

use super::read::read;
use super::routes::routes;
use super::write::{Writer, write};

/// An arbitrary message; `depth` bounds transactions within transactions.
fn arbitrary(random: &mut fastrand::Rng, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let is_message = matches!(field.kind(), Kind::Message(_));
        if random.bool() || (is_message && depth == 0) {
            continue;
        }
        if field.is_list() {
            let values = (0..random.usize(..4)).map(|_| value(random, &field, depth)).collect();
            message.set_field(&field, Value::List(values));
        } else {
            let value = value(random, &field, depth);
            message.set_field(&field, value);
        }
    }
    message
}

fn value(random: &mut fastrand::Rng, field: &FieldDescriptor, depth: usize) -> Value {
    let size = random.usize(..40);
    match field.kind() {
        Kind::Bool => Value::Bool(random.bool()),
        Kind::Int32 => Value::I32(random.i32(..) >> random.u8(..32)),
        Kind::Int64 => Value::I64(random.i64(..) >> random.u8(..64)),
        Kind::Uint32 => Value::U32(random.u32(..) >> random.u8(..32)),
        Kind::Uint64 => Value::U64(random.u64(..) >> random.u8(..64)),
        Kind::Enum(values) => Value::EnumNumber(random.choice(values.values()).expect("values").number()),
        Kind::String => Value::String((0..size).map(|_| random.char(..)).collect()),
        Kind::Bytes => Value::Bytes((0..size).map(|_| random.u8(..)).collect()),
        Kind::Message(descriptor) => Value::Message(arbitrary(random, &descriptor, depth - 1)),
        other => panic!("{other:?}: the gateway cannot map it"),
    }
}

/// The message, cut anywhere.
fn in_pieces(random: &mut fastrand::Rng, wire: &[u8], descriptor: &MessageDescriptor) -> String {
    let mut out = Vec::new();
    let mut writer = Writer::new(descriptor.clone(), wire.len(), &mut out);
    let mut rest = wire;
    loop {
        let (piece, after) = rest.split_at(random.usize(..=rest.len().min(5)));
        writer.push(Bytes::copy_from_slice(piece), &mut out).expect("a message");
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert!(writer.is_done());
    String::from_utf8(out).expect("text")
}

#[test]
fn every_message_is_mapped_as_protobuf_says() {
    let mut random = fastrand::Rng::with_seed(9);
    let options = SerializeOptions::new().use_proto_field_name(true);
    for route in routes().values() {
        for descriptor in [&route.input, &route.output] {
            for _ in 0..40 {
                let wire = arbitrary(&mut random, descriptor, 4).encode_to_vec();
                // Without the zeros that were set.
                let message = DynamicMessage::decode(descriptor.clone(), &wire[..]).expect("a message");
                let json = write(wire.clone().into(), descriptor.clone()).expect("a message");
                let parsed: serde_json::Value = serde_json::from_str(&json).expect("JSON");
                let expected = message.serialize_with_options(serde_json::value::Serializer, &options).expect("JSON");
                assert_eq!(parsed, expected, "{}", descriptor.full_name());
                assert_eq!(in_pieces(&mut random, &wire, descriptor), json);
                for json in [json, camel_case(&message)] {
                    let back = read(json.as_bytes(), descriptor).expect("a message");
                    let back = DynamicMessage::decode(descriptor.clone(), &back[..]).expect("a message");
                    assert!(back == message, "{json}\n{message}");
                }
            }
        }
    }
}

/// The other spelling: names as JSON has them, long numbers as numbers, enums as numbers.
fn camel_case(message: &DynamicMessage) -> String {
    let options = SerializeOptions::new().stringify_64_bit_integers(false).use_enum_numbers(true);
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::pretty(&mut out);
    message.serialize_with_options(&mut serializer, &options).expect("JSON");
    String::from_utf8(out).expect("text")
}

#[test]
fn what_is_no_message_is_refused_and_never_panics() {
    let mut random = fastrand::Rng::with_seed(5);
    for route in routes().values() {
        for _ in 0..60 {
            let message = arbitrary(&mut random, &route.output, 3);
            let mut wire = message.encode_to_vec();
            for _ in 0..random.usize(..4) {
                let at = random.usize(..=wire.len());
                match wire.get_mut(at) {
                    Some(byte) => *byte = random.u8(..),
                    None => wire.push(random.u8(..)),
                }
            }
            if let Ok(json) = write(wire.into(), route.output.clone()) {
                serde_json::from_str::<serde_json::Value>(&json).expect("JSON");
            }
            let mut json = camel_case(&message).into_bytes();
            let at = random.usize(..=json.len());
            json.truncate(at);
            json.push(random.u8(..));
            // Syntax is checked before; a value that passed may still be anything.
            let mut values = super::values::Values::default();
            values.push(&json);
            while let Ok(Some(value)) = values.next() {
                let _ = read(&value, &route.output);
            }
        }
    }
}

fn refused(message: &str, json: &str) -> String {
    let descriptor = crate::pb::descriptors().get_message_by_name(message).expect("a message");
    read(json.as_bytes(), &descriptor).expect_err("refused")
}

#[test]
fn mistakes_are_worded_as_etcd_does() {
    for (json, error) in [
        (r#"{"key":"!!"}"#, r#"proto: (line 1:8): invalid value for bytes field key: "!!""#),
        ("{\n \"limit\": 1.5}", "proto: (line 2:11): invalid value for int64 field limit: 1.5"),
        (r#"{"range_end":5}"#, "proto: (line 1:14): invalid value for bytes field rangeEnd: 5"),
        (r#"{"sort_order":true}"#, "proto: (line 1:15): invalid value for enum field sortOrder: true"),
        (r#"{"serializable":"true"}"#, r#"proto: (line 1:17): invalid value for bool field serializable: "true""#),
        (r#"{"key":"","key":""}"#, r#"proto: (line 1:11): duplicate field "key""#),
        (r#"{"range_end":"","rangeEnd":""}"#, r#"proto: (line 1:17): duplicate field "rangeEnd""#),
        ("[]", "proto: syntax error (line 1:1): unexpected token ["),
        ("null", "proto: syntax error (line 1:1): unexpected token null"),
        (r#""text""#, r#"proto: syntax error (line 1:1): unexpected token "text""#),
        (r#"{"limit":" 1"}"#, r#"proto: (line 1:10): invalid value for int64 field limit: " 1""#),
        (
            r#"{"limit":9223372036854775808}"#,
            "proto: (line 1:10): invalid value for int64 field limit: 9223372036854775808",
        ),
    ] {
        assert_eq!(refused("etcdserverpb.RangeRequest", json), error);
    }
    let both = r#"{"compare":[{"target":"VERSION","version":1,"value":""}]}"#;
    let error = r#"proto: (line 1:45): error parsing "value", oneof etcdserverpb.Compare.target_union is already set"#;
    assert_eq!(refused("etcdserverpb.TxnRequest", both), error);
    let list = "proto: syntax error (line 1:12): unexpected token {";
    assert_eq!(refused("etcdserverpb.TxnRequest", r#"{"compare":{}}"#), list);
    let open = r#"{"success":[{"requestTxn":"#;
    let deep = format!("{}{{}}{}", open.repeat(200), "}]}".repeat(200));
    assert_eq!(refused("etcdserverpb.TxnRequest", &deep), "proto: exceeded max recursion depth");
}

#[test]
fn input_is_read_leniently() {
    let descriptor = crate::pb::descriptors().get_message_by_name("etcdserverpb.RangeRequest").expect("a message");
    let json = "{\"key\":\"a\\u0047k=\\n\\n\\n\\n\",\"rangeEnd\":\"_-8\",\"limit\":\"1.0e1\",\"sort_order\":\"NEW\",\
                \"unknown\":{\"a\":[1,{}]},\"revision\":null,\"sort_target\":3}";
    let read = read(json.as_bytes(), &descriptor).expect("a message");
    let request = crate::pb::etcdserverpb::RangeRequest::decode(&read[..]).expect("a message");
    assert_eq!((&request.key[..], &request.range_end[..]), (&b"hi"[..], &[0xff, 0xef][..]));
    assert_eq!((request.limit, request.sort_order, request.revision, request.sort_target), (10, 0, 0, 3));
}
