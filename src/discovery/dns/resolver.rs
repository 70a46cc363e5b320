use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::join;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;

use super::error::{SrvError, Unanswered};

/// Wait for one answer of a server; it is asked twice, then by TCP.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Records of one answer that are looked at.
const RECORDS_MAX: usize = 1_000;

/// Asks DNS. Keeps no answers: whoever asks knows for how long they may be used.
pub(super) struct Resolver {
    resolver: TokioResolver,
    /// Domains that complete a name which may be a part of one, in this order.
    search: Vec<Name>,
}

/// What was found, one at least, and how long it may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer<T> {
    pub(super) found: Vec<T>,
    pub(super) ttl: Duration,
}

/// The addresses of a host, one at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    /// Sorted: the order that a server turns round is no difference.
    pub(super) found: Vec<IpAddr>,
    pub(super) ttl: Duration,
    /// The question for the addresses of one family that was not answered. Those known before count then, if there are any.
    pub(super) unanswered: Option<Unanswered>,
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
        let no_resolver = |error: NetError| SrvError::NoResolver(error.to_string());
        let (config, mut options) = match server {
            None => read_system_conf().map_err(no_resolver)?,
            Some(server) => {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                config.connections.iter_mut().for_each(|connection| connection.port = server.port());
                let mut options = ResolverOpts::default();
                options.use_hosts_file = ResolveHosts::Never;
                (ResolverConfig::from_parts(None, Vec::new(), vec![config]), options)
            }
        };
        options.cache_size = 0;
        options.timeout = QUESTION_TIMEOUT;
        options.attempts = 2;
        options.try_tcp_on_error = true;
        let search = config.domain().into_iter().chain(config.search()).cloned().collect();
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Self { resolver: builder.build().map_err(no_resolver)?, search })
    }

    /// The SRV records under a name, best priority first. The target `.`, which says that there is no such service, is
    /// left out. A name without a dot at its end is completed by the search list when there is no such name.
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
        let ask = |name: String| async move { self.ask(&name, RecordType::SRV, target).await };
        let mut answer = first_known(whole_names(name, &self.search), ask).await?;
        answer.found.sort();
        Ok(answer)
    }

    /// The addresses of a host, for which `known` were found before.
    pub(super) async fn addresses(&self, host: &str, known: &[IpAddr]) -> Result<Addresses, Unanswered> {
        let address = |data: &RData| match data {
            RData::A(address) => Some(IpAddr::from(address.0)),
            RData::AAAA(address) => Some(IpAddr::from(address.0)),
            _ => None,
        };
        // Not to be completed by the search list: the target of a record is a full name.
        let name = format!("{host}.");
        let both = join(self.ask(&name, RecordType::A, address), self.ask(&name, RecordType::AAAA, address)).await;
        both_families(both.0, both.1, known)
    }

    /// Asks for the records of a whole name, with the dot at its end.
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
        match self.resolver.lookup(name, kind).await {
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

/// The whole names that a name may mean: itself, and what it is when the domains of the search list complete it.
fn whole_names(name: &str, search: &[Name]) -> (String, Vec<String>) {
    if name.ends_with('.') {
        return (name.to_owned(), Vec::new());
    }
    let mut completed = Vec::new();
    for domain in search.iter().filter(|domain| !domain.is_root()).map(Name::to_ascii) {
        let name = format!("{name}.{}.", domain.trim_end_matches('.'));
        if !completed.contains(&name) {
            completed.push(name);
        }
    }
    (format!("{name}."), completed)
}

/// The answer for the first name that exists. A name that is written in full is asked as it is first, however few dots are in it, and a
/// failure ends the search: what another name has, or lacks, says nothing of this one.
///
/// # Errors
/// A failure, or that the name does not exist as it is, nor completed.
async fn first_known<T, F: Future<Output = Result<T, Unanswered>>>(
    (name, completed): (String, Vec<String>),
    ask: impl Fn(String) -> F,
) -> Result<T, Unanswered> {
    let denied = match ask(name).await {
        Err(unanswered) if unanswered.is_negative => unanswered,
        outcome => return outcome,
    };
    for name in completed {
        match ask(name).await {
            Err(unanswered) if unanswered.is_negative => {}
            outcome => return outcome,
        }
    }
    Err(denied)
}

/// Puts the addresses of both families together. A family of which DNS says nothing keeps those of `known`: a question that fails
/// must not look like a host that has lost an address.
fn both_families(
    four: Result<Answer<IpAddr>, Unanswered>,
    six: Result<Answer<IpAddr>, Unanswered>,
    known: &[IpAddr],
) -> Result<Addresses, Unanswered> {
    let (mut found, ttl, unanswered) = match (four, six) {
        (Ok(mut four), Ok(six)) => {
            four.found.extend(six.found);
            (four.found, four.ttl.min(six.ttl), None)
        }
        (Ok(answer), Err(other)) | (Err(other), Ok(answer)) if other.is_negative => (answer.found, answer.ttl, None),
        (Ok(mut four), Err(six)) => {
            four.found.extend(known.iter().filter(|address| address.is_ipv6()));
            (four.found, four.ttl, Some(six))
        }
        (Err(four), Ok(mut six)) => {
            six.found.extend(known.iter().filter(|address| address.is_ipv4()));
            (six.found, six.ttl, Some(four))
        }
        (Err(four), Err(six)) => {
            let is_negative = four.is_negative && six.is_negative;
            return Err(if four.is_negative { Unanswered { is_negative, ..six } } else { four });
        }
    };
    found.sort();
    found.dedup();
    Ok(Addresses { found, ttl, unanswered })
}

fn read_answers<T>(lookup: &Lookup, kind: RecordType, read: impl Fn(&RData) -> Option<T>) -> Option<Answer<T>> {
    let records = || lookup.answers().iter().filter(|record| record.record_type() == kind).take(RECORDS_MAX);
    let found: Vec<T> = records().filter_map(|record| read(&record.data)).collect();
    // Aliases on the way have a time, too.
    let ttl = lookup.answers().iter().map(|record| record.ttl).min()?;
    (!found.is_empty()).then(|| Answer { found, ttl: Duration::from_secs(ttl.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unanswered(question: &str, is_negative: bool) -> Unanswered {
        Unanswered { question: question.to_owned(), answer: "none".to_owned(), is_negative }
    }

    #[tokio::test]
    async fn a_failure_is_not_outvoted_by_what_another_name_has_or_lacks() {
        // Cause: the next name of the search list was asked after any failure, and its NXDOMAIN was taken for the answer: then endpoints
        // without TLS were used although those with TLS had only not been found for the moment.
        const WHOLE: &str = "_s._tcp.example.com.";
        const COMPLETED: &str = "_s._tcp.example.com.corp.local.";
        let search = [Name::from_ascii("corp.local").unwrap(), Name::root(), Name::from_ascii("corp.local.").unwrap()];
        let names = || (WHOLE.to_owned(), vec![COMPLETED.to_owned()]);
        assert_eq!(whole_names("_s._tcp.example.com", &search), names());
        assert_eq!(whole_names(WHOLE, &search), (WHOLE.to_owned(), Vec::new()));
        assert_eq!(whole_names("_s._tcp.example.com", &[]), (WHOLE.to_owned(), Vec::new()));

        type Outcome = fn(&str) -> Result<String, Unanswered>;
        let found: Outcome = |name| Ok(name.to_owned());
        let denied: Outcome = |name| Err(unanswered(name, true));
        let failed: Outcome = |name| Err(unanswered(name, false));
        for (whole, completed, expected) in [
            (found, found, found(WHOLE)),
            (found, failed, found(WHOLE)),
            (denied, found, found(COMPLETED)),
            (denied, denied, denied(WHOLE)),
            (denied, failed, failed(COMPLETED)),
            (failed, denied, failed(WHOLE)),
            (failed, found, failed(WHOLE)),
        ] {
            let ask = |name: String| async move { if name == WHOLE { whole(&name) } else { completed(&name) } };
            assert_eq!(first_known(names(), ask).await, expected);
        }
    }

    /// Addresses by spaces; `!` for a failure, nothing for a denial.
    fn outcome(text: &str) -> Result<Answer<IpAddr>, Unanswered> {
        match text {
            "!" => Err(unanswered("failed", false)),
            "" => Err(unanswered("denied", true)),
            _ => Ok(Answer { found: addresses(text), ttl: Duration::from_secs(text.len() as u64) }),
        }
    }

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn a_family_that_is_not_answered_keeps_its_addresses() {
        // Cause: one of the two questions that failed took the addresses of its family out of the set. The endpoint was another one
        // then, and connections to the one before were reset at the end of its drain timeout.
        for (four, six, known, expected, is_whole) in [
            ("1.1.1.2 1.1.1.1", "::1", "", "1.1.1.1 1.1.1.2 ::1", true),
            ("1.1.1.1", "", "1.1.1.1 ::1", "1.1.1.1", true),
            ("", "::1", "1.1.1.1 ::1", "::1", true),
            ("1.1.1.1", "!", "1.1.1.1 ::1 ::2", "1.1.1.1 ::1 ::2", false),
            // It moved, and what moved is known.
            ("1.1.1.9", "!", "1.1.1.1 ::1", "1.1.1.9 ::1", false),
            ("!", "::9", "1.1.1.1 ::1", "1.1.1.1 ::9", false),
            ("1.1.1.1", "!", "", "1.1.1.1", false),
            ("!", "::1", "", "::1", false),
        ] {
            let both = both_families(outcome(four), outcome(six), &addresses(known)).unwrap();
            assert_eq!(both.found, addresses(expected), "{four} and {six} after {known}");
            assert_eq!(both.unanswered.is_none(), is_whole, "{four} and {six}");
        }
        for (four, six, is_negative) in [("", "", true), ("!", "", false), ("", "!", false), ("!", "!", false)] {
            let error = both_families(outcome(four), outcome(six), &addresses("1.1.1.1")).unwrap_err();
            assert_eq!(error.is_negative, is_negative, "{four} and {six}");
        }
    }
}
