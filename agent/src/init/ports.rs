//! The helper's virtio-serial ports: byte streams to the hypervisor, and by it to the coordinator.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::inspect::Tree;
use crate::sys;

/// How ports for us are named, followed by their number: 0 is control, the others are data.
const NAME: &str = "org.causeway.";

/// How often it is looked whether somebody has opened the host's end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The ports that are there: number and device node's name, such as `vport1p2`.
pub fn find(tree: &Tree) -> Vec<(u16, String)> {
    let class = "sys/class/virtio-ports";
    let number = |device: String| {
        let name = tree.text(format!("{class}/{device}/name"))?;
        Some((name.strip_prefix(NAME)?.parse().ok()?, device))
    };
    tree.names(class).into_iter().filter_map(number).collect()
}

/// One port, open for the life of the helper: closing it would throw away what the host has sent.
#[derive(Clone, Debug)]
pub struct Port {
    device: Arc<AsyncFd<File>>,
    /// Which session may use it.
    session: Arc<AtomicU64>,
}

impl Port {
    pub fn open(node: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(node)?;
        Ok(Self { device: Arc::new(sys::watch(file)?), session: Arc::default() })
    }

    /// A stream for the next session, once the host's end is open. The streams of earlier sessions
    /// are cut: whatever still holds one must not eat the new one's bytes.
    pub async fn next_session(&self) -> PortStream {
        let session = self.session.fetch_add(1, Ordering::SeqCst) + 1;
        while self.is_hung_up() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        PortStream { port: self.clone(), session }
    }

    fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.device.get_ref(), PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }
}

/// A port, as one session uses it. Reads nothing any more once the host's end is closed.
#[derive(Debug)]
pub struct PortStream {
    port: Port,
    session: u64,
}

impl PortStream {
    fn is_over(&self) -> bool {
        self.port.session.load(Ordering::SeqCst) != self.session
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.is_over() {
                return Poll::Ready(Ok(()));
            }
            let mut readable = ready!(self.port.device.poll_read_ready(cx))?;
            let read = readable.try_io(|device| device.get_ref().read(buf.initialize_unfilled()));
            match read {
                Ok(Ok(len)) => {
                    buf.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                // Not readable after all: wait again.
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.is_over() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let mut writable = ready!(self.port.device.poll_write_ready(cx))?;
            match writable.try_io(|device| device.get_ref().write(bytes)) {
                Ok(written) => return Poll::Ready(written),
                Err(_) => {
                    // A port without a host takes nothing, for ever.
                    if self.port.is_hung_up() {
                        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                    }
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A port has no end of stream: the other side learns it from the session inside.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::testing::FakeSystem;

    #[test]
    fn ports_are_found_by_name() {
        let system = FakeSystem::new();
        let class = "sys/class/virtio-ports";
        system.file(&format!("{class}/vport1p1/name"), "org.qemu.guest_agent.0\n");
        system.file(&format!("{class}/vport1p2/name"), "org.causeway.0\n");
        system.file(&format!("{class}/vport2p1/name"), "org.causeway.11\n");
        system.file(&format!("{class}/vport2p2/name"), "org.causeway.x\n");
        let found = find(&system.tree());
        assert_eq!(found, [(0, "vport1p2".to_owned()), (11, "vport2p1".to_owned())]);
    }
}
