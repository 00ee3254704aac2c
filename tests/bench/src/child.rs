//! A process of ours: waited for with a limit, and never left behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// The file, in the lab's directory, with what the tools of one run said.
pub const LOG: &str = "tools.log";

/// Far beyond what any copy takes: who is not done then hangs.
const PATIENCE_S: i64 = 1800;

/// Dropping it kills the process.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// What it writes to its standard error is kept in `log`, for the message if it fails.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = describe(command);
        let child = command
            .stderr(File::options().create(true).append(true).open(log)?)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    pub fn stdin(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().context("its standard input is not a pipe, or is taken")
    }

    pub fn stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().context("its standard output is not a pipe, or is taken")
    }

    /// Waits for its success.
    pub fn wait(mut self) -> Result<()> {
        self.await_end()?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{}: {status}\n{}", self.name, self.said());
        }
        Ok(())
    }

    /// What it wrote to its standard error, and others that share its log.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().trim_end().to_owned()
    }

    /// Ends a server that did its work, so that what it cost is accounted for.
    pub fn end(mut self) -> Result<()> {
        kill_process(self.pid(), Signal::TERM)?;
        self.await_end()?;
        self.child.wait()?;
        Ok(())
    }

    fn await_end(&self) -> Result<()> {
        let process = pidfd_open(self.pid(), PidfdFlags::empty())?;
        let patience = Timespec { tv_sec: PATIENCE_S, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience))?;
        ensure!(ended > 0, "{} did not end within {PATIENCE_S} s", self.name);
        Ok(())
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing to one that was waited for. Nobody can be told of a failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool of which only success matters.
pub fn run(command: &mut Command, log: &Path) -> Result<()> {
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()), log)?.wait()
}

/// The command without the `nsenter` before it.
fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let own = words.iter().position(|word| word == "--").map_or(0, |at| at + 1);
    words[own..].join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_which_command_and_what_it_said() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no luck >&2; exit 3"]);
        let error = run(&mut command, log.path()).unwrap_err().to_string();
        assert!(error.starts_with("sh -c") && error.ends_with("no luck"), "{error}");
    }

    #[test]
    fn the_way_into_a_namespace_is_not_part_of_the_name() {
        let mut command = Command::new("nsenter");
        command.args(["--net=/proc/1/ns/net", "--", "zstd", "-1"]);
        assert_eq!(describe(&command), "zstd -1");
    }
}
