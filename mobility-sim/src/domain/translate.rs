//! A definition from one site, written anew for another: the guest finds the same hardware, and nothing
//! of the first host is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::NetworkRef;
use site_libvirt::ARRIVAL_NAMESPACE;
use thiserror::Error;
use units::{Epoch, MigrationId};

use super::devices;
use super::grammar::{self, Findings, Kind};
use super::node::{Element, XmlError};

/// What is what at the destination. Drawn up by its own agent, from its site and its administrator.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// `kvm` or `qemu`: what the destination's host can do.
    pub kind: String,
    /// Of the destination, from its own capabilities.
    pub emulator: String,
    /// Machine types that the emulator knows.
    pub machines: BTreeSet<String>,
    /// By the source's name of a network or bridge.
    pub networks: BTreeMap<String, NetworkRef>,
    /// By target (`vda`): one for each disk of the VM.
    pub disks: BTreeMap<String, DiskPlace>,
    /// UEFI code, by what the source calls it; and where the VM's variables come to lie.
    pub loaders: BTreeMap<String, String>,
    pub nvram: Option<String>,
    /// As it was made for the VM that runs, for definitions of it that leave it to the host.
    pub firmware: Option<Firmware>,
    /// Where consoles listen.
    pub listen: IpAddr,
    /// The two hosts have the same processor, by their administrators' word.
    pub same_processor: bool,
    /// As what the destination knows it again, once its ledger has the attempt.
    pub arrival: Option<(MigrationId, Epoch)>,
}

/// Where a disk comes to lie, created before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlace {
    /// A file, or a block device.
    pub path: String,
    pub is_block: bool,
    /// `raw` or `qcow2`.
    pub format: String,
}

/// What the VM boots by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    pub loader: Element,
    pub nvram: Option<Element>,
}

impl Firmware {
    pub fn of(domain: &Element) -> Option<Self> {
        let os = domain.first("os")?;
        Some(Self { loader: os.first("loader")?.clone(), nvram: os.first("nvram").cloned() })
    }
}

/// The definition for the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    pub xml: String,
    /// The same, for what has it as a part. Not to be read from `xml`: a reading knows no namespaces.
    pub domain: Element,
    pub name: String,
    /// 36 characters, as in the definition.
    pub uuid: String,
    /// What its operator should know.
    pub warnings: Vec<String>,
}

#[derive(Debug, Error)]
pub enum TranslateError {
    #[error("the definition cannot be read")]
    Xml(#[from] XmlError),
    #[error("{}", listed(.0))]
    Refused(Vec<Refusal>),
}

/// Why this VM cannot go there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `devices/hostdev`
    pub path: String,
    pub why: String,
}

impl Refusal {
    pub(super) fn all(found: Findings) -> Vec<Self> {
        found.refused.into_iter().map(|(path, why)| Self { path, why }).collect()
    }
}

pub(super) fn listed(refusals: &[Refusal]) -> String {
    let each = refusals.iter().map(|refusal| format!("{}: {}", refusal.path, refusal.why));
    each.collect::<Vec<_>>().join("; ")
}

/// In its metadata, so that its mark can be written there, and what was left is found.
fn known_by((migration, epoch): &(MigrationId, Epoch)) -> Element {
    let placeholder = Element::new("causeway:placeholder")
        .with("xmlns:causeway", ARRIVAL_NAMESPACE)
        .with("migration", migration.as_str())
        .with("epoch", epoch.to_string())
        .with("state", "released");
    let mut metadata = Element::new("metadata");
    metadata.children.push(placeholder);
    metadata
}

/// Every reason against it at once.
///
/// # Errors
/// Where something in it cannot go to another host, is not mapped, or is not known.
pub fn translate(xml: &str, mapping: &Mapping) -> Result<Translated, TranslateError> {
    let domain = Element::parse(xml, "domain")?;
    let mut found = Findings::default();
    let mut made = grammar::domain().keep(&domain, "", &mut found, &mut |element, path, found| {
        made_anew(element, path, mapping, found)
    });
    made.attributes = vec![("type".to_owned(), mapping.kind.clone())];
    stays_chosen(&mut made, mapping, &mut found);
    processor(&made, mapping, &mut found);
    every_disk_is_there(&made, mapping, &mut found);
    let text = |name: &str| made.first(name).map(|element| element.text.clone());
    let (name, uuid) = (text("name").unwrap_or_default(), text("uuid").unwrap_or_default());
    for (what, value, kind) in [("name", &name, Kind::Name), ("uuid", &uuid, Kind::Uuid)] {
        if !kind.takes(value) {
            found.refuse(what, "a VM has one");
        }
    }
    if !found.refused.is_empty() {
        return Err(TranslateError::Refused(Refusal::all(found)));
    }
    made.children.extend(mapping.arrival.as_ref().map(known_by));
    Ok(Translated { xml: made.write(), domain: made, name, uuid, warnings: found.warnings })
}

fn made_anew(
    element: &Element,
    path: &str,
    mapping: &Mapping,
    found: &mut Findings,
) -> Vec<Element> {
    let made = match path {
        "os/type" => machine(element, path, mapping, found),
        "os/loader" => loader(element, path, mapping, found),
        "os/nvram" => nvram(path, mapping, found),
        "devices/emulator" => Some(Element::new("emulator").text(&*mapping.emulator)),
        "devices/disk" => devices::disk(element, path, mapping, found),
        "devices/interface" => devices::interface(element, path, mapping, found),
        "devices/serial" | "devices/parallel" | "devices/console" => {
            devices::serial(element, path, found)
        }
        "devices/channel" => devices::channel(element, path, found),
        "devices/graphics" => devices::graphics(element, path, mapping, found),
        "devices/rng" => devices::rng(element, path, found),
        "devices/tpm" => devices::tpm(element, path, found),
        other => unreachable!("{other} is marked as made by hand, and is not made"),
    };
    made.into_iter().collect()
}

/// The memory that arrives is of this very machine type.
fn machine(
    element: &Element,
    path: &str,
    mapping: &Mapping,
    found: &mut Findings,
) -> Option<Element> {
    let machine = element.attribute("machine").unwrap_or_default();
    let arch = element.attribute("arch").unwrap_or_default();
    if element.text != "hvm" || !Kind::Word.takes(arch) {
        found.refuse(path, "only fully virtualised machines are moved");
        return None;
    }
    if !mapping.machines.contains(machine) {
        let shown = if Kind::Word.takes(machine) { machine } else { "its" };
        found.refuse(path, format!("the destination has no machine type {shown}"));
        return None;
    }
    Some(Element::new("type").with("arch", arch).with("machine", machine).text("hvm"))
}

/// Where the destination's administrator says it.
pub const SAID_IN: &str = "under [arrivals] of the destination's agent's configuration";

/// Of a path that is shown, in bytes.
const PATH_MAX: usize = 255;

fn loader(
    element: &Element,
    path: &str,
    mapping: &Mapping,
    found: &mut Findings,
) -> Option<Element> {
    let Some(code) = mapping.loaders.get(&element.text) else {
        let theirs = &*element.text;
        let is_path = theirs.len() <= PATH_MAX && theirs.bytes().all(|b| b.is_ascii_graphic());
        let shown = if is_path { theirs } else { "its firmware" };
        found.refuse(
            path,
            format!(
                "{shown} is mapped to no firmware of the destination: add it to `loaders`, {SAID_IN}"
            ),
        );
        return None;
    };
    let mut made = Element::new("loader").text(&**code);
    for (name, words) in [("readonly", "yes|no"), ("secure", "yes|no"), ("type", "rom|pflash")] {
        if let Some(value) =
            element.attribute(name).filter(|value| words.split('|').any(|w| w == *value))
        {
            made = made.with(name, value);
        }
    }
    Some(made)
}

fn nvram(path: &str, mapping: &Mapping, found: &mut Findings) -> Option<Element> {
    match &mapping.nvram {
        Some(place) => Some(Element::new("nvram").text(&**place)),
        None => {
            found.refuse(
                path,
                format!(
                    "there is no place for the variables of its firmware: give `nvram-dir` a folder, {SAID_IN}"
                ),
            );
            None
        }
    }
}

/// A host that chose firmware for it chooses anew at each start: another place for its variables, and
/// perhaps another firmware. It keeps what it runs with.
fn stays_chosen(made: &mut Element, mapping: &Mapping, found: &mut Findings) {
    let Some(os) = made.children.iter_mut().find(|child| child.name == "os") else { return };
    let by_host = os.attribute("firmware") == Some("efi");
    os.attributes.retain(|(name, _)| name != "firmware");
    os.children.retain(|child| child.name != "firmware");
    if !by_host || os.first("loader").is_some() {
        return;
    }
    let Some(Firmware { loader, nvram }) = &mapping.firmware else {
        return found.refuse("os", "nobody says which UEFI firmware its host chose for it");
    };
    os.children.push(loader.clone());
    os.children.extend(nvram.clone());
}

/// A model by name is the same everywhere; the host's own is another one elsewhere.
fn processor(made: &Element, mapping: &Mapping, found: &mut Findings) {
    let mode = made.first("cpu").and_then(|cpu| cpu.attribute("mode"));
    if mode == Some("host-passthrough") && !mapping.same_processor {
        found.refuse(
            "cpu",
            format!(
                "it uses its host's processor as it is (host-passthrough), and nobody has said that the destination's is the same: if it is, say `same-processor = true`, {SAID_IN}"
            ),
        );
    }
}

/// What is made for it must be all, and no more.
fn every_disk_is_there(made: &Element, mapping: &Mapping, found: &mut Findings) {
    let devices = made.first("devices").map(|devices| &*devices.children).unwrap_or_default();
    let targets: BTreeSet<_> = devices
        .iter()
        .filter(|device| device.name == "disk" && device.first("source").is_some())
        .filter_map(|disk| disk.first("target")?.attribute("dev"))
        .collect();
    for target in mapping.disks.keys().filter(|target| !targets.contains(target.as_str())) {
        found.refuse("devices/disk", format!("there is no disk {target} any more"));
    }
}
