//! What libvirt says of VMs, hosts and storage: `adapters/libvirt/src/xml.rs`. A host may be made to
//! hurt whoever reads from it; nothing of what it says gets into what we write but as values.

use model::{DiskBus, DiskFormat, DiskUse};
use site::{ApplianceRef, NewDisk, NewNic, PlaceholderSpec, SiteErrorKind};
use units::{Bytes, DiskNo, Epoch};

use crate::fault::Fault;
use crate::memory::bounded;
use crate::xml::{
    DomainCaps, DomainXml, Fenced, FencedDisk, Form, Host, HostCaps, Located, NOWHERE, OursState,
    PoolXml, SecretXml, VolumeXml, XmlDisk, fenced, placeholder,
};

pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Some(vm) = read(text, DomainXml::parse) {
        stays_fenced(&vm);
        stays_itself(&vm);
    }
    read(text, HostCaps::parse);
    read(text, DomainCaps::parse);
    read(text, PoolXml::parse);
    read(text, VolumeXml::parse);
    read(text, SecretXml::parse);
}

fn read<T>(text: &str, parse: impl Fn(&str) -> Result<T, Fault>) -> Option<T> {
    // A node of the tree for each four bytes, and a text of 24 and more for each of ours.
    match bounded(128 * text.len() + (64 << 10), || parse(text)) {
        Ok(read) => Some(read),
        Err(fault) => {
            assert!(fault.kind == SiteErrorKind::Platform && !fault.what.is_empty(), "{fault:?}");
            None
        }
    }
}

/// Fenced it has its name and no disk that exists, and its note says where they are.
fn stays_fenced(vm: &DomainXml) {
    let data = vm.disks.iter().filter(|disk| disk.usage == DiskUse::Data);
    let known = data.filter_map(|disk| {
        let (target, path) = (disk.target.clone(), disk.source.path()?.to_owned());
        Some(FencedDisk { target, path, format: disk.format.clone() })
    });
    let disks: Vec<_> = known.collect();
    // XML has no way to write some of what it can read.
    let Ok(text) = fenced(&Fenced { domain: vm, id: "fence-1", disks: &disks }) else { return };
    let again = DomainXml::parse(&text).expect("we wrote it");
    same(vm, &again);
    assert!(!again.disks.is_empty(), "a VM without disks starts");
    for disk in &again.disks {
        let path = disk.source.path().expect("every disk has one");
        assert!(path.starts_with(NOWHERE), "{path} may exist");
    }
    let note = again.fenced.expect("it is fenced");
    assert_eq!((note.id.as_str(), note.disks), ("fence-1", disks));
    assert!(again.nics.is_empty() && again.devices.is_empty());
}

/// At its destination it is what it was, held and released.
fn stays_itself(vm: &DomainXml) {
    let spec = spec(vm);
    let located = |disk| Located { disk, path: format!("/pool/{}", disk.volume), block: false };
    let disks: Vec<_> = spec.disks.iter().map(located).collect();
    let caps = DomainCaps { host_passthrough: true, host_model: true, ..DomainCaps::default() };
    let host = Host { caps, ..Host::default() };
    for (form, state) in [(Form::Held, OursState::Held), (Form::Released, OursState::Released)] {
        // A card on something that we have no word for cannot be plugged in.
        let Ok(text) = placeholder(&spec, &disks, &host, form, None) else { continue };
        let again = DomainXml::parse(&text).expect("we wrote it");
        same(vm, &again);
        assert_eq!(again.cpu, vm.cpu);
        let ours = again.ours.expect("it is ours");
        assert_eq!((ours.migration, ours.epoch), (spec.migration.clone(), spec.epoch));
        assert_eq!((ours.state, ours.mark), (state, None));
        assert!(again.fenced.is_none());
        if state == OursState::Held {
            assert_eq!(again.disks.len(), spec.disks.len());
            assert!(again.nics.is_empty(), "two copies would answer on one address");
            continue;
        }
        assert_eq!(again.firmware, vm.firmware);
        let disks: Vec<_> = again.disks.iter().map(told).collect();
        assert_eq!(disks, moving(vm).map(told).collect::<Vec<_>>());
        let nics: Vec<_> = again.nics.iter().map(|nic| (&nic.mac, &nic.network)).collect();
        assert_eq!(nics, vm.nics.iter().map(|nic| (&nic.mac, &nic.network)).collect::<Vec<_>>());
    }
}

fn same(vm: &DomainXml, again: &DomainXml) {
    assert_eq!((again.id, &again.name), (vm.id, &vm.name));
    assert_eq!((again.vcpus, again.memory), (vm.vcpus, vm.memory));
    assert_eq!((&again.arch, &again.machine), (&vm.arch, &vm.machine));
}

/// What a plan lets through.
fn moving(vm: &DomainXml) -> impl Iterator<Item = &XmlDisk> {
    vm.disks.iter().filter(|disk| {
        let format = matches!(disk.format, DiskFormat::Raw | DiskFormat::Qcow2);
        let bus = disk.bus.is_some_and(|bus| bus != DiskBus::Nvme);
        disk.usage == DiskUse::Data && format && bus
    })
}

/// What of a disk is the same at both sites.
fn told(disk: &XmlDisk) -> impl PartialEq + std::fmt::Debug + '_ {
    let address = disk.address.filter(|_| disk.bus == Some(DiskBus::Virtio));
    (&disk.target, disk.bus, &disk.format, &disk.serial, address, disk.boot_order)
}

fn spec(vm: &DomainXml) -> PlaceholderSpec {
    let disks = (0..).zip(moving(vm)).map(|(no, disk)| NewDisk {
        no: DiskNo(no),
        pool: "images".to_owned(),
        volume: format!("web1-{no}"),
        size: Bytes::mib(1),
        format: disk.format.clone(),
        target: disk.target.clone(),
        bus: disk.bus.expect("only those were let through"),
        serial: disk.serial.clone(),
        address: disk.address,
        boot_order: disk.boot_order,
    });
    let nics = vm.nics.iter().map(|nic| NewNic {
        mac: nic.mac.clone(),
        model: nic.model.clone(),
        network: nic.network.clone(),
        address: nic.address,
    });
    PlaceholderSpec {
        migration: "web1-1".parse().expect("an id"),
        epoch: Epoch(1),
        vm: vm.id,
        name: vm.name.clone(),
        vcpus: vm.vcpus,
        memory: vm.memory,
        arch: vm.arch.clone(),
        machine: vm.machine.clone(),
        cpu: vm.cpu.clone(),
        firmware: vm.firmware.clone(),
        disks: disks.collect(),
        nics: nics.collect(),
        autostart: false,
        appliance: ApplianceRef { kernel: "/pool/k".to_owned(), initrd: "/pool/i".to_owned() },
        channels: 2,
        helper_nic: None,
        helper_args: vec!["causeway.key=abc".to_owned()],
    }
}
