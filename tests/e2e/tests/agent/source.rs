//! A guest with an agent in it.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use e2e::Programs;
use lab::Format;
use lab::guest::{Content, DiskFile, GuestOptions, Machine, Qemu, Ssh, Start, Writes, small};
use tempfile::TempDir;

use super::talk::Talk;

const DIR: &str = "/run/causeway/test";

const PATIENCE: Duration = Duration::from_secs(120);

/// Writes to the root once in a while, and says in memory when it could.
const TICKER: &str = "(while :; do date > /root/tick && cat /proc/uptime > /run/tick; sleep 0.2; done) \
     >/dev/null 2>&1 </dev/null &";

pub struct Source {
    qemu: Qemu,
    ssh: Ssh<'static>,
    disks: Vec<DiskFile>,
    dir: TempDir,
}

impl Source {
    /// With data disks of these sizes, all of one kind of content, and swap.
    pub fn boot(data: &[u64], content: Content) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut options = GuestOptions::new("source");
        options.swap = true;
        for bytes in data {
            options = options.data(*bytes, content, Format::Raw);
        }
        let disks = small::build(&options)?.clone_to(dir.path(), &options)?;
        let machine = Machine {
            start: Start::Disk,
            disks: &disks,
            writes: Writes::Keep,
            memory_mib: 512,
            vcpus: 2,
        };
        let qemu = Qemu::start(&machine, &dir.path().join("console"))?;
        let ssh = qemu.ssh()?;
        ssh.wait(PATIENCE)?;
        let source = Self { qemu, ssh, disks, dir };
        source.wait_until("grep -q vda2 /proc/swaps")?;
        source.install()?;
        source.ssh(TICKER)?;
        Ok(source)
    }

    fn install(&self) -> Result<()> {
        let program = fs::read(Programs::find()?.agent())?;
        let put = format!(
            "mkdir -p -m 700 {DIR}; cat > {DIR}/causeway-agent; chmod 700 {DIR}/causeway-agent"
        );
        let answer = self.ssh.answer(&put, &program)?;
        if answer.code != 0 {
            bail!("{}", answer.stderr);
        }
        Ok(())
    }

    /// The agent, started if it does not run, and a conversation with it.
    pub fn agent(&self) -> Result<Talk> {
        self.install_if_gone()?;
        self.ssh(&format!("{DIR}/causeway-agent serve --dir {DIR}"))?;
        Talk::by(self.ssh.command(&format!("{DIR}/causeway-agent ask {DIR}/agent.sock")))
    }

    fn install_if_gone(&self) -> Result<()> {
        let there = self.ssh.answer(&format!("test -x {DIR}/causeway-agent"), b"")?;
        if there.code == 0 { Ok(()) } else { self.install() }
    }

    pub fn ssh(&self, script: &str) -> Result<String> {
        self.ssh.run(script)
    }

    pub fn sizes(&self) -> Vec<u64> {
        self.disks.iter().map(|disk| disk.bytes).collect()
    }

    pub fn device_names(&self) -> Vec<String> {
        ('a'..='z').take(self.disks.len()).map(|letter| format!("vd{letter}")).collect()
    }

    pub fn write_a_little(&self, seed: u32) -> Result<()> {
        self.ssh(&format!(
            "dd if=/dev/urandom of=/data1/file{seed} bs=64k count=40 2>/dev/null; \
             dd if=/dev/urandom of=/data1/file0 bs=4k seek={seed}7 count=3 conv=notrunc 2>/dev/null; \
             echo {seed} > /root/note; rm -f /data1/file1; sync"
        ))
        .map(drop)
    }

    pub fn write_in_background(&self) -> Result<()> {
        self.ssh(
            "(n=0; while true; do n=$((n + 1)); \
             dd if=/dev/urandom of=/data1/busy$((n % 7)) bs=16k count=5 2>/dev/null; \
             dd if=/dev/urandom of=/root/busy bs=4k count=3 conv=notrunc,fsync 2>/dev/null; done) \
             >/dev/null 2>&1 </dev/null &",
        )
        .map(drop)
    }

    /// Did the ticker write to the root within a moment?
    pub fn writes(&self) -> bool {
        let script = "a=$(cat /run/tick); sleep 3; b=$(cat /run/tick); [ \"$a\" != \"$b\" ]";
        self.ssh.answer(script, b"").unwrap().code == 0
    }

    pub fn wait_until_it_writes(&self) -> Result<()> {
        self.wait_until("a=$(cat /run/tick); sleep 1; [ \"$a\" != \"$(cat /run/tick)\" ]")
    }

    pub fn wait_until(&self, script: &str) -> Result<()> {
        let began = Instant::now();
        while self.ssh.answer(script, b"")?.code != 0 {
            if began.elapsed() > PATIENCE {
                bail!("never came true in the guest: {script}\n{}", self.qemu.console());
            }
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    pub fn swap_is_on(&self) -> bool {
        self.ssh.answer("grep -q vda2 /proc/swaps", b"").unwrap().code == 0
    }

    /// Pulls the cord; the images as they were then, as long as their folder.
    pub fn cut(self) -> Result<(TempDir, Vec<PathBuf>)> {
        self.qemu.cut()?;
        Ok((self.dir, self.disks.into_iter().map(|disk| disk.path).collect()))
    }
}
