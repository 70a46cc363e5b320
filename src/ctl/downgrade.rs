use super::failure::Failure;
use super::flags::Parsed;
use super::session::{Session, show};
use crate::pb::etcdserverpb::DowngradeRequest;
use crate::pb::etcdserverpb::downgrade_request::DowngradeAction;

pub(super) async fn validate(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    ask(session, DowngradeAction::Validate, "validate", target(parsed)?).await
}

pub(super) async fn enable(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    ask(session, DowngradeAction::Enable, "enable", target(parsed)?).await
}

pub(super) async fn cancel(session: Session, _: &Parsed) -> Result<(), Failure> {
    ask(session, DowngradeAction::Cancel, "cancel", String::new()).await
}

fn target(parsed: &Parsed) -> Result<String, Failure> {
    match parsed.args.as_slice() {
        [] => Err(Failure::args("TARGET_VERSION not provided")),
        [version] if version.is_empty() => Err(Failure::args("target version not provided")),
        [version] => Ok(String::from_utf8_lossy(version).into_owned()),
        _ => Err(Failure::args("too many arguments")),
    }
}

async fn ask(mut session: Session, action: DowngradeAction, what: &str, version: String) -> Result<(), Failure> {
    let request = DowngradeRequest { action: action as i32, version };
    let answer = session.short(async |client| client.maintenance().downgrade(request).await).await?;
    show(session.printer.downgrade(what, &answer)?)
}
