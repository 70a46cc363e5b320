use std::fmt;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join;
use futures::stream;

use super::certificates::Certificates;
use super::error::{SrvError, Unanswered};
use super::resolver::{Resolver, Target};
use super::service::{ServiceNames, choose};
use crate::config::SrvConfig;
use crate::discovery::endpoint_set::{EndpointSet, ListedEndpoint, Origin};
use crate::discovery::source::{Discovery, Followed, Published};
use crate::net::{Backoff, ClientTls, Endpoint};
use crate::shutdown::Tasks;

/// The service that clients look for.
const CLIENT_SERVICE: &str = "etcd-client";
/// Shortest time for which an answer is used, whatever its TTL is.
const TTL_MIN: Duration = Duration::from_secs(1);
/// Longest time.
const TTL_MAX: Duration = Duration::from_secs(300);
/// Pauses after an answer that cannot be used, or of which a part cannot.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Hosts that are looked up or checked at once.
const AT_ONCE: usize = 16;

/// The endpoints that SRV records name, asked for again when their time is over.
#[derive(Debug)]
pub struct SrvRecords {
    followed: Followed,
}

impl SrvRecords {
    /// Asks once, then follows until `tasks` stop. `tls` is what endpoints must stand up to unless discovery is
    /// insecure.
    ///
    /// # Errors
    /// When there is no endpoint to begin with: what was asked, and what was answered.
    pub async fn start(config: &SrvConfig, tls: ClientTls, tasks: &Tasks) -> Result<Self, SrvError> {
        let certificates =
            (!config.insecure).then(|| Certificates { tls, domain: config.certified_domain().to_owned() });
        let mut search = Search::new(config, certificates);
        let first = search.round().await?;
        let published = Published::new(Origin::Srv, EndpointSet::default());
        published.answer(first.set.clone());
        let followed = published.followed();
        let stop = tasks.stop_signal();
        tasks.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = search.follow(first, &published) => {} }
        });
        Ok(Self { followed })
    }
}

impl Discovery for SrvRecords {
    fn followed(&self) -> Followed {
        self.followed.clone()
    }
}

/// Asks once, for a program that makes its connections and ends: it verifies certificates when it connects. Unless
/// discovery is insecure, they have to be those of the domain, as with etcdctl.
///
/// # Errors
/// When there is no endpoint: what was asked, and what was answered.
pub async fn find_endpoints(config: &SrvConfig) -> Result<Vec<Endpoint>, SrvError> {
    let found = Search::new(config, None).round().await?;
    let endpoint = |listed: &ListedEndpoint| match config.insecure {
        true => listed.endpoint.clone(),
        false => listed.endpoint.clone().certified_as(config.certified_domain()),
    };
    Ok(found.set.iter().map(endpoint).collect())
}

/// What one round of questions found.
#[derive(Clone, Debug)]
struct Found {
    set: EndpointSet,
    ttl: Duration,
    /// Endpoints that could not be used, and why.
    left_out: Vec<String>,
    /// Questions for addresses of endpoints that were not answered: those known before are used, if there are any.
    unanswered: Vec<Unanswered>,
}

/// An endpoint of a record.
struct Looked {
    endpoint: Endpoint,
    /// How long its addresses may be used; none where they are those known before.
    ttl: Option<Duration>,
    /// The question for its addresses that was not answered.
    unanswered: Option<Unanswered>,
}

/// What is asked, and what was found last.
struct Search {
    config: SrvConfig,
    names: ServiceNames,
    certificates: Option<Certificates>,
    last: EndpointSet,
}

impl Search {
    fn new(config: &SrvConfig, certificates: Option<Certificates>) -> Self {
        let names = ServiceNames::new(CLIENT_SERVICE, &config.service_name, &config.domain);
        Self { config: config.clone(), names, certificates, last: EndpointSet::default() }
    }

    async fn follow(&mut self, first: Found, published: &Published) {
        let mut retry = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut pause = self.pause_after(&first, &mut retry);
        loop {
            published.pause(pause).await;
            pause = match self.round().await {
                Ok(found) => {
                    published.answer(found.set.clone());
                    self.pause_after(&found, &mut retry)
                }
                Err(error) => {
                    published.failed(&error);
                    retry.pause()
                }
            };
        }
    }

    fn pause_after(&self, found: &Found, retry: &mut Backoff) -> Duration {
        let pause = found.ttl.clamp(TTL_MIN, TTL_MAX);
        if found.left_out.is_empty() && found.unanswered.is_empty() {
            retry.reset();
            return pause;
        }
        pause.min(retry.pause())
    }

    /// Asks for records, addresses and certificates. The resolver is made for each round, so that a change of
    /// `/etc/resolv.conf` counts.
    async fn round(&mut self) -> Result<Found, SrvError> {
        let resolver = Resolver::new(self.config.dns_server)?;
        let (tls, plain) = join(resolver.targets(&self.names.tls), resolver.targets(&self.names.plain)).await;
        let was_tls = self.last.first().is_some_and(|listed| listed.endpoint.uses_tls(false));
        let targets = choose(tls, plain, self.config.insecure && !was_tls)?;
        let is_tls = targets.is_tls;
        let mut ttl = targets.answer.ttl;
        let (mut found, mut left_out, mut unanswered) = (Vec::new(), Vec::new(), Vec::new());
        let (this, resolver) = (&*self, &resolver);
        let asked = stream::iter(targets.answer.found).map(|target| async move {
            let outcome = this.endpoint(resolver, &target, is_tls).await;
            (target, outcome)
        });
        let outcomes: Vec<_> = asked.buffered(AT_ONCE).collect().await;
        for (target, outcome) in outcomes {
            match outcome {
                Ok(looked) => {
                    ttl = ttl.min(looked.ttl.unwrap_or(ttl));
                    unanswered.extend(looked.unanswered);
                    let (priority, weight) = (target.priority, target.weight);
                    let listed = ListedEndpoint { endpoint: looked.endpoint, priority, weight, origin: Origin::Srv };
                    // One endpoint in two records has the better one: they are in that order.
                    if !found.iter().any(|other: &ListedEndpoint| other.endpoint.is_same_place(&listed.endpoint)) {
                        found.push(listed);
                    }
                }
                Err(why) => left_out.push(why),
            }
        }
        if found.is_empty() {
            return Err(SrvError::NoneUsable(left_out));
        }
        for why in &left_out {
            tracing::warn!(reason = why, "endpoint in SRV records is left out");
        }
        for question in &unanswered {
            tracing::warn!(reason = %question, "question for the addresses of an endpoint in SRV records is not answered");
        }
        self.last = found.into();
        Ok(Found { set: self.last.clone(), ttl, left_out, unanswered })
    }

    /// The endpoint of a record. Addresses that cannot be looked up are the last ones; what was checked and is as it was is not checked
    /// again.
    async fn endpoint(&self, resolver: &Resolver, target: &Target, is_tls: bool) -> Result<Looked, String> {
        let named = Name { host: &target.host, port: target.port, is_tls };
        let endpoint: Endpoint = named.to_string().parse().map_err(|error| format!("{error}"))?;
        let last = self.last.iter().map(|listed| &listed.endpoint).find(|last| last.is_same_place(&endpoint));
        let known = last.and_then(Endpoint::addresses).unwrap_or_default();
        let (endpoint, ttl, unanswered) = match resolver.addresses(&target.host, known).await {
            Ok(answer) => (endpoint.with_addresses(answer.found), Some(answer.ttl), answer.unanswered),
            Err(unanswered) => match last {
                Some(last) => {
                    return Ok(Looked { endpoint: last.clone(), ttl: None, unanswered: Some(unanswered) });
                }
                None => return Err(format!("{endpoint}: {unanswered}")),
            },
        };
        let endpoint = match (&self.certificates, last) {
            (Some(_), Some(last)) if last.addresses() == endpoint.addresses() => last.clone(),
            (Some(certificates), _) => certificates.check(endpoint).await?,
            (None, _) => endpoint,
        };
        Ok(Looked { endpoint, ttl, unanswered })
    }
}

/// The URL of a record.
struct Name<'a> {
    host: &'a str,
    port: u16,
    is_tls: bool,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_without_an_answer_is_asked_again_before_the_time_of_the_others_is_over() {
        // Cause: the addresses that were found, or those known before, counted until the time of the record was over.
        let config = SrvConfig::from_flags("example.com", "", true, "").unwrap().unwrap();
        let search = Search::new(&config, None);
        let unanswered =
            || Unanswered { question: "AAAA a".to_owned(), answer: "SERVFAIL".to_owned(), is_negative: false };
        let found = |unanswered: Vec<Unanswered>| Found {
            set: EndpointSet::default(),
            ttl: TTL_MAX,
            left_out: Vec::new(),
            unanswered,
        };
        let mut retry = Backoff::new(RETRY_FIRST, RETRY_MAX);
        for bound in [1, 2, 4, 8, 16, 30, 30] {
            let pause = search.pause_after(&found(vec![unanswered()]), &mut retry);
            assert!(pause <= Duration::from_secs(bound), "{pause:?} for {bound}");
        }
        assert_eq!(search.pause_after(&found(Vec::new()), &mut retry), TTL_MAX);
        assert!(search.pause_after(&found(vec![unanswered()]), &mut retry) <= RETRY_FIRST);
    }
}
