//! Calls of the API as it is on the wire, written as JSON: `GRPC package.Service/Method name=value {message}{message}`.
//!
//! Text of the form `b:text` stands for bytes, `b:x*9` for nine times `x`; answers have it for bytes that are printable.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::uri::PathAndQuery;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::{Request, Status};
use watershed::client::Client;
use watershed::pb::descriptors;

use super::CALL_LIMIT;
use super::normal::Raw;
use crate::harness::raw_answers;

/// Fields that are bytes, whatever message they are in.
const BYTES: &[&str] = &["key", "keys", "value", "range_end"];

pub async fn call(client: &Client, call: &str, lines: Option<usize>) -> Raw {
    let (head, messages) = call.find('{').map_or((call, ""), |at| call.split_at(at));
    let mut words = head.split_whitespace();
    let path = words.next().expect("a method");
    let (service, name) = path.split_once('/').expect("a service and a method");
    let method = descriptors().get_service_by_name(service);
    let method = method.and_then(|service| service.methods().find(|method| method.name() == name));
    let messages = serde_json::Deserializer::from_str(messages).into_iter::<Value>().map(|value| {
        let mut value = value.expect("JSON");
        to_wire(&mut value);
        method.as_ref().map_or_else(Vec::new, |method| encoded(method.input(), &value)).into()
    });
    let messages: Vec<Bytes> = messages.collect();
    // A call that goes on by itself ends when its answers have been taken.
    let streams = method.as_ref().is_some_and(|method| method.is_client_streaming());
    let open = (streams && lines.is_some()).then(tokio_stream::pending::<Bytes>);
    let mut request = Request::new(futures::stream::iter(messages).chain(futures::stream::iter(open).flatten()));
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        let name = AsciiMetadataKey::from_bytes(name.as_bytes()).expect("a name");
        // A byte that is no text.
        let value: Vec<u8> = match value {
            "\\xff" => vec![0xff],
            value => value.into(),
        };
        request.metadata_mut().insert(name, AsciiMetadataValue::try_from(value).expect("a value"));
    }
    let path = PathAndQuery::try_from(format!("/{path}")).expect("a path");
    let answers = raw_answers(client, path, request, lines.unwrap_or(usize::MAX));
    let (answers, end) = match tokio::time::timeout(CALL_LIMIT, answers).await {
        Ok(answers) => answers,
        Err(_) => (Vec::new(), Err(Status::cancelled("no answer in time"))),
    };
    let output = method.as_ref().map(|method| method.output());
    let output: String = answers.iter().map(|answer| shown(output.clone(), answer)).collect();
    let (error, code) = match end {
        Ok(()) => (String::new(), 0),
        Err(status) => (format!("{:?}: {}\n", status.code(), status.message()), status.code() as i32),
    };
    Raw { output: output.into_bytes(), error, code }
}

/// The message on the wire.
fn encoded(message: MessageDescriptor, value: &Value) -> Vec<u8> {
    DynamicMessage::deserialize(message, value).expect("a message of this method").encode_to_vec()
}

/// An answer as one line of JSON; of a method that does not exist, as hex.
fn shown(message: Option<MessageDescriptor>, answer: &[u8]) -> String {
    let Some(message) = message else {
        return format!("0x{}\n", answer.iter().map(|b| format!("{b:02x}")).collect::<String>());
    };
    let message = DynamicMessage::decode(message, answer).expect("a message of this method");
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut value = message.serialize_with_options(serde_json::value::Serializer, &options).expect("JSON");
    to_text(&mut value);
    if let Some(Value::Array(members)) = value.get_mut("members") {
        // In the order of ids, which are different each time.
        members.sort_by_key(|member| member["name"].to_string());
    }
    format!("{value}\n")
}

/// Writes bytes as base64, as protobuf's JSON has them.
fn to_wire(value: &mut Value) {
    match value {
        Value::String(text) => {
            let Some(bytes) = text.strip_prefix("b:") else { return };
            let bytes = match bytes.split_once('*').map(|(letter, count)| (letter, count.parse())) {
                Some((letter, Ok(count))) => letter.repeat(count),
                _ => bytes.to_owned(),
            };
            *text = STANDARD.encode(bytes);
        }
        Value::Array(values) => values.iter_mut().for_each(to_wire),
        Value::Object(fields) => fields.values_mut().for_each(to_wire),
        _ => {}
    }
}

/// Writes base64 as text, where it is bytes of text.
fn to_text(value: &mut Value) {
    let plain = |value: &mut Value| {
        let bytes = value.as_str().and_then(|text| STANDARD.decode(text).ok());
        if let Some(bytes) = bytes.filter(|bytes| bytes.iter().all(|byte| (b' '..=b'~').contains(byte))) {
            *value = Value::String(format!("b:{}", String::from_utf8_lossy(&bytes)));
        }
    };
    match value {
        Value::Array(values) => values.iter_mut().for_each(to_text),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(_) if BYTES.contains(&name.as_str()) => plain(value),
                    Value::Array(values) if BYTES.contains(&name.as_str()) => values.iter_mut().for_each(plain),
                    _ => to_text(value),
                }
            }
        }
        _ => {}
    }
}
