//! JSON in and out, for every message that has a path: the first byte chooses what the input is, the second the message.
//!
//! A message as JSON is what `prost-reflect` writes, however its bytes are cut, and read again it is the message. JSON that is
//! read is a message; written and read again it is the same one, and what `prost-reflect` reads, too, it reads alike.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage, SerializeOptions};
use watershed::json::fuzzing::{messages, read, values, write};

fn descriptor(number: u8) -> &'static MessageDescriptor {
    static MESSAGES: OnceLock<Vec<MessageDescriptor>> = OnceLock::new();
    let messages = MESSAGES.get_or_init(messages);
    &messages[usize::from(number) % messages.len()]
}

fn reference_json(message: &DynamicMessage) -> serde_json::Value {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).expect("a message has a JSON form")
}

fn reference_message(json: &[u8], descriptor: &MessageDescriptor) -> Option<DynamicMessage> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut json = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), &mut json, &options).ok()?;
    json.end().ok()?;
    Some(message)
}

/// The message without fields that were set to what they are without.
fn canonical(message: &DynamicMessage) -> DynamicMessage {
    DynamicMessage::decode(message.descriptor(), &message.encode_to_vec()[..]).expect("a message")
}

/// Writes a message that is in order in every way, and reads it again.
fn there_and_back(message: &DynamicMessage, descriptor: &MessageDescriptor, step: usize) {
    let wire = message.encode_to_vec();
    let json = write(&wire, descriptor, wire.len()).expect("a message is written");
    assert_eq!(write(&wire, descriptor, step), Ok(json.clone()), "in pieces of {step}");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&json).expect("JSON"), reference_json(message));
    let (cut, None) = values(&json, step) else { panic!("what was written is JSON") };
    let [value] = &cut[..] else { panic!("one value") };
    let back = read(value, descriptor).expect("what was written is read");
    let back = canonical(&DynamicMessage::decode(descriptor.clone(), &back[..]).expect("a message"));
    assert!(back == *message, "{}\n{message}\n{back}", String::from_utf8_lossy(&json));
}

fn from_wire(wire: &[u8], descriptor: &MessageDescriptor, step: usize) {
    let json = write(wire, descriptor, step);
    assert_eq!(write(wire, descriptor, wire.len()).ok(), json.clone().ok(), "in pieces of {step}");
    if let Ok(json) = &json {
        assert!(matches!(values(json, json.len()), (values, None) if values.len() == 1), "no JSON");
        assert!(std::str::from_utf8(json).is_ok());
    }
    let Ok(message) = DynamicMessage::decode(descriptor.clone(), wire) else { return };
    // What JSON cannot say, such as unknown fields, is left out.
    let shown = serde_json::to_vec(&reference_json(&message)).expect("JSON");
    let message = reference_message(&shown, descriptor).expect("what was written is read");
    there_and_back(&canonical(&message), descriptor, step);
}

fn from_json(body: &[u8], descriptor: &MessageDescriptor, step: usize) {
    let (cut, error) = values(body, body.len());
    assert_eq!(values(body, step), (cut.clone(), error), "in pieces of {step}");
    for value in cut {
        let Ok(wire) = read(&value, descriptor) else { continue };
        // The decoder of the server takes fewer messages within one another.
        let Ok(message) = DynamicMessage::decode(descriptor.clone(), &wire[..]) else {
            assert!(value.iter().filter(|byte| **byte == b'{').count() > 50, "what is read is a message");
            continue;
        };
        let message = canonical(&message);
        there_and_back(&message, descriptor, step);
        if let Some(expected) = reference_message(&value, descriptor) {
            let expected = canonical(&expected);
            assert!(message == expected, "{}\n{message}\n{expected}", String::from_utf8_lossy(&value));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [kind, number, rest @ ..] = data else { return };
    let (descriptor, step) = (descriptor(*number), usize::from(kind >> 1) + 1);
    match kind % 2 {
        0 => from_wire(rest, descriptor, step),
        _ => from_json(rest, descriptor, step),
    }
});
