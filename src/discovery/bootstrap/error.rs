/// Why a member does not become one of a cluster whose members register.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the variants are")]
pub enum JoinError {
    #[error("the registry cannot be asked: {0}")]
    Client(String),
    #[error("discovery: size key not found: {0} has no value")]
    SizeNotFound(String),
    #[error("discovery: size key is bad: {key} is {value:?}, expected a number from 1")]
    BadSize { key: String, value: String },
    /// With the entries of the members.
    #[error("discovery: cluster is full: {size} members are registered without this one ({member})")]
    Full { size: usize, member: String, cluster: String },
    #[error("discovery: found duplicate name: two members are registered under the name {0}")]
    DuplicateName(String),
    #[error(
        "discovery: found duplicate id: a member with the id {0} has registered before; if that was this one and its \
         data is lost, the cluster needs a new URL"
    )]
    DuplicateId(String),
    #[error("discovery: bad discovery endpoint: {0}")]
    BadEndpoint(String),
    #[error("discovery: {0}")]
    Refused(String),
}
