use std::fmt;

/// A question to DNS without an answer that could be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Type and name of the record that was asked for.
    pub question: String,
    /// What was answered instead.
    pub answer: String,
    /// Whether it was answered that there is no such record; otherwise there may be one.
    pub is_negative: bool,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.question, self.answer)
    }
}

/// Why no endpoint was found by SRV records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SrvError {
    /// The resolver of the system cannot be used.
    #[error("the resolver of the system cannot be used (set --discovery-dns to use another): {0}")]
    NoResolver(String),
    /// No record for endpoints with TLS, and none without.
    #[error("no SRV records: {tls}; {plain}")]
    NoRecords {
        /// The question for endpoints with TLS.
        tls: Unanswered,
        /// The one for endpoints without.
        plain: Unanswered,
    },
    /// Endpoints without TLS are known, but whether there are some with TLS is not.
    #[error("endpoints without TLS are not used while it is not known whether there are some with TLS: {0}")]
    Unknown(Unanswered),
    /// There are records for endpoints without TLS alone.
    #[error(
        "SRV records name endpoints without TLS alone: they need --insecure-discovery, and are not used in place of endpoints with TLS: {0}"
    )]
    PlainOnly(Unanswered),
    /// The members are of the other kind than this one.
    #[error("SRV records name members {others} alone, unlike --initial-advertise-peer-urls: {asked}")]
    OtherKind {
        /// The question that was not answered.
        asked: Unanswered,
        /// What those have that are known.
        others: &'static str,
    },
    /// There are members, and this one is none of them.
    #[error(
        "cannot find local etcd member {name:?} in SRV records: none of {found} is in --initial-advertise-peer-urls"
    )]
    NotAmongThem {
        /// Of this member.
        name: String,
        /// All of them.
        found: String,
    },
    /// No endpoint of the records can be used.
    #[error("none of the endpoints in SRV records can be used: {}", .0.join("; "))]
    NoneUsable(Vec<String>),
}
