//! Users, roles and permissions, and the tokens that stand for users.
//!
//! `store.rs` is the replicated state as apply changes it; `state.rs` the immutable form in which everyone else reads it, with
//! the checks; `intervals.rs` the merged permissions of a user. `simple_tokens.rs` and `jwt.rs` are the two kinds of tokens,
//! `password.rs` hashes. See `docs/design/auth.md`.

mod error;
mod intervals;
mod jwt;
mod password;
mod simple_tokens;
mod state;
mod store;

pub use error::AuthError;
pub use jwt::{JwtError, JwtKeys, JwtOptions};
pub use password::{PASSWORD_BYTES_MAX, PasswordError, compared_part, hash_password, is_password};
pub use simple_tokens::{SimpleTokens, TokenIndex, random_letters, simple_token};
pub use state::{Access, AuthState, Identity, ROOT};
pub use store::{AuthFact, AuthStore};
