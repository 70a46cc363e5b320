use std::io::Read;
use std::time::Duration;

use super::failure::{Exit, Failure};
use super::flags::Parsed;
use super::print::Format;
use super::session::{Session, show};
use super::{golang, requests, txn};
use crate::pb::etcdserverpb::{CompactionRequest, RangeRequest, RangeResponse};

/// How long the operator may think again before an unconfirmed range is deleted.
const PAUSE: Duration = Duration::from_secs(2);

pub(super) async fn get(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let request = requests::get(parsed)?;
    let answer = if parsed.bool("stream") {
        stream(&mut session, request).await?
    } else {
        session.short(async |client| client.kv().range(request).await).await?
    };
    let mut printer = session.printer;
    if parsed.bool("count-only") && printer.format != Format::Fields {
        return Err(Failure::args("--count-only is only for `--write-out=fields`"));
    }
    if parsed.bool("print-value-only") {
        if printer.format != Format::Simple {
            return Err(Failure::args("print-value-only is only for `--write-out=simple`"));
        }
        printer.value_only = true;
    }
    show(printer.range(&answer)?)
}

/// Gathers the pieces of a range stream into one answer. The last piece carries what holds for the whole.
async fn stream(session: &mut Session, request: RangeRequest) -> Result<RangeResponse, Failure> {
    let limit = session.options.command_timeout;
    let client = session.client().await?;
    let gather = async {
        let mut pieces = client.kv().range_stream(request).await?.into_inner();
        let mut whole = RangeResponse::default();
        while let Some(piece) = pieces.message().await? {
            let Some(piece) = piece.range_response else { continue };
            whole.header = piece.header.or(whole.header);
            whole.kvs.extend(piece.kvs);
            whole.more |= piece.more;
            whole.count = whole.count.max(piece.count);
        }
        Ok(tonic::Response::new(whole))
    };
    super::session::within(limit, gather).await.map_err(|status| Failure::call(&status))
}

pub(super) async fn put(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let request = requests::put(parsed, || {
        let mut value = Vec::new();
        std::io::stdin().lock().read_to_end(&mut value)?;
        Ok(value)
    })?;
    let answer = session.short(async |client| client.kv().put(request).await).await?;
    show(session.printer.put(&answer)?)
}

pub(super) async fn delete(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let (request, pause) = requests::delete(parsed)?;
    if pause {
        eprintln!(
            "Warning: Keys between {} and {} will be deleted. Please interrupt the command within next 2 seconds to \
             cancel. You can provide `--range` flag to avoid the delay.",
            golang::quote(&request.key),
            golang::quote(&request.range_end)
        );
        tokio::time::sleep(PAUSE).await;
    }
    let answer = session.short(async |client| client.kv().delete_range(request).await).await?;
    show(session.printer.delete(&answer)?)
}

pub(super) async fn txn(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    if !parsed.args.is_empty() {
        return Err(Failure::args("txn command does not accept argument"));
    }
    let prompts = parsed.bool("interactive");
    let request = txn::read(&mut std::io::stdin().lock(), |text| {
        if prompts {
            println!("{text}");
        }
    })?;
    let answer = session.patient(async |client| client.kv().txn(request).await).await?;
    show(session.printer.txn(&answer)?)
}

pub(super) async fn compaction(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [revision] = parsed.args.as_slice() else {
        return Err(Failure::args("compaction command needs 1 argument"));
    };
    let revision =
        golang::parse_int(&String::from_utf8_lossy(revision), 10).map_err(|why| Failure::new(Exit::Error, why))?;
    let request = CompactionRequest { revision, physical: parsed.bool("physical") };
    session.short(async |client| client.kv().compact(request).await).await?;
    show(format!("compacted revision {revision}\n"))
}
