//! VMs for tests: disks made or imported, the domain defined and started, its console read.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quick_xml::escape::escape;
use uuid::Uuid;

use super::{Site, addresses};
use crate::run::run;

/// How a disk's image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

#[derive(Debug, Clone)]
enum Content {
    Copy { of: PathBuf, format: Format },
    Blank { bytes: u64 },
    InPlace { path: PathBuf },
}

/// A virtio disk: `vda`, `vdb`, … in the order of [`VmSpec::disks`].
#[derive(Debug, Clone)]
pub struct Disk {
    content: Content,
    /// Of the image in the pool.
    pub format: Format,
    /// At most 20 characters reach the guest.
    pub serial: Option<String>,
}

impl Disk {
    /// A copy in the site's pool of an image outside.
    pub fn copy_of(image: impl Into<PathBuf>, format: Format) -> Self {
        Self { content: Content::Copy { of: image.into(), format }, format, serial: None }
    }

    /// A new image of zeros in the site's pool. A size that is no multiple of 512 bytes is rounded
    /// up by QEMU.
    pub const fn blank(bytes: u64, format: Format) -> Self {
        Self { content: Content::Blank { bytes }, format, serial: None }
    }

    /// What is at this path of the site already.
    pub fn in_place(path: impl Into<PathBuf>, format: Format) -> Self {
        Self { content: Content::InPlace { path: path.into() }, format, serial: None }
    }

    /// The image in the pool gets this format, whatever the copied one has.
    #[must_use]
    pub fn stored_as(self, format: Format) -> Self {
        Self { format, ..self }
    }

    #[must_use]
    pub fn serial(self, serial: &str) -> Self {
        Self { serial: Some(serial.to_owned()), ..self }
    }
}

/// What a VM starts from.
#[derive(Debug, Clone)]
pub enum Boot {
    /// The first disk, by its firmware.
    Disk,
    /// A kernel outside, with a copy of it in the site.
    Kernel { vmlinuz: PathBuf, initrd: PathBuf, cmdline: String },
}

/// A virtio network card; without a MAC it gets a new one.
#[derive(Debug, Clone)]
pub enum Nic {
    /// On `br0` itself.
    Bridge { mac: Option<String> },
    /// On libvirt's network `default`, which is `br0` too.
    Network { mac: Option<String> },
}

/// What a VM boots by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Firmware {
    #[default]
    Bios,
    /// One that starts whatever there is; which, its host chooses.
    Uefi,
}

/// What a VM sees of its CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cpu {
    /// What QEMU has if not told: an old one, without AES or AVX.
    #[default]
    Plain,
    /// Everything that QEMU can emulate.
    Maximum,
}

/// What a VM is to be like.
#[derive(Debug, Clone)]
pub struct VmSpec {
    pub name: String,
    pub uuid: Uuid,
    /// `q35` or `pc`.
    pub machine: String,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub cpu: Cpu,
    pub firmware: Firmware,
    pub boot: Boot,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// Names of virtio-serial channels, such as `org.qemu.guest_agent.0`.
    pub channels: Vec<String>,
    pub autostart: bool,
    /// More elements for `<devices>`.
    pub devices: String,
}

impl VmSpec {
    /// 256 MiB, one CPU, one network card on the bridge, no disk.
    pub fn new(name: &str, boot: Boot) -> Self {
        Self {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            machine: "q35".to_owned(),
            memory_mib: 256,
            vcpus: 1,
            cpu: Cpu::default(),
            firmware: Firmware::default(),
            boot,
            disks: Vec::new(),
            nics: vec![Nic::Bridge { mac: None }],
            channels: Vec::new(),
            autostart: false,
            devices: String::new(),
        }
    }

    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    #[must_use]
    pub fn vcpus(self, vcpus: u32) -> Self {
        Self { vcpus, ..self }
    }

    #[must_use]
    pub fn cpu(self, cpu: Cpu) -> Self {
        Self { cpu, ..self }
    }

    #[must_use]
    pub fn firmware(self, firmware: Firmware) -> Self {
        Self { firmware, ..self }
    }

    #[must_use]
    pub fn machine(self, machine: &str) -> Self {
        Self { machine: machine.to_owned(), ..self }
    }

    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    #[must_use]
    pub fn channel(mut self, name: &str) -> Self {
        self.channels.push(name.to_owned());
        self
    }
}

/// A VM that a test made. It stays what it is when the VM moves to another site.
#[derive(Debug, Clone)]
pub struct Vm {
    pub name: String,
    pub uuid: Uuid,
    /// Of each network card.
    pub macs: Vec<String>,
    /// The paths of its disks in the site where it was made.
    pub disks: Vec<PathBuf>,
    host: Option<u8>,
}

impl Vm {
    /// What DHCP gives its first network card at `site`.
    pub fn address(&self, site: &Site) -> Result<Ipv4Addr> {
        let host = self.host.with_context(|| format!("{} has no network card", self.name))?;
        Ok(addresses::guest(site.number, host))
    }
}

impl Site {
    /// Makes the disks of `spec` and defines its domain.
    pub fn define(&self, spec: &VmSpec) -> Result<Vm> {
        let mut macs = Vec::new();
        let mut host = None;
        for nic in &spec.nics {
            let (Nic::Bridge { mac } | Nic::Network { mac }) = nic;
            let mac = mac.clone().map_or_else(|| self.addresses.new_mac(), Ok)?;
            let number = self.addresses.reserve(&mac)?;
            host = host.or(Some(number));
            macs.push(mac);
        }
        let disks = (0..)
            .zip(&spec.disks)
            .map(|(at, disk)| self.make_disk(&spec.name, target(at)?, disk))
            .collect::<Result<Vec<_>>>()?;
        let boot = self.boot_xml(spec)?;
        let vm = Vm { name: spec.name.clone(), uuid: spec.uuid, macs, disks, host };
        self.define_xml(&domain_xml(spec, &vm, &boot)?)?;
        if spec.autostart {
            self.virsh(&["autostart", &spec.name])?;
        }
        Ok(vm)
    }

    /// [`define`](Self::define), and starts it.
    pub fn start(&self, spec: &VmSpec) -> Result<Vm> {
        let vm = self.define(spec)?;
        self.virsh(&["start", &vm.name])?;
        Ok(vm)
    }

    /// Defines a domain from XML as it is.
    pub fn define_xml(&self, xml: &str) -> Result<()> {
        let file = tempfile::Builder::new().suffix(".xml").tempfile_in(&self.dir)?;
        fs::write(file.path(), xml)?;
        let path = file.path().to_str().context("a lab's directory is not UTF-8")?;
        self.virsh(&["define", path])?;
        Ok(())
    }

    /// Whether libvirt at this site says that the domain runs.
    pub fn is_running(&self, name: &str) -> Result<bool> {
        let running = self.virsh(&["list", "--name", "--state-running"])?;
        Ok(running.lines().any(|line| line.trim() == name))
    }

    /// As the host's kernel would for want of memory: the VM's QEMU gets SIGKILL.
    pub fn kill_vm(&self, name: &str) -> Result<()> {
        const SCRIPT: &str = "kill -9 $(cat /run/libvirt/qemu/$0.pid)";
        let pid = self.pid()?.to_string();
        run(Command::new("nsenter")
            .args(["--target", &pid, "--mount", "--pid", "--"])
            .args(["sh", "-c", SCRIPT, name])
            .current_dir("/"))?;
        Ok(())
    }

    /// What the guest wrote on its serial console at this site.
    pub fn console(&self, name: &str) -> String {
        let log = fs::read(self.console_log(name)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Where it is written, outside the site.
    pub fn console_log(&self, name: &str) -> PathBuf {
        self.log_dir().join("console").join(format!("{name}.log"))
    }

    /// Waits until `text` is on the console; giving up shows the console's end.
    pub fn wait_for_console(&self, name: &str, text: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let console = self.console(name);
            if console.contains(text) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let lines: Vec<_> = console.lines().collect();
                let end = lines[lines.len().saturating_sub(20)..].join("\n");
                bail!("{name} did not say {text:?} in {patience:?}; it said last:\n{end}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Gives `mac` the same host number at every site before anyone asks by DHCP, and says which
    /// address that is here.
    pub fn reserve(&self, mac: &str) -> Result<Ipv4Addr> {
        Ok(addresses::guest(self.number, self.addresses.reserve(mac)?))
    }

    /// The address that DHCP gave to `mac` at this site, if it gave one.
    pub fn lease(&self, mac: &str) -> Option<Ipv4Addr> {
        let leases = fs::read_to_string(self.dir.join("leases")).ok()?;
        leases.lines().find_map(|lease| {
            let mut fields = lease.split(' ').skip(1);
            let found = fields.next()?.eq_ignore_ascii_case(mac);
            fields.next().filter(|_| found)?.parse().ok()
        })
    }

    /// The disk's path in the site.
    fn make_disk(&self, vm: &str, target: char, disk: &Disk) -> Result<PathBuf> {
        let name = format!("{vm}-vd{target}.{}", disk.format.name());
        let image = self.pool_dir().join(&name);
        if image.exists() {
            bail!("{} has a volume {name} already", self.name());
        }
        match &disk.content {
            Content::InPlace { path } => return Ok(path.clone()),
            Content::Copy { of, format } if *format == disk.format => copy_sparse(of, &image)?,
            Content::Copy { of, format } => {
                run(Command::new("qemu-img")
                    .args(["convert", "-f", format.name(), "-O", disk.format.name()])
                    .args([of, &image]))?;
            }
            Content::Blank { bytes } if disk.format == Format::Raw => {
                File::create_new(&image)?.set_len(*bytes)?;
            }
            Content::Blank { bytes } => {
                run(Command::new("qemu-img")
                    .args(["create", "-q", "-f", disk.format.name()])
                    .arg(&image)
                    .arg(bytes.to_string()))?;
            }
        }
        Ok(Path::new("/srv/vm").join(name))
    }

    fn boot_xml(&self, spec: &VmSpec) -> Result<String> {
        let Boot::Kernel { vmlinuz, initrd, cmdline } = &spec.boot else {
            return Ok("<boot dev='hd'/>".to_owned());
        };
        // Copies: libvirt may give the files to QEMU's user, and the cache is not ours to give.
        let copy = |from: &Path, what: &str| -> Result<String> {
            let name = format!("{}-{what}", spec.name);
            let to = self.dir.join("lib/boot").join(&name);
            fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            Ok(format!("/var/lib/libvirt/boot/{name}"))
        };
        Ok(format!(
            "<kernel>{}</kernel>\n    <initrd>{}</initrd>\n    <cmdline>{}</cmdline>",
            escape(copy(vmlinuz, "vmlinuz")?),
            escape(copy(initrd, "initrd")?),
            escape(cmdline.as_str()),
        ))
    }
}

/// Copies holes as holes, and shares blocks where the file system can.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).args([from, to]))?;
    Ok(())
}

fn target(at: u8) -> Result<char> {
    match at {
        0..26 => Ok(char::from(b'a' + at)),
        _ => bail!("a VM of the lab has at most 26 disks"),
    }
}

const SECURE_BOOT_OFF: &str = "
    <firmware><feature enabled='no' name='secure-boot'/></firmware>";

fn domain_xml(spec: &VmSpec, vm: &Vm, boot: &str) -> Result<String> {
    let name = escape(spec.name.as_str());
    let mut devices = String::new();
    for ((at, disk), path) in (0..).zip(&spec.disks).zip(&vm.disks) {
        let path = path.to_str().context("a disk's path is not UTF-8")?;
        let serial = disk.serial.as_deref().map_or_else(String::new, |serial| {
            format!("\n      <serial>{}</serial>", escape(serial))
        });
        let _ = write!(
            devices,
            "
    <disk type='file' device='disk'>
      <driver name='qemu' type='{}' discard='unmap'/>
      <source file='{}'/>
      <target dev='vd{}' bus='virtio'/>{serial}
    </disk>",
            disk.format.name(),
            escape(path),
            target(at)?,
        );
    }
    for (nic, mac) in spec.nics.iter().zip(&vm.macs) {
        let (kind, source) = match nic {
            Nic::Bridge { .. } => ("bridge", "<source bridge='br0'/>"),
            Nic::Network { .. } => ("network", "<source network='default'/>"),
        };
        let _ = write!(
            devices,
            "
    <interface type='{kind}'>
      <mac address='{}'/>
      {source}
      <model type='virtio'/>
    </interface>",
            escape(mac.as_str()),
        );
    }
    for channel in &spec.channels {
        let _ = write!(
            devices,
            "
    <channel type='unix'>
      <target type='virtio' name='{}'/>
    </channel>",
            escape(channel.as_str()),
        );
    }
    devices.push_str(&spec.devices);
    let cpu = match spec.cpu {
        Cpu::Plain => "",
        Cpu::Maximum => "\n  <cpu mode='maximum'/>",
    };
    let (firmware, features) = match spec.firmware {
        Firmware::Bios => ("", ""),
        Firmware::Uefi => (" firmware='efi'", SECURE_BOOT_OFF),
    };
    Ok(format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <uuid>{}</uuid>
  <memory unit='MiB'>{}</memory>
  <vcpu>{}</vcpu>
  <os{firmware}>
    <type arch='x86_64' machine='{}'>hvm</type>{features}
    {boot}
  </os>
  <features>
    <acpi/>
    <apic/>
    <tcg><tb-cache unit='MiB'>128</tb-cache></tcg>
  </features>{cpu}
  <clock offset='utc'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}
    <serial type='file'>
      <source path='/var/log/libvirt/console/{name}.log' append='on'/>
      <target port='0'/>
    </serial>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
  </devices>
</domain>
",
        spec.uuid,
        spec.memory_mib,
        spec.vcpus,
        escape(spec.machine.as_str()),
    ))
}
