//! The processes that hold a lab's namespaces, and the lifeline that ends them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::state::MARK;

/// A pipe that nobody ever writes to. Its writing end exists in the lab's owner only, so that
/// whoever reads it learns of the owner's death, by SIGKILL too, and whichever thread started him.
#[derive(Debug)]
pub(crate) struct Lifeline {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl Lifeline {
    pub fn new() -> Result<Self> {
        let (reader, writer) = io::pipe().context("cannot make a pipe")?;
        Ok(Self { reader, _writer: writer })
    }
}

/// A process that holds namespaces open and ends with the [`Lifeline`].
#[derive(Debug)]
pub(crate) struct Holder {
    child: Child,
    /// Of the process inside, as seen from outside.
    pid: u32,
}

impl Holder {
    /// Runs `script` by `sh` behind `unshare`. It must say `ready PID` and then wait for the end
    /// of its standard input.
    pub fn start(
        name: &str,
        dir: &Path,
        lifeline: &Lifeline,
        unshare: &[&str],
        script: &str,
        variables: &[(&str, String)],
    ) -> Result<Self> {
        // As a file, so that its line in the list of processes stays short.
        let program = dir.join(format!("{name}.sh"));
        fs::write(&program, script)?;
        let log = dir.join(format!("{name}.log"));
        let mut child = Command::new("unshare")
            .args(unshare)
            .arg("sh")
            .arg(&program)
            .env(MARK, dir)
            .envs(variables.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            // A Ctrl-C at the terminal is for the lab, which then ends these in order.
            .process_group(0)
            .stdin(Stdio::from(lifeline.reader.try_clone()?))
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .spawn()
            .context("cannot run unshare")?;
        let stdout = child.stdout.take().context("stdout was piped above")?;
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer)?;
        let pid = answer.strip_prefix("ready ").and_then(|pid| pid.trim().parse().ok());
        let Some(pid) = pid else {
            let status = child.wait()?;
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("{name} did not start: {status}\n{}", said.trim_end());
        };
        Ok(Self { child, pid })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn net(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }

    /// Ends it and everything in its pid namespace, if it has one, at once.
    pub fn kill(mut self) -> Result<()> {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // Already gone is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
        // The first process of a pid namespace is not reaped before all others are gone.
        self.wait()
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> Result<()> {
        self.child.wait().context("cannot wait for a namespace to end")?;
        Ok(())
    }
}

/// `program` in the network namespace at `net`, exec'd: the child's pid is the program's.
pub(crate) fn in_net(net: &Path, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", net.display())).arg("--").arg(program);
    command
}
