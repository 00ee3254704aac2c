use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use model::NetworkRef;
use proptest::prelude::*;

use super::cookie::{Cookie, Neighbour};
use super::node::Element;
use super::*;

const UUID: &str = "12862f30-84d5-483d-b466-3fe4fdd1048f";

/// As libvirt 9.0.0 sends it at Prepare, cut to what matters here; `devices` are more of them.
fn definition(more: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm' id='1'>
  <name>web1</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>262144</memory>
  <currentMemory unit='KiB'>262144</currentMemory>
  <vcpu placement='static' cpuset='0-3'>1</vcpu>
  <resource><partition>/machine</partition></resource>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features><acpi/><apic/><tcg><tb-cache unit='KiB'>131072</tb-cache></tcg></features>
  <cpu mode='custom' match='exact' check='full'>
    <model fallback='forbid'>qemu64</model><feature policy='require' name='x2apic'/>
  </cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <seclabel type='dynamic' model='apparmor'><label>libvirt-x</label></seclabel>
  {more}
  <devices>
    <emulator>/opt/evil/qemu</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap' io='native'/>
      <source file='/srv/vm/web1-root.qcow2' index='1'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <serial>ROOT-0001</serial>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
    </disk>
    <controller type='pci' index='1' model='pcie-root-port'>
      <model name='pcie-root-port'/><target chassis='1' port='0x8'/>
      <alias name='pci.1'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x0' multifunction='on'/>
    </controller>
    <interface type='bridge'>
      <mac address='52:54:00:ca:05:15'/><source bridge='br0'/><target dev='vnet0'/><model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <serial type='file'><source path='/var/log/web1.log' append='on'/>
      <target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>
    <graphics type='vnc' port='5901' autoport='yes' listen='10.1.2.3' passwd='secret'/>
    <memballoon model='virtio'><stats period='10'/></memballoon>
    <rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>
    {devices}
  </devices>
</domain>"
    )
}

fn mapping() -> Mapping {
    let place = DiskPlace {
        path: "/data/web1-vda.raw".to_owned(),
        is_block: false,
        format: "raw".to_owned(),
    };
    Mapping {
        kind: "qemu".to_owned(),
        emulator: "/usr/bin/qemu-system-x86_64".to_owned(),
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

fn refused(xml: &str) -> Vec<String> {
    match translate(xml, &mapping()) {
        Err(TranslateError::Refused(refusals)) => {
            refusals.into_iter().map(|refusal| refusal.path).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_guest_finds_what_it_knows_and_nothing_of_its_host() {
    let made = translate(&definition("", ""), &mapping()).unwrap();
    assert_eq!((&*made.name, &*made.uuid), ("web1", UUID));
    for theirs in [
        "/opt/evil",
        "/srv/vm",
        "web1.log",
        "10.1.2.3",
        "secret",
        "/etc/shadow",
        "cpuset",
        "vnet0",
        "apparmor",
        "/machine",
        "tb-cache",
        "io=",
        "index='1'",
        "br0",
    ] {
        assert!(!made.xml.contains(theirs), "{theirs} is in {}", made.xml);
    }
    for known in [
        "type=\"qemu\"",
        "/data/web1-vda.raw",
        "ROOT-0001",
        "bus=\"0x03\"",
        "chassis=\"1\"",
        "x2apic",
        "52:54:00:ca:05:15",
        "network=\"lan\"",
        "virtio-disk0",
        "127.0.0.1",
        "discard=\"unmap\"",
        "type=\"raw\"",
        "isa-serial",
    ] {
        assert!(made.xml.contains(known), "{known} is not in {}", made.xml);
    }
    assert_eq!(made.warnings.len(), 2, "{:?}", made.warnings);
    // What was written is what would be read.
    assert_eq!(
        translate(
            &made.xml,
            &Mapping {
                networks: BTreeMap::from([(
                    "lan".to_owned(),
                    NetworkRef::Network("lan".to_owned())
                )]),
                ..mapping()
            }
        )
        .unwrap()
        .xml,
        made.xml
    );
}

#[test]
fn what_cannot_go_is_named_and_all_of_it_at_once() {
    for (device, path) in [
        ("<hostdev mode='subsystem' type='pci'/>", "devices/hostdev"),
        ("<filesystem type='mount'/>", "devices/filesystem"),
        ("<lease><key>x</key></lease>", "devices/lease"),
        ("<futuristic type='x'/>", "devices/futuristic"),
        (
            "<interface type='direct'><mac address='52:54:00:00:00:03'/><source dev='eth1'/></interface>",
            "devices/interface",
        ),
        (
            "<interface type='bridge'><mac address='52:54:00:00:00:03'/><source bridge='br9'/></interface>",
            "devices/interface",
        ),
        (
            "<disk type='file' device='disk'><source file='/x'/><target dev='vdb' bus='virtio'/></disk>",
            "devices/disk",
        ),
        (
            "<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sda' bus='sata'/></disk>",
            "devices/disk",
        ),
        ("<tpm model='tpm-crb'><backend type='passthrough'/></tpm>", "devices/tpm"),
        ("<graphics type='sdl'/>", "devices/graphics"),
        ("<controller type='a b' index='0'/>", "devices/controller"),
    ] {
        assert_eq!(refused(&definition("", device)), [path], "{device}");
    }
    let foreign = "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-x'/></commandline>";
    assert_eq!(refused(&definition(foreign, "")), ["foreign:commandline"]);
    assert_eq!(refused(&definition("<launchSecurity type='sev'/>", "")), ["launchSecurity"]);
    assert_eq!(refused(&definition("<launchSecurity type='sev'/>", "<hostdev/>")).len(), 2);

    let other = definition("", "").replace("pc-q35-7.2", "pc-q35-9.9");
    assert_eq!(refused(&other), ["os/type"]);
    let other = definition("", "").replace("<boot dev='hd'/>", "<kernel>/boot/vmlinuz</kernel>");
    assert_eq!(refused(&other), ["os/kernel"]);
    let other = definition("", "").replace("mode='custom'", "mode='host-passthrough'");
    assert_eq!(refused(&other), ["cpu"]);
    let other = definition("", "").replace("'vda'", "'vdz'");
    assert_eq!(refused(&other), ["devices/disk", "devices/disk"]);
    assert_eq!(
        refused(&definition("", "").replace("<name>web1", "<name>../web1")),
        ["name", "name"]
    );
}

const CODE: &str = "/usr/share/edk2/code.fd";

fn by_uefi() -> Mapping {
    Mapping {
        loaders: BTreeMap::from([(CODE.to_owned(), "/fw/code.fd".to_owned())]),
        nvram: Some("/fw/web1-a1_VARS.fd".to_owned()),
        ..mapping()
    }
}

fn booting(os: &str) -> String {
    definition("", "").replace("<boot dev='hd'/>", os)
}

#[test]
fn firmware_is_mapped_and_stays_what_was_chosen_for_the_vm_that_runs() {
    // What runs; then, of the same VM, what is kept for its next start.
    let live = format!(
        "<firmware><feature enabled='no' name='secure-boot'/></firmware>\
         <loader readonly='yes' secure='no' type='pflash'>{CODE}</loader>\
         <nvram template='/usr/share/edk2/vars.fd'>/var/lib/web1_VARS.fd</nvram>"
    );
    let made = translate(&booting(&live), &by_uefi()).unwrap();
    let kept = definition("", "").replace("<os>", "<os firmware='efi'>");
    let kept =
        kept.replace("<boot dev='hd'/>", "<firmware><feature enabled='no' name='x'/></firmware>");
    assert!(matches!(translate(&kept, &by_uefi()), Err(TranslateError::Refused(_))));
    let chosen = Mapping { firmware: Firmware::of(&made.domain), ..by_uefi() };
    for xml in [made.xml, translate(&kept, &chosen).unwrap().xml] {
        for ours in ["secure=\"no\"", "type=\"pflash\"", ">/fw/code.fd<", ">/fw/web1-a1_VARS.fd<"] {
            assert!(xml.contains(ours), "{ours} is not in {xml}");
        }
        for theirs in ["edk2", "/var/lib", "firmware", "template"] {
            assert!(!xml.contains(theirs), "{theirs} is in {xml}");
        }
    }
}

#[test]
fn firmware_that_is_not_mapped_is_named_with_what_to_do() {
    let refused = |mapping: &Mapping, code: &str| {
        let os = format!("<loader type='pflash'>{code}</loader><nvram>/v</nvram>");
        translate(&booting(&os), mapping).unwrap_err().to_string()
    };
    let unmapped = refused(&by_uefi(), "/opt/OVMF.fd");
    assert!(unmapped.contains("/opt/OVMF.fd is mapped to no firmware"), "{unmapped}");
    assert!(unmapped.contains("`loaders`, under [arrivals]"), "{unmapped}");
    let homeless = refused(&Mapping { nvram: None, ..by_uefi() }, CODE);
    assert!(homeless.contains("give `nvram-dir` a folder, under [arrivals]"), "{homeless}");
    // What a hostile source writes there is shown to nobody.
    assert!(refused(&by_uefi(), "not a path").contains("its firmware is mapped to no firmware"));
}

#[test]
fn hostile_documents_are_errors() {
    let entities = "<!DOCTYPE d [<!ENTITY a 'x'>]><domain>&a;</domain>";
    assert!(matches!(translate(entities, &mapping()), Err(TranslateError::Xml(_))));
    let deep = format!("{}{}", "<domain>".repeat(40), "</domain>".repeat(40));
    assert!(matches!(translate(&deep, &mapping()), Err(TranslateError::Xml(_))));
    let wide = format!("<domain>{}</domain>", "<a/>".repeat(200_000));
    assert!(matches!(translate(&wide, &mapping()), Err(TranslateError::Xml(_))));
    assert!(matches!(translate("<network/>", &mapping()), Err(TranslateError::Xml(_))));
}

#[test]
fn names_with_markup_come_out_as_they_went_in() {
    let xml = definition("", "").replace("<name>web1", "<name>a&amp;b&quot;&gt;&lt;disk");
    let made = translate(&xml, &mapping()).unwrap();
    assert_eq!(made.name, "a&b\"><disk");
    let read = Element::parse(&made.xml, "domain").unwrap();
    assert_eq!(read.first("name").unwrap().text, made.name);
}

const COOKIE: &str = "<qemu-migration>
  <name>web1</name><uuid>12862f30-84d5-483d-b466-3fe4fdd1048f</uuid>
  <hostname>host-a</hostname><hostuuid>aaaaaaaa-84d5-483d-b466-3fe4fdd1048f</hostuuid>
  <graphics type='vnc' port='5900' listen='10.0.0.1'/>
  <nbd port='49153'><disk target='vda' capacity='268435456'/></nbd>
  <capabilities><cap name='xbzrle' auto='no'/></capabilities>
</qemu-migration>\0";

/// As libvirt sends it with `--persistent`: virt-manager, for one, writes into every definition.
#[test]
fn a_definition_in_a_cookie_may_hold_what_is_foreign() {
    let notes = "<metadata><libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/1.0'><libosinfo:os id='http://debian.org/12'/></libosinfo:libosinfo></metadata>";
    let made = |xml: &str| {
        let cookie = format!("<qemu-migration><name>web1</name>{xml}</qemu-migration>");
        Cookie::parse(cookie.as_bytes()).unwrap().domain().unwrap()
    };
    let xml = made(&definition(notes, ""));
    let translated = translate(&xml, &mapping()).unwrap();
    assert!(!translated.xml.contains("libosinfo"), "{}", translated.xml);
    let foreign = "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-x'/></q:commandline>";
    assert_eq!(refused(&made(&definition(foreign, ""))), ["foreign:commandline"]);
}

#[test]
fn a_cookie_names_the_neighbour_and_the_relays_port() {
    let cookie = Cookie::parse(COOKIE.as_bytes()).unwrap();
    assert_eq!(cookie.nbd_port().unwrap(), Some(49153));
    assert_eq!(cookie.disks().unwrap(), [("vda".to_owned(), 268_435_456)]);
    let neighbour = Neighbour {
        hostname: "agent-b".to_owned(),
        host_uuid: "bbbbbbbb-84d5-483d-b466-3fe4fdd1048f".to_owned(),
    };
    let handed = cookie.handed_on(&neighbour, Some(50_001), None).unwrap();
    let text = std::str::from_utf8(handed.strip_suffix(&[0]).unwrap()).unwrap();
    for (there, what) in [
        ("host-a", false),
        ("aaaaaaaa", false),
        ("10.0.0.1", false),
        ("49153", false),
        ("agent-b", true),
        ("bbbbbbbb", true),
        ("50001", true),
        ("xbzrle", true),
        ("268435456", true),
    ] {
        assert_eq!(text.contains(there), what, "{there}: {text}");
    }
    // What nobody knows does not go through, and no text of anybody's.
    for bad in [
        "<blockDirtyBitmaps/>",
        "<futuristic/>",
        "<statistics><time_elapsed>x</time_elapsed></statistics>",
        "<cpu><evil/></cpu>",
        "<feature name='a b'/>",
    ] {
        let cookie = Cookie::parse(format!("<qemu-migration>{bad}</qemu-migration>").as_bytes());
        let handed = cookie.unwrap().handed_on(&neighbour, None, None);
        assert!(matches!(handed, Err(cookie::CookieError::Refused(_))), "{bad}: {handed:?}");
    }
    let statistics = "<qemu-migration><statistics><delta>-3</delta></statistics></qemu-migration>";
    let handed = Cookie::parse(statistics.as_bytes()).unwrap().handed_on(&neighbour, None, None);
    assert!(String::from_utf8(handed.unwrap()).unwrap().contains("<delta>-3</delta>"));
    for none in [
        "<qemu-migration><nbd port='0'/></qemu-migration>",
        "<qemu-migration><nbd port='70000'/></qemu-migration>",
    ] {
        assert!(Cookie::parse(none.as_bytes()).unwrap().nbd_port().is_err(), "{none}");
    }
    assert!(Cookie::parse(&[0xff, 0xfe]).is_err());
}

proptest! {
    /// Whatever stands where, no value comes through that its kind does not take.
    #[test]
    fn free_text_does_not_come_through(around in "[ -~]{1,40}") {
        // Neither in the definition by itself, nor in any harmless word.
        let value = format!("~zz~{around}");
        let escaped = value.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;");
        for place in [
            "machine='pc-q35-7.2'",
            "file='/srv/vm/web1-root.qcow2'",
            "bridge='br0'",
            "name='pci.1'",
            "path='/var/log/web1.log'",
            "passwd='secret'",
            "name='virtio-disk0'",
            "model='apparmor'",
        ] {
            let name = place.split('=').next().unwrap();
            let xml = definition("", "").replace(place, &format!("{name}='{escaped}'"));
            if let Ok(made) = translate(&xml, &mapping()) {
                prop_assert!(!made.xml.contains("~zz~"), "{}", made.xml);
            }
        }
    }

    #[test]
    fn anything_is_read_or_refused(text in "\\PC{0,200}") {
        drop(translate(&text, &mapping()));
        drop(Cookie::parse(text.as_bytes()));
    }
}
