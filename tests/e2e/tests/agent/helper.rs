//! A helper: the agent as the init of a machine of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::Programs;
use lab::kernel::{Kernel, debian_cloud};
use lab::run::run;
use tempfile::TempDir;

const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "virtio_net"];

/// Hangs end here: a helper is up in seconds and off in less.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Helper {
    child: Child,
    dir: TempDir,
    targets: Vec<PathBuf>,
    direct_port: u16,
}

impl Helper {
    /// With empty targets a little larger than these sizes, as storage rounds up.
    pub fn boot(sizes: &[u64]) -> Result<Self> {
        let kernel = debian_cloud()?;
        let dir = tempfile::tempdir()?;
        let initramfs = initramfs(&kernel, dir.path())?;
        let direct_port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-machine", "q35,accel=tcg", "-display", "none", "-nodefaults", "-no-reboot"])
            .args(["-m", "512", "-smp", "2", "-device", "virtio-serial-pci"])
            .arg("-serial")
            .arg(format!("file:{}", dir.path().join("console").display()))
            .arg("-chardev")
            .arg(format!(
                "socket,id=c0,path={},server=on,wait=off",
                dir.path().join("port0").display()
            ))
            .args(["-device", "virtserialport,chardev=c0,name=org.causeway.0"])
            .arg("-netdev")
            .arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{direct_port}-:7447"))
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .arg("-kernel")
            .arg(&kernel.vmlinuz)
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg("console=ttyS0 quiet panic=-1 causeway.net=dhcp causeway.listen=7447");
        let mut targets = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            let target = dir.path().join(format!("target{number}"));
            File::create(&target)?.set_len(size.next_multiple_of(1 << 20))?;
            qemu.arg("-drive").arg(format!(
                "id=t{number},if=none,format=raw,cache=unsafe,discard=unmap,file={}",
                target.display()
            ));
            let device = format!("virtio-blk-pci,drive=t{number},serial=causeway-{number}");
            qemu.arg("-device").arg(device);
            targets.push(target);
        }
        let child = qemu.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let helper = Self { child, dir, targets, direct_port };
        helper.wait_for_socket()?;
        Ok(helper)
    }

    /// QEMU makes the socket at once; the guest behind it comes later.
    fn wait_for_socket(&self) -> Result<()> {
        let began = Instant::now();
        while !self.control().exists() {
            if began.elapsed() > PATIENCE {
                bail!("QEMU makes no socket");
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn control(&self) -> PathBuf {
        self.dir.path().join("port0")
    }

    /// On this machine's loopback, which guests with QEMU's own network reach at 10.0.2.2.
    pub fn direct_port(&self) -> u16 {
        self.direct_port
    }

    pub fn cut(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has powered itself off. The targets are there as long as their folder.
    pub fn wait_off(mut self) -> Result<(TempDir, Vec<PathBuf>)> {
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                bail!("the helper does not power off:\n{}", self.console());
            }
            sleep(Duration::from_millis(20));
        }
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir()?);
        Ok((dir, std::mem::take(&mut self.targets)))
    }

    fn console(&self) -> String {
        let console = fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the helper's console:\n{}", self.console());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// As the coordinator builds it: the agent as /init, modules and their order.
fn initramfs(kernel: &Kernel, dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    fs::create_dir_all(root.join("modules"))?;
    fs::copy(Programs::find()?.agent(), root.join("init"))?;
    let dependencies = fs::read_to_string(kernel.modules_dir.join("modules.dep"))?;
    let mut order: Vec<String> = Vec::new();
    for path in MODULES.iter().flat_map(|name| in_load_order(name, &dependencies)) {
        let name = path.rsplit('/').next().context("a module has a name")?;
        let line = format!("/modules/{name}");
        if !order.contains(&line) {
            fs::copy(kernel.modules_dir.join(path), root.join(line.trim_start_matches('/')))?;
            order.push(line);
        }
    }
    fs::write(root.join("modules/order"), order.join("\n"))?;
    let archive = dir.join("initramfs");
    let pack = format!("find . | busybox cpio -o -H newc > {}", archive.display());
    run(Command::new("sh").args(["-c", &pack]).current_dir(&root))?;
    Ok(archive)
}

/// What a module depends on stands behind it, the most basic last; nothing for one built in.
fn in_load_order<'a>(name: &str, dependencies: &'a str) -> Vec<&'a str> {
    let file = format!("/{name}.ko");
    let line = dependencies.lines().find_map(|line| {
        let (path, needs) = line.split_once(':')?;
        path.ends_with(&file).then_some((path, needs))
    });
    let Some((path, needs)) = line else { return Vec::new() };
    needs.split_ascii_whitespace().rev().chain([path]).collect()
}
