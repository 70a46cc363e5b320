use std::collections::BTreeSet;

use super::error::RegistryError;
use crate::pb::mvccpb::KeyValue;
use crate::types::MemberId;

/// The keys of one token, as etcd has them.
#[derive(Clone, Debug)]
pub(super) struct RegistryKeys {
    /// Holds the number of members.
    pub(super) size: String,
    /// Before the id of each member.
    pub(super) members: String,
}

impl RegistryKeys {
    pub(super) fn new(token: &str) -> Self {
        let root = format!("/_etcd/registry/{}", token.trim_matches('/'));
        Self { size: format!("{root}/_config/size"), members: format!("{root}/members/") }
    }

    pub(super) fn member(&self, member: MemberId) -> String {
        format!("{}{member}", self.members)
    }

    /// The number of members.
    pub(super) fn read_size(&self, found: Option<&KeyValue>) -> Result<usize, RegistryError> {
        let found = found.ok_or_else(|| RegistryError::SizeNotFound(self.size.clone()))?;
        let value = String::from_utf8_lossy(&found.value);
        match value.parse() {
            Ok(size) if size > 0 => Ok(size),
            _ => Err(RegistryError::BadSize { key: self.size.clone(), value: value.into_owned() }),
        }
    }
}

/// Who is registered, in the order of registration: key and `NAME=URL,…`. A value of another form is no member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registered(Vec<(String, String)>);

impl Registered {
    pub(super) fn read(mut found: Vec<KeyValue>) -> Self {
        found.sort_by_key(|pair| pair.create_revision);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let all = found.iter().map(|pair| (text(&pair.key), text(&pair.value)));
        Self(all.filter(|(_, entry)| entry.contains('=')).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this key is one of the first `size`.
    pub(super) fn has(&self, key: &str, size: usize) -> bool {
        self.0.iter().take(size).any(|(known, _)| known == key)
    }

    /// The first `size` entries in the form that `--initial-cluster` has.
    pub(super) fn initial_cluster(&self, size: usize) -> Result<String, RegistryError> {
        let first = || self.0.iter().take(size).map(|(_, entry)| entry.as_str());
        let mut names = BTreeSet::new();
        for entry in first() {
            let name = entry.split('=').next().unwrap_or_default();
            if !names.insert(name) {
                return Err(RegistryError::DuplicateName(name.to_owned()));
            }
        }
        Ok(first().collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str, create_revision: i64) -> KeyValue {
        KeyValue { key: key.to_owned().into(), value: value.to_owned().into(), create_revision, ..Default::default() }
    }

    #[test]
    fn keys_and_sizes_are_those_of_etcd() {
        let keys = RegistryKeys::new("t0");
        assert_eq!(keys.size, "/_etcd/registry/t0/_config/size");
        assert_eq!(keys.member(MemberId(0xab)), "/_etcd/registry/t0/members/ab");
        assert_eq!(keys.read_size(Some(&pair("k", "3", 1))), Ok(3));
        assert!(matches!(keys.read_size(None), Err(RegistryError::SizeNotFound(_))));
        for bad in ["", "0", "-1", "x", "1.5", "99999999999999999999999"] {
            let read = keys.read_size(Some(&pair("k", bad, 1)));
            assert!(matches!(read, Err(RegistryError::BadSize { .. })), "{bad}");
        }
    }

    #[test]
    fn who_came_first_is_a_member() {
        let registered = Registered::read(vec![
            pair("k/3", "c=http://c:1", 9),
            pair("k/2", "b=http://b:1,b=http://b:2", 7),
            pair("k/4", "no entry", 1),
            pair("k/1", "a=http://a:1", 8),
        ]);
        assert_eq!((registered.len(), registered.has("k/1", 2), registered.has("k/3", 2)), (3, true, false));
        let cluster = registered.initial_cluster(2);
        assert_eq!(cluster.as_deref(), Ok("b=http://b:1,b=http://b:2,a=http://a:1"));
        let twice = Registered::read(vec![pair("k/1", "a=http://a:1", 1), pair("k/2", "a=http://b:1", 2)]);
        assert_eq!(twice.initial_cluster(2), Err(RegistryError::DuplicateName("a".to_owned())));
    }
}
