//! Compiles `proto/` without an installed protoc.
//!
//! Two passes over the same descriptors: messages, clients and plain servers first; then the servers of the hot
//! services again, with answers of already encoded parts (`pb::encoded`) in place of the decoded ones.

use std::error::Error;
use std::fmt::Write as _;

/// Messages with a password, a hash or a token. Their `Debug` is in `src/pb/secrets.rs`, and shows none of it.
const SECRETS: [&str; 6] = [
    ".authpb.User",
    ".etcdserverpb.AuthenticateRequest",
    ".etcdserverpb.AuthenticateResponse",
    ".etcdserverpb.AuthUserAddRequest",
    ".etcdserverpb.AuthUserChangePasswordRequest",
    ".etcdserverpb.InternalAuthenticateRequest",
];

const FILES: [&str; 12] = [
    "http.proto",
    "kv.proto",
    "auth.proto",
    "rpc.proto",
    "lock.proto",
    "election.proto",
    "raft_internal.proto",
    "membership.proto",
    "lease.proto",
    "wal.proto",
    "health.proto",
    "profile.proto",
];

/// Answers that `src/pb/encoded.rs` defines over already encoded parts.
const ENCODED: [&str; 6] =
    ["RangeResponse", "RangeStreamResponse", "PutResponse", "DeleteRangeResponse", "TxnResponse", "WatchResponse"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(FILES)?;
    // With the options of methods, which the decoded set has lost.
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let mut descriptors = compiler.file_descriptor_set();
    descriptors.file.retain(|file| !file.package().starts_with("google.") && file.name() != "http.proto");
    for file in &mut descriptors.file {
        file.dependency.retain(|name| name != "http.proto");
    }

    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug(SECRETS)
        .codec_path("crate::pb::codec::LeanCodec")
        .extern_path(".etcdserverpb.RequestOp", "crate::pb::txn::RequestOp")
        .extern_path(".etcdserverpb.ResponseOp", "crate::pb::txn::ResponseOp")
        .compile_fds(descriptors.clone())?;

    std::fs::write(out.join("methods.rs"), method_table(&descriptors))?;
    std::fs::write(out.join("shapes.rs"), shapes(&descriptors))?;

    // For `watershed_build_info`.
    let rustc = std::process::Command::new(std::env::var("RUSTC")?).arg("--version").output()?;
    let rustc = String::from_utf8(rustc.stdout)?;
    println!("cargo:rustc-env=WATERSHED_RUSTC={}", rustc.split(' ').nth(1).unwrap_or("unknown"));

    let mut hot = descriptors;
    hot.file.retain_mut(|file| {
        file.service.retain(|service| matches!(service.name(), "KV" | "Watch"));
        matches!(file.name(), "kv.proto" | "auth.proto" | "rpc.proto")
    });
    let encoded_dir = out.join("encoded");
    std::fs::create_dir_all(&encoded_dir)?;
    let mut config = tonic_prost_build::configure()
        .out_dir(&encoded_dir)
        .build_client(false)
        .codec_path("crate::pb::codec::LeanCodec");
    for message in ENCODED {
        config = config.extern_path(format!(".etcdserverpb.{message}"), format!("crate::pb::encoded::{message}"));
    }
    config
        .extern_path(".etcdserverpb", "crate::pb::etcdserverpb")
        .extern_path(".mvccpb", "crate::pb::mvccpb")
        .extern_path(".authpb", "crate::pb::authpb")
        .compile_fds(hot)?;
    Ok(())
}

/// The rows of `pb::methods`, sorted by path.
fn method_table(descriptors: &protox::prost_reflect::prost_types::FileDescriptorSet) -> String {
    let mut rows = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => "Unary",
                    (true, false) => "ClientStream",
                    (false, true) => "ServerStream",
                    (true, true) => "BidiStream",
                };
                rows.push((format!("{}.{}", file.package(), service.name()), method.name().to_owned(), kind));
            }
        }
    }
    rows.sort();
    let mut table = String::from("&[");
    for (service, name, kind) in rows {
        let _ = write!(
            table,
            "Method {{ path: {:?}, service: {service:?}, name: {name:?}, kind: MethodKind::{kind} }},",
            format!("/{service}/{name}")
        );
    }
    table.push(']');
    table
}

/// What every request looks like, for tests that make arbitrary ones: the input of each method, the fields of each
/// message, the values of each enum.
fn shapes(descriptors: &protox::prost_reflect::prost_types::FileDescriptorSet) -> String {
    use protox::prost_reflect::{DescriptorPool, Kind};
    let pool = DescriptorPool::from_file_descriptor_set(descriptors.clone()).expect("compiled descriptors");
    let mut text = String::from("pub static INPUTS: &[(&str, &str)] = &[");
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let _ = write!(text, "({path:?}, {:?}),", method.input().full_name());
    }
    text.push_str("];pub static MESSAGES: &[(&str, &[Field])] = &[");
    for message in pool.all_messages() {
        let _ = write!(text, "({:?}, &[", message.full_name());
        for field in message.fields() {
            let content = match field.kind() {
                Kind::Message(message) => format!("Content::Message({:?})", message.full_name()),
                Kind::Enum(values) => {
                    format!("Content::Enum(&{:?})", values.values().map(|value| value.number()).collect::<Vec<_>>())
                }
                Kind::String => "Content::Text".to_owned(),
                Kind::Bytes => "Content::Bytes".to_owned(),
                Kind::Bool => "Content::Bool".to_owned(),
                Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => "Content::Number".to_owned(),
                other => panic!("{other:?} is not made by tests/cluster/any_request.rs yet"),
            };
            let _ = write!(
                text,
                "Field {{ number: {}, repeated: {}, content: {content} }},",
                field.number(),
                field.is_list(),
            );
        }
        text.push_str("]),");
    }
    text.push_str("];");
    text
}
