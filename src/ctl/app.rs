use super::command::{self, Asked};
use super::failure::Failure;
use super::flags::{self, Flag, Parsed, Word};
use super::options::{self, Options};
use super::program::Program;
use super::session::{Session, show};
use super::tree::Verb;
use super::watch::{self, Variables};
use super::{
    auth, check, cluster, completion, concurrency, debug, downgrade, gateway, kv, lease, mirror, proxy, role, snapshot,
};

/// Version of the API this client speaks, as etcdctl prints it.
const API_VERSION: &str = "3.7";

/// Runs one command line, without the name of the program, and returns the exit code. An empty variable counts as not
/// set.
pub async fn run(program: Program, words: Vec<Vec<u8>>, mut environment: Vec<(String, String)>) -> u8 {
    environment.retain(|(_, value)| !value.is_empty());
    match dispatch(program, &words, &environment).await {
        Ok(()) => 0,
        Err(failure) => {
            if let Some(note) = &failure.note {
                eprintln!("{note}");
            }
            if !failure.text.is_empty() {
                eprintln!("Error: {failure}");
            }
            if let Some(usage) = &failure.usage {
                eprintln!("{usage}");
            }
            failure.code
        }
    }
}

async fn dispatch(program: Program, words: &[Word], environment: &[(String, String)]) -> Result<(), Failure> {
    let (verb, mut parsed) = match command::read(program, words)? {
        Asked::Help(text) => return show(text),
        Asked::Run(verb, parsed) => (verb, parsed),
    };
    if let Some(done) = without_cluster(program, verb, &parsed) {
        return done;
    }
    for name in options::unknown_variables(environment) {
        eprintln!("warning: unrecognized environment variable {name}");
    }
    let options = Options::read(&mut parsed, environment);
    if parsed.bool("debug") {
        eprint!("{}", options::shown(&parsed));
        debug::start();
    }
    let session = Session::new(options.discover().await);
    with_cluster(verb, session, &parsed, environment).await
}

/// Commands that need no cluster.
fn without_cluster(program: Program, verb: Verb, parsed: &Parsed) -> Option<Result<(), Failure>> {
    match verb {
        Verb::Version => {
            let (name, version) = (program.name(), program.version());
            Some(show(format!("{name} version: {version}\nAPI version: {API_VERSION}\n")))
        }
        Verb::Options => {
            let known: Vec<&Flag> = options::FLAGS.iter().collect();
            let head = "Every command takes these flags, before or after its own words. Each can be given as a\n\
                        variable instead, as in ETCDCTL_ENDPOINTS:\n\n";
            Some(show(format!("{head}{}", flags::usage(&known))))
        }
        Verb::Completion => {
            let shell = parsed.args.first().map(Vec::as_slice).unwrap_or_default();
            Some(show(completion::script(program, shell)))
        }
        _ => None,
    }
}

async fn with_cluster(
    verb: Verb,
    session: Session,
    parsed: &Parsed,
    environment: &[(String, String)],
) -> Result<(), Failure> {
    match verb {
        Verb::Get => kv::get(session, parsed).await,
        Verb::Put => kv::put(session, parsed).await,
        Verb::Del => kv::delete(session, parsed).await,
        Verb::Txn => kv::txn(session, parsed).await,
        Verb::Compaction => kv::compaction(session, parsed).await,
        Verb::Watch => watch::run(session, parsed, &Variables::read(environment)?).await,
        Verb::LeaseGrant => lease::grant(session, parsed).await,
        Verb::LeaseRevoke => lease::revoke(session, parsed).await,
        Verb::LeaseTimeToLive => lease::time_to_live(session, parsed).await,
        Verb::LeaseList => lease::list(session, parsed).await,
        Verb::LeaseKeepAlive => lease::keep_alive(session, parsed).await,
        Verb::MemberList => cluster::member_list(session, parsed).await,
        Verb::MemberAdd => cluster::member_add(session, parsed).await,
        Verb::MemberRemove => cluster::member_remove(session, parsed).await,
        Verb::MemberUpdate => cluster::member_update(session, parsed).await,
        Verb::MemberPromote => cluster::member_promote(session, parsed).await,
        Verb::EndpointHealth => cluster::endpoint_health(session, parsed).await,
        Verb::EndpointStatus => cluster::endpoint_status(session, parsed).await,
        Verb::EndpointHashKv => cluster::endpoint_hashes(session, parsed).await,
        Verb::AlarmList => cluster::alarm_list(session, parsed).await,
        Verb::AlarmDisarm => cluster::alarm_disarm(session, parsed).await,
        Verb::Defrag => cluster::defragment(session, parsed).await,
        Verb::MoveLeader => cluster::move_leader(session, parsed).await,
        Verb::ProxyStatus => proxy::status(session).await,
        Verb::GatewayStatus => gateway::status(session).await,
        Verb::SnapshotSave => snapshot::save(session, parsed).await,
        Verb::Lock => concurrency::lock(session, parsed).await,
        Verb::Elect => concurrency::elect(session, parsed).await,
        Verb::DowngradeValidate => downgrade::validate(session, parsed).await,
        Verb::DowngradeEnable => downgrade::enable(session, parsed).await,
        Verb::DowngradeCancel => downgrade::cancel(session, parsed).await,
        Verb::AuthEnable => auth::enable(session, parsed).await,
        Verb::AuthDisable => auth::disable(session, parsed).await,
        Verb::AuthStatus => auth::status(session, parsed).await,
        Verb::UserAdd => auth::user_add(session, parsed).await,
        Verb::UserDelete => auth::user_delete(session, parsed).await,
        Verb::UserGet => auth::user_get(session, parsed).await,
        Verb::UserList => auth::user_list(session, parsed).await,
        Verb::UserPassword => auth::user_password(session, parsed).await,
        Verb::UserGrantRole => auth::user_grant_role(session, parsed).await,
        Verb::UserRevokeRole => auth::user_revoke_role(session, parsed).await,
        Verb::RoleAdd => role::add(session, parsed).await,
        Verb::RoleDelete => role::delete(session, parsed).await,
        Verb::RoleGet => role::get(session, parsed).await,
        Verb::RoleList => role::list(session, parsed).await,
        Verb::RoleGrantPermission => role::grant_permission(session, parsed).await,
        Verb::RoleRevokePermission => role::revoke_permission(session, parsed).await,
        Verb::CheckPerf => check::perf(session, parsed).await,
        Verb::CheckDatascale => check::datascale(session, parsed).await,
        Verb::MakeMirror => mirror::run(session, parsed).await,
        Verb::Version | Verb::Options | Verb::Completion | Verb::Help => Ok(()),
    }
}
