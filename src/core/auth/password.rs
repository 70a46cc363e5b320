/// Bytes of a password that bcrypt looks at; a longer one is refused when it is set, as in etcd.
pub const PASSWORD_BYTES_MAX: usize = 72;

/// Why a password cannot be set.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    #[error("bcrypt: password length exceeds 72 bytes")]
    TooLong,
    #[error("no randomness for a salt")]
    NoRandomness,
}

/// Hashes a password. Takes long, by design: some 50 ms at cost 10, twice as long with each more.
///
/// # Errors
/// The password is too long.
pub fn hash_password(password: &str, cost: u32) -> Result<String, PasswordError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordError::TooLong);
    }
    let parts = bcrypt::hash_with_result(password, cost).map_err(|_| PasswordError::NoRandomness)?;
    // The name that Go's library gives to the same algorithm.
    Ok(parts.format_for_version(bcrypt::Version::TwoA))
}

/// The part of a password that a comparison looks at: of a longer one the rest changes nothing, as in etcd.
pub fn compared_part(password: &str) -> Box<[u8]> {
    password.as_bytes()[..password.len().min(PASSWORD_BYTES_MAX)].into()
}

/// Whether `hash` is of this password. Takes as long as hashing, also when there is no such user (no hash): how long an answer
/// takes does not tell which users exist.
pub fn is_password(password: &[u8], hash: Option<&[u8]>, cost: u32) -> bool {
    match hash {
        Some(hash) => std::str::from_utf8(hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false)),
        None => {
            let _ = bcrypt::hash_with_salt(password, cost, [0; 16]);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_go() {
        // Made by golang.org/x/crypto/bcrypt.
        let of_go = b"$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga";
        assert!(is_password(b"allmine", Some(of_go), 4));
        assert!(!is_password(b"allmina", Some(of_go), 4));
        let hash = hash_password("p", 4).expect("short");
        assert!(hash.starts_with("$2a$04$") && is_password(b"p", Some(hash.as_bytes()), 4));
        assert_ne!(hash, hash_password("p", 4).expect("short"), "salted");
    }

    #[test]
    fn what_is_no_hash_matches_no_password() {
        for hash in [None, Some(&b""[..]), Some(b"$2a$"), Some(b"plain"), Some(&[0xff; 60])] {
            assert!(!is_password(b"", hash, 4) && !is_password(b"plain", hash, 4));
        }
        let long = "x".repeat(PASSWORD_BYTES_MAX);
        assert!(hash_password(&long, 4).is_ok());
        assert_eq!(hash_password(&(long + "x"), 4), Err(PasswordError::TooLong));
    }

    #[test]
    fn a_comparison_keeps_no_more_of_a_password_than_it_looks_at() {
        // The end of what is looked at is within a character.
        let set = format!("{}\u{e9}", "x".repeat(PASSWORD_BYTES_MAX - 2));
        let hash = hash_password(&set, 4).expect("not too long");
        for (given, is_it) in [(set.clone(), true), (set.clone() + &"y".repeat(1 << 20), true), ("x".repeat(99), false)]
        {
            let part = compared_part(&given);
            assert_eq!(part.len(), PASSWORD_BYTES_MAX);
            assert_eq!(is_password(&part, Some(hash.as_bytes()), 4), is_it);
            assert_eq!(is_password(given.as_bytes(), Some(hash.as_bytes()), 4), is_it, "as without the cut");
        }
        let cut = compared_part(&("x".to_owned() + &"\u{e9}".repeat(99)));
        assert!(cut.len() == PASSWORD_BYTES_MAX && std::str::from_utf8(&cut).is_err());
        assert_eq!(*compared_part("short"), *b"short");
    }
}
