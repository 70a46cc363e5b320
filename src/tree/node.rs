use std::sync::Arc;

use super::entry::Entry;

/// Most entries of a leaf, and most children of an inner node: a write after a publish copies one such list per
/// level, so wider nodes cost writes what they save reads.
pub(super) const WIDTH: usize = 32;
/// A node below this is merged with a neighbour if both fit into one.
const NARROW: usize = WIDTH / 4;
/// Free places given to a list that is copied or grown, so that memory follows the entries closely.
const SPARE: usize = 4;

pub(super) enum Node<E: Entry> {
    Leaf(Vec<E>),
    Inner(Inner<E>),
}

pub(super) struct Inner<E: Entry> {
    /// `separators[i]` is above all of child `i` and not above anything of child `i + 1`.
    pub separators: Vec<E::Separator>,
    pub children: Vec<Child<E>>,
}

pub(super) struct Child<E: Entry> {
    pub node: Arc<Node<E>>,
    /// Entries below.
    pub count: usize,
    /// No stamp below is above this; removals leave it too high, which costs a look and nothing else.
    pub stamp: i64,
}

impl<E: Entry> Node<E> {
    pub(super) fn last(&self) -> Option<&E> {
        let mut node = self;
        loop {
            match node {
                Self::Leaf(entries) => return entries.last(),
                Self::Inner(inner) => node = &inner.children.last()?.node,
            }
        }
    }
}

impl<E: Entry> Clone for Child<E> {
    fn clone(&self) -> Self {
        Self { node: Arc::clone(&self.node), count: self.count, stamp: self.stamp }
    }
}

impl<E: Entry> Clone for Node<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(entries) => Self::Leaf(copy(entries)),
            Self::Inner(inner) => {
                Self::Inner(Inner { separators: copy(&inner.separators), children: copy(&inner.children) })
            }
        }
    }
}

type Split<E> = Option<(<E as Entry>::Separator, Child<E>)>;

impl<E: Entry> Child<E> {
    fn leaf(entries: Vec<E>, stamp: i64) -> Self {
        Self { count: entries.len(), node: Arc::new(Node::Leaf(entries)), stamp }
    }

    fn inner(inner: Inner<E>, stamp: i64) -> Self {
        Self { count: inner.count(), node: Arc::new(Node::Inner(inner)), stamp }
    }

    /// Puts in place of `probe` what `make` answers to the entry there and, if there is none, to its left neighbour in
    /// the same leaf.
    pub(super) fn insert(
        &mut self,
        probe: E::Probe<'_>,
        make: impl FnOnce(Option<&E>, Option<&E>) -> E,
    ) -> (Option<E>, Split<E>) {
        let (replaced, split) = match Arc::make_mut(&mut self.node) {
            Node::Leaf(entries) => {
                let found = entries.binary_search_by(|entry| entry.order(probe));
                let entry = match found {
                    Ok(at) => make(Some(&entries[at]), None),
                    Err(at) => make(None, at.checked_sub(1).map(|left| &entries[left])),
                };
                self.stamp = self.stamp.max(entry.stamp());
                match found {
                    Ok(at) => (Some(std::mem::replace(&mut entries[at], entry)), None),
                    Err(at) => {
                        place(entries, at, entry);
                        (None, split_leaf(entries, at, self.stamp))
                    }
                }
            }
            Node::Inner(inner) => {
                let at = inner.child_of(probe);
                let (replaced, split) = inner.children[at].insert(probe, make);
                self.stamp = self.stamp.max(inner.children[at].stamp);
                let split = split.and_then(|(separator, right)| {
                    place(&mut inner.separators, at, separator);
                    place(&mut inner.children, at + 1, right);
                    inner.split(at, self.stamp)
                });
                (replaced, split)
            }
        };
        let moved = split.as_ref().map_or(0, |(_, right)| right.count);
        self.count = self.count + usize::from(replaced.is_none()) - moved;
        (replaced, split)
    }

    /// The entry must be there.
    pub(super) fn remove(&mut self, probe: E::Probe<'_>) -> Option<E> {
        let removed = match Arc::make_mut(&mut self.node) {
            Node::Leaf(entries) => {
                entries.binary_search_by(|entry| entry.order(probe)).ok().map(|at| entries.remove(at))
            }
            Node::Inner(inner) => {
                let at = inner.child_of(probe);
                let removed = inner.children[at].remove(probe);
                inner.tidy(at);
                removed
            }
        };
        self.count -= usize::from(removed.is_some());
        removed
    }

    fn width(&self) -> usize {
        match &*self.node {
            Node::Leaf(entries) => entries.len(),
            Node::Inner(inner) => inner.children.len(),
        }
    }
}

impl<E: Entry> Inner<E> {
    pub(super) fn child_of(&self, probe: E::Probe<'_>) -> usize {
        self.separators.partition_point(|separator| E::order_separator(separator, probe).is_le())
    }

    fn count(&self) -> usize {
        self.children.iter().map(|child| child.count).sum()
    }

    fn split(&mut self, grown: usize, stamp: i64) -> Split<E> {
        if self.children.len() <= WIDTH {
            return None;
        }
        let cut = cut(self.children.len(), grown + 1);
        let children = split_off(&mut self.children, cut);
        let separators = split_off(&mut self.separators, cut);
        // What stood between the halves moves up.
        let middle = self.separators.pop()?;
        Some((middle, Child::inner(Inner { separators, children }, stamp)))
    }

    /// Merges child `at` with a neighbour when it has become narrow, and takes it out when it holds nothing: an inner node may be left
    /// with one empty leaf, for which full neighbours have no room, and nothing would be found before the one behind it.
    fn tidy(&mut self, at: usize) {
        if self.children[at].width() >= NARROW || self.children.len() == 1 {
            return;
        }
        if self.children[at].count == 0 {
            self.children.remove(at);
            self.separators.remove(at.saturating_sub(1));
            return;
        }
        let left = if at > 0 && (at + 1 == self.children.len() || self.fits(at - 1)) { at - 1 } else { at };
        if self.fits(left) {
            let right = self.children.remove(left + 1);
            let between = self.separators.remove(left);
            self.children[left].absorb(between, right);
        }
    }

    fn fits(&self, left: usize) -> bool {
        self.children[left].width() + self.children[left + 1].width() <= WIDTH
    }
}

impl<E: Entry> Child<E> {
    fn absorb(&mut self, between: E::Separator, right: Self) {
        self.count += right.count;
        self.stamp = self.stamp.max(right.stamp);
        let right = Arc::unwrap_or_clone(right.node);
        match (Arc::make_mut(&mut self.node), right) {
            (Node::Leaf(entries), Node::Leaf(more)) => entries.extend(more),
            (Node::Inner(inner), Node::Inner(more)) => {
                inner.separators.push(between);
                inner.separators.extend(more.separators);
                inner.children.extend(more.children);
            }
            // All leaves lie on one level: splits and merges happen between siblings only.
            _ => unreachable!("siblings are of one kind"),
        }
    }
}

/// Index of the first entry not before `probe`.
pub(super) fn lower_bound<E: Entry>(entries: &[E], probe: E::Probe<'_>) -> usize {
    entries.partition_point(|entry| entry.order(probe).is_lt())
}

fn split_leaf<E: Entry>(entries: &mut Vec<E>, grown: usize, stamp: i64) -> Split<E> {
    if entries.len() <= WIDTH {
        return None;
    }
    let at = cut(entries.len(), grown);
    let right = split_off(entries, at);
    Some((right[0].separator(), Child::leaf(right, stamp)))
}

/// Where to split a list that grew at `grown`: keys that arrive in order leave full nodes behind.
fn cut(len: usize, grown: usize) -> usize {
    if grown + 1 == len { len - 1 } else { len / 2 }
}

fn split_off<T>(list: &mut Vec<T>, at: usize) -> Vec<T> {
    let rest = list.split_off(at);
    list.shrink_to(at + SPARE);
    rest
}

fn place<T>(list: &mut Vec<T>, at: usize, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(SPARE);
    }
    list.insert(at, item);
}

fn copy<T: Clone>(list: &[T]) -> Vec<T> {
    let mut copy = Vec::with_capacity((list.len() + SPARE).min(WIDTH + 1));
    copy.extend_from_slice(list);
    copy
}
