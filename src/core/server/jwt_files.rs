//! From `--auth-token` to what makes and verifies tokens.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::authenticator::Tokens;
use crate::config::TokenConfig;
use crate::core::auth::{JwtError, JwtKeys, JwtOptions, SimpleTokens};

/// Why `--auth-token` cannot be used.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum JwtFileError {
    #[error("--auth-token: read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("--auth-token: {0}")]
    Keys(#[from] JwtError),
}

/// Reads the key files, if there are any.
///
/// # Errors
/// Names the file or option that is at fault.
pub(super) fn tokens(config: &TokenConfig) -> Result<Tokens, JwtFileError> {
    match config {
        TokenConfig::None => Ok(Tokens::None),
        TokenConfig::Simple { ttl } => {
            tracing::warn!("simple token is not cryptographically signed");
            Ok(Tokens::Simple(Box::new(SimpleTokens::new(*ttl, Instant::now()))))
        }
        TokenConfig::Jwt { method, public_key, private_key, ttl } => {
            let read = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
            let (public_key, private_key) = (read(public_key)?, read(private_key)?);
            let options = JwtOptions { method: method.clone(), public_key, private_key, ttl: *ttl };
            Ok(Tokens::Jwt(Box::new(JwtKeys::new(&options)?)))
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, JwtFileError> {
    std::fs::read(path).map_err(|source| JwtFileError::Read { path: path.to_owned(), source })
}
