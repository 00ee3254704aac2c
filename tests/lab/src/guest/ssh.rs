//! Commands in a guest, over the system's `ssh`, from wherever the operator is.

use std::{
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::keys::Keys;

/// One that takes longer hangs: a guest may answer its keepalive and no disk.
const COMMAND_MAX: Duration = Duration::from_secs(900);

/// Reaches one guest as one user; each command is a connection of its own.
pub struct Ssh<'a> {
    user: String,
    address: IpAddr,
    port: u16,
    keys: Keys,
    starter: Box<dyn Fn(&str) -> Command + Send + Sync + 'a>,
}

/// What a command in the guest answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit code; 255 when `ssh` itself failed, -1 when it was ended as it took too long.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl<'a> Ssh<'a> {
    /// As root, on port 22. `starter` makes the command that runs a program on the operator's
    /// machine, such as `|program| lab.operator().command(program)`.
    pub fn new(
        address: impl Into<IpAddr>,
        starter: impl Fn(&str) -> Command + Send + Sync + 'a,
    ) -> Result<Self> {
        let starter = Box::new(starter);
        let keys = Keys::get()?;
        Ok(Self { user: "root".to_owned(), address: address.into(), port: 22, keys, starter })
    }

    #[must_use]
    pub fn user(self, user: &str) -> Self {
        Self { user: user.to_owned(), ..self }
    }

    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The command that would run `script` in the guest's shell; a test may do with its streams
    /// what it likes.
    #[must_use]
    pub fn command(&self, script: &str) -> Command {
        let mut command = (self.starter)("ssh");
        // Nothing of the user's own: no configuration, no agent, no other keys or known hosts.
        command.args(["-F", "/dev/null", "-T", "-a", "-x"]);
        command.arg("-i").arg(self.keys.private());
        command.arg("-o").arg(format!("UserKnownHostsFile={}", self.keys.known_hosts().display()));
        for option in [
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "HostKeyAlgorithms=ssh-ed25519",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "ConnectTimeout=5",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=6",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.arg("-p").arg(self.port.to_string());
        command.arg(format!("{}@{}", self.user, self.address)).arg("--").arg(script);
        command
    }

    /// Runs `script` with `input` as its standard input.
    pub fn answer(&self, script: &str, input: &[u8]) -> Result<Answer> {
        let mut command = self.command(script);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run ssh")?;
        let mut stdin = child.stdin.take().context("stdin was piped two lines above")?;
        let output = thread::scope(|scope| {
            // A command that does not read its input is not a failure.
            scope.spawn(move || drop(stdin.write_all(input)));
            let pid = Pid::from_child(&child);
            let (ended, over) = mpsc::channel::<()>();
            scope.spawn(move || {
                if over.recv_timeout(COMMAND_MAX) == Err(RecvTimeoutError::Timeout) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            });
            let output = child.wait_with_output();
            drop(ended);
            output
        })?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Ok(Answer { code, stdout: text(output.stdout), stderr: text(output.stderr) })
    }

    /// Runs `script`, which must succeed, and answers what it printed.
    pub fn run(&self, script: &str) -> Result<String> {
        let answer = self.answer(script, b"")?;
        if answer.code != 0 {
            bail!("{script}: exit code {}\n{}{}", answer.code, answer.stderr, answer.stdout);
        }
        Ok(answer.stdout)
    }

    /// Waits until the guest lets one in, and says how long that took.
    pub fn wait(&self, patience: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let answer = self.answer("true", b"")?;
            if answer.code == 0 {
                return Ok(start.elapsed());
            }
            if start.elapsed() > patience {
                bail!("no SSH to {} in {patience:?}: {}", self.address, answer.stderr.trim());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}
