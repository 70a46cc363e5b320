use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::net::Rejected;

/// Warnings about rejected connections of one listener in a second; more are debug lines.
const WARNINGS_MAX: u32 = 50;

/// Logs connections that are rejected before their first request, with etcd's message and fields.
#[derive(Debug)]
pub(super) struct Rejections {
    message: &'static str,
    /// Since when how many were logged.
    recent: Mutex<(Instant, u32)>,
}

impl Rejections {
    pub(super) fn new(message: &'static str) -> Self {
        Self { message, recent: Mutex::new((Instant::now(), 0)) }
    }

    pub(super) fn log(&self, client: SocketAddr, rejected: &Rejected) {
        let Rejected { reason: error, server_name, valid_for, is_eof } = rejected;
        // Checks of load balancers connect and leave.
        if *is_eof || !self.may_warn() {
            debug!("remote-addr" = %client, "server-name" = server_name, error, "{}", self.message);
            return;
        }
        match valid_for {
            None => warn!("remote-addr" = %client, "server-name" = server_name, error, "{}", self.message),
            Some((names, addresses)) => warn!(
                "remote-addr" = %client,
                "server-name" = server_name,
                "ip-addresses" = ?addresses,
                "dns-names" = ?names,
                error,
                "{}",
                self.message
            ),
        }
    }

    fn may_warn(&self) -> bool {
        let mut recent = self.recent.lock();
        if recent.0.elapsed() >= Duration::from_secs(1) {
            *recent = (Instant::now(), 0);
        }
        recent.1 += 1;
        recent.1 <= WARNINGS_MAX
    }
}
