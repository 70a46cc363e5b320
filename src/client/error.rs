/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A client without an endpoint.
    #[error("no endpoint given")]
    NoEndpoint,
    /// A token that HTTP cannot carry.
    #[error("the token holds bytes that a header cannot carry")]
    BadToken,
}
