use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
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
        sleep(pause(answer.ttl)).await;
    }
    match printer.format {
        Format::Simple => show(format!("lease {} expired or revoked.\n", golang::lease_id(id))),
        _ => Ok(()),
    }
}

/// A third of the lease between two renewals.
fn pause(ttl: i64) -> Duration {
    span(ttl.max(1)) / 3
}

/// The longest TTL that etcd grants, in seconds.
const TTL_MAX: u64 = 9_000_000_000;

fn span(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0).min(TTL_MAX))
}

/// Tries of the first renewal before a lost connection is an error, a second apart.
const FIRST_TRIES: u32 = 5;

/// Between two tries of a later renewal, as in etcd's client.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What renews one lease. Tests put a model in place of the members.
pub(super) trait Renewer {
    /// Tries once.
    fn attempt(&mut self) -> impl Future<Output = Result<LeaseKeepAliveResponse, Status>> + Send;

    /// Takes the reason for which a try failed. Tells whether another one may succeed.
    fn may_pass(&self, status: &Status) -> bool;
}

/// The stream that renews one lease; a lost stream is opened again.
pub(super) struct KeepAliveStream {
    client: Client,
    id: i64,
    stream: Option<(mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>)>,
}

impl KeepAliveStream {
    async fn ask(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
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
}

impl Renewer for KeepAliveStream {
    async fn attempt(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
        let answer = self.ask().await;
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }

    fn may_pass(&self, status: &Status) -> bool {
        status.code() == tonic::Code::Unavailable || self.client.logs_in_after(status.message())
    }
}

/// One lease and what renews it.
pub(super) struct Keeper<R = KeepAliveStream> {
    renewer: R,
    /// The lease does not expire earlier: when the last request that was answered was sent, and the TTL of the answer.
    ends: Option<Instant>,
}

impl Keeper {
    pub(super) fn new(client: Client, id: i64) -> Self {
        Self { renewer: KeepAliveStream { client, id, stream: None }, ends: None }
    }
}

impl<R: Renewer> Keeper<R> {
    /// Renews once; not to be called again after an error. A TTL of zero in the answer means that the lease is gone.
    ///
    /// # Errors
    /// Why the last try failed: the first renewal is tried five times, a later one until the lease may have expired.
    pub(super) async fn renew(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
        let (sent, answer) = match self.ends {
            None => self.renew_first().await?,
            Some(ends) => self.renew_until(ends).await?,
        };
        self.ends = Some(sent + span(answer.ttl));
        Ok(answer)
    }

    async fn renew_first(&mut self) -> Result<(Instant, LeaseKeepAliveResponse), Status> {
        let mut tries = 0;
        loop {
            let sent = Instant::now();
            match self.renewer.attempt().await {
                Ok(answer) => return Ok((sent, answer)),
                Err(status) => {
                    tries += 1;
                    if tries == FIRST_TRIES || !self.renewer.may_pass(&status) {
                        return Err(status);
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn renew_until(&mut self, ends: Instant) -> Result<(Instant, LeaseKeepAliveResponse), Status> {
        let mut last = Status::deadline_exceeded("no answer for the TTL of the lease");
        let tries = async {
            loop {
                let sent = Instant::now();
                match self.renewer.attempt().await {
                    Ok(answer) => return (sent, answer),
                    Err(status) => {
                        // As in etcd's client every error is tried again; the call makes the next try log in.
                        let _ = self.renewer.may_pass(&status);
                        last = status;
                    }
                }
                sleep(RETRY_PAUSE).await;
            }
        };
        // One that is never answered ends here too.
        let answered = timeout_at(ends, tries).await;
        answered.map_err(|_| last)
    }

    /// Renews a lease that was asked for at `asked` and granted with `ttl`, for as long as it lives. Returns when it is
    /// gone, or when no answer came for its whole TTL.
    pub(super) async fn hold(mut self, asked: Instant, ttl: i64) {
        self.ends = Some(asked + span(ttl));
        let mut next = pause(ttl);
        loop {
            sleep(next).await;
            match self.renew().await {
                Ok(answer) if answer.ttl > 0 => next = pause(answer.ttl),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    /// Members that refuse connections for a while, and a lease that they revoke in the end.
    struct Members {
        began: Instant,
        ttl: i64,
        down: Range<u64>,
        revoked: u64,
        /// While down they do not answer at all.
        silent: bool,
    }

    impl Members {
        fn new(ttl: i64, down: Range<u64>) -> Self {
            Self { began: Instant::now(), ttl, down, revoked: u64::MAX, silent: false }
        }

        /// Seconds until the lease counts as lost.
        async fn held(self) -> u64 {
            let (began, ttl) = (self.began, self.ttl);
            Keeper { renewer: self, ends: None }.hold(began, ttl).await;
            began.elapsed().as_secs()
        }
    }

    impl Renewer for Members {
        async fn attempt(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
            let now = self.began.elapsed().as_secs();
            if self.down.contains(&now) {
                if self.silent {
                    std::future::pending::<()>().await;
                }
                return Err(Status::unavailable("connection refused"));
            }
            let ttl = if now < self.revoked { self.ttl } else { 0 };
            Ok(LeaseKeepAliveResponse { ttl, ..Default::default() })
        }

        fn may_pass(&self, status: &Status) -> bool {
            status.code() == tonic::Code::Unavailable
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_until_it_may_have_expired() {
        // Cause: five tries a second apart were the limit, whatever the TTL. A lock of 120 s was given up in a restart
        // of all members that took 20 s.
        let restart = Members { revoked: 150, ..Members::new(120, 39..60) };
        let held = restart.held().await;
        assert!(held >= 150, "{held}");
        // And one of 10 s was held on to for 26 s without an answer.
        assert_eq!(Members::new(10, 0..u64::MAX).held().await, 10);
        assert_eq!(Members { silent: true, ..Members::new(10, 0..u64::MAX) }.held().await, 10);
        // Renewed at 3, 6 and 9 s, for 9 s each.
        assert_eq!(Members { silent: true, ..Members::new(9, 11..u64::MAX) }.held().await, 18);
    }

    #[tokio::test(start_paused = true)]
    async fn before_the_first_answer_five_tries_are_made() {
        let keeper = |down| Keeper { renewer: Members::new(10, down), ends: None };
        let began = Instant::now();
        keeper(0..u64::MAX).renew().await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 4);
        keeper(0..3).renew().await.unwrap();
    }
}
