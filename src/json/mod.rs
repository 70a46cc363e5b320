//! The API as JSON over HTTP, under `/v3/`.
//!
//! [`answer`] (`gateway.rs`) takes an HTTP request, and hands a gRPC request to the service of the port; what that
//! answers becomes JSON. `routes.rs` has the paths, from the options in `proto/`; `metadata.rs` the headers both ways;
//! `status.rs` the errors. A body is cut into values (`values.rs`), each becomes a message (`read.rs` with `text.rs` and
//! `number.rs`), and [`CallBody`] (`body.rs`) carries them; `answer.rs` follows the answer's body and writes each
//! message as its bytes come (`write.rs`), so that no answer is held as a whole. [`web_socket`] (`web_socket.rs`) carries such a
//! request over a web socket.

mod answer;
mod body;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gateway;
mod metadata;
mod number;
mod read;
mod routes;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod values;
mod web_socket;
mod write;

pub use body::CallBody;
pub use gateway::{Limits, answer};
pub use routes::is_json_path;
pub use web_socket::{Asked, AskedBody, is_web_socket, web_socket};
