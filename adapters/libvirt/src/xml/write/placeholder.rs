//! The placeholder in its two forms: held, with the helper, and released, as the VM proper.

use model::{DiskBus, DiskFormat, Firmware, NetworkRef, PciAddress};
use site::{Mark, NewDisk, NewNic, PlaceholderSpec};

use super::cpu::cpu;
use super::element::{Inside, WriteError, Written, element};
use crate::UefiLoader;
use crate::xml::{DomainCaps, OursState, ours_uri};

/// Which of the two.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    Held,
    Released,
}

/// What of the host goes into a definition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub kvm: bool,
    pub caps: DomainCaps,
    pub loader: Option<UefiLoader>,
}

/// A disk of the spec, with what its pool made of it.
#[derive(Clone, Debug)]
pub(crate) struct Located<'s> {
    pub disk: &'s NewDisk,
    pub path: String,
    /// A block device on the host, not a file.
    pub block: bool,
}

/// What a disk says of caching, as libvirt writes it out: nobody holds a written block back.
pub(crate) const DIRECT: &str = "cache='none' io='native'";

/// The same for file systems without direct I/O: the host holds blocks until the guest flushes.
pub(crate) const CACHED: &str = "cache='writeback'";

/// The definition. Disks in the order of the spec.
pub(crate) fn placeholder(
    spec: &PlaceholderSpec,
    disks: &[Located<'_>],
    host: &Host,
    form: Form,
    mark: Option<&Mark>,
) -> Written {
    let kind = if host.kvm { "kvm" } else { "qemu" };
    let held = matches!(form, Form::Held);
    element("domain", &[("type", kind)], |domain| {
        domain.text("name", &spec.name)?;
        domain.text("uuid", &spec.vm.to_string())?;
        if held {
            let about = format!("causeway: waits for migration {}", spec.migration);
            domain.text("title", &about)?;
        }
        domain.nested("metadata", &[], |metadata| our_element(metadata, spec, form, mark))?;
        domain.text_with("memory", &[("unit", "bytes")], &spec.memory.0.to_string())?;
        domain.text("vcpu", &spec.vcpus.to_string())?;
        os(domain, spec, host, form)?;
        features(domain, spec, form)?;
        cpu(domain, &spec.cpu, &host.caps)?;
        domain.empty("clock", &[("offset", "utc")])?;
        domain.text("on_poweroff", "destroy")?;
        // A helper that ends is looked at, never begun again by itself.
        domain.text("on_reboot", if held { "destroy" } else { "restart" })?;
        domain.text("on_crash", "destroy")?;
        domain.nested("devices", &[], |devices| {
            if !host.caps.emulator.is_empty() {
                devices.text("emulator", &host.caps.emulator)?;
            }
            for located in disks {
                disk(devices, located, form)?;
            }
            if disks.iter().any(|located| bus_of(located.disk, form) == DiskBus::VirtioScsi) {
                let scsi = [("type", "scsi"), ("index", "0"), ("model", "virtio-scsi")];
                devices.empty("controller", &scsi)?;
            }
            if held { held_devices(devices, spec) } else { released_devices(devices, spec) }
        })
    })
}

/// The element of our namespace alone, as `virDomainSetMetadata` takes it.
pub(crate) fn metadata_text(
    migration: &str,
    epoch: u64,
    state: OursState,
    mark: Option<&Mark>,
) -> Written {
    let epoch = epoch.to_string();
    let attributes = [("migration", migration), ("epoch", &epoch), ("state", state.word())];
    element("placeholder", &attributes, |inside| mark_element(inside, mark))
}

fn our_element(
    metadata: &mut Inside<'_>,
    spec: &PlaceholderSpec,
    form: Form,
    mark: Option<&Mark>,
) -> Result<(), WriteError> {
    let state = match form {
        Form::Held => OursState::Held,
        Form::Released => OursState::Released,
    };
    let epoch = spec.epoch.to_string();
    let attributes = [
        ("xmlns:causeway", ours_uri()),
        ("migration", spec.migration.as_str()),
        ("epoch", &epoch),
        ("state", state.word()),
    ];
    metadata.nested("causeway:placeholder", &attributes, |inside| mark_element(inside, mark))
}

fn mark_element(inside: &mut Inside<'_>, mark: Option<&Mark>) -> Result<(), WriteError> {
    let Some(mark) = mark else { return Ok(()) };
    let epoch = mark.epoch.to_string();
    let attributes = [
        ("migration", mark.migration.as_str()),
        ("epoch", &epoch),
        ("receipt", mark.receipt.as_str()),
    ];
    inside.empty("mark", &attributes)
}

fn os(
    domain: &mut Inside<'_>,
    spec: &PlaceholderSpec,
    host: &Host,
    form: Form,
) -> Result<(), WriteError> {
    // A helper boots from its kernel: firmware of its own would only cost time and leave a file.
    let firmware = match form {
        Form::Held => &Firmware::Bios,
        Form::Released => &spec.firmware,
    };
    let chosen_by_libvirt = matches!(firmware, Firmware::Uefi { .. }) && host.loader.is_none();
    let attributes: &[_] = if chosen_by_libvirt { &[("firmware", "efi")] } else { &[] };
    domain.nested("os", attributes, |os| {
        os.text_with("type", &[("arch", &spec.arch), ("machine", &spec.machine)], "hvm")?;
        match (form, firmware) {
            (Form::Held, _) => {
                os.text("kernel", &spec.appliance.kernel)?;
                os.text("initrd", &spec.appliance.initrd)?;
                os.text("cmdline", &command_line(&spec.helper_args)?)
            }
            (Form::Released, Firmware::Bios) => boot_in_order(os, &spec.disks),
            (Form::Released, Firmware::Uefi { secure_boot }) => {
                uefi(os, *secure_boot, host.loader.as_ref())?;
                boot_in_order(os, &spec.disks)
            }
        }
    })
}

fn uefi(
    os: &mut Inside<'_>,
    secure_boot: bool,
    loader: Option<&UefiLoader>,
) -> Result<(), WriteError> {
    let answer = if secure_boot { "yes" } else { "no" };
    if let Some(UefiLoader { code, vars_template }) = loader {
        let attributes = [("readonly", "yes"), ("secure", answer), ("type", "pflash")];
        os.text_with("loader", &attributes, code)?;
        return os.empty("nvram", &[("template", vars_template)]);
    }
    os.nested("firmware", &[], |firmware| {
        firmware.empty("feature", &[("enabled", answer), ("name", "secure-boot")])?;
        if secure_boot {
            firmware.empty("feature", &[("enabled", "yes"), ("name", "enrolled-keys")])?;
        }
        Ok(())
    })
}

/// `<boot dev='hd'/>` where no disk has an order of its own: libvirt refuses both together.
fn boot_in_order(os: &mut Inside<'_>, disks: &[NewDisk]) -> Result<(), WriteError> {
    if disks.iter().all(|disk| disk.boot_order.is_none()) {
        os.empty("boot", &[("dev", "hd")])?;
    }
    Ok(())
}

fn command_line(words: &[String]) -> Result<String, WriteError> {
    if let Some(bad) =
        words.iter().find(|word| word.is_empty() || word.contains(char::is_whitespace))
    {
        return Err(WriteError::Unsupported { what: format!("{bad:?} is not one word") });
    }
    // The helper encrypts by itself: it need not wait for the kernel to test its ciphers.
    let kernel = ["console=ttyS0", "quiet", "panic=-1", "cryptomgr.notests"].map(str::to_owned);
    Ok(kernel.iter().chain(words).map(String::as_str).collect::<Vec<_>>().join(" "))
}

fn features(domain: &mut Inside<'_>, spec: &PlaceholderSpec, form: Form) -> Result<(), WriteError> {
    let secure = matches!(spec.firmware, Firmware::Uefi { secure_boot: true });
    domain.nested("features", &[], |features| {
        features.empty("acpi", &[])?;
        if spec.arch == "x86_64" || spec.arch == "i686" {
            features.empty("apic", &[])?;
        }
        if secure && matches!(form, Form::Released) {
            features.empty("smm", &[("state", "on")])?;
        }
        Ok(())
    })
}

/// Held disks hang on the one bus that every helper's kernel knows.
const fn bus_of(disk: &NewDisk, form: Form) -> DiskBus {
    match form {
        Form::Held => DiskBus::Virtio,
        Form::Released => disk.bus,
    }
}

fn disk(devices: &mut Inside<'_>, located: &Located<'_>, form: Form) -> Result<(), WriteError> {
    let Located { disk, path, block } = located;
    let format = match &disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Other(other) => {
            return Err(WriteError::Unsupported { what: format!("no disks of format {other}") });
        }
    };
    let (kind, source) = if *block { ("block", "dev") } else { ("file", "file") };
    devices.nested("disk", &[("type", kind), ("device", "disk")], |node| {
        // Spelt out in `DIRECT` and `CACHED` too.
        let cache: &[_] = if is_aligned(disk) {
            &[("cache", "none"), ("io", "native")]
        } else {
            &[("cache", "writeback")]
        };
        let driver = [&[("name", "qemu"), ("type", format)], cache, &[("discard", "unmap")]];
        node.empty("driver", &driver.concat())?;
        node.empty("source", &[(source, path)])?;
        match form {
            Form::Held => {
                let target = held_target(disk.no.0);
                node.empty("target", &[("dev", &target), ("bus", "virtio")])?;
                node.text("serial", &format!("causeway-{}", disk.no))
            }
            Form::Released => {
                let bus = bus_word(disk.bus)?;
                node.empty("target", &[("dev", &disk.target), ("bus", bus)])?;
                if let Some(serial) = &disk.serial {
                    node.text("serial", serial)?;
                }
                if let Some(order) = disk.boot_order {
                    node.empty("boot", &[("order", &order.to_string())])?;
                }
                // Only what is itself a PCI device has such an address.
                match disk.address.filter(|_| disk.bus == DiskBus::Virtio) {
                    Some(address) => pci(node, address),
                    None => Ok(()),
                }
            }
        }
    })
}

/// QEMU refuses direct I/O on an image whose size is not a multiple of the host's block, and 4 KiB is
/// the largest of those in use.
const fn is_aligned(disk: &NewDisk) -> bool {
    disk.size.0.is_multiple_of(4096)
}

/// `vda` to `vdz`, then `vdaa`: in the order of the disks' numbers.
fn held_target(no: u16) -> String {
    let mut letters = Vec::new();
    let mut rest = u32::from(no) + 1;
    while rest > 0 {
        let letter = u8::try_from((rest - 1) % 26).unwrap_or(0);
        letters.push(char::from(b'a' + letter));
        rest = (rest - 1) / 26;
    }
    letters.iter().rev().fold("vd".to_owned(), |mut name, letter| {
        name.push(*letter);
        name
    })
}

fn bus_word(bus: DiskBus) -> Result<&'static str, WriteError> {
    match bus {
        DiskBus::Virtio => Ok("virtio"),
        DiskBus::VirtioScsi => Ok("scsi"),
        DiskBus::Sata => Ok("sata"),
        DiskBus::Ide => Ok("ide"),
        DiskBus::Nvme => {
            Err(WriteError::Unsupported { what: "libvirt imitates no NVMe disks".to_owned() })
        }
    }
}

fn held_devices(devices: &mut Inside<'_>, spec: &PlaceholderSpec) -> Result<(), WriteError> {
    for port in 0..spec.channels {
        channel(devices, &format!("org.causeway.{port}"))?;
    }
    if let Some(network) = &spec.helper_nic {
        card(devices, network, |card| card.empty("model", &[("type", "virtio")]))?;
    }
    devices.empty("memballoon", &[("model", "none")])?;
    common_devices(devices)
}

fn released_devices(devices: &mut Inside<'_>, spec: &PlaceholderSpec) -> Result<(), WriteError> {
    for nic in &spec.nics {
        own_card(devices, nic)?;
    }
    channel(devices, "org.qemu.guest_agent.0")?;
    devices.empty("memballoon", &[("model", "virtio")])?;
    common_devices(devices)
}

fn common_devices(devices: &mut Inside<'_>) -> Result<(), WriteError> {
    devices
        .nested("serial", &[("type", "pty")], |serial| serial.empty("target", &[("port", "0")]))?;
    devices.nested("console", &[("type", "pty")], |console| {
        console.empty("target", &[("type", "serial"), ("port", "0")])
    })?;
    devices.nested("rng", &[("model", "virtio")], |rng| {
        rng.text_with("backend", &[("model", "random")], "/dev/urandom")
    })
}

fn channel(devices: &mut Inside<'_>, name: &str) -> Result<(), WriteError> {
    devices.nested("channel", &[("type", "unix")], |channel| {
        channel.empty("target", &[("type", "virtio"), ("name", name)])
    })
}

fn own_card(devices: &mut Inside<'_>, nic: &NewNic) -> Result<(), WriteError> {
    card(devices, &nic.network, |card| {
        card.empty("mac", &[("address", &nic.mac)])?;
        let model = if nic.model.is_empty() { "virtio" } else { &nic.model };
        card.empty("model", &[("type", model)])?;
        nic.address.map_or(Ok(()), |address| pci(card, address))
    })
}

fn card(
    devices: &mut Inside<'_>,
    network: &NetworkRef,
    fill: impl FnOnce(&mut Inside<'_>) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    let (kind, name) = match network {
        NetworkRef::Network(name) => ("network", name),
        NetworkRef::Bridge(name) => ("bridge", name),
        NetworkRef::Other(name) => {
            let what = format!("no card can be plugged into {name:?}");
            return Err(WriteError::Unsupported { what });
        }
    };
    devices.nested("interface", &[("type", kind)], |card| {
        card.empty("source", &[(kind, name)])?;
        fill(card)
    })
}

fn pci(node: &mut Inside<'_>, address: PciAddress) -> Result<(), WriteError> {
    let PciAddress { domain, bus, slot, function } = address;
    node.empty(
        "address",
        &[
            ("type", "pci"),
            ("domain", &format!("0x{domain:04x}")),
            ("bus", &format!("0x{bus:02x}")),
            ("slot", &format!("0x{slot:02x}")),
            ("function", &format!("0x{function:x}")),
        ],
    )
}
