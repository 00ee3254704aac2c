//! Byte streams between the coordinator and an endpoint that the test plays.

use tokio::io::{AsyncWriteExt, DuplexStream, copy, duplex, split};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Bytes that wait in each direction, as in a pipe.
const BUFFER: usize = 64 * 1024;

/// Streams that were opened but not yet accepted; the next one is refused.
const BACKLOG: usize = 16;

/// The far end of one port of one helper: what the agent in the helper would be.
pub struct Listener {
    streams: mpsc::Receiver<DuplexStream>,
}

impl Listener {
    /// The next stream that the coordinator opens; `None` once the world is gone.
    pub async fn accept(&mut self) -> Option<DuplexStream> {
        self.streams.recv().await
    }
}

/// A port of a helper.
pub(crate) struct Port {
    to_listener: mpsc::Sender<DuplexStream>,
    listener: Option<Listener>,
    open: Option<JoinHandle<()>>,
}

impl Port {
    pub(crate) fn new() -> Self {
        let (to_listener, streams) = mpsc::channel(BACKLOG);
        Self { to_listener, listener: Some(Listener { streams }), open: None }
    }

    pub(crate) const fn take_listener(&mut self) -> Option<Listener> {
        self.listener.take()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.as_ref().is_some_and(|pump| !pump.is_finished())
    }

    /// Ends the stream at both ends, with what is under way lost.
    pub(crate) fn cut(&mut self) {
        if let Some(pump) = self.open.take() {
            pump.abort();
        }
    }

    /// A new stream; `None` where nobody has accepted the earlier ones.
    pub(crate) fn open(&mut self) -> Option<DuplexStream> {
        self.cut();
        let (near, near_inner) = duplex(BUFFER);
        let (far_inner, far) = duplex(BUFFER);
        self.to_listener.try_send(far).ok()?;
        self.open = Some(tokio::spawn(pump(near_inner, far_inner)));
        Some(near)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Carries bytes until either end closes: such a channel knows no half-closed state.
async fn pump(near: DuplexStream, far: DuplexStream) {
    let (mut near_read, mut near_write) = split(near);
    let (mut far_read, mut far_write) = split(far);
    tokio::select! {
        _ = copy(&mut near_read, &mut far_write) => { let _ = far_write.shutdown().await; }
        _ = copy(&mut far_read, &mut near_write) => { let _ = near_write.shutdown().await; }
    }
}
