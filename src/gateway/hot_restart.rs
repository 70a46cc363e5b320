use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::net::is_socket;

/// Time for each step of the other process; the next one reads its configuration and asks DNS in it.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// Sockets that are passed at most: that of clients and that of the metrics.
const SOCKETS_MAX: usize = 2;
const PAUSE: Duration = Duration::from_millis(50);

/// The gateway that serves now, which has passed its listening sockets and stops once it is told to.
#[derive(Debug)]
pub struct Predecessor {
    connection: std::os::unix::net::UnixStream,
    sockets: Vec<OwnedFd>,
}

impl Predecessor {
    /// Asks at `path`; none where no gateway answers.
    ///
    /// # Errors
    /// When what is there is no socket, or the gateway passes nothing.
    pub fn ask(path: &Path) -> io::Result<Option<Self>> {
        let connection = match std::os::unix::net::UnixStream::connect(path) {
            Ok(connection) => connection,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        connection.set_read_timeout(Some(STEP_TIMEOUT))?;
        connection.set_write_timeout(Some(STEP_TIMEOUT))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&connection, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let passed = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let sockets: Vec<OwnedFd> = passed.flatten().collect();
        if sockets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the gateway there passed no socket"));
        }
        Ok(Some(Self { connection, sockets }))
    }

    /// Its sockets.
    pub fn sockets(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.sockets)
    }

    /// Tells it that connections are accepted here, and waits until it no longer accepts any. One that is gone does not.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn stop(mut self) -> io::Result<()> {
        let told = self.connection.write_all(&[1]).and_then(|()| self.connection.read(&mut [0]));
        match told {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Passes the listening sockets of this gateway to the next one.
#[derive(Debug)]
pub struct Handover {
    listener: UnixListener,
    sockets: Vec<OwnedFd>,
}

impl Handover {
    /// Listens at `path`, in place of whoever did; only processes of the same user get the sockets. Must be called on a
    /// runtime.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn offer(path: &Path, sockets: Vec<OwnedFd>) -> io::Result<Self> {
        // Replaced below, where there is one.
        is_socket(path)?;
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(name);
        let listener = UnixListener::bind(&new)?;
        let placed = std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&new, path));
        if let Err(error) = placed {
            // It is of no use there; the first error is the one to tell.
            let _ = std::fs::remove_file(&new);
            return Err(error);
        }
        Ok(Self { listener, sockets })
    }

    /// Ready once another gateway accepts connections on the sockets. It waits to see this value dropped.
    pub async fn taken(&self) -> UnixStream {
        loop {
            let passed = async {
                let (mut next, _) = self.listener.accept().await?;
                let is_ready = timeout(STEP_TIMEOUT, self.pass(&mut next)).await.map_err(io::Error::from)??;
                io::Result::Ok(is_ready.then_some(next))
            };
            match passed.await {
                Ok(Some(next)) => {
                    info!("another gateway accepts connections now");
                    return next;
                }
                Ok(None) => info!("another gateway took the sockets and did not start"),
                Err(error) => {
                    warn!(%error, "sockets not passed to another gateway");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whether the other gateway says that it is ready.
    async fn pass(&self, next: &mut UnixStream) -> io::Result<bool> {
        if next.peer_cred()?.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a process of another user asks for them"));
        }
        let sockets: Vec<_> = self.sockets.iter().map(AsFd::as_fd).collect();
        loop {
            next.writable().await?;
            let sent = next.try_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "there are too many"));
                }
                sendmsg(&*next, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).map_err(io::Error::from)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => break sent.map(drop)?,
            }
        }
        Ok(next.read(&mut [0]).await? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gateway_that_ended_meanwhile_has_stopped() {
        // Cause: a gateway that was ended while the next one started took that one with it, and none was left.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("restart");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let handover = Handover::offer(&path, vec![listener.into()]).expect("offered");
        let asked = tokio::task::spawn_blocking(move || Predecessor::ask(&path));
        let mut predecessor = tokio::select! {
            _ = handover.taken() => unreachable!("nobody has said that it accepts connections"),
            asked = asked => asked.expect("no panic").expect("answered").expect("there is one"),
        };
        assert_eq!(predecessor.sockets().len(), 1);
        drop(handover);
        predecessor.stop().expect("it is gone");
    }
}
