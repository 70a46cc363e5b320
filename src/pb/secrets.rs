//! `Debug` of the messages with a password, a hash or a token: `build.rs` derives none for them.

use std::fmt;

use super::authpb::User;
use super::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse,
    InternalAuthenticateRequest,
};

macro_rules! without_secrets {
    ($($message:ident { $($field:ident),* })*) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))$(.field(stringify!($field), &self.$field))*.finish_non_exhaustive()
            }
        })*
    };
}

without_secrets! {
    User { name, roles, options }
    AuthenticateRequest { name }
    AuthenticateResponse { header }
    AuthUserAddRequest { name, options }
    AuthUserChangePasswordRequest { name }
    InternalAuthenticateRequest { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let secret = || "SECRET".to_owned();
        let shown = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?}",
            User { password: "SECRET".into(), ..Default::default() },
            AuthenticateRequest { name: "alice".to_owned(), password: secret() },
            AuthenticateResponse { token: secret(), ..Default::default() },
            AuthUserAddRequest { password: secret(), hashed_password: secret(), ..Default::default() },
            AuthUserChangePasswordRequest { password: secret(), hashed_password: secret(), ..Default::default() },
            InternalAuthenticateRequest { password: secret(), simple_token: secret(), ..Default::default() },
        );
        assert!(shown.contains("alice") && !shown.contains("SECRET") && !shown.contains("83, 69"), "{shown}");
    }
}
