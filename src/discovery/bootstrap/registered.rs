use std::collections::BTreeSet;

use super::error::JoinError;

/// Who is registered for a cluster, and how many members it will have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::discovery) struct Registered {
    size: usize,
    /// Id and `NAME=URL,…`, in the order of registration.
    entries: Vec<(String, String)>,
    /// Of the registry when it was asked; none if it does not tell.
    pub(super) index: Option<i64>,
}

/// One entry as the registry has it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) value: String,
    /// Revision or index of its creation.
    pub(super) created: i64,
}

impl Registered {
    /// A value of another form is no member.
    pub(super) fn new(size: usize, index: Option<i64>, mut entries: Vec<Entry>) -> Self {
        entries.sort_by_key(|entry| entry.created);
        // etcd reads both signs between URLs.
        let all = entries.into_iter().map(|entry| (entry.id, entry.value.trim().replace('&', ",")));
        Self { size, entries: all.filter(|(_, value)| value.contains('=')).collect(), index }
    }

    /// Whether nobody has registered in between, whatever else has changed in the registry.
    pub(super) fn has_same_entries(&self, other: &Self) -> bool {
        (self.size, &self.entries) == (other.size, &other.entries)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(in crate::discovery) fn size(&self) -> usize {
        self.size
    }

    /// Whether as many have registered as the cluster has members.
    pub(super) fn is_complete(&self) -> bool {
        self.entries.len() >= self.size
    }

    /// Whether the member with this id is one of the cluster.
    pub(super) fn has(&self, id: &str) -> bool {
        self.members().any(|(known, _)| known == id)
    }

    fn members(&self) -> impl Iterator<Item = &(String, String)> {
        self.entries.iter().take(self.size)
    }

    /// # Errors
    /// When the cluster is complete without the member with this id.
    pub(super) fn refuse_when_full(&self, id: &str) -> Result<(), JoinError> {
        match self.is_complete() && !self.has(id) {
            false => Ok(()),
            true => Err(JoinError::Full { size: self.size, member: id.to_owned(), cluster: self.cluster() }),
        }
    }

    /// The members in the form that `--initial-cluster` has.
    fn cluster(&self) -> String {
        self.members().map(|(_, entry)| entry.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The same, if no two have one name.
    pub(super) fn initial_cluster(&self) -> Result<String, JoinError> {
        let mut names = BTreeSet::new();
        for (_, entry) in self.members() {
            let name = entry.split('=').next().unwrap_or_default();
            if !names.insert(name) {
                return Err(JoinError::DuplicateName(name.to_owned()));
            }
        }
        Ok(self.cluster())
    }

    /// Their peer URLs.
    pub(in crate::discovery) fn peer_urls(&self) -> Vec<String> {
        peer_urls(&self.cluster())
    }
}

/// The URLs in a list of the form that `--initial-cluster` has.
pub fn peer_urls(cluster: &str) -> Vec<String> {
    cluster.split(',').filter_map(|entry| Some(entry.trim().split_once('=')?.1.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, value: &str, created: i64) -> Entry {
        Entry { id: id.to_owned(), value: value.to_owned(), created }
    }

    #[test]
    fn who_came_first_is_a_member() {
        let entries = vec![
            entry("3", "c=http://c:1", 9),
            entry("2", "b=http://b:1&b=http://b:2", 7),
            entry("4", "no entry", 1),
            entry("1", "a=http://a:1", 8),
        ];
        let registered = Registered::new(2, Some(9), entries.clone());
        assert_eq!((registered.len(), registered.has("1"), registered.has("3")), (3, true, false));
        let cluster = "b=http://b:1,b=http://b:2,a=http://a:1";
        assert_eq!(registered.initial_cluster().as_deref(), Ok(cluster));
        assert_eq!(registered.peer_urls(), ["http://b:1", "http://b:2", "http://a:1"]);
        assert_eq!(registered.refuse_when_full("2"), Ok(()));
        let full = JoinError::Full { size: 2, member: "3".to_owned(), cluster: cluster.to_owned() };
        assert_eq!(registered.refuse_when_full("3"), Err(full));
        assert_eq!(Registered::new(4, Some(9), entries).refuse_when_full("9"), Ok(()));
        let both = vec![entry("1", "a=http://a:1", 1), entry("2", "a=http://b:1", 2)];
        let twice = Registered::new(2, Some(2), both);
        assert_eq!(twice.initial_cluster(), Err(JoinError::DuplicateName("a".to_owned())));
    }
}
