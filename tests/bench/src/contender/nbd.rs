//! nbdkit serves the source, nbdcopy writes the target where it is to be.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::child::{self, Running};
use crate::disks::Disks;
use crate::ground::{Line, Place};

/// Nobody else listens in the lab.
const PORT: u16 = 10809;
const USER: &str = "bench";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    None,
    /// A pre-shared key, and whatever cipher GnuTLS takes.
    Tls,
    /// The same, with AES-128-GCM, which is what we use ourselves.
    TlsAes,
}

/// GnuTLS prefers ChaCha20 to AES-128; AES-256 does not go with the hash of this kind of key.
const AES_ONLY: &str = "[overrides]\ntls-disabled-cipher = chacha20-poly1305\n";

pub fn serve(security: Security, line: &Line<'_>, disks: &Disks) -> Result<Running> {
    let ready = line.scratch.join("nbdkit.pid");
    let _ = fs::remove_file(&ready);
    let mut command = program(security, line, &line.source, "nbdkit")?;
    command.args(["--foreground", "--exit-with-parent", "--readonly"]);
    command.arg("--ipaddr").arg(line.source.address.to_string());
    command.arg("--port").arg(PORT.to_string()).arg("--pidfile").arg(&ready);
    if security != Security::None {
        make_key(line)?;
        command.arg("--tls=require").arg(format!("--tls-psk={}", key_file(line)));
    }
    command.arg("file").arg(&disks.source);
    let server = Running::start(&mut command, &line.log())?;
    let began = Instant::now();
    while fs::metadata(&ready).is_ok_and(|file| file.len() == 0) || !ready.exists() {
        ensure!(began.elapsed() < Duration::from_secs(20), "nbdkit does not answer");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(server)
}

pub fn copy(security: Security, line: &Line<'_>, disks: &Disks) -> Result<()> {
    let mut command = program(security, line, &line.target, "nbdcopy")?;
    child::run(command.arg(uri(security, line)).arg(&disks.target), &line.log())
}

/// As the client reports it.
pub fn cipher(security: Security, line: &Line<'_>, disks: &Disks) -> Result<String> {
    if security == Security::None {
        return Ok("none".to_owned());
    }
    let server = serve(security, line, disks)?;
    let mut command = program(security, line, &line.target, "nbdinfo")?;
    command.arg(uri(security, line)).env("LIBNBD_DEBUG", "1");
    let output = command.output().context("cannot run nbdinfo")?;
    server.end()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nbdinfo: {}\n{said}", output.status);
    let found = said.lines().find_map(|line| line.split_once("using TLS: cipher "));
    let name = found.and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("unknown cipher");
    Ok(format!("TLS {name}"))
}

fn program(security: Security, line: &Line<'_>, place: &Place<'_>, name: &str) -> Result<Command> {
    let mut command = place.command(name)?;
    if security == Security::TlsAes {
        let settings = line.scratch.join("gnutls.conf");
        fs::write(&settings, AES_ONLY)?;
        command.env("GNUTLS_SYSTEM_PRIORITY_FILE", settings);
    }
    Ok(command)
}

fn uri(security: Security, line: &Line<'_>) -> String {
    let address = line.source.address;
    match security {
        Security::None => format!("nbd://{address}:{PORT}"),
        Security::Tls | Security::TlsAes => {
            format!("nbds://{USER}@{address}:{PORT}/?tls-psk-file={}", key_file(line))
        }
    }
}

fn key_file(line: &Line<'_>) -> String {
    line.scratch.join("keys.psk").display().to_string()
}

/// As `psktool` makes it.
fn make_key(line: &Line<'_>) -> Result<()> {
    let mut key = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
    let hexadecimal = key.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    Ok(fs::write(key_file(line), format!("{USER}:{hexadecimal}\n"))?)
}
