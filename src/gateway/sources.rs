use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many connections each client address has, with a bound for each.
#[derive(Debug)]
pub(super) struct Sources {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Sources {
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default() }
    }

    /// Counts a connection of `source` for as long as the value lives; none when it has as many as it may.
    pub(super) fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Admitted> {
        let source = source.to_canonical();
        let mut open = self.open.lock();
        let count = open.entry(source).or_default();
        // An entry that was made just now is below the bound, which is one at least.
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Admitted { sources: self.clone(), source })
    }
}

/// A connection that is counted.
#[derive(Debug)]
pub(super) struct Admitted {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.sources.open.lock();
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_own_bound_and_none_leaves_anything_behind() {
        let sources = Arc::new(Sources::new(2));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let a: Vec<_> = (0..3).map(|_| sources.admit(ip("10.0.0.1"))).collect();
        assert_eq!(a.iter().filter(|admitted| admitted.is_some()).count(), 2);
        assert!(sources.admit(ip("::ffff:10.0.0.1")).is_none(), "the same address");
        let b = sources.admit(ip("10.0.0.2")).unwrap();
        drop(a);
        let again = sources.admit(ip("10.0.0.1"));
        assert!(again.is_some());
        drop((again, b));
        assert!(sources.open.lock().is_empty());
    }
}
