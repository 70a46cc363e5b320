use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::failure::{Exit, Failure};
use super::flags::Parsed;
use super::lease::Keeper;
use super::session::{Session, show};
use super::{exec, golang};
use crate::client::Client;
use crate::net::Backoff;
use crate::pb::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest, RangeResponse};
use crate::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ResignRequest};
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use crate::shutdown::{Interruptions, Tasks};

/// Seconds an election outlives a candidate that falls silent, as in the Go client's sessions.
const ELECTION_TTL: i64 = 60;
/// How long giving a lock or lease back may take when the process is told to stop.
const FAREWELL: Duration = Duration::from_secs(2);
/// Pauses before a member is tried in place of one that was lost while a turn was waited for.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A lease that lives as long as this process.
struct Held {
    client: Client,
    lease: i64,
    keeper: tokio::task::JoinHandle<()>,
}

impl Held {
    async fn grant(client: &Client, ttl: i64) -> Result<Self, Status> {
        let asked = Instant::now();
        let granted = client.lease().lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?.into_inner();
        let keeper = Tasks::new().spawn(Keeper::new(client.clone(), granted.id).hold(asked, granted.ttl));
        Ok(Self { client: client.clone(), lease: granted.id, keeper })
    }

    /// Completes when the lease is gone in spite of everything. Not to be called again then.
    async fn lost(&mut self) {
        // However the task ended, nobody renews the lease any more.
        let _ = (&mut self.keeper).await;
    }

    /// Ends the lease, and with it every key that hangs on it. Tells whether it is gone.
    async fn release(self) -> bool {
        self.keeper.abort();
        match self.client.lease().lease_revoke(LeaseRevokeRequest { id: self.lease }).await {
            Ok(_) => true,
            // It expired before.
            Err(status) if status.code() == Code::NotFound => true,
            Err(status) => {
                eprintln!("lease {} is left to expire ({})", golang::lease_id(self.lease), status.message());
                false
            }
        }
    }
}

/// Makes a call that waits for a turn under a lease, and that a member answers once it has come. When that member is lost, the call is made
/// again under another lease: what is left of it there may yet remove the key of the first.
async fn in_turn<T>(
    client: &Client,
    ttl: i64,
    interruptions: &mut Interruptions,
    expired: &str,
    call: impl AsyncFn(i64) -> Result<tonic::Response<T>, Status>,
) -> Result<(Held, T), Failure> {
    let (mut backoff, mut abandoned) = (Backoff::new(RETRY_FIRST, RETRY_MAX), Vec::new());
    loop {
        let granted = tokio::select! {
            granted = Held::grant(client, ttl) => granted,
            failure = stopped(interruptions) => return Err(failure),
        };
        let lost = match granted {
            Ok(mut held) => {
                for id in abandoned.drain(..) {
                    // Else the key of that lease is waited for until it expires.
                    let _ = timeout(FAREWELL, client.lease().lease_revoke(LeaseRevokeRequest { id })).await;
                }
                let ended = tokio::select! {
                    answer = call(held.lease) => match answer {
                        Ok(answer) => return Ok((held, answer.into_inner())),
                        Err(status) => Err(status),
                    },
                    failure = stopped(interruptions) => Ok(failure),
                    () = held.lost() => Ok(Failure::new(Exit::Error, expired)),
                };
                match ended {
                    Err(status) if status.code() == Code::Unavailable => {
                        held.keeper.abort();
                        abandoned.push(held.lease);
                        status
                    }
                    Err(status) => return Err(left(held, Failure::call(&status)).await),
                    Ok(failure) => return Err(left(held, failure).await),
                }
            }
            Err(status) if !abandoned.is_empty() && status.code() == Code::Unavailable => status,
            Err(status) => return Err(Failure::call(&status)),
        };
        eprintln!("the member was lost while the turn was waited for, trying again ({})", lost.message());
        tokio::select! {
            () = sleep(backoff.pause()) => {}
            failure = stopped(interruptions) => return Err(failure),
        }
    }
}

/// The failure, after the lease was given back.
async fn left(held: Held, failure: Failure) -> Failure {
    let _ = timeout(FAREWELL, held.release()).await;
    failure
}

/// Waits for the two calls that end a lock, `limit` at most: one removes the key, the other revokes the lease and so
/// removes the key too. Neither waits for the other, so that one without an answer does not keep the key in place.
async fn given_back(
    limit: Duration,
    removed: impl Future<Output = Result<(), Failure>>,
    revoked: impl Future<Output = bool>,
) -> Result<(), Failure> {
    match tokio::join!(timeout(limit, removed), timeout(limit, revoked)) {
        (Ok(outcome), _) => outcome,
        (Err(_), Ok(true)) => Ok(()),
        (Err(_), _) => Err(Failure::call(&Status::deadline_exceeded("the key is left until its lease expires"))),
    }
}

/// SIGINT and SIGTERM from now on: they no longer end the process, and one that comes between two waits is not lost.
fn interruptions() -> Result<Interruptions, Failure> {
    Interruptions::new().map_err(|error| Failure::new(Exit::Error, format!("listen for signals: {error}")))
}

/// Completes with an error at SIGINT and SIGTERM.
async fn stopped(interruptions: &mut Interruptions) -> Failure {
    interruptions.next().await;
    Failure::new(Exit::Error, "context canceled")
}

fn called<T>(answer: Result<tonic::Response<T>, Status>) -> Result<T, Failure> {
    answer.map(tonic::Response::into_inner).map_err(|status| Failure::call(&status))
}

async fn read_key(client: &Client, key: bytes::Bytes) -> Result<RangeResponse, Failure> {
    called(client.kv().range(RangeRequest { key, ..Default::default() }).await)
}

pub(super) async fn lock(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [name, command @ ..] = parsed.args.as_slice() else {
        return Err(Failure::args("lock takes a lock name argument and an optional command to execute"));
    };
    let client = session.client().await?;
    let mut interruptions = interruptions()?;
    let request = |lease| LockRequest { name: bytes::Bytes::copy_from_slice(name), lease };
    let mut locks = client.lock();
    let lock = async |lease| client.lock().lock(request(lease)).await;
    let (mut held, locked) = in_turn(&client, parsed.int("ttl"), &mut interruptions, "session expired", lock).await?;
    let outcome = hold_lock(&session, &client, &mut held, &mut interruptions, &locked, command).await;
    let limit = match command {
        [] => FAREWELL,
        // Nobody asked this process to hurry when the command ended.
        _ => session.options.command_timeout.max(FAREWELL),
    };
    let unlocked = async { called(locks.unlock(UnlockRequest { key: locked.key }).await).map(drop) };
    outcome.and(given_back(limit, unlocked, held.release()).await)
}

async fn hold_lock(
    session: &Session,
    client: &Client,
    held: &mut Held,
    interruptions: &mut Interruptions,
    locked: &LockResponse,
    command: &[super::flags::Word],
) -> Result<(), Failure> {
    if !command.is_empty() {
        let revision = locked.header.as_ref().map_or(0, |header| header.revision);
        let lease = golang::lease_id(held.lease);
        let mut run = pin!(exec::under_lock(command, &locked.key, revision));
        tokio::select! {
            outcome = &mut run => return outcome,
            () = held.lost() => {}
        }
        eprintln!("session expired: lease {lease} is lost, others may take the lock while the command runs");
        return run.await;
    }
    let expired = || Failure::new(Exit::Error, "session expired");
    let answer = tokio::select! {
        answer = read_key(client, locked.key.clone()) => answer?,
        failure = stopped(interruptions) => return Err(failure),
        () = held.lost() => return Err(expired()),
    };
    if answer.kvs.is_empty() {
        return Err(Failure::new(Exit::Error, "lock lost on init"));
    }
    show(session.printer.range(&answer)?)?;
    tokio::select! {
        _ = stopped(interruptions) => Ok(()),
        () = held.lost() => Err(expired()),
    }
}

pub(super) async fn elect(session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let listen = parsed.bool("listen");
    match parsed.args.as_slice() {
        [name] if listen => observe(session, name).await,
        [_] => Err(Failure::args("no proposal argument but -l not set")),
        [_, _] if listen => Err(Failure::args("proposal given but -l is set")),
        [name, proposal] => campaign(session, name, proposal).await,
        _ => Err(Failure::args("elect takes one election name argument and an optional proposal argument")),
    }
}

async fn observe(mut session: Session, name: &[u8]) -> Result<(), Failure> {
    let client = session.client().await?;
    let mut interruptions = interruptions()?;
    let request = LeaderRequest { name: bytes::Bytes::copy_from_slice(name) };
    let follow = async {
        let (mut backoff, mut follows, mut shown) = (Backoff::new(RETRY_FIRST, RETRY_MAX), false, None);
        loop {
            let lost = match client.election().observe(request.clone()).await {
                Ok(leaders) => {
                    follows = true;
                    show_leaders(&session, leaders.into_inner(), &mut shown).await?
                }
                Err(status) => status,
            };
            if !follows || lost.code() != Code::Unavailable {
                return Err(Failure::call(&lost));
            }
            sleep(backoff.pause()).await;
        }
    };
    tokio::select! {
        outcome = follow => outcome,
        _ = stopped(&mut interruptions) => Ok(()),
    }
}

/// Shows leaders until the stream is lost, and why that is. One that was `shown` last is not shown again: another member tells it first.
async fn show_leaders(
    session: &Session,
    mut leaders: tonic::Streaming<LeaderResponse>,
    shown: &mut Option<(bytes::Bytes, i64)>,
) -> Result<Status, Failure> {
    loop {
        let LeaderResponse { header, kv } = match leaders.message().await {
            Ok(Some(leader)) => leader,
            Ok(None) => return Err(Failure::new(Exit::Error, "elect: observer lost")),
            Err(status) => return Ok(status),
        };
        let leader = kv.as_ref().map(|kv| (kv.key.clone(), kv.mod_revision));
        if leader != *shown {
            *shown = leader;
            let answer = RangeResponse { header, kvs: kv.into_iter().collect(), ..Default::default() };
            show(session.printer.range(&answer)?)?;
        }
    }
}

async fn campaign(mut session: Session, name: &[u8], proposal: &[u8]) -> Result<(), Failure> {
    let client = session.client().await?;
    let mut interruptions = interruptions()?;
    let request = |lease| CampaignRequest {
        name: bytes::Bytes::copy_from_slice(name),
        lease,
        value: bytes::Bytes::copy_from_slice(proposal),
    };
    let campaign = async |lease| client.election().campaign(request(lease)).await;
    let won = in_turn(&client, ELECTION_TTL, &mut interruptions, "elect: session expired", campaign);
    let (mut held, won) = won.await?;
    let leader = won.leader.unwrap_or_default();
    let mut elections = client.election();
    let outcome = lead(&session, &client, &mut held, &mut interruptions, &leader).await;
    let resigned = async { called(elections.resign(ResignRequest { leader: Some(leader) }).await).map(drop) };
    outcome.and(given_back(FAREWELL, resigned, held.release()).await)
}

async fn lead(
    session: &Session,
    client: &Client,
    held: &mut Held,
    interruptions: &mut Interruptions,
    leader: &LeaderKey,
) -> Result<(), Failure> {
    let expired = || Failure::new(Exit::Error, "elect: session expired");
    let answer = tokio::select! {
        answer = read_key(client, leader.key.clone()) => answer?,
        failure = stopped(interruptions) => return Err(failure),
        () = held.lost() => return Err(expired()),
    };
    show(session.printer.range(&answer)?)?;
    tokio::select! {
        _ = stopped(interruptions) => Ok(()),
        () = held.lost() => Err(expired()),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_does_not_keep_the_key_in_place() {
        // Cause: the revoke followed the call that removes the key, which had no limit.
        let refused = || Failure::new(Exit::Error, "etcdserver: permission denied");
        assert_eq!(given_back(FAREWELL, pending(), ready(true)).await, Ok(()));
        assert_eq!(given_back(FAREWELL, ready(Ok(())), pending()).await, Ok(()));
        assert_eq!(given_back(FAREWELL, ready(Err(refused())), ready(true)).await, Err(refused()));
        for revoked in [None, Some(false)] {
            let revoked = async move {
                match revoked {
                    Some(revoked) => revoked,
                    None => pending::<bool>().await,
                }
            };
            let failure = given_back(FAREWELL, pending(), revoked).await.unwrap_err();
            assert_eq!(failure.text, "context deadline exceeded");
        }
    }
}
