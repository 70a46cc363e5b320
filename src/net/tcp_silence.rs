use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How long the other end of a TCP connection may give no sign of life before the kernel ends the connection.
///
/// Keep-alive alone is not enough: the kernel probes idle connections only, and sends unacknowledged bytes again for a
/// quarter of an hour. `TCP_USER_TIMEOUT` bounds both, and also the time for which the other end may leave its receive
/// window closed while bytes wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSilence {
    /// Idle time after which the other end is probed.
    pub probe_after: Duration,
    /// Pause between probes without an answer.
    pub probe_every: Duration,
    /// Time without an acknowledgement of a probe or of bytes.
    pub max: Duration,
}

impl TcpSilence {
    /// For connections to a member: one that takes nothing for a minute is of no use.
    pub const MEMBER: Self = Self {
        probe_after: Duration::from_secs(30),
        probe_every: Duration::from_secs(10),
        max: Duration::from_secs(60),
    };
    /// For accepted connections. Longer, because a client that is stopped for a while takes nothing either.
    pub const CLIENT: Self = Self { max: Duration::from_secs(120), ..Self::MEMBER };

    /// Gives a new connection what each one of ours has: small writes leave at once, and silence has this end.
    ///
    /// # Errors
    /// When the socket is gone already.
    pub fn prepare<'s, S>(self, socket: &'s S) -> io::Result<()>
    where
        SockRef<'s>: From<&'s S>,
    {
        let socket = SockRef::from(socket);
        socket.set_tcp_nodelay(true)?;
        // Where there is no user timeout, the probes have the same end.
        let probes = self.max.saturating_sub(self.probe_after).div_duration_f64(self.probe_every).ceil();
        let keepalive = TcpKeepalive::new()
            .with_time(self.probe_after)
            .with_interval(self.probe_every)
            .with_retries((probes as u32).max(1));
        socket.set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.max))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn both_ends_of_a_connection_get_an_end_of_silence() {
        // Cause: keep-alive does not run over unacknowledged bytes, so a connection with bytes in flight to a member
        // that had vanished stayed until the kernel gave up sending them.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        for (silence, stream, probes) in [(TcpSilence::MEMBER, &dialled, 3), (TcpSilence::CLIENT, &accepted, 9)] {
            silence.prepare(stream).unwrap();
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), silence.probe_after);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), silence.probe_every);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), probes);
            #[cfg(target_os = "linux")]
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(silence.max));
        }
    }
}
