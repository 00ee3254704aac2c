//! Ctrl-C, SIGTERM, and a terminal that is closed. A process that has once listened for them is not
//! ended by them any more: so one listener goes from the first look to the end of the migration, and
//! none is missed.

use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// None under `nohup`, which stays in force, and after the first: kernel and shell both say it.
    hangup: Option<Signal>,
}

impl Interrupts {
    pub fn listen() -> Self {
        let listen = |kind| signal(kind).expect("a runtime that listens for signals");
        Self {
            interrupt: listen(SignalKind::interrupt()),
            terminate: listen(SignalKind::terminate()),
            hangup: (!hangups_are_ignored()).then(|| listen(SignalKind::hangup())),
        }
    }

    pub async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => self.hangup = None,
        }
    }

    /// Somebody insists; a closed terminal does not, though it is told more than once.
    pub async fn insisted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// As proc(5) has it: the signals that are ignored, as a mask in hexadecimal.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (SignalKind::hangup().as_raw_value() - 1)) != 0)
}
