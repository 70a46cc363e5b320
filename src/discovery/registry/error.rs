/// Why a member does not become one of the cluster that a token stands for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the variants are")]
pub enum RegistryError {
    #[error("connect to --discovery-endpoints: {0}")]
    Client(String),
    #[error("discovery: size key not found: {0} has no value")]
    SizeNotFound(String),
    #[error("discovery: size key is bad: {key} is {value:?}, expected a number from 1")]
    BadSize { key: String, value: String },
    #[error("discovery: cluster is full: {size} members are registered without this one ({member})")]
    Full { size: usize, member: String },
    #[error("discovery: two members are registered under the name {0}")]
    DuplicateName(String),
}
