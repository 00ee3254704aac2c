//! Running one command and collecting what it says.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelWriteHalf};
use tokio::time::timeout;

use crate::connection::Connection;
use crate::error::SshError;
use crate::shell::printable_tail;

/// What a command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub exit: Exit,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Status(u32),
    /// Killed by this signal, without the `SIG`.
    Signal(String),
}

/// What a command may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecLimits {
    /// Bytes kept of each of stdout and stderr; more is an error.
    pub output: usize,
    pub time: Duration,
}

impl Default for ExecLimits {
    fn default() -> Self {
        Self { output: 1024 * 1024, time: Duration::from_secs(60) }
    }
}

impl Output {
    /// This output, or the error that the command failed.
    pub fn success(self, attempt: &str) -> Result<Self, SshError> {
        if self.exit == Exit::Status(0) {
            return Ok(self);
        }
        let stderr = printable_tail(&self.stderr, 1000);
        Err(SshError::Failed { attempt: attempt.to_owned(), exit: self.exit, stderr })
    }
}

impl Output {
    /// The last line of stdout. Login shells may print a greeting before it.
    pub(crate) fn answer(&self) -> String {
        let text = String::from_utf8_lossy(&self.stdout);
        printable_tail(text.trim().lines().next_back().unwrap_or_default().as_bytes(), 200)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "killed by SIG{signal}"),
        }
    }
}

impl Connection {
    /// Runs `command` in the user's login shell. `attempt` names it in errors.
    pub(crate) async fn run(
        &self,
        attempt: &str,
        command: &str,
        stdin: Bytes,
        limits: ExecLimits,
    ) -> Result<Output, SshError> {
        let mut opened = None;
        let running = self.run_for_ever(attempt, command, stdin, limits.output, &mut opened);
        let ended = timeout(limits.time, running).await.unwrap_or_else(|_| {
            Err(SshError::TimedOut { attempt: attempt.to_owned(), waited: limits.time })
        });
        // russh does not close a channel that is dropped, and a command that we no longer listen
        // to would print on.
        if let (Err(_), Some(channel)) = (&ended, opened) {
            drop(timeout(limits.time, channel.close()).await);
        }
        ended
    }

    async fn run_for_ever(
        &self,
        attempt: &str,
        command: &str,
        stdin: Bytes,
        limit: usize,
        opened: &mut Option<ChannelWriteHalf<Msg>>,
    ) -> Result<Output, SshError> {
        let (mut from_guest, to_guest) = self.open_session().await?.split();
        let to_guest = opened.insert(to_guest);
        to_guest.exec(true, command).await.map_err(|_| self.lost())?;
        let feed = async {
            to_guest.data_bytes(stdin).await?;
            to_guest.eof().await
        };
        tokio::pin!(feed);
        let mut feeding = true;
        let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
        loop {
            let message = tokio::select! {
                // A command may end without reading its input: how it ended says more.
                _ = &mut feed, if feeding => {
                    feeding = false;
                    continue;
                }
                message = from_guest.wait() => message,
            };
            let into = match &message {
                Some(ChannelMsg::Data { .. }) => &mut stdout,
                _ => &mut stderr,
            };
            match message {
                Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => {
                    if into.len() + data.len() > limit {
                        return Err(SshError::TooMuchOutput { attempt: attempt.to_owned(), limit });
                    }
                    into.extend_from_slice(&data);
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    exit = Some(Exit::Status(exit_status));
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    exit = Some(Exit::Signal(signal(&signal_name)));
                }
                Some(ChannelMsg::Failure) => {
                    return Err(SshError::Failed {
                        attempt: attempt.to_owned(),
                        exit: Exit::Status(126),
                        stderr: "the SSH server does not run commands".to_owned(),
                    });
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            }
        }
        let exit = exit.ok_or_else(|| self.lost())?;
        Ok(Output { exit, stdout, stderr })
    }
}

/// The name of a signal as the guest gave it, fit for a message.
pub(crate) fn signal(signal: &russh::Sig) -> String {
    match signal {
        russh::Sig::Custom(name) => printable_tail(name.as_bytes(), 20),
        known => format!("{known:?}"),
    }
}
