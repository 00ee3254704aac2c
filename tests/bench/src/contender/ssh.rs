//! What goes through SSH: a pipe of zstd, and rsync.

use std::process::Stdio;

use anyhow::{Context as _, Result};

use crate::child::{self, Running};
use crate::disks::Disks;
use crate::ground::Line;

/// The fastest that OpenSSH has on machines with AES in hardware; its default is ChaCha20.
pub const CIPHER: &str = "aes128-gcm@openssh.com";

pub fn zstd(line: &Line<'_>, disks: &Disks) -> Result<()> {
    let mut command = line.source.command("zstd")?;
    command.args(["-q", "-1", "-T2", "-c"]).arg(&disks.source);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut zstd = Running::start(&mut command, &line.log())?;
    let mut command = line.source.command("ssh")?;
    command.args(options(line)).arg(login(line));
    command.arg(format!("zstd -q -d --sparse > {}", disks.target.display()));
    command.stdin(zstd.stdout()?).stdout(Stdio::null());
    let ssh = Running::start(&mut command, &line.log())?;
    // It holds our copy of the pipe: without it zstd notices when ssh is gone.
    drop(command);
    ssh.wait().context("zstd | ssh")?;
    zstd.wait()
}

pub fn rsync(line: &Line<'_>, disks: &Disks) -> Result<()> {
    let mut command = line.source.command("rsync")?;
    command.args(["-z", "--sparse", "-e", &format!("ssh {}", options(line).join(" "))]);
    command.arg(&disks.source).arg(format!("{}:{}", login(line), disks.target.display()));
    child::run(&mut command, &line.log())
}

fn login(line: &Line<'_>) -> String {
    format!("root@{}", line.target.address)
}

fn options(line: &Line<'_>) -> Vec<String> {
    let known = format!("UserKnownHostsFile={}", line.operator.known_hosts().display());
    let key = line.operator.ssh_key().display().to_string();
    let words = ["-F", "none", "-i", &key, "-o", "BatchMode=yes", "-o", &known, "-c", CIPHER];
    words.map(ToOwned::to_owned).to_vec()
}
