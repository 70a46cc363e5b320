use super::error::{SrvError, Unanswered};
use super::resolver::{Answer, Target};

/// The names under which the SRV records of a service are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceNames {
    pub(super) tls: String,
    pub(super) plain: String,
}

impl ServiceNames {
    /// As etcd forms them, `suffix` being `--discovery-srv-name`.
    pub(super) fn new(service: &str, suffix: &str, domain: &str) -> Self {
        let suffix = if suffix.is_empty() { String::new() } else { format!("-{suffix}") };
        Self {
            tls: format!("_{service}-ssl{suffix}._tcp.{domain}"),
            plain: format!("_{service}{suffix}._tcp.{domain}"),
        }
    }
}

/// Targets of one kind: endpoints with TLS and without are never in one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Targets {
    pub(super) is_tls: bool,
    pub(super) answer: Answer<Target>,
}

/// Endpoints without TLS are used where they are `accepted` and DNS says that there are none with TLS: a server that
/// fails says nothing.
pub(super) fn choose(
    tls: Result<Answer<Target>, Unanswered>,
    plain: Result<Answer<Target>, Unanswered>,
    accepted: bool,
) -> Result<Targets, SrvError> {
    match (tls, plain) {
        (Ok(answer), _) => Ok(Targets { is_tls: true, answer }),
        (Err(tls), Ok(_)) if !tls.is_negative => Err(SrvError::Unknown(tls)),
        (Err(_), Ok(answer)) if accepted => Ok(Targets { is_tls: false, answer }),
        (Err(tls), Ok(_)) => Err(SrvError::PlainOnly(tls)),
        (Err(tls), Err(plain)) => Err(SrvError::NoRecords { tls, plain }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_are_those_of_etcd() {
        let names = ServiceNames::new("etcd-client", "", "example.com");
        assert_eq!(names.tls, "_etcd-client-ssl._tcp.example.com");
        assert_eq!(names.plain, "_etcd-client._tcp.example.com");
        let names = ServiceNames::new("etcd-server", "west", "example.com");
        assert_eq!(names.tls, "_etcd-server-ssl-west._tcp.example.com");
        assert_eq!(names.plain, "_etcd-server-west._tcp.example.com");
    }

    #[test]
    fn kinds_are_never_mixed_and_a_failure_is_no_denial() {
        let answer = |host: &str| {
            let target = Target { priority: 0, weight: 0, host: host.to_owned(), port: 1 };
            Ok(Answer { found: vec![target], ttl: Duration::from_secs(1) })
        };
        let none =
            |is_negative| Err(Unanswered { question: "SRV q".to_owned(), answer: "none".to_owned(), is_negative });
        let chosen = |tls, plain, accepted| match choose(tls, plain, accepted) {
            Ok(targets) => format!("{} {}", targets.is_tls, targets.answer.found[0].host),
            Err(error) => error.to_string(),
        };
        for accepted in [true, false] {
            assert_eq!(chosen(answer("t"), answer("p"), accepted), "true t");
            assert_eq!(chosen(answer("t"), none(false), accepted), "true t");
            assert!(chosen(none(false), answer("p"), accepted).contains("SRV q: none"));
            assert_eq!(chosen(none(true), none(false), accepted), "no SRV records: SRV q: none; SRV q: none");
        }
        assert_eq!(chosen(none(true), answer("p"), true), "false p");
        assert!(chosen(none(true), answer("p"), false).contains("--insecure-discovery"));
    }
}
