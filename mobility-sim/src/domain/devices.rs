//! Devices of which one end is the guest's and the other the host's: the guest's end is carried over, the
//! host's is made anew.

use model::NetworkRef;

use super::grammar::{Findings, Kind};
use super::node::Element;
use super::translate::{Mapping, SAID_IN};

/// Attributes of every kind of guest address.
const ADDRESS: &[&str] = &[
    "domain",
    "bus",
    "slot",
    "function",
    "multifunction",
    "controller",
    "target",
    "unit",
    "port",
    "cssid",
    "ssid",
    "devno",
    "iobase",
    "irq",
];
/// Of virtio devices, as the guest sees them.
const VIRTIO: &[&str] = &[
    "iommu",
    "ats",
    "packed",
    "page_per_vq",
    "queues",
    "queue_size",
    "event_idx",
    "rx_queue_size",
    "tx_queue_size",
];

fn words(element: &Element, names: &[&str], mut made: Element) -> Element {
    for name in names {
        if let Some(value) = element.attribute(name).filter(|value| Kind::Word.takes(value)) {
            made = made.with(name, value);
        }
    }
    made
}

/// The slot that the guest knows it in, and the name that it has in the stream.
fn placed(element: &Element, mut made: Element) -> Element {
    let alias = element.first("alias").and_then(|alias| alias.attribute("name"));
    if let Some(alias) = alias.filter(|alias| Kind::Word.takes(alias)) {
        made = made.child(Element::new("alias").with("name", alias));
    }
    if let Some(address) = element.first("address")
        && let Some(kind) = address.attribute("type").filter(|kind| Kind::Word.takes(kind))
    {
        made = made.child(words(address, ADDRESS, Element::new("address").with("type", kind)));
    }
    made
}

fn copied(element: &Element, name: &str, attributes: &[&str], made: Element) -> Element {
    match element.first(name) {
        Some(child) => made.child(words(child, attributes, Element::new(name))),
        None => made,
    }
}

pub(super) fn disk(
    element: &Element,
    path: &str,
    mapping: &Mapping,
    found: &mut Findings,
) -> Option<Element> {
    let device = element.attribute("device").unwrap_or("disk");
    let target = element.first("target");
    let dev = target.and_then(|target| target.attribute("dev")).unwrap_or_default();
    if !Kind::Word.takes(dev) {
        found.refuse(path, "it has no target");
        return None;
    }
    let has_medium = element.first("source").is_some();
    if has_medium && matches!(device, "cdrom" | "floppy") {
        found.refuse(path, format!("there is a medium in {dev}: eject it first"));
        return None;
    }
    for shared in ["shareable", "transient", "encryption", "mirror"] {
        if element.first(shared).is_some() {
            found.refuse(path, format!("{dev} is {shared}"));
        }
    }
    if !matches!(device, "disk" | "cdrom" | "floppy") {
        found.refuse(path, format!("{dev} is of the host (device={device:?})"));
        return None;
    }
    let place = mapping.disks.get(dev);
    if has_medium && place.is_none() {
        found.refuse(path, format!("no volume was made for {dev}"));
        return None;
    }
    let is_block = place.is_some_and(|place| place.is_block);
    let mut made = Element::new("disk")
        .with("type", if is_block { "block" } else { "file" })
        .with("device", device);
    let format = place.map_or("raw", |place| &place.format);
    let mut driver = Element::new("driver").with("name", "qemu").with("type", format);
    if let Some(theirs) = element.first("driver") {
        driver = words(
            theirs,
            &["cache", "discard", "detect_zeroes", "error_policy", "rerror_policy"],
            driver,
        );
        driver = words(theirs, VIRTIO, driver);
    }
    made = made.child(driver);
    if let Some(place) = place.filter(|_| has_medium) {
        let attribute = if is_block { "dev" } else { "file" };
        made = made.child(Element::new("source").with(attribute, &*place.path));
    }
    made = copied(element, "target", &["dev", "bus", "removable", "rotation_rate"], made);
    made = copied(
        element,
        "blockio",
        &["logical_block_size", "physical_block_size", "discard_granularity"],
        made,
    );
    made = copied(element, "geometry", &["cyls", "heads", "secs", "trans"], made);
    if element.first("readonly").is_some() {
        made = made.child(Element::new("readonly"));
    }
    for (name, max) in [("serial", 64), ("wwn", 16), ("vendor", 8), ("product", 16)] {
        let text = element.first(name).map(|element| &*element.text).unwrap_or_default();
        if !text.is_empty() {
            if text.len() <= max && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
                made = made.child(Element::new(name).text(text));
            } else {
                found.refuse(path, format!("{dev} has a {name} that we do not know how to write"));
            }
        }
    }
    made = copied(element, "boot", &["order", "loadparm"], made);
    Some(placed(element, made))
}

pub(super) fn interface(
    element: &Element,
    path: &str,
    mapping: &Mapping,
    found: &mut Findings,
) -> Option<Element> {
    let mac = element.first("mac").and_then(|mac| mac.attribute("address")).unwrap_or_default();
    if !Kind::Mac.takes(mac) {
        found.refuse(path, "it has no address");
        return None;
    }
    let source = element.first("source");
    let named = |name: &str| source.and_then(|source| source.attribute(name));
    let from = match element.attribute("type") {
        Some("network") => named("network"),
        Some("bridge") => named("bridge"),
        other => {
            let other = other.filter(|kind| Kind::Word.takes(kind)).unwrap_or("unknown");
            found.refuse(
                path,
                format!("{mac} is of type {other}: only networks and bridges are mapped"),
            );
            return None;
        }
    };
    let from = from.unwrap_or_default();
    let Some(to) = mapping.networks.get(from) else {
        let from = if Kind::Name.takes(from) { from } else { "its network" };
        found.refuse(
            path,
            format!(
                "{mac} is on {from}, which is mapped to no network of the destination: add it to `networks`, {SAID_IN}"
            ),
        );
        return None;
    };
    let (kind, attribute, name) = match to {
        NetworkRef::Network(name) => ("network", "network", name),
        NetworkRef::Bridge(name) => ("bridge", "bridge", name),
        NetworkRef::Other(name) => {
            found.refuse(path, format!("{mac} is mapped to {name}, which is no network or bridge"));
            return None;
        }
    };
    let made = Element::new("interface")
        .with("type", kind)
        .child(Element::new("mac").with("address", mac))
        .child(Element::new("source").with(attribute, &**name));
    let made = copied(element, "model", &["type"], made);
    let made = copied(element, "driver", VIRTIO, made);
    let made = copied(element, "mtu", &["size"], made);
    let made = copied(element, "link", &["state"], made);
    let made = copied(element, "rom", &["bar", "enabled"], made);
    let made = copied(element, "boot", &["order"], made);
    Some(placed(element, made))
}

/// Whatever is behind it at the source, here it is a terminal of the host's.
pub(super) fn serial(element: &Element, path: &str, found: &mut Findings) -> Option<Element> {
    let kind = element.attribute("type").unwrap_or("pty");
    if kind != "pty" {
        found
            .warnings
            .push(format!("{path}: what it writes goes to a pty, and not to a {kind:?} any more"));
    }
    let mut made = Element::new(&element.name).with("type", "pty");
    if let Some(target) = element.first("target") {
        let mut to = words(target, &["type", "port"], Element::new("target"));
        if let Some(model) = target.first("model") {
            to = to.child(words(model, &["name"], Element::new("model")));
        }
        made = made.child(to);
    }
    Some(placed(element, made))
}

/// The guest finds its port under the same name; the other end is new.
pub(super) fn channel(element: &Element, path: &str, found: &mut Findings) -> Option<Element> {
    let target = element.first("target");
    let attribute = |name: &str| target.and_then(|target| target.attribute(name));
    let name = attribute("name").unwrap_or_default();
    if attribute("type") != Some("virtio") || !Kind::Name.takes(name) {
        found.refuse(path, "only virtio channels with a name are moved");
        return None;
    }
    let kind = element.attribute("type").unwrap_or_default();
    let to = Element::new("target").with("type", "virtio").with("name", name);
    let made = match kind {
        "unix" | "pty" | "file" | "null" | "dev" => Element::new("channel")
            .with("type", "unix")
            .child(Element::new("source").with("mode", "bind")),
        "spicevmc" => Element::new("channel").with("type", kind),
        other => {
            found.refuse(path, format!("{name} leads to {other:?}"));
            return None;
        }
    };
    Some(placed(element, made.child(to)))
}

pub(super) fn graphics(
    element: &Element,
    path: &str,
    mapping: &Mapping,
    found: &mut Findings,
) -> Option<Element> {
    let kind = element.attribute("type").unwrap_or_default();
    if !matches!(kind, "vnc" | "spice") {
        found.refuse(path, format!("a console of type {kind:?} belongs to its host"));
        return None;
    }
    if element.attribute("passwd").is_some() {
        found
            .warnings
            .push(format!("{path}: its password stays behind, set one at the destination"));
    }
    let listen =
        Element::new("listen").with("type", "address").with("address", mapping.listen.to_string());
    let made = Element::new("graphics")
        .with("type", kind)
        .with("port", "-1")
        .with("autoport", "yes")
        .with("listen", mapping.listen.to_string());
    Some(placed(element, made.child(listen)))
}

pub(super) fn rng(element: &Element, path: &str, found: &mut Findings) -> Option<Element> {
    let model = element.attribute("model").filter(|model| Kind::Word.takes(model));
    let Some(model) = model else {
        found.refuse(path, "it has no model");
        return None;
    };
    let made =
        copied(element, "rate", &["bytes", "period"], Element::new("rng").with("model", model));
    let made = made.child(Element::new("backend").with("model", "random").text("/dev/urandom"));
    let made = copied(element, "driver", VIRTIO, made);
    Some(placed(element, made))
}

/// An emulated one goes along in the stream; a real one does not.
pub(super) fn tpm(element: &Element, path: &str, found: &mut Findings) -> Option<Element> {
    let model = element.attribute("model").filter(|model| Kind::Word.takes(model));
    let backend = element.first("backend");
    let emulated = backend.and_then(|backend| backend.attribute("type")) == Some("emulator");
    let (Some(model), Some(backend), true) = (model, backend, emulated) else {
        found.refuse(path, "only an emulated TPM can be moved");
        return None;
    };
    if backend.first("encryption").is_some() {
        found.refuse(path, "its state is encrypted with a secret of the source's");
        return None;
    }
    let made = Element::new("tpm").with("model", model).child(words(
        backend,
        &["version", "persistent_state"],
        Element::new("backend").with("type", "emulator"),
    ));
    Some(placed(element, made))
}
