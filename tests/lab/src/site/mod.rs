//! A site: a hypervisor host of its own on this machine, with libvirtd, QEMU, a bridge with DHCP, a
//! storage pool and, if asked for, SSH.

mod addresses;
mod config;
pub(crate) mod emulator;
mod vm;

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::process::{Holder, Lifeline};
use crate::run::run;
use crate::state::MARK;
use crate::{net, operator};

pub(crate) use addresses::Addresses;
pub use vm::{Boot, Cpu, Disk, Firmware, Format, Nic, Vm, VmSpec};

/// As whom QEMU runs. Fences act differently: root opens files whatever their mode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QemuUser {
    #[default]
    Root,
    /// As Debian has it: an own user, to whom libvirt gives the disks while they are in use.
    LibvirtQemu,
}

/// Whether the operator can log in to the hypervisor itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostAccess {
    /// Only libvirt's API.
    #[default]
    ApiOnly,
    /// OpenSSH as root with [`Operator::ssh_key`](operator::Operator::ssh_key).
    Ssh,
}

/// What a site is to be like.
#[derive(Debug, Clone)]
pub struct SiteSpec {
    pub name: String,
    pub qemu_user: QemuUser,
    pub host_access: HostAccess,
    /// More lines for `qemu.conf`.
    pub qemu_conf: String,
}

impl SiteSpec {
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            qemu_user: QemuUser::default(),
            host_access: HostAccess::default(),
            qemu_conf: String::new(),
        }
    }

    #[must_use]
    pub fn qemu_user(self, qemu_user: QemuUser) -> Self {
        Self { qemu_user, ..self }
    }

    #[must_use]
    pub fn host_access(self, host_access: HostAccess) -> Self {
        Self { host_access, ..self }
    }
}

/// The third byte of the sites' networks: the first one has 10.77.1.0/24.
fn subnet(number: usize) -> u8 {
    u8::try_from(number + 1).expect("a lab has less than 255 sites: see the builder")
}

/// The address of the site with this number: on its bridge, and the gateway of its guests.
pub(crate) fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, subnet(number), 1)
}

/// A site of a lab that is up. It goes with the [`Lab`](crate::Lab).
#[derive(Debug)]
pub struct Site {
    spec: SiteSpec,
    number: usize,
    host_uuid: String,
    dir: PathBuf,
    addresses: Arc<Addresses>,
    /// Absent while the site is powered off.
    holder: Mutex<Option<Holder>>,
}

impl Site {
    /// Writes the site's files; it is then powered off.
    pub(crate) fn lay(
        lab: &Path,
        spec: SiteSpec,
        number: usize,
        all: &[String],
        addresses: Arc<Addresses>,
    ) -> Result<Self> {
        let dir = lab.join(&spec.name);
        for part in ["cache/qemu/capabilities", "dhcp", "etc", "lib/boot", "log/console", "vm"] {
            fs::create_dir_all(dir.join(part))?;
        }
        // QEMU as a user of its own creates the console logs.
        fs::set_permissions(dir.join("log/console"), fs::Permissions::from_mode(0o1777))?;
        fs::set_permissions(dir.join("vm"), fs::Permissions::from_mode(0o755))?;

        let host_uuid = uuid::Uuid::new_v4().to_string();
        let etc = dir.join("etc");
        fs::write(etc.join("libvirtd.conf"), config::libvirtd_conf(&host_uuid))?;
        fs::write(etc.join("qemu.conf"), config::qemu_conf(&spec))?;
        autostarted(&etc.join("storage"), config::POOL_XML)?;
        autostarted(&etc.join("qemu/networks"), config::NETWORK_XML)?;
        fs::write(dir.join("hosts"), config::hosts(all, &operator::ADDRESS.to_string()))?;
        let text = dir.to_str().context("a lab's directory is not UTF-8")?;
        let subnet = format!("10.77.{}", subnet(number));
        fs::write(dir.join("dnsmasq.conf"), config::dnsmasq_conf(text, &subnet))?;

        if spec.host_access == HostAccess::Ssh {
            let ssh = dir.join("ssh");
            fs::create_dir_all(&ssh)?;
            let address = address(number).to_string();
            fs::write(ssh.join("sshd_config"), config::sshd_config(text, &address))?;
            make_key(&ssh.join("host_ed25519"), &spec.name)?;
            let operator = lab.join("operator");
            fs::copy(operator.join("id_ed25519.pub"), ssh.join("authorized_keys"))?;
            let key = fs::read_to_string(ssh.join("host_ed25519.pub"))?;
            let mut known = fs::read_to_string(operator.join("known_hosts")).unwrap_or_default();
            let _ = write!(known, "{address} {key}");
            fs::write(operator.join("known_hosts"), known)?;
        }
        Ok(Self { spec, number, host_uuid, dir, addresses, holder: Mutex::new(None) })
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Of the hypervisor host.
    pub fn address(&self) -> Ipv4Addr {
        address(self.number)
    }

    pub fn host_uuid(&self) -> &str {
        &self.host_uuid
    }

    pub fn host_access(&self) -> HostAccess {
        self.spec.host_access
    }

    /// Where `/srv/vm`, the pool `default`, lies outside the site.
    pub fn pool_dir(&self) -> PathBuf {
        self.dir.join("vm")
    }

    /// Where `/var/log/libvirt` lies outside the site.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What its libvirtd logged.
    pub fn libvirtd_log(&self) -> Result<String> {
        let path = self.log_dir().join("libvirtd.log");
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    pub(crate) fn capabilities_dir(&self) -> PathBuf {
        self.dir.join("cache/qemu/capabilities")
    }

    /// `program` on the hypervisor host, with its files, network and name, but in the outer pid
    /// namespace: the child's pid is the program's own.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.enter(&["--mount", "--net", "--uts", "--ipc", "--", program])
    }

    /// `program` as one of the hypervisor host's own: it sees the host's processes, and ends with the host. The child
    /// waits for it, and is ended by [`run::end`](crate::run::end).
    pub fn service(&self, program: &str) -> Result<Command> {
        let dies = ["setpriv", "--pdeathsig", "KILL"];
        let all = ["--mount", "--net", "--uts", "--ipc", "--pid", "--"];
        self.enter(&[&all[..], &dies, &[program]].concat())
    }

    fn enter(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid()?.to_string()]).args(words).current_dir("/");
        if let Some(lab) = self.dir.parent() {
            command.env(MARK, lab);
        }
        Ok(command)
    }

    /// `virsh` on the hypervisor host; it does not pass the network. For calls that may fail.
    pub fn virsh_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command("virsh")?;
        command.args(["--quiet", "--connect", "qemu:///system"]).args(arguments);
        Ok(command)
    }

    /// What `virsh` prints. A refusal is an error with libvirt's words.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.virsh_command(arguments)?)
    }

    /// Restarts libvirtd alone; VMs run on.
    pub fn restart_libvirtd(&self) -> Result<()> {
        self.stop_libvirtd()?;
        self.start_libvirtd()
    }

    /// Nobody answers for the site any more; VMs run on.
    pub fn stop_libvirtd(&self) -> Result<()> {
        self.script(
            "pid=$(cat /run/libvirtd.pid); kill $pid; while [ -e /proc/$pid ]; do sleep 0.02; done",
        )
    }

    /// As [`Self::stop_libvirtd`], and it has no say in it.
    pub fn kill_libvirtd(&self) -> Result<()> {
        self.script(
            "pid=$(cat /run/libvirtd.pid); kill -9 $pid; while [ -e /proc/$pid ]; do sleep 0.02; done",
        )
    }

    pub fn start_libvirtd(&self) -> Result<()> {
        self.script("exec libvirtd --listen --daemon")?;
        self.virsh(&["uri"])?;
        Ok(())
    }

    /// Runs a shell's script among the site's processes.
    fn script(&self, script: &str) -> Result<()> {
        let pid = self.pid()?.to_string();
        run(Command::new("nsenter")
            .args(["--target", &pid, "--mount", "--net", "--uts", "--ipc", "--pid", "--"])
            .args(["sh", "-c", script])
            .current_dir("/"))?;
        Ok(())
    }

    /// Runs `work` on a thread in the hypervisor's network. Sockets made there stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        net::inside(&self.net()?, work)
    }

    /// The namespace of the site's network.
    pub(crate) fn net(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/ns/net", self.pid()?)))
    }

    /// Of the first process of the site, seen from outside.
    pub fn pid(&self) -> Result<u32> {
        match &*self.lock() {
            Some(holder) => Ok(holder.pid()),
            None => bail!("site {} is powered off", self.name()),
        }
    }

    /// Starts the site as a machine is switched on: with its disks as they were and empty memory.
    pub(crate) fn power_on(&self, lifeline: &Lifeline) -> Result<()> {
        let sshd = if self.spec.host_access == HostAccess::Ssh { "yes" } else { "no" };
        let holder = Holder::start(
            &self.spec.name,
            self.dir.parent().context("a site lies in a lab")?,
            lifeline,
            &["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL"],
            include_str!("site.sh"),
            &[
                ("SITE", self.dir.display().to_string()),
                ("EMULATOR", emulator::program()?.display().to_string()),
                ("NAME", self.spec.name.clone()),
                ("ADDRESS", self.address().to_string()),
                ("BRIDGE_MAC", format!("02:ca:05:01:00:{:02x}", subnet(self.number))),
                ("SSHD", sshd.to_owned()),
            ],
        )?;
        *self.lock() = Some(holder);
        Ok(())
    }

    /// Stops the site and everything on it as a power cut would.
    pub(crate) fn power_off(&self) -> Result<()> {
        match self.lock().take() {
            Some(holder) => holder.kill(),
            None => Ok(()),
        }
    }

    /// Waits for a site that ends by the lifeline.
    pub(crate) fn wait(&self) -> Result<()> {
        self.lock().take().map_or(Ok(()), |mut holder| holder.wait())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Holder>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Defines a thing named `default` that libvirtd starts with itself.
fn autostarted(dir: &Path, xml: &str) -> Result<()> {
    let autostart = dir.join("autostart");
    fs::create_dir_all(&autostart)?;
    fs::write(dir.join("default.xml"), xml)?;
    symlink("../default.xml", autostart.join("default.xml"))?;
    Ok(())
}

pub(crate) fn make_key(path: &Path, comment: &str) -> Result<()> {
    run(Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
        .arg(path))?;
    Ok(())
}
