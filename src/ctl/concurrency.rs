use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::failure::{Exit, Failure};
use super::flags::Parsed;
use super::lease::Keeper;
use super::session::{Session, show};
use super::{exec, golang};
use crate::client::Client;
use crate::pb::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest, RangeResponse};
use crate::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ResignRequest};
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use crate::shutdown::{Interruptions, Tasks};

/// Seconds an election outlives a candidate that falls silent, as in the Go client's sessions.
const ELECTION_TTL: i64 = 60;
/// How long giving a lock or lease back may take when the process is told to stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// A lease that lives as long as this process.
struct Held {
    client: Client,
    lease: i64,
    keeper: tokio::task::JoinHandle<()>,
}

impl Held {
    async fn grant(client: Client, ttl: i64, interruptions: &mut Interruptions) -> Result<Self, Failure> {
        let asked = Instant::now();
        let mut leases = client.lease();
        let granted = tokio::select! {
            answer = leases.lease_grant(LeaseGrantRequest { ttl, id: 0 }) => called(answer)?,
            failure = stopped(interruptions) => return Err(failure),
        };
        let keeper = Tasks::new().spawn(Keeper::new(client.clone(), granted.id).hold(asked, granted.ttl));
        Ok(Self { client, lease: granted.id, keeper })
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
    let mut held = Held::grant(client.clone(), parsed.int("ttl"), &mut interruptions).await?;
    let request = LockRequest { name: bytes::Bytes::copy_from_slice(name), lease: held.lease };
    let mut locks = client.lock();
    let locked = tokio::select! {
        answer = locks.lock(request) => called(answer),
        failure = stopped(&mut interruptions) => Err(failure),
        () = held.lost() => Err(Failure::new(Exit::Error, "session expired")),
    };
    let locked = match locked {
        Ok(locked) => locked,
        Err(failure) => {
            let _ = timeout(FAREWELL, held.release()).await;
            return Err(failure);
        }
    };
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
        let mut elections = client.election();
        let mut leaders = called(elections.observe(request).await)?;
        while let Some(leader) = leaders.message().await.map_err(|status| Failure::call(&status))? {
            let LeaderResponse { header, kv } = leader;
            let answer = RangeResponse { header, kvs: kv.into_iter().collect(), ..Default::default() };
            show(session.printer.range(&answer)?)?;
        }
        Err(Failure::new(Exit::Error, "elect: observer lost"))
    };
    tokio::select! {
        outcome = follow => outcome,
        _ = stopped(&mut interruptions) => Ok(()),
    }
}

async fn campaign(mut session: Session, name: &[u8], proposal: &[u8]) -> Result<(), Failure> {
    let client = session.client().await?;
    let mut interruptions = interruptions()?;
    let mut held = Held::grant(client.clone(), ELECTION_TTL, &mut interruptions).await?;
    let request = CampaignRequest {
        name: bytes::Bytes::copy_from_slice(name),
        lease: held.lease,
        value: bytes::Bytes::copy_from_slice(proposal),
    };
    let mut elections = client.election();
    let won = tokio::select! {
        answer = elections.campaign(request) => called(answer),
        failure = stopped(&mut interruptions) => Err(failure),
        () = held.lost() => Err(Failure::new(Exit::Error, "elect: session expired")),
    };
    let leader = match won {
        Ok(won) => won.leader.unwrap_or_default(),
        Err(failure) => {
            let _ = timeout(FAREWELL, held.release()).await;
            return Err(failure);
        }
    };
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
