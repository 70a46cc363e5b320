use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::join;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::error::{SrvError, Unanswered};

/// Wait for one answer of a server; it is asked twice, then by TCP.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Records of one answer that are looked at.
const RECORDS_MAX: usize = 1_000;

/// Asks DNS. Keeps no answers: whoever asks knows for how long they may be used.
pub(super) struct Resolver(TokioResolver);

/// What was found, one at least, and how long it may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer<T> {
    pub(super) found: Vec<T>,
    pub(super) ttl: Duration,
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) priority: u16,
    /// Greater ones are used more; the order is that of the names.
    pub(super) weight: u16,
    /// In lower case, without the dot at its end.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Resolver {
    /// Asks this server, or those in `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When that file cannot be read.
    pub(super) fn new(server: Option<SocketAddr>) -> Result<Self, SrvError> {
        let builder = match server {
            None => TokioResolver::builder_tokio(),
            Some(server) => {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                config.connections.iter_mut().for_each(|connection| connection.port = server.port());
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![config]);
                let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
                builder.options_mut().use_hosts_file = ResolveHosts::Never;
                Ok(builder)
            }
        };
        let build = |mut builder: hickory_resolver::ResolverBuilder<TokioRuntimeProvider>| {
            let options: &mut ResolverOpts = builder.options_mut();
            options.cache_size = 0;
            options.timeout = QUESTION_TIMEOUT;
            options.attempts = 2;
            options.try_tcp_on_error = true;
            builder.build()
        };
        builder.and_then(build).map(Self).map_err(|error| SrvError::NoResolver(error.to_string()))
    }

    /// The SRV records under a name, best priority first. The target `.`, which says that there is no such service, is
    /// left out.
    pub(super) async fn targets(&self, name: &str) -> Result<Answer<Target>, Unanswered> {
        let target = |data: &RData| match data {
            RData::SRV(srv) if !srv.target.is_root() => Some(Target {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                host: srv.target.to_ascii().trim_end_matches('.').to_ascii_lowercase(),
            }),
            _ => None,
        };
        let mut answer = self.ask(name, RecordType::SRV, target).await?;
        answer.found.sort();
        Ok(answer)
    }

    /// The addresses of a host, those of IPv4 first.
    pub(super) async fn addresses(&self, host: &str) -> Result<Answer<IpAddr>, Unanswered> {
        let address = |data: &RData| match data {
            RData::A(address) => Some(IpAddr::from(address.0)),
            RData::AAAA(address) => Some(IpAddr::from(address.0)),
            _ => None,
        };
        // Not to be completed by the search list: the target of a record is a full name.
        let name = format!("{host}.");
        let both = join(self.ask(&name, RecordType::A, address), self.ask(&name, RecordType::AAAA, address)).await;
        match both {
            (Ok(mut four), Ok(six)) => {
                four.found.extend(six.found);
                Ok(Answer { found: four.found, ttl: four.ttl.min(six.ttl) })
            }
            (Ok(answer), Err(_)) | (Err(_), Ok(answer)) => Ok(answer),
            (Err(four), Err(six)) => {
                let is_negative = four.is_negative && six.is_negative;
                Err(if four.is_negative { Unanswered { is_negative, ..six } } else { four })
            }
        }
        .map(|mut answer| {
            // The order that a server turns round is no difference.
            answer.found.sort();
            answer.found.dedup();
            answer
        })
    }

    async fn ask<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Answer<T>, Unanswered> {
        let unanswered = |answer: String, is_negative| Unanswered {
            question: format!("{kind} {}", name.trim_end_matches('.')),
            answer,
            is_negative,
        };
        match self.0.lookup(name, kind).await {
            Ok(lookup) => read_answers(&lookup, kind, read)
                .ok_or_else(|| unanswered("no record that names a host".to_owned(), true)),
            Err(error) => Err(match &error {
                NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                    ResponseCode::NXDomain => unanswered("no such name (NXDOMAIN)".to_owned(), true),
                    ResponseCode::NoError => unanswered("no such record (NOERROR without an answer)".to_owned(), true),
                    other => unanswered(format!("{other}"), false),
                },
                NetError::Dns(DnsError::ResponseCode(code)) => unanswered(format!("{code}"), false),
                NetError::Timeout => unanswered("no answer in time".to_owned(), false),
                other => unanswered(other.to_string(), false),
            }),
        }
    }
}

fn read_answers<T>(lookup: &Lookup, kind: RecordType, read: impl Fn(&RData) -> Option<T>) -> Option<Answer<T>> {
    let records = || lookup.answers().iter().filter(|record| record.record_type() == kind).take(RECORDS_MAX);
    let found: Vec<T> = records().filter_map(|record| read(&record.data)).collect();
    // Aliases on the way have a time, too.
    let ttl = lookup.answers().iter().map(|record| record.ttl).min()?;
    (!found.is_empty()).then(|| Answer { found, ttl: Duration::from_secs(ttl.into()) })
}
