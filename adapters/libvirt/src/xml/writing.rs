//! What is written, word for word.

use insta::assert_snapshot;
use model::{Cpu, DiskBus, DiskFormat, Firmware, NetworkRef, PciAddress, VmId};
use site::{ApplianceRef, Mark, NewDisk, NewNic, PlaceholderSpec};
use units::{Bytes, DiskNo, Epoch};
use uuid::Uuid;

use super::{
    CACHED, DIRECT, DomainCaps, DomainXml, Fenced, FencedDisk, Form, Host, Located, OursState,
    SecretXml, fenced, metadata_text, new_pool, new_secret, new_volume, placeholder,
};
use crate::UefiLoader;

fn disk(no: u16, bus: DiskBus, target: &str) -> NewDisk {
    NewDisk {
        no: DiskNo(no),
        pool: "images".to_owned(),
        volume: format!("web1-{target}"),
        size: Bytes(1 << 30),
        format: DiskFormat::Raw,
        target: target.to_owned(),
        bus,
        serial: Some(format!("S<{no}>")),
        address: Some(PciAddress { domain: 0, bus: 4, slot: 0, function: 1 }),
        boot_order: None,
    }
}

fn spec() -> PlaceholderSpec {
    PlaceholderSpec {
        migration: "web1-7".parse().unwrap(),
        epoch: Epoch(7),
        vm: VmId(Uuid::from_u128(0x3b2f_1c7e_27f1_4a5d_9a43_5ad2_f9f6_a001)),
        name: "web & \"co\"".to_owned(),
        vcpus: 2,
        memory: Bytes::mib(1024),
        arch: "x86_64".to_owned(),
        machine: "q35".to_owned(),
        cpu: Cpu::Model("Skylake-Server".to_owned()),
        firmware: Firmware::Bios,
        disks: vec![disk(0, DiskBus::Virtio, "vda"), disk(27, DiskBus::VirtioScsi, "sda")],
        nics: vec![NewNic {
            mac: "52:54:00:ab:cd:ef".to_owned(),
            model: "virtio".to_owned(),
            network: NetworkRef::Network("lan".to_owned()),
            address: Some(PciAddress { domain: 0, bus: 1, slot: 0, function: 0 }),
        }],
        autostart: true,
        appliance: ApplianceRef { kernel: "/pool/k".to_owned(), initrd: "/pool/i".to_owned() },
        channels: 3,
        helper_nic: None,
        helper_args: vec!["causeway.key=abc".to_owned()],
    }
}

fn mark() -> Mark {
    Mark { migration: "web1-7".parse().unwrap(), epoch: Epoch(7), receipt: "c0ffee".to_owned() }
}

fn write(spec: &PlaceholderSpec, host: &Host, form: Form, mark: Option<&Mark>) -> String {
    let located = |disk| Located { disk, path: format!("/pool/{}", disk.volume), block: false };
    let disks: Vec<_> = spec.disks.iter().map(located).collect();
    placeholder(spec, &disks, host, form, mark).unwrap()
}

#[test]
fn held() {
    assert_snapshot!(write(&spec(), &Host::default(), Form::Held, None));
}

#[test]
fn held_with_a_card_for_the_helper_and_a_mark() {
    let bridge = Some(NetworkRef::Bridge("br0".to_owned()));
    let spec = PlaceholderSpec { helper_nic: bridge, disks: Vec::new(), ..spec() };
    assert_snapshot!(write(&spec, &Host::default(), Form::Held, Some(&mark())));
}

#[test]
fn released() {
    let host = Host { kvm: true, ..Host::default() };
    assert_snapshot!(write(&spec(), &host, Form::Released, Some(&mark())));
}

#[test]
fn released_with_uefi_and_boot_orders() {
    let mut spec = PlaceholderSpec {
        firmware: Firmware::Uefi { secure_boot: true },
        cpu: Cpu::HostPassthrough,
        ..spec()
    };
    spec.disks[1].boot_order = Some(1);
    let caps = DomainCaps { maximum: true, ..DomainCaps::default() };
    let host = Host { caps, ..Host::default() };
    assert_snapshot!(write(&spec, &host, Form::Released, Some(&mark())));
}

#[test]
fn a_loader_that_the_operator_names_is_used() {
    let spec = PlaceholderSpec { firmware: Firmware::Uefi { secure_boot: false }, ..spec() };
    let loader = UefiLoader { code: "/fw/code".to_owned(), vars_template: "/fw/vars".to_owned() };
    let host = Host { loader: Some(loader), ..Host::default() };
    let text = write(&spec, &host, Form::Released, Some(&mark()));
    assert!(text.contains(r#"<loader readonly="yes" secure="no" type="pflash">/fw/code</loader>"#));
    assert!(text.contains(r#"<nvram template="/fw/vars"/>"#));
    assert!(!text.contains("firmware="));
}

#[test]
fn fenced_definition() {
    let text = write(&spec(), &Host::default(), Form::Released, Some(&mark()));
    let domain = DomainXml::parse(&text).unwrap();
    let disks = [FencedDisk {
        target: "vda".to_owned(),
        path: "/pool/web1-vda".to_owned(),
        format: DiskFormat::Qcow2,
    }];
    assert_snapshot!(fenced(&Fenced { domain: &domain, id: "id-1", disks: &disks }).unwrap());
}

#[test]
fn storage() {
    let volume = new_volume("a&b", 513, "raw", true).unwrap();
    let pool = new_pool("causeway-1", "/srv/it's").unwrap();
    assert_snapshot!(format!("{volume}\n{pool}"));
}

#[test]
fn secret() {
    let text = new_secret(Uuid::from_u128(7), "causeway record a/b").unwrap();
    assert_eq!(SecretXml::parse(&text).unwrap().description.unwrap(), "causeway record a/b");
    assert_snapshot!(text);
}

#[test]
fn what_is_written_is_read_back() {
    let spec = spec();
    let text = write(&spec, &Host::default(), Form::Released, Some(&mark()));
    let vm = DomainXml::parse(&text).unwrap();
    assert_eq!((vm.id, &vm.name, vm.vcpus, vm.memory), (spec.vm, &spec.name, 2, spec.memory));
    assert_eq!((vm.cpu, vm.firmware), (spec.cpu.clone(), spec.firmware.clone()));
    let ours = vm.ours.unwrap();
    assert_eq!((ours.state, ours.epoch, ours.mark), (OursState::Released, Epoch(7), Some(mark())));
    assert_eq!(vm.disks[0].serial, spec.disks[0].serial);
    assert_eq!(vm.disks[0].address, spec.disks[0].address);
    assert_eq!(vm.disks[1].bus, Some(DiskBus::VirtioScsi));
    assert_eq!(vm.nics[0].mac, spec.nics[0].mac);
    assert_eq!(vm.nics[0].address, spec.nics[0].address);
    assert!(vm.devices.is_empty(), "{:?}", vm.devices);

    let held = DomainXml::parse(&write(&spec, &Host::default(), Form::Held, None)).unwrap();
    assert!(held.nics.is_empty(), "a held VM has a card of the guest's");
    let serials: Vec<_> = held.disks.iter().filter_map(|disk| disk.serial.clone()).collect();
    assert_eq!(serials, ["causeway-0", "causeway-27"]);
    let targets: Vec<_> = held.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(targets, ["vda", "vdab"]);
}

#[test]
fn the_metadata_alone_says_the_same() {
    let text = metadata_text("web1-7", 7, OursState::Held, Some(&mark())).unwrap();
    assert_snapshot!(text);
}

#[test]
fn direct_io_can_be_found_again_in_libvirts_spelling() {
    let text = write(&spec(), &Host::default(), Form::Held, None).replace('"', "'");
    assert_eq!(text.matches(DIRECT).count(), 2);
    assert!(!text.replace(DIRECT, CACHED).contains("native"));
}

#[test]
fn a_disk_of_an_odd_size_goes_through_the_hosts_cache() {
    let mut spec = spec();
    spec.disks[0].size = Bytes((1 << 30) + 512);
    let text = write(&spec, &Host::default(), Form::Held, None).replace('"', "'");
    assert_eq!((text.matches(DIRECT).count(), text.matches(CACHED).count()), (1, 1));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let refused = |change: fn(&mut PlaceholderSpec)| {
        let mut spec = spec();
        change(&mut spec);
        let located = |disk| Located { disk, path: "/pool/x".to_owned(), block: false };
        let disks: Vec<_> = spec.disks.iter().map(located).collect();
        let form = if spec.helper_args.len() > 1 { Form::Held } else { Form::Released };
        placeholder(&spec, &disks, &Host::default(), form, None).is_err()
    };
    assert!(refused(|spec| spec.name = "a\u{0}b".to_owned()));
    assert!(refused(|spec| spec.disks[0].bus = DiskBus::Nvme));
    assert!(refused(|spec| spec.disks[0].format = DiskFormat::Other("vmdk".to_owned())));
    assert!(refused(|spec| spec.nics[0].network = NetworkRef::Other("direct eth0".to_owned())));
    assert!(refused(|spec| spec.helper_args.push("two words".to_owned())));
    assert!(refused(|spec| spec.helper_args.push(String::new())));
    assert!(!refused(|_| ()), "the control is refused");
}
