use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::upstreams::Upstream;

/// Finds connections of the gateway that arrive at the gateway: the address a connection was dialled from is then the
/// address of an accepted one. An endpoint whose own address does not tell (another address of this machine, a
/// translated one) shows it this way.
#[derive(Debug, Default)]
pub(super) struct Loops {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Accepted connections by the address of their client.
    accepted: HashSet<SocketAddr>,
    /// Dialled connections by the address they were dialled from.
    dialled: HashMap<SocketAddr, Arc<Upstream>>,
}

/// Notes an accepted connection for as long as it lives.
#[derive(Debug)]
pub(super) struct Accepted {
    loops: Arc<Loops>,
    from: SocketAddr,
}

/// Notes a dialled connection for as long as it lives.
#[derive(Debug)]
pub(super) struct Dialled {
    loops: Arc<Loops>,
    from: SocketAddr,
}

impl Loops {
    /// Notes a connection that was accepted; none when the gateway dialled it itself.
    pub(super) fn accepted(self: &Arc<Self>, from: SocketAddr) -> Option<Accepted> {
        let from = canonical(from);
        let mut open = self.open.lock();
        if let Some(upstream) = open.dialled.get(&from) {
            upstream.mark_loop();
            return None;
        }
        open.accepted.insert(from);
        Some(Accepted { loops: self.clone(), from })
    }

    /// Notes a connection that was dialled; none when the gateway accepted it itself.
    pub(super) fn dialled(self: &Arc<Self>, from: SocketAddr, upstream: &Arc<Upstream>) -> Option<Dialled> {
        let from = canonical(from);
        let mut open = self.open.lock();
        if open.accepted.contains(&from) {
            upstream.mark_loop();
            return None;
        }
        open.dialled.insert(from, upstream.clone());
        Some(Dialled { loops: self.clone(), from })
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.loops.open.lock().accepted.remove(&self.from);
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        self.loops.open.lock().dialled.remove(&self.from);
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
