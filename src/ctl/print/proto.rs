use prost::Message;

use super::super::failure::Failure;

/// The wire form, without a newline.
pub(super) fn message(answer: &impl Message) -> Result<Vec<u8>, Failure> {
    Ok(answer.encode_to_vec())
}
