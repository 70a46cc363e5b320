use std::fmt::Display;

use super::error::JoinError;
use crate::pb::mvccpb::KeyValue;

/// The keys of one token in the cluster that keeps it, as etcd's v3 discovery has them.
#[derive(Clone, Debug)]
pub struct RegistryKeys {
    /// Before all keys of the token.
    pub token: String,
    /// Holds the number of members.
    pub size: String,
    /// Before the id of each member.
    pub members: String,
}

impl RegistryKeys {
    /// Before the keys of all tokens.
    pub const ALL: &'static str = "/_etcd/registry/";

    /// Those of this token.
    pub fn new(token: &str) -> Self {
        let token = format!("{}{}/", Self::ALL, token.trim_matches('/'));
        Self { size: format!("{token}_config/size"), members: format!("{token}members/"), token }
    }

    /// That of the member with this id.
    pub fn member(&self, id: impl Display) -> String {
        format!("{}{id}", self.members)
    }

    /// The number of members.
    pub(super) fn read_size(&self, found: Option<&KeyValue>) -> Result<usize, JoinError> {
        let found = found.ok_or_else(|| JoinError::SizeNotFound(self.size.clone()))?;
        size_in(&self.size, &String::from_utf8_lossy(&found.value))
    }
}

/// The number of members that a value is.
pub(super) fn size_in(key: &str, value: &str) -> Result<usize, JoinError> {
    match value.parse() {
        Ok(size) if size > 0 => Ok(size),
        _ => Err(JoinError::BadSize { key: key.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemberId;

    fn pair(key: &str, value: &str, create_revision: i64) -> KeyValue {
        KeyValue { key: key.to_owned().into(), value: value.to_owned().into(), create_revision, ..Default::default() }
    }

    #[test]
    fn keys_and_sizes_are_those_of_etcd() {
        let keys = RegistryKeys::new("t0");
        assert_eq!(keys.size, "/_etcd/registry/t0/_config/size");
        assert_eq!(keys.member(MemberId(0xab)), "/_etcd/registry/t0/members/ab");
        assert_eq!(keys.read_size(Some(&pair("k", "3", 1))), Ok(3));
        assert!(matches!(keys.read_size(None), Err(JoinError::SizeNotFound(_))));
        for bad in ["", "0", "-1", "x", "1.5", "99999999999999999999999"] {
            let read = keys.read_size(Some(&pair("k", bad, 1)));
            assert!(matches!(read, Err(JoinError::BadSize { .. })), "{bad}");
        }
    }
}
