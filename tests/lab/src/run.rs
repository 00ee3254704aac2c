//! Running tools to their end, with what they said in the error.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Runs `command` and returns its standard output; any exit code but 0 is an error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    accept(command, &output)
}

/// Like [`run`], with `input` as the command's standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let mut stdin = child.stdin.take().context("stdin was piped three lines above")?;
    // A tool that stops reading says why on stderr: that is the better error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    accept(command, &child.wait_with_output()?)
}

/// Kills a child at once, with whatever it has started and waits for; nothing of both is left then.
pub fn end(child: &mut Child) -> Result<()> {
    let waits_for = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()));
    let pids = waits_for.unwrap_or_default();
    let pids: Vec<_> = pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    for pid in pids.iter().copied().filter_map(Pid::from_raw) {
        // Already gone is as good.
        let _ = kill_process(pid, Signal::KILL);
    }
    // One that waits ends by itself, once what it waits for has.
    if pids.is_empty() {
        child.kill()?;
    }
    child.wait()?;
    Ok(())
}

fn accept(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{} {}: {}\n{}{}",
            command.get_program().to_string_lossy(),
            command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
