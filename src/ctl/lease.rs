use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::failure::{Exit, Failure};
use super::flags::Parsed;
use super::print::Format;
use super::session::{Session, show};
use super::{golang, requests};
use crate::api_error::ApiError;
use crate::client::Client;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
};

pub(super) async fn grant(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [ttl] = parsed.args.as_slice() else {
        return Err(Failure::args("lease grant command needs TTL argument"));
    };
    let ttl = golang::parse_int(&String::from_utf8_lossy(ttl), 10)
        .map_err(|why| Failure::args(format!("bad TTL ({why})")))?;
    let request = LeaseGrantRequest { ttl, id: 0 };
    let answer = session.short(async |client| client.lease().lease_grant(request).await).await;
    show(session.printer.lease_grant(&answer.map_err(|failure| about("grant", failure))?)?)
}

pub(super) async fn revoke(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [id] = parsed.args.as_slice() else {
        return Err(Failure::args("lease revoke command needs 1 argument"));
    };
    let id = requests::lease(id)?;
    let answer = session.short(async |client| client.lease().lease_revoke(LeaseRevokeRequest { id }).await).await;
    show(session.printer.lease_revoke(id, &answer.map_err(|failure| about("revoke", failure))?)?)
}

fn about(what: &str, failure: Failure) -> Failure {
    Failure { text: format!("failed to {what} lease ({})", failure.text), ..failure }
}

pub(super) async fn time_to_live(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [id] = parsed.args.as_slice() else {
        return Err(Failure::args("lease timetolive command needs lease ID as argument"));
    };
    let keys = parsed.bool("keys");
    let request = LeaseTimeToLiveRequest { id: requests::lease(id)?, keys };
    let answer = session.patient(async |client| client.lease().lease_time_to_live(request).await).await;
    show(session.printer.lease_time_to_live(&answer.map_err(|failure| failure.with(Exit::BadConnection))?, keys)?)
}

pub(super) async fn list(mut session: Session, _: &Parsed) -> Result<(), Failure> {
    let answer = session.patient(async |client| client.lease().lease_leases(LeaseLeasesRequest {}).await).await;
    show(session.printer.leases(&answer.map_err(|failure| failure.with(Exit::BadConnection))?)?)
}

pub(super) async fn keep_alive(mut session: Session, parsed: &Parsed) -> Result<(), Failure> {
    let [id] = parsed.args.as_slice() else {
        return Err(Failure::args("lease keep-alive command needs lease ID as argument"));
    };
    let id = requests::lease(id)?;
    let printer = session.printer;
    let client = session.client().await?;
    let once = parsed.bool("once");
    let failed = |status: Status| Failure::call(&status).with(Exit::BadConnection);
    let mut keeper = Keeper::new(client, id);
    loop {
        let answer = match keeper.renew().await {
            Ok(answer) if answer.ttl > 0 => answer,
            Ok(_) if once => return Err(failed(ApiError::LeaseNotFound.into())),
            Ok(_) => break,
            Err(status) => return Err(failed(status)),
        };
        show(printer.lease_keep_alive(&answer)?)?;
        if once {
            return Ok(());
        }
        tokio::time::sleep(pause(answer.ttl)).await;
    }
    match printer.format {
        Format::Simple => show(format!("lease {} expired or revoked.\n", golang::lease_id(id))),
        _ => Ok(()),
    }
}

/// A third of the lease between two renewals.
fn pause(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0)).max(Duration::from_secs(1)) / 3
}

/// Tries before a lost connection is an error, a second apart.
const TRIES: u32 = 5;

/// One lease and the stream that renews it; a lost stream is opened again.
pub(super) struct Keeper {
    client: Client,
    id: i64,
    stream: Option<(mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>)>,
}

impl Keeper {
    pub(super) fn new(client: Client, id: i64) -> Self {
        Self { client, id, stream: None }
    }

    /// Renews once. A TTL of zero in the answer means that the lease is gone.
    pub(super) async fn renew(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
        let mut tries = 0;
        loop {
            match self.attempt().await {
                Ok(answer) => return Ok(answer),
                Err(status) => {
                    self.stream = None;
                    tries += 1;
                    let passes = status.code() == tonic::Code::Unavailable;
                    if tries == TRIES || !(passes || self.client.logs_in_after(status.message())) {
                        return Err(status);
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
        let request = LeaseKeepAliveRequest { id: self.id };
        let (_, answers) = match &mut self.stream {
            Some(stream) => {
                stream.0.send(request).await.map_err(|_| Status::unavailable("keep-alive stream ended"))?;
                stream
            }
            empty => {
                // One request at a time: the next one waits for the answer.
                let (sender, requests) = mpsc::channel(1);
                // Members send no headers before their first answer, so the request has to be there first.
                sender.try_send(request).map_err(|_| Status::internal("an empty queue has room"))?;
                let answers = self.client.lease().lease_keep_alive(ReceiverStream::new(requests)).await?;
                empty.insert((sender, answers.into_inner()))
            }
        };
        answers.message().await?.ok_or_else(|| Status::unavailable("keep-alive stream ended"))
    }

    /// Renews for as long as the lease lives. Returns when it is gone or the cluster lost.
    pub(super) async fn hold(mut self, ttl: i64) {
        let mut next = pause(ttl);
        loop {
            tokio::time::sleep(next).await;
            match self.renew().await {
                Ok(answer) if answer.ttl > 0 => next = pause(answer.ttl),
                _ => return,
            }
        }
    }
}
