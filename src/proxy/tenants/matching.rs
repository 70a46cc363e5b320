use std::sync::{Arc, OnceLock};

use crate::config::TenantMatch;
use crate::listener::ConnectionInfo;
use crate::net::CertificateNames;

/// What one connection says of its client; read once.
#[derive(Debug, Default)]
pub(super) struct ClientFacts {
    pub listener: usize,
    pub sni: Option<String>,
    pub names: CertificateNames,
}

impl ClientFacts {
    /// Those of a connection, kept with it.
    pub fn of(connection: &ConnectionInfo) -> Arc<Self> {
        let kept: Arc<OnceLock<Arc<Self>>> = connection.value();
        let read = || {
            let names = connection.certificates.first().and_then(CertificateNames::of).unwrap_or_default();
            let sni = connection.sni.as_deref().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
            Arc::new(Self { listener: connection.listener, sni, names })
        };
        kept.get_or_init(read).clone()
    }
}

/// One way to be a tenant.
#[derive(Clone, Debug)]
pub struct TenantRule {
    /// What must hold, apart from the listener.
    wanted: TenantMatch,
    /// The number of the listener that the file names.
    listener: Option<usize>,
}

impl TenantRule {
    /// `listener` is the number of the listener in `wanted`, if that names one.
    pub fn new(wanted: TenantMatch, listener: Option<usize>) -> Self {
        Self { wanted, listener }
    }

    pub(super) fn needs_user(&self) -> bool {
        self.wanted.user.is_some()
    }

    /// Whether all that is wanted holds. A criterion that nothing is known about does not.
    pub(super) fn holds(&self, facts: &ClientFacts, user: Option<&str>) -> bool {
        let Self { wanted, listener } = self;
        let is =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        let names = &facts.names;
        // A SPIFFE id is the only URI of a certificate: one with several is of nobody.
        let spiffe_id = match names.uris.as_slice() {
            [id] => Some(id.as_str()),
            _ => None,
        };
        listener.is_none_or(|listener| listener == facts.listener)
            && is(&wanted.sni, facts.sni.as_deref())
            && is(&wanted.common_name, names.common_name.as_deref())
            && is(&wanted.spiffe_id, spiffe_id)
            && wanted
                .dns_name
                .as_deref()
                .is_none_or(|wanted| names.dns_names.iter().any(|name| name.eq_ignore_ascii_case(wanted)))
            && is(&wanted.user, user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(wanted: TenantMatch, listener: Option<usize>, facts: &ClientFacts, user: Option<&str>) -> bool {
        TenantRule::new(wanted, listener).holds(facts, user)
    }

    #[test]
    fn all_that_is_wanted_must_hold() {
        let text = |text: &str| Some(text.to_owned());
        let facts = ClientFacts {
            listener: 2,
            sni: text("a.example"),
            names: CertificateNames {
                common_name: Some("cn".into()),
                dns_names: vec!["X.example".into(), "*.y.example".into()],
                uris: vec!["spiffe://d/a".into()],
                ..CertificateNames::default()
            },
        };
        let none = TenantMatch::default;
        for (wanted, listener, expected) in [
            (none(), Some(2), true),
            (none(), Some(1), false),
            (TenantMatch { sni: text("a.example"), ..none() }, None, true),
            (TenantMatch { sni: text("a.example"), ..none() }, Some(1), false),
            (TenantMatch { sni: text("b.example"), ..none() }, Some(2), false),
            (TenantMatch { common_name: text("cn"), sni: text("a.example"), ..none() }, Some(2), true),
            (TenantMatch { common_name: text("CN"), ..none() }, None, false),
            (TenantMatch { dns_name: text("x.example"), ..none() }, None, true),
            // A name with `*` is many names, so it is the name of nobody.
            (TenantMatch { dns_name: text("z.y.example"), ..none() }, None, false),
            (TenantMatch { spiffe_id: text("spiffe://d/a"), ..none() }, None, true),
            (TenantMatch { spiffe_id: text("spiffe://d/b"), ..none() }, None, false),
            (TenantMatch { user: text("u"), ..none() }, None, true),
            (TenantMatch { user: text("v"), ..none() }, None, false),
        ] {
            assert_eq!(holds(wanted.clone(), listener, &facts, Some("u")), expected, "{wanted:?} {listener:?}");
        }
    }

    #[test]
    fn what_is_not_known_does_not_hold() {
        let text = |text: &str| Some(text.to_owned());
        let facts = ClientFacts::default();
        for wanted in [
            TenantMatch { sni: text(""), ..TenantMatch::default() },
            TenantMatch { common_name: text(""), ..TenantMatch::default() },
            TenantMatch { dns_name: text(""), ..TenantMatch::default() },
            TenantMatch { spiffe_id: text(""), ..TenantMatch::default() },
            TenantMatch { user: text(""), ..TenantMatch::default() },
        ] {
            assert!(!holds(wanted.clone(), None, &facts, None), "{wanted:?}");
        }
        let two = vec!["spiffe://d/a".to_owned(), "spiffe://d/b".to_owned()];
        let facts =
            ClientFacts { names: CertificateNames { uris: two, ..CertificateNames::default() }, ..Default::default() };
        let wanted = TenantMatch { spiffe_id: text("spiffe://d/a"), ..TenantMatch::default() };
        assert!(!holds(wanted, None, &facts, None), "two ids are no id");
    }
}
