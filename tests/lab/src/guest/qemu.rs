//! A guest in QEMU alone, without a site: to try images, and to look into disks.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{disk::DiskFile, ssh::Ssh};
use crate::Format;

/// What the machine starts from.
#[derive(Debug, Clone)]
pub enum Start {
    /// The first disk, by BIOS.
    Disk,
    Kernel {
        vmlinuz: PathBuf,
        initrd: PathBuf,
        cmdline: String,
    },
}

/// What happens to what the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    Keep,
    /// The images stay as they are.
    Discard,
}

/// A machine to be started.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    pub start: Start,
    pub disks: &'a [DiskFile],
    pub writes: Writes,
    pub memory_mib: u32,
    pub vcpus: u32,
}

/// A running machine. Its network is QEMU's own: the guest reaches this machine's loopback at
/// 10.0.2.2, and its SSH is on a port of the loopback here. Ends at the latest with the thread that
/// started it.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    console: PathBuf,
    ssh_port: u16,
}

impl Qemu {
    /// Starts `machine`; what its serial console says is in the file `console`, which is emptied.
    pub fn start(machine: &Machine<'_>, console: &Path) -> Result<Self> {
        // Given back before QEMU takes it: hostfwd has no way to say which port it chose.
        let ssh_port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-machine", "q35,accel=tcg", "-display", "none", "-nodefaults"]);
        command.args(["-m", &machine.memory_mib.to_string()]);
        command.args(["-smp", &machine.vcpus.to_string()]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-netdev");
        command.arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"));
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        command.args(["-device", "virtio-rng-pci"]);
        for disk in machine.disks {
            let format = match disk.format {
                Format::Raw => "raw",
                Format::Qcow2 => "qcow2",
            };
            let snapshot = if machine.writes == Writes::Discard { "on" } else { "off" };
            let path = disk.path.display();
            command.arg("-drive");
            command.arg(format!("if=virtio,format={format},snapshot={snapshot},file={path}"));
        }
        if let Start::Kernel { vmlinuz, initrd, cmdline } = &machine.start {
            command.arg("-kernel").arg(vmlinuz).arg("-initrd").arg(initrd);
            command.args(["-append", cmdline]);
        }
        let errors = console.with_extension("qemu");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
        fs::write(console, "")?;
        let child = command.spawn().context("cannot run setpriv")?;
        Ok(Self { child, console: console.to_owned(), ssh_port })
    }

    /// Root's SSH in the guest.
    pub fn ssh(&self) -> Result<Ssh<'static>> {
        Ok(Ssh::new(Ipv4Addr::LOCALHOST, |program| Command::new(program))?.port(self.ssh_port))
    }

    /// All that the guest has said on its serial console.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits until the console has `text`, and says how long that took.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> Result<Duration> {
        let start = Instant::now();
        while !self.console().contains(text) {
            if self.child.try_wait()?.is_some() || start.elapsed() > patience {
                bail!("the console did not say {text:?}:\n{}", self.last_words());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(start.elapsed())
    }

    /// Waits until the guest has powered off.
    pub fn wait(&mut self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("QEMU: {status}\n{}", self.last_words()),
                None if start.elapsed() > patience => bail!("still on:\n{}", self.last_words()),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Cuts the power.
    pub fn cut(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn last_words(&self) -> String {
        let errors = fs::read_to_string(self.console.with_extension("qemu")).unwrap_or_default();
        let console = self.console();
        let lines: Vec<_> = console.lines().collect();
        format!("{errors}{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
