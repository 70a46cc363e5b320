//! Who the other members are, and who may connect, as plain data: no sockets, no tasks, no clock. The transport keeps its
//! connections as this says, and the simulator does the same.

use std::collections::{BTreeMap, BTreeSet};

use http::HeaderMap;

use super::config::Peer;
use super::hello::{Greeting, Hello, Purpose, Refusal};
use crate::core::raft::{PlantedFault, is_planted};
use crate::types::{ClusterId, MemberId};

/// Different unlisted peers in one run of this member: each takes memory for as long as the member runs.
pub(super) const UNLISTED_MAX: usize = 32;

/// The peers of one member.
///
/// A peer is *listed* when the member list names it, and *unlisted* when it is in no list yet but has dialled this member
/// as one of its cluster: this member was away when it was added. Nobody is a peer after its removal.
#[derive(Clone, Debug)]
pub struct PeerSet {
    cluster: ClusterId,
    member: MemberId,
    /// URLs of this member; empty until the first list.
    own_urls: Vec<String>,
    listed: BTreeMap<MemberId, Vec<String>>,
    unlisted: BTreeMap<MemberId, Vec<String>>,
    removed: BTreeSet<MemberId>,
    /// Members that were unlisted peers in this run and have not been listed since, connected or not.
    seen_unlisted: BTreeSet<MemberId>,
}

/// What is to be done about connections after a change of the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerChanges {
    /// To be dialled from now on.
    pub added: Vec<Peer>,
    /// To be dialled at other URLs.
    pub moved: Vec<Peer>,
    /// No longer peers: their connections end, in both directions.
    pub ended: Vec<MemberId>,
}

impl PeerSet {
    /// A member that knows no other one.
    pub fn new(cluster: ClusterId, member: MemberId) -> Self {
        Self {
            cluster,
            member,
            own_urls: Vec::new(),
            listed: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            removed: BTreeSet::new(),
            seen_unlisted: BTreeSet::new(),
        }
    }

    /// Follows the member list. This member itself is left out, its URLs are what others are told. An unlisted peer stays
    /// while it is connected to this member.
    pub fn set_peers(
        &mut self,
        peers: Vec<Peer>,
        removed: BTreeSet<MemberId>,
        is_connected: impl Fn(MemberId) -> bool,
    ) -> PeerChanges {
        self.removed = removed;
        let mut changes = PeerChanges::default();
        let mut listed = BTreeMap::new();
        for peer in peers {
            if peer.id == self.member {
                self.own_urls = peer.urls;
                continue;
            }
            if self.is_removed(peer.id) {
                continue;
            }
            self.seen_unlisted.remove(&peer.id);
            match self.urls(peer.id) {
                Some(urls) if *urls == peer.urls => {}
                Some(_) => changes.moved.push(peer.clone()),
                None => changes.added.push(peer.clone()),
            }
            listed.insert(peer.id, peer.urls);
        }
        let unlisted = self
            .unlisted
            .iter()
            .filter(|(peer, _)| !listed.contains_key(*peer) && !self.removed.contains(*peer) && is_connected(**peer));
        let unlisted: BTreeMap<_, _> = unlisted.map(|(peer, urls)| (*peer, urls.clone())).collect();
        let gone = |peer: &&MemberId| !listed.contains_key(*peer) && !unlisted.contains_key(*peer);
        changes.ended = self.listed.keys().chain(self.unlisted.keys()).filter(gone).copied().collect();
        (self.listed, self.unlisted) = (listed, unlisted);
        changes
    }

    /// Decides about a request to connect.
    ///
    /// # Errors
    /// The reason that the answer gives.
    pub fn judge(&self, headers: &HeaderMap) -> Result<Greeting, Refusal> {
        let Hello { cluster, from, to, purpose, urls } = Hello::parse(headers)?;
        if cluster != self.cluster {
            return Err(Refusal::WrongCluster);
        }
        if to != self.member {
            return Err(Refusal::WrongMember);
        }
        if self.is_removed(from) {
            return Err(Refusal::Removed);
        }
        if self.listed.contains_key(&from) {
            return Ok(Greeting { from, purpose, unlisted_urls: None });
        }
        // Consensus only: an unlisted peer asks nothing of this member.
        if self.takes_unlisted(from) && purpose != Purpose::Calls && !urls.is_empty() {
            return Ok(Greeting { from, purpose, unlisted_urls: Some(urls) });
        }
        Err(Refusal::UnknownMember)
    }

    /// Follows a connection that passed [`judge`](Self::judge). The peers may have changed since: the connection is to end
    /// unless its sender [is a peer](Self::contains) afterwards.
    pub fn admit(&mut self, greeting: &Greeting) -> PeerChanges {
        let (from, mut changes) = (greeting.from, PeerChanges::default());
        let Some(urls) = &greeting.unlisted_urls else { return changes };
        if self.listed.contains_key(&from) || self.is_removed(from) || !self.takes_unlisted(from) {
            return changes;
        }
        self.seen_unlisted.insert(from);
        let peer = Peer { id: from, urls: urls.clone() };
        match self.unlisted.insert(from, urls.clone()) {
            Some(known) if known == *urls => {}
            Some(_) => changes.moved.push(peer),
            None => changes.added.push(peer),
        }
        changes
    }

    /// What this member says when it dials another.
    pub fn hello(&self, to: MemberId, purpose: Purpose) -> Hello {
        Hello { cluster: self.cluster, from: self.member, to, purpose, urls: self.own_urls.clone() }
    }

    /// Whether messages go to this member and are taken from it.
    pub fn contains(&self, member: MemberId) -> bool {
        self.urls(member).is_some()
    }

    /// Where a peer is dialled.
    pub fn urls(&self, peer: MemberId) -> Option<&Vec<String>> {
        self.listed.get(&peer).or_else(|| self.unlisted.get(&peer))
    }

    /// Everybody who is to be dialled.
    pub fn peers(&self) -> impl Iterator<Item = MemberId> {
        self.listed.keys().chain(self.unlisted.keys()).copied()
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.removed.contains(&member) && !is_planted(PlantedFault::RemovedPeersAccepted)
    }

    /// Whether an unknown member may connect.
    fn takes_unlisted(&self, member: MemberId) -> bool {
        let known = self.seen_unlisted.contains(&member);
        (known || self.seen_unlisted.len() < UNLISTED_MAX) && !is_planted(PlantedFault::UnlistedPeersRefused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0xcc);
    const ME: MemberId = MemberId(0xa);
    const PEER: MemberId = MemberId(0xb);
    const GONE: MemberId = MemberId(0xc);
    const NEW: MemberId = MemberId(0xe);

    fn urls() -> Vec<String> {
        vec!["http://b:1".to_owned(), "https://b:2".to_owned()]
    }

    fn hello(from: MemberId) -> Hello {
        Hello { cluster: CLUSTER, from, to: ME, purpose: Purpose::Append, urls: urls() }
    }

    fn judged(set: &PeerSet, hello: &Hello) -> Result<Greeting, Refusal> {
        set.judge(hello.request("localhost:1").expect("valid").headers())
    }

    fn listing(members: &[MemberId]) -> Vec<Peer> {
        members.iter().map(|id| Peer { id: *id, urls: urls() }).collect()
    }

    fn peer_set() -> PeerSet {
        let mut set = PeerSet::new(CLUSTER, ME);
        set.set_peers(listing(&[ME, PEER]), BTreeSet::from([GONE]), |_| false);
        set
    }

    #[test]
    fn identities_are_checked() {
        let set = peer_set();
        let greeting = Greeting { from: PEER, purpose: Purpose::Append, unlisted_urls: None };
        assert_eq!(judged(&set, &hello(PEER)), Ok(greeting));
        let refused = |hello| judged(&set, &hello).expect_err("refused");
        assert_eq!(refused(Hello { cluster: ClusterId(0xcd), ..hello(PEER) }), Refusal::WrongCluster);
        assert_eq!(refused(Hello { to: MemberId(0xd), ..hello(PEER) }), Refusal::WrongMember);
        assert_eq!(refused(hello(GONE)), Refusal::Removed);
        // A member of another cluster learns nothing about this one.
        assert_eq!(refused(Hello { cluster: ClusterId(1), ..hello(GONE) }), Refusal::WrongCluster);
    }

    #[test]
    fn an_unlisted_peer_says_where_it_is() {
        let set = peer_set();
        let greeting = Greeting { from: NEW, purpose: Purpose::Append, unlisted_urls: Some(urls()) };
        assert_eq!(judged(&set, &hello(NEW)), Ok(greeting));
        let refused = |hello| assert_eq!(judged(&set, &hello), Err(Refusal::UnknownMember));
        refused(Hello { purpose: Purpose::Calls, ..hello(NEW) });
        for urls in [vec![], vec!["b:1"], vec!["ftp://b:1"], vec!["http://b:1", ""]] {
            refused(Hello { urls: urls.into_iter().map(str::to_owned).collect(), ..hello(NEW) });
        }
        refused(Hello { urls: vec![format!("http://{}:1", "b".repeat(4000))], ..hello(NEW) });
    }

    #[test]
    fn unlisted_peers_are_bounded() {
        let mut set = peer_set();
        for id in 100..100 + UNLISTED_MAX as u64 {
            let greeting = judged(&set, &hello(MemberId(id))).expect("accepted");
            assert_eq!(set.admit(&greeting).added, listing(&[MemberId(id)]));
            assert_eq!(set.admit(&greeting), PeerChanges::default(), "its next connection");
        }
        assert_eq!(judged(&set, &hello(NEW)), Err(Refusal::UnknownMember));
        assert!(judged(&set, &hello(MemberId(100))).is_ok(), "known already");
        // Listing one makes room for another; one that is gone does not.
        let changes = set.set_peers(listing(&[PEER, MemberId(100)]), BTreeSet::new(), |_| false);
        assert_eq!(changes.ended.len(), UNLISTED_MAX - 1);
        assert!(changes.added.is_empty() && changes.moved.is_empty());
        assert!(judged(&set, &hello(NEW)).is_ok());
    }

    #[test]
    fn an_unlisted_peer_stays_while_it_is_connected() {
        let mut set = peer_set();
        let greeting = judged(&set, &hello(NEW)).expect("accepted");
        set.admit(&greeting);
        assert_eq!(set.set_peers(listing(&[PEER]), BTreeSet::new(), |_| true), PeerChanges::default());
        assert!(set.contains(NEW));
        let changes = set.set_peers(listing(&[PEER]), BTreeSet::from([NEW]), |_| true);
        assert_eq!(changes.ended, [NEW]);
        // The list has changed between the two.
        assert_eq!(set.admit(&greeting), PeerChanges::default());
        assert!(!set.contains(NEW));
    }

    #[test]
    fn only_what_changed_is_dialled_again() {
        let mut set = peer_set();
        let moved = Peer { id: PEER, urls: vec!["http://elsewhere:1".into()] };
        let changes = set.set_peers(vec![moved.clone(), listing(&[NEW]).remove(0)], BTreeSet::new(), |_| false);
        assert_eq!(changes, PeerChanges { added: listing(&[NEW]), moved: vec![moved], ended: vec![] });
        assert_eq!(set.set_peers(vec![], BTreeSet::new(), |_| true).ended, [PEER, NEW]);
        assert_eq!(set.hello(PEER, Purpose::Control).urls, urls(), "its own URLs stay when the list is empty");
    }
}
