//! Ctrl-C and SIGTERM. A process that has once listened for them is not ended by them any more: so
//! one listener goes from the first look to the end of the migration, and none is missed.

use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub fn listen() -> Self {
        let listen = |kind| signal(kind).expect("a runtime that listens for signals");
        Self {
            interrupt: listen(SignalKind::interrupt()),
            terminate: listen(SignalKind::terminate()),
        }
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
