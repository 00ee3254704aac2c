//! Ctrl-C, SIGTERM, and a terminal that is closed. A process that has once listened for them is not
//! ended by them any more: so one listener goes from the first look to the end of the migration, and
//! none is missed.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Nobody insists so soon after an interrupt or an answer: whoever interrupts and closes the terminal, or
/// types both at once, means one thing, and has read nothing in between.
const ONE_WISH: Duration = Duration::from_millis(500);

pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// None under `nohup`, which stays in force, and after the first: kernel and shell both say it.
    hangup: Option<Signal>,
    /// When the last interrupt was taken, or what it would have come [before](Self::before) had come.
    heard: Option<Instant>,
}

impl Interrupts {
    pub fn listen() -> Self {
        let listen = |kind| signal(kind).expect("a runtime that listens for signals");
        Self {
            interrupt: listen(SignalKind::interrupt()),
            terminate: listen(SignalKind::terminate()),
            hangup: (!hangups_are_ignored()).then(|| listen(SignalKind::hangup())),
            heard: None,
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
        self.heard = Some(Instant::now());
    }

    /// What comes of `what`, unless an interrupt comes first.
    pub async fn before<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        let done = tokio::select! {
            biased;
            () = self.next() => return None,
            done = what => done,
        };
        self.heard = Some(Instant::now());
        Some(done)
    }

    /// Somebody insists; a closed terminal does not, though it is told more than once.
    pub async fn insisted(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
            if self.heard.is_none_or(|heard| heard.elapsed() > ONE_WISH) {
                return;
            }
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

#[cfg(test)]
mod tests {
    use std::future::ready;

    use rustix::process::{Signal, getpid, kill_process};
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_interrupt_and_an_answer_at_once_are_one_wish() {
        let mut interrupts = Interrupts::listen();
        let mut other = Interrupts::listen();
        for answered_first in [true, false].repeat(10) {
            if answered_first {
                assert_eq!(interrupts.before(ready(true)).await, Some(true));
            }
            kill_process(getpid(), Signal::INT).unwrap();
            other.next().await;
            if !answered_first {
                assert_eq!(interrupts.before(ready(true)).await, None);
            }
            timeout(ONE_WISH / 2, interrupts.insisted()).await.unwrap_err();
            advance(ONE_WISH).await;
            kill_process(getpid(), Signal::INT).unwrap();
            other.next().await;
            interrupts.insisted().await;
        }
    }
}
