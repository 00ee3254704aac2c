//! `<domain>`: what libvirt says of a VM.

use model::{
    Cpu, Device, DiskBus, DiskFormat, DiskUse, Firmware, NetworkRef, Nic, PciAddress, VmId,
};
use roxmltree::Node;
use units::Bytes;
use uuid::Uuid;

use super::devices::{self, devices};
use super::node::{Xml, at, attribute, bytes, children, number, text_at};
use super::ours::Ours;
use crate::fault::Fault;

/// A VM as one of its definitions has it; what is not in the XML (sizes, power) is not here.
#[derive(Clone, Debug)]
pub(crate) struct DomainXml {
    pub id: VmId,
    pub name: String,
    pub vcpus: u32,
    pub memory: Bytes,
    pub arch: String,
    pub machine: String,
    pub cpu: Cpu,
    pub firmware: Firmware,
    pub disks: Vec<XmlDisk>,
    pub nics: Vec<Nic>,
    pub devices: Vec<Device>,
    pub cpu_features: Option<Device>,
    /// What we wrote into it, if it is ours.
    pub ours: Option<Ours>,
    /// What we fenced, if it is fenced.
    pub fenced: Option<super::FenceNote>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct XmlDisk {
    pub target: String,
    pub bus: Option<DiskBus>,
    pub bus_word: String,
    pub format: DiskFormat,
    pub source: XmlSource,
    pub usage: DiskUse,
    pub serial: Option<String>,
    pub address: Option<PciAddress>,
    pub boot_order: Option<u32>,
    /// Every other file that it reads: backing images, the far side of a copy.
    pub behind: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum XmlSource {
    File(String),
    Block(String),
    Volume {
        pool: String,
        volume: String,
    },
    /// libvirt's word for it: `network rbd`.
    Other(String),
    /// An empty drive.
    Nothing,
}

impl XmlSource {
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Self::File(path) | Self::Block(path) => Some(path),
            Self::Volume { .. } | Self::Other(_) | Self::Nothing => None,
        }
    }
}

impl DomainXml {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let xml = Xml::parse(text)?;
        let root = xml.root("domain")?;
        let missing = |what: &str| {
            Fault::found(site::SiteErrorKind::Platform, format!("libvirt sent a VM without {what}"))
        };
        let id = text_at(root, "uuid").and_then(|text| Uuid::parse_str(&text).ok());
        let name = text_at(root, "name").ok_or_else(|| missing("a name"))?;
        let memory = at(root, "memory").and_then(|memory| bytes(memory, "KiB"));
        Ok(Self {
            id: VmId(id.ok_or_else(|| missing("an id"))?),
            name,
            vcpus: vcpus(root).ok_or_else(|| missing("a number of CPUs"))?,
            memory: Bytes(memory.ok_or_else(|| missing("a size of memory"))?),
            arch: attribute(root, "os/type", "arch").ok_or_else(|| missing("an architecture"))?,
            machine: attribute(root, "os/type", "machine").unwrap_or_default(),
            cpu: cpu(root),
            firmware: firmware(root),
            disks: at(root, "devices")
                .map(|devices| children(devices, "disk").map(|node| disk(root, node)).collect())
                .unwrap_or_default(),
            nics: at(root, "devices").map(nics).unwrap_or_default(),
            devices: devices(root),
            cpu_features: devices::cpu_features(root),
            ours: Ours::read(root),
            fenced: super::ours::fence_note(root),
        })
    }

    /// Every path that this VM touches, with what lies behind its images.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.disks.iter().flat_map(|disk| {
            disk.source.path().into_iter().chain(disk.behind.iter().map(String::as_str))
        })
    }

    /// Every volume that it names by pool and name rather than by path.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.disks.iter().filter_map(|disk| match &disk.source {
            XmlSource::Volume { pool, volume } => Some((pool.as_str(), volume.as_str())),
            _ => None,
        })
    }
}

fn vcpus(root: Node<'_, '_>) -> Option<u32> {
    let node = at(root, "vcpu")?;
    let most: u32 = node.text()?.trim().parse().ok()?;
    Some(node.attribute("current").and_then(|current| current.parse().ok()).unwrap_or(most))
}

fn cpu(root: Node<'_, '_>) -> Cpu {
    let Some(node) = at(root, "cpu") else { return Cpu::Default };
    match node.attribute("mode") {
        Some("host-passthrough") => Cpu::HostPassthrough,
        Some("host-model" | "maximum") => Cpu::HostModel,
        _ => match text_at(node, "model") {
            // libvirt writes down its own default where none was asked for.
            None => Cpu::Default,
            Some(model) if model == "qemu64" || model == "qemu32" => Cpu::Default,
            Some(model) => Cpu::Model(model),
        },
    }
}

fn firmware(root: Node<'_, '_>) -> Firmware {
    let loader = at(root, "os/loader");
    let by_name = attribute(root, "os", "firmware");
    let flash = loader.is_some_and(|loader| loader.attribute("type") == Some("pflash"));
    if by_name.as_deref() != Some("efi") && !flash {
        return Firmware::Bios;
    }
    let feature = at(root, "os/firmware").is_some_and(|firmware| {
        children(firmware, "feature").any(|feature| {
            feature.attribute("name") == Some("secure-boot")
                && feature.attribute("enabled") == Some("yes")
        })
    });
    let secure = loader.is_some_and(|loader| loader.attribute("secure") == Some("yes"));
    Firmware::Uefi { secure_boot: feature || secure }
}

fn disk(root: Node<'_, '_>, node: Node<'_, '_>) -> XmlDisk {
    let device = node.attribute("device").unwrap_or("disk");
    let usage = match device {
        "cdrom" => DiskUse::Cdrom,
        "floppy" => DiskUse::Floppy,
        _ if at(node, "readonly").is_some() => DiskUse::ReadOnly,
        _ if at(node, "shareable").is_some() => DiskUse::Shared,
        _ => DiskUse::Data,
    };
    let bus_word = attribute(node, "target", "bus").unwrap_or_default();
    let source = at(node, "source").map_or(XmlSource::Nothing, |source| source_of(node, source));
    let source = if device == "lun" { XmlSource::Other("lun".to_owned()) } else { source };
    XmlDisk {
        target: attribute(node, "target", "dev").unwrap_or_default(),
        bus: bus(root, node, &bus_word),
        bus_word,
        format: match attribute(node, "driver", "type").as_deref() {
            Some("qcow2") => DiskFormat::Qcow2,
            // libvirt takes a missing format for raw, lest a guest write a header that says else.
            Some("raw") | None => DiskFormat::Raw,
            Some(other) => DiskFormat::Other(other.to_owned()),
        },
        behind: behind(node, &source),
        source,
        usage,
        serial: text_at(node, "serial"),
        address: at(node, "address").and_then(address),
        boot_order: attribute(node, "boot", "order").and_then(|order| order.parse().ok()),
    }
}

fn source_of(disk: Node<'_, '_>, source: Node<'_, '_>) -> XmlSource {
    let named = |name: &str| source.attribute(name).map(str::to_owned);
    match disk.attribute("type").unwrap_or("file") {
        "file" => named("file").map_or(XmlSource::Nothing, XmlSource::File),
        "block" => named("dev").map_or(XmlSource::Nothing, XmlSource::Block),
        "volume" => match (named("pool"), named("volume")) {
            (Some(pool), Some(volume)) => XmlSource::Volume { pool, volume },
            _ => XmlSource::Nothing,
        },
        "network" => {
            let protocol = named("protocol").unwrap_or_default();
            XmlSource::Other(format!("network {protocol}").trim_end().to_owned())
        }
        other => XmlSource::Other(other.to_owned()),
    }
}

/// Every `file` and `dev` of a source anywhere below the disk, its own left out.
fn behind(disk: Node<'_, '_>, own: &XmlSource) -> Vec<String> {
    disk.descendants()
        .filter(|node| node.has_tag_name("source"))
        .filter_map(|source| source.attribute("file").or_else(|| source.attribute("dev")))
        .filter(|path| own.path() != Some(path))
        .map(str::to_owned)
        .collect()
}

fn bus(root: Node<'_, '_>, disk: Node<'_, '_>, word: &str) -> Option<DiskBus> {
    match word {
        "virtio" => Some(DiskBus::Virtio),
        "sata" => Some(DiskBus::Sata),
        "ide" => Some(DiskBus::Ide),
        "nvme" => Some(DiskBus::Nvme),
        "scsi" => {
            let index = attribute(disk, "address", "controller").unwrap_or_else(|| "0".to_owned());
            let controller = children(at(root, "devices")?, "controller").find(|controller| {
                controller.attribute("type") == Some("scsi")
                    && controller.attribute("index").unwrap_or("0") == index
            })?;
            let model = controller.attribute("model").unwrap_or_default();
            model.starts_with("virtio").then_some(DiskBus::VirtioScsi)
        }
        _ => None,
    }
}

fn nics(devices: Node<'_, '_>) -> Vec<Nic> {
    children(devices, "interface")
        .filter(|node| !devices::is_passed_through(*node))
        .map(|node| Nic {
            mac: attribute(node, "mac", "address").unwrap_or_default().to_lowercase(),
            model: attribute(node, "model", "type").unwrap_or_default(),
            network: network(node),
            address: at(node, "address").and_then(address),
        })
        .collect()
}

fn network(nic: Node<'_, '_>) -> NetworkRef {
    let kind = nic.attribute("type").unwrap_or_default();
    let named = |name: &str| attribute(nic, "source", name);
    let other = |name: Option<String>| {
        let name = name.unwrap_or_default();
        NetworkRef::Other(format!("{kind} {name}").trim_end().to_owned())
    };
    match kind {
        "network" => named("network").map_or_else(|| other(None), NetworkRef::Network),
        "bridge" => named("bridge").map_or_else(|| other(None), NetworkRef::Bridge),
        _ => other(named("dev")),
    }
}

/// A PCI address; `None` for those of other buses and for numbers that no PCI has.
fn address(node: Node<'_, '_>) -> Option<PciAddress> {
    if node.attribute("type") != Some("pci") {
        return None;
    }
    let part = |name: &str| node.attribute(name).map_or(Some(0), number);
    Some(PciAddress {
        domain: u16::try_from(part("domain")?).ok()?,
        bus: u8::try_from(part("bus")?).ok()?,
        slot: u8::try_from(part("slot")?).ok().filter(|slot| *slot < 32)?,
        function: u8::try_from(part("function")?).ok().filter(|function| *function < 8)?,
    })
}
