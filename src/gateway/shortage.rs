use std::io;

use rustix::io::Errno;

/// What this machine had too little of when an attempt failed. It says nothing of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// Descriptors or memory: no endpoint can be reached.
    General,
    /// Ports for connections to this one; others have their own.
    Ports,
}

impl Shortage {
    /// None where the attempt failed because of the endpoint, or of the way to it.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        let is = |code: Errno| error.raw_os_error() == Some(code.raw_os_error());
        if [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].into_iter().any(is) {
            return Some(Self::General);
        }
        // The dialer takes the code away where no address of this host is right for that of the endpoint.
        is(Errno::ADDRNOTAVAIL).then_some(Self::Ports)
    }
}
