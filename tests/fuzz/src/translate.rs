//! Definitions and cookies of another site, which its agent hands on as it got them:
//! [`causeway_mobility::domain`]. Nothing of theirs gets into what our libvirt is told but what the allow-list
//! names, and what we write is XML that reads as what we meant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use causeway_mobility::domain::cookie::{Cookie, Neighbour};
use causeway_mobility::domain::translate::{DiskPlace, Mapping, TranslateError, translate};
use model::NetworkRef;

use crate::memory::bounded;

pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    bounded(64 * text.len() + (256 << 10), || {
        definition(text);
        // A part of one: what stands around it is known to be good.
        definition(&whole(text));
        cookie(text.as_bytes());
    });
}

fn definition(text: &str) {
    let Ok(made) = translate(text, &mapping()) else { return };
    let read = roxmltree::Document::parse(&made.xml).expect("XML is written");
    assert!(read.root_element().has_tag_name("domain"));
    for node in read.descendants().filter(roxmltree::Node::is_element) {
        let parent = node.parent_element().map_or("", |parent| parent.tag_name().name());
        match node.tag_name().name() {
            // Of the destination's own host, and of nobody else's.
            "source" if parent == "disk" => {
                assert_eq!(node.attribute("file"), Some(PATH), "{}", made.xml);
                assert_eq!(node.attributes().count(), 1, "{}", made.xml);
            }
            "source" if parent == "interface" => {
                assert_eq!(node.attribute("network"), Some("lan"), "{}", made.xml);
            }
            "emulator" => assert_eq!(node.text(), Some(EMULATOR)),
            "hostdev" | "filesystem" | "commandline" | "qemu:commandline" | "shmem"
            | "seclabel" => {
                panic!("let through: {}", made.xml)
            }
            _ => {}
        }
    }
    // What was let through once is let through again, as it is.
    let networks = BTreeMap::from([("lan".to_owned(), NetworkRef::Network("lan".to_owned()))]);
    let again = translate(&made.xml, &Mapping { networks, ..mapping() });
    let again = again.unwrap_or_else(|error| panic!("{error}: {}", made.xml));
    assert_eq!((&again.name, &again.uuid), (&made.name, &made.uuid));
}

fn cookie(bytes: &[u8]) {
    let Ok(cookie) = Cookie::parse(bytes) else { return };
    let _ = (cookie.nbd_port(), cookie.disks());
    if let Some(xml) = cookie.domain() {
        let again = translate(&xml, &mapping());
        assert!(!matches!(again, Err(TranslateError::Xml(_))), "{again:?}: {xml}");
    }
    let neighbour = Neighbour {
        hostname: "neighbour-of-west".to_owned(),
        host_uuid: "6a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c02".to_owned(),
    };
    let Ok(handed_on) = cookie.handed_on(&neighbour, Some(49_152), None) else { return };
    let text = str::from_utf8(&handed_on).expect("text").trim_end_matches('\0');
    let read = roxmltree::Document::parse(text).expect("XML is written");
    assert!(read.root_element().has_tag_name("qemu-migration"));
    let ours = |name: &str, value: &str| {
        let mut found = read.root_element().children().filter(|child| child.has_tag_name(name));
        assert!(found.all(|child| child.text() == Some(value)), "{text}");
    };
    ours("hostname", &neighbour.hostname);
    ours("hostuuid", &neighbour.host_uuid);
}

fn whole(devices: &str) -> String {
    format!(
        "<domain type='kvm'><name>web1</name><uuid>6a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c0b</uuid>\
         <memory unit='KiB'>262144</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>\
         <devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>\
         <source file='/srv/a.raw'/><target dev='vda' bus='virtio'/></disk>{devices}</devices></domain>"
    )
}

const PATH: &str = "/data/web1-vda.raw";
const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

fn mapping() -> Mapping {
    let place = DiskPlace { path: PATH.to_owned(), is_block: false, format: "raw".to_owned() };
    Mapping {
        kind: "qemu".to_owned(),
        emulator: EMULATOR.to_owned(),
        machines: BTreeSet::from(["pc-q35-7.2".to_owned()]),
        networks: BTreeMap::from([("br0".to_owned(), NetworkRef::Network("lan".to_owned()))]),
        disks: BTreeMap::from([("vda".to_owned(), place)]),
        loaders: BTreeMap::new(),
        nvram: None,
        firmware: None,
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        same_processor: false,
        arrival: None,
    }
}
