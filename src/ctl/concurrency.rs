use std::time::Duration;

use tonic::Status;

use super::failure::{Exit, Failure};
use super::flags::Parsed;
use super::lease::Keeper;
use super::session::{Session, show};
use super::{exec, golang};
use crate::client::Client;
use crate::pb::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest, RangeResponse};
use crate::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ResignRequest};
use crate::pb::v3lockpb::{LockRequest, UnlockRequest};
use crate::shutdown::{Tasks, interrupted};

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
    async fn grant(client: Client, ttl: i64) -> Result<Self, Failure> {
        let request = LeaseGrantRequest { ttl, id: 0 };
        let granted = client.lease().lease_grant(request).await.map_err(|status| Failure::call(&status))?.into_inner();
        let keeper = Tasks::new().spawn(Keeper::new(client.clone(), granted.id).hold(granted.ttl));
        Ok(Self { client, lease: granted.id, keeper })
    }

    /// Completes when the lease is gone in spite of everything.
    async fn lost(&mut self) {
        // However the task ended, nobody renews the lease any more.
        let _ = (&mut self.keeper).await;
    }

    /// Ends the lease, and with it every key that hangs on it.
    async fn release(self) {
        self.keeper.abort();
        let revoke = self.client.lease().lease_revoke(LeaseRevokeRequest { id: self.lease }).await;
        if let Err(status) = revoke {
            eprintln!("lease {} is left to expire ({})", golang::lease_id(self.lease), status.message());
        }
    }
}

/// Completes with an error at SIGINT and SIGTERM.
async fn stopped() -> Failure {
    match interrupted().await {
        Ok(_) => Failure::new(Exit::Error, "context canceled"),
        Err(error) => Failure::new(Exit::Error, format!("listen for signals: {error}")),
    }
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
    let mut held = Held::grant(client.clone(), parsed.int("ttl")).await?;
    let outcome = {
        let request = LockRequest { name: bytes::Bytes::copy_from_slice(name), lease: held.lease };
        let mut locks = client.lock();
        let locked = tokio::select! {
            answer = locks.lock(request) => called(answer),
            failure = stopped() => Err(failure),
            () = held.lost() => Err(Failure::new(Exit::Error, "session expired")),
        };
        match locked {
            Err(failure) => Err(failure),
            Ok(locked) => {
                let revision = locked.header.map_or(0, |header| header.revision);
                let outcome = hold_lock(&session, &client, &mut held, &locked.key, revision, command).await;
                let unlock = client.lock().unlock(UnlockRequest { key: locked.key }).await;
                outcome.and(called(unlock).map(drop))
            }
        }
    };
    let _ = tokio::time::timeout(FAREWELL, held.release()).await;
    outcome
}

async fn hold_lock(
    session: &Session,
    client: &Client,
    held: &mut Held,
    key: &bytes::Bytes,
    revision: i64,
    command: &[super::flags::Word],
) -> Result<(), Failure> {
    if !command.is_empty() {
        return exec::under_lock(command, &String::from_utf8_lossy(key), revision).await;
    }
    let answer = read_key(client, key.clone()).await?;
    if answer.kvs.is_empty() {
        return Err(Failure::new(Exit::Error, "lock lost on init"));
    }
    show(session.printer.range(&answer)?)?;
    tokio::select! {
        _ = stopped() => Ok(()),
        () = held.lost() => Err(Failure::new(Exit::Error, "session expired")),
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
        _ = stopped() => Ok(()),
    }
}

async fn campaign(mut session: Session, name: &[u8], proposal: &[u8]) -> Result<(), Failure> {
    let client = session.client().await?;
    let mut held = Held::grant(client.clone(), ELECTION_TTL).await?;
    let outcome = {
        let request = CampaignRequest {
            name: bytes::Bytes::copy_from_slice(name),
            lease: held.lease,
            value: bytes::Bytes::copy_from_slice(proposal),
        };
        let mut elections = client.election();
        let won = tokio::select! {
            answer = elections.campaign(request) => called(answer),
            failure = stopped() => Err(failure),
            () = held.lost() => Err(Failure::new(Exit::Error, "elect: session expired")),
        };
        match won {
            Err(failure) => Err(failure),
            Ok(won) => {
                let leader = won.leader.unwrap_or_default();
                let outcome = lead(&session, &client, &mut held, &leader).await;
                let resign = client.election().resign(ResignRequest { leader: Some(leader) }).await;
                outcome.and(called(resign).map(drop))
            }
        }
    };
    let _ = tokio::time::timeout(FAREWELL, held.release()).await;
    outcome
}

async fn lead(session: &Session, client: &Client, held: &mut Held, leader: &LeaderKey) -> Result<(), Failure> {
    let answer = read_key(client, leader.key.clone()).await?;
    show(session.printer.range(&answer)?)?;
    tokio::select! {
        _ = stopped() => Ok(()),
        () = held.lost() => Err(Failure::new(Exit::Error, "elect: session expired")),
    }
}
