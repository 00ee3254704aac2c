//! Commands of the operator, run by the shell.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;

/// How long one command may take. The guest works meanwhile, but the operator waits.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of what a command printed is kept: its end, where the reason stands.
const OUTPUT_KEPT: u64 = 2048;

const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Error)]
pub enum CommandError {
    #[error("cannot run {program}")]
    Start { program: String, source: io::Error },

    #[error("{command}: {status}, it said: {output}")]
    Failed { command: String, status: Outcome, output: String },

    #[error("{command} did not end within {} s and was killed; it said: {output}", timeout.as_secs())]
    TooLong { command: String, timeout: Duration, output: String },
}

/// How a command ended, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(ExitStatus);

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (_, Some(signal)) => write!(f, "ended by signal {signal}"),
            _ => write!(f, "{}", self.0),
        }
    }
}

/// Runs a hook by `sh -c`. `occasion` reaches it as `CAUSEWAY_HOOK`.
pub fn run(hook: &str, occasion: &str, timeout: Duration) -> Result<(), CommandError> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(hook).env("CAUSEWAY_HOOK", occasion);
    run_command(command, hook, timeout)
}

/// Runs any program; what it prints goes into the error if it fails.
pub fn run_command(
    mut command: Command,
    title: &str,
    timeout: Duration,
) -> Result<(), CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source| CommandError::Start { program: program.clone(), source };
    // In memory, not in a pipe: what a hook leaves behind in the background may keep its output
    // open for ever.
    let memory = rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC);
    let mut output = File::from(memory.map_err(|errno| start(errno.into()))?);
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(start)?)
        .stderr(output.try_clone().map_err(start)?)
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let command = title.to_owned();
    match wait(&mut child, timeout).map_err(start)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(CommandError::Failed {
            command,
            status: Outcome(status),
            output: end_of(&mut output),
        }),
        None => Err(CommandError::TooLong { command, timeout, output: end_of(&mut output) }),
    }
}

/// `None`: it took too long, and it and all its children in the foreground were killed.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() >= timeout {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                kill_process_group(group, Signal::KILL)?;
            }
            child.wait()?;
            return Ok(None);
        }
        sleep(PAUSE);
    }
}

fn end_of(output: &mut File) -> String {
    let len = output.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = Vec::new();
    let read = output
        .seek(SeekFrom::Start(len.saturating_sub(OUTPUT_KEPT)))
        .and_then(|_| output.read_to_end(&mut bytes));
    match read {
        Ok(0) => "nothing".to_owned(),
        Ok(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => format!("(cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failing_hook_said_is_in_the_error() {
        let error = run("echo cannot stop db >&2; exit 3", "quiesce", COMMAND_TIMEOUT).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit code 3") && text.contains("cannot stop db"), "{text}");
    }

    #[test]
    fn a_hook_knows_its_occasion() {
        run("test \"$CAUSEWAY_HOOK\" = thaw", "thaw", COMMAND_TIMEOUT).unwrap();
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let hook = format!("sleep 1000 & echo $! > {}; wait", mark.display());
        let error = run(&hook, "quiesce", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, CommandError::TooLong { .. }), "{error}");
        let pid = std::fs::read_to_string(mark).unwrap();
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        // It is killed already; a busy kernel may take a moment to bury it.
        let gone = (0..500).any(|_| {
            let gone = is_gone();
            if !gone {
                sleep(PAUSE);
            }
            gone
        });
        assert!(gone, "the hook's child still runs");
    }

    #[test]
    fn a_hook_may_leave_a_program_behind() {
        run("sleep 2 & exit 0", "quiesce", COMMAND_TIMEOUT).unwrap();
    }
}
