//! For fuzz targets only: the mapping of messages in both directions, without the calls around it.

use bytes::Bytes;
use prost_reflect::MessageDescriptor;

use super::read;
use super::routes::routes;
use super::values::Values;
use super::write::Writer;

/// The messages that have a JSON form, in the order of their names.
pub fn messages() -> Vec<MessageDescriptor> {
    let mut messages: Vec<_> =
        routes().values().flat_map(|route| [route.input.clone(), route.output.clone()]).collect();
    messages.sort_by_key(|message| message.full_name().to_owned());
    messages.dedup();
    messages
}

/// The values of a body that comes in chunks of `step` bytes, and the error that ends them.
pub fn values(body: &[u8], step: usize) -> (Vec<Bytes>, Option<String>) {
    let (mut values, mut read) = (Values::default(), Vec::new());
    let mut outcome = || {
        for chunk in body.chunks(step.max(1)) {
            values.push(chunk);
            while let Some(value) = values.next()? {
                read.push(value);
            }
        }
        read.extend(values.end()?);
        Ok(())
    };
    let error = outcome().err();
    (read, error)
}

/// The message that one of [`values`] says, in wire format.
///
/// # Errors
/// What is wrong with it.
pub fn read(json: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, String> {
    read::read(json, message)
}

/// The JSON of a message that comes in chunks of `step` bytes.
///
/// # Errors
/// The message is not one of its type, or not all of it is there.
pub fn write(wire: &[u8], message: &MessageDescriptor, step: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut writer = Writer::new(message.clone(), wire.len(), &mut out);
    // An empty message ends with an empty chunk.
    for chunk in wire.chunks(step.max(1)).chain([&b""[..]]) {
        writer.push(Bytes::copy_from_slice(chunk), &mut out).map_err(|error| error.to_string())?;
    }
    if writer.is_done() { Ok(out) } else { Err("cut off".to_owned()) }
}
