use std::time::Instant;

use super::failure::{Exit, Failure};
use super::flags::{Parsed, Word};
use super::options::Options;
use super::print::{EndpointHash, EndpointHealth, EndpointStatus, Format};
use super::session::{Session, show};
use super::{golang, requests};
use crate::api_error::ApiError;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, HashKvRequest, MemberAddRequest, MemberListRequest,
    MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest, RangeRequest, StatusRequest,
};

pub(super) async fn member_list(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let request = MemberListRequest { linearizable: !requests::serializable(parsed)? };
    let answer = session.short(async |client| client.cluster().member_list(request).await).await?;
    show(session.printer.member_list(&answer)?)
}

fn peer_urls(parsed: &Parsed) -> Result<Vec<String>, Failure> {
    match parsed.text("peer-urls") {
        "" => Err(Failure::args("member peer urls not provided")),
        urls => Ok(urls.split(',').map(str::to_owned).collect()),
    }
}

/// What the client of etcd checks of the URLs of a new member before it sends them.
fn check_urls(urls: &[String]) -> Result<(), Failure> {
    let wrong = |text: String| Err(Failure::new(Exit::Error, text));
    for url in urls.iter().map(|url| url.trim()) {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        match scheme {
            "unix" | "unixs" => {}
            "http" | "https" if !host.contains(':') => {
                return wrong(format!("URL address does not have the form \"host:port\": {url}"));
            }
            "http" | "https" if !path.is_empty() => return wrong(format!("URL must not contain a path: {url}")),
            "http" | "https" => {}
            _ => return wrong(format!("URL scheme must be http, https, unix, or unixs: {url}")),
        }
    }
    Ok(())
}

fn member_id(parsed: &Parsed) -> Result<u64, Failure> {
    match parsed.args.as_slice() {
        [id] => requests::member(id),
        _ => Err(Failure::args("member ID is not provided")),
    }
}

fn member_name(words: &[Word]) -> Result<String, Failure> {
    match words {
        [] => Err(Failure::args("member name not provided")),
        [name] => Ok(String::from_utf8_lossy(name).into_owned()),
        words => {
            let urls = words.iter().map(|word| String::from_utf8_lossy(word));
            let hints = urls.filter(|word| word.to_lowercase().starts_with("http"));
            let hints: String = hints.map(|url| format!(", did you mean --peer-urls={url}")).collect();
            Err(Failure::args(format!("too many arguments{hints}")))
        }
    }
}

pub(super) async fn member_add(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let name = member_name(&parsed.args)?;
    let urls = peer_urls(parsed)?;
    session.options.usable()?;
    check_urls(&urls)?;
    let request = MemberAddRequest { peer_ur_ls: urls, is_learner: parsed.bool("learner") };
    let answer = session.short(async |client| client.cluster().member_add(request).await).await?;
    let mut text = session.printer.member_add(&answer)?;
    if session.printer.format == Format::Simple {
        let added = answer.member.as_ref().map_or(0, |member| member.id);
        let cluster: Vec<String> = answer
            .members
            .iter()
            .flat_map(|member| {
                let name = if member.id == added { &name } else { &member.name };
                member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
            })
            .collect();
        let quoted = |text: &str| golang::quote(text.as_bytes());
        let settings = format!(
            "\nETCD_NAME={}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_ADVERTISE_PEER_URLS={}\n\
             ETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
            quoted(&name),
            quoted(&cluster.join(",")),
            quoted(parsed.text("peer-urls"))
        );
        text.extend(settings.into_bytes());
    }
    show(text)
}

pub(super) async fn member_remove(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let id = member_id(parsed)?;
    let answer = session.short(async |client| client.cluster().member_remove(MemberRemoveRequest { id }).await).await?;
    show(session.printer.member_remove(id, &answer)?)
}

pub(super) async fn member_update(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let request = MemberUpdateRequest { id: member_id(parsed)?, peer_ur_ls: peer_urls(parsed)? };
    let id = request.id;
    let answer = session.short(async |client| client.cluster().member_update(request).await).await?;
    show(session.printer.member_update(id, &answer)?)
}

pub(super) async fn member_promote(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let id = member_id(parsed)?;
    let request = MemberPromoteRequest { id };
    let answer = session.short(async |client| client.cluster().member_promote(request).await).await?;
    show(session.printer.member_promote(id, &answer)?)
}

/// The endpoints to ask one by one: those given, or with `--cluster` those the members advertise.
async fn endpoints(options: &Options, parsed: &Parsed) -> Result<Vec<String>, Failure> {
    options.usable()?;
    if !parsed.bool("cluster") {
        return Ok(options.endpoints.clone());
    }
    let mut session = Session::new(options.clone());
    let request = MemberListRequest { linearizable: true };
    let answer = session.short(async |client| client.cluster().member_list(request).await).await;
    let answer = answer.map_err(|failure| Failure {
        text: format!("failed to fetch endpoints from etcd cluster member list: {}", failure.text),
        ..failure
    })?;
    Ok(answer.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

pub(super) async fn endpoint_health(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let options = &session.options;
    let checks = endpoints(options, parsed).await?.into_iter().map(|endpoint| check(options, endpoint));
    let found: Vec<EndpointHealth> = futures::future::join_all(checks).await;
    show(session.printer.endpoint_health(&found)?)?;
    if session.printer.format == Format::Simple {
        for (endpoint, error) in found.iter().filter_map(|one| Some((&one.endpoint, one.error.as_ref()?))) {
            eprintln!("{endpoint} is unhealthy: failed to commit proposal: {error}");
        }
    }
    if found.iter().any(|one| one.error.is_some()) {
        return Err(Failure::new(Exit::Error, "unhealthy cluster"));
    }
    Ok(())
}

/// Healthy is who answers a linearizable read and has no alarm raised.
async fn check(options: &Options, endpoint: String) -> EndpointHealth {
    let start = Instant::now();
    let outcome = probe(options, &endpoint).await;
    let took = *outcome.as_ref().ok().unwrap_or(&start.elapsed());
    EndpointHealth { endpoint, took, error: outcome.err() }
}

async fn probe(options: &Options, endpoint: &str) -> Result<std::time::Duration, String> {
    let mut session = Session::with_endpoints(options.clone(), &[endpoint.to_owned()]);
    let start = Instant::now();
    let request = RangeRequest { key: "health".into(), ..Default::default() };
    let read = session.short(async |client| client.kv().range(request).await).await;
    let took = start.elapsed();
    match read {
        Ok(_) => {}
        // The question reached the leader, which is what was to be found out.
        Err(failure) if failure.text == ApiError::PermissionDenied.text() => {}
        Err(failure) => return Err(failure.text),
    }
    let request = AlarmRequest { action: AlarmAction::Get as i32, ..Default::default() };
    let alarms = session.short(async |client| client.maintenance().alarm(request).await).await;
    let alarms = alarms.map_err(|_| "Unable to fetch the alarm list".to_owned())?.alarms;
    if alarms.is_empty() {
        return Ok(took);
    }
    let names = alarms.iter().map(|alarm| match AlarmType::try_from(alarm.alarm) {
        Ok(AlarmType::Nospace) => "NOSPACE ",
        Ok(AlarmType::Corrupt) => "CORRUPT ",
        _ => "UNKNOWN ",
    });
    Err(format!("Active Alarm(s): {}", names.collect::<String>()))
}

pub(super) async fn endpoint_status(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let mut found = Vec::new();
    let mut failed = None;
    for endpoint in endpoints(&session.options, parsed).await? {
        let mut one = Session::with_endpoints(session.options.clone(), std::slice::from_ref(&endpoint));
        match one.short(async |client| client.maintenance().status(StatusRequest {}).await).await {
            Ok(status) => found.push(EndpointStatus { endpoint, status }),
            Err(failure) => {
                report(&failure);
                eprintln!("Failed to get the status of endpoint {endpoint} ({})", failure.text);
                failed = Some(failure);
            }
        }
    }
    show(session.printer.endpoint_status(&found)?)?;
    match failed {
        Some(_) => Err(Failure::silent(Exit::Error as u8)),
        None => Ok(()),
    }
}

pub(super) async fn endpoint_hashes(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let mut found = Vec::new();
    let mut failed = None;
    for endpoint in endpoints(&session.options, parsed).await? {
        let mut one = Session::with_endpoints(session.options.clone(), std::slice::from_ref(&endpoint));
        let request = HashKvRequest { revision: parsed.int("rev") };
        match one.short(async |client| client.maintenance().hash_kv(request).await).await {
            Ok(hash) => found.push(EndpointHash { endpoint, hash }),
            Err(failure) => {
                report(&failure);
                eprintln!("Failed to get the hash of endpoint {endpoint} ({})", failure.text);
                failed = Some(failure);
            }
        }
    }
    show(session.printer.endpoint_hashes(&found)?)?;
    match failed {
        Some(failure) => Err(Failure { note: None, ..failure }),
        None => Ok(()),
    }
}

fn report(failure: &Failure) {
    if let Some(note) = &failure.note {
        eprintln!("{note}");
    }
}

pub(super) async fn defragment(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let mut failed = false;
    for endpoint in endpoints(&session.options, parsed).await? {
        let mut one = Session::with_endpoints(session.options.clone(), std::slice::from_ref(&endpoint));
        let start = Instant::now();
        let answer = one.short(async |client| client.maintenance().defragment(DefragmentRequest {}).await).await;
        let took = golang::duration(start.elapsed());
        match answer {
            Ok(_) => show(format!("Finished defragmenting etcd member[{endpoint}]. took {took}\n"))?,
            Err(failure) => {
                report(&failure);
                eprintln!("Failed to defragment etcd member[{endpoint}]. took {took}. ({})", failure.text);
                failed = true;
            }
        }
    }
    if failed { Err(Failure::silent(Exit::Error as u8)) } else { Ok(()) }
}

pub(super) async fn alarm_list(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    if !parsed.args.is_empty() {
        return Err(Failure::args("alarm list command accepts no arguments"));
    }
    let request = AlarmRequest { action: AlarmAction::Get as i32, ..Default::default() };
    let answer = session.short(async |client| client.maintenance().alarm(request).await).await?;
    show(session.printer.alarms(&answer)?)
}

pub(super) async fn alarm_disarm(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    if !parsed.args.is_empty() {
        return Err(Failure::args("alarm disarm command accepts no arguments"));
    }
    let list = AlarmRequest { action: AlarmAction::Get as i32, ..Default::default() };
    let raised = session.short(async |client| client.maintenance().alarm(list).await).await?;
    // The sum of several answers, so no header of any of them.
    let mut cleared = AlarmResponse::default();
    for alarm in raised.alarms {
        let request =
            AlarmRequest { action: AlarmAction::Deactivate as i32, member_id: alarm.member_id, alarm: alarm.alarm };
        let answer = session.short(async |client| client.maintenance().alarm(request).await).await?;
        cleared.alarms.extend(answer.alarms);
    }
    show(session.printer.alarms(&cleared)?)
}

pub(super) async fn move_leader(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [target] = parsed.args.as_slice() else {
        return Err(Failure::args("move-leader command needs 1 argument"));
    };
    let target = golang::parse_uint(&String::from_utf8_lossy(target), 16).map_err(Failure::args)?;
    session.options.usable()?;
    for endpoint in &session.options.endpoints {
        let mut one = Session::with_endpoints(session.options.clone(), std::slice::from_ref(endpoint));
        let status = one.short(async |client| client.maintenance().status(StatusRequest {}).await).await?;
        let member = status.header.map_or(0, |header| header.member_id);
        if member == status.leader {
            let request = MoveLeaderRequest { target_id: target };
            let answer = one.short(async |client| client.maintenance().move_leader(request).await).await?;
            return show(session.printer.move_leader(status.leader, target, &answer)?);
        }
    }
    Err(Failure::args(format!("no leader endpoint given at [{}]", session.options.endpoints.join(" "))))
}
