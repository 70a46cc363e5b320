use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::Level;

/// Where systemd's journal takes messages.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// A connection to the journal of systemd, by its native protocol: a datagram of fields for each message.
pub(super) struct Journal {
    socket: UnixDatagram,
    identifier: String,
}

impl Journal {
    pub fn connect() -> io::Result<Self> {
        let program = std::env::args_os().next().unwrap_or_default();
        let identifier = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::connect_to(Path::new(SOCKET), identifier)
    }

    fn connect_to(path: &Path, identifier: String) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A journal that is stuck must not hold the program up.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, identifier })
    }

    pub fn send(&self, level: Level, message: &str) -> io::Result<()> {
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            _ => "7",
        };
        let mut datagram = Vec::with_capacity(message.len() + 64);
        for (name, value) in [("PRIORITY", priority), ("SYSLOG_IDENTIFIER", &self.identifier), ("MESSAGE", message)] {
            field(&mut datagram, name, value);
        }
        self.socket.send(&datagram).map(drop)
    }
}

/// `NAME=value`, or the length before the value where that holds a line break.
fn field(datagram: &mut Vec<u8>, name: &str, value: &str) {
    datagram.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        datagram.push(b'\n');
        datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend_from_slice(value.as_bytes());
    datagram.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_arrives_with_its_priority() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(Journal::connect_to(&path, "etcd".to_owned()).is_err());
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect_to(&path, "etcd".to_owned()).unwrap();
        let received = || {
            let mut datagram = [0; 1024];
            let length = journald.recv(&mut datagram).unwrap();
            String::from_utf8_lossy(&datagram[..length]).into_owned()
        };
        journal.send(Level::WARN, "slow").unwrap();
        assert_eq!(received(), "PRIORITY=4\nSYSLOG_IDENTIFIER=etcd\nMESSAGE=slow\n");
        journal.send(Level::INFO, "a\nb").unwrap();
        assert_eq!(received(), "PRIORITY=6\nSYSLOG_IDENTIFIER=etcd\nMESSAGE\n\u{3}\0\0\0\0\0\0\0a\nb\n");
    }
}
