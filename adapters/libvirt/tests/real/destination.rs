//! What a destination does, on a real libvirtd.

use std::fs;

use model::{DiskLocation, Power};
use site::conformance::{Fixture, run};
use site::{
    ByteStream, Leftover, Mark, NewDisk, NewNic, PlaceholderSpec, PlaceholderState, Site,
    SiteErrorKind, Takeover,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::daemon::{Daemon, Network};
use crate::guest::{Format, Guest};
use crate::helper::{appliance, spec, start};

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_keeps_every_rule() {
    let daemon = Daemon::start(Network::Private);
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    daemon.virsh(&["start", "web1"]).unwrap();
    let fixture = Fixture {
        source: guest.id,
        placeholder: spec("web2"),
        appliance: appliance(),
        stranger: "stranger-1".parse().unwrap(),
        content: Box::new(|disk| match &disk.location {
            DiskLocation::Volume { path: Some(path), .. } | DiskLocation::File { path } => {
                fs::read(path).unwrap()
            }
            other => panic!("no file: {other:?}"),
        }),
    };
    run(&daemon.site(), &fixture).await.unwrap_or_else(|breach| panic!("{breach}"));
}

async fn line(stream: &mut ByteStream) -> String {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await.unwrap() {
            b'\n' => return String::from_utf8(line).unwrap(),
            byte => line.push(byte),
        }
    }
}

/// Bytes that repeat nowhere within 64 KiB, so that a lost or doubled packet shows.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let step = |state: &mut u32| {
        *state ^= *state << 13;
        *state ^= *state >> 17;
        *state ^= *state << 5;
        *state
    };
    (0..length / 4).flat_map(|_| step(&mut state).to_le_bytes()).collect()
}

const SIZE: usize = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_carries_64_mib_each_way_exactly() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let spec = start(&site, "web2").await;
    let file = daemon.images().join("web2-vda");
    let mut channel = site.open_channel(spec.vm, 0, Takeover::Refuse).await.unwrap();

    channel.write_all(b"hello\n").await.unwrap();
    assert_eq!(line(&mut channel).await, "serials causeway-0 causeway-1 ");

    let there = pattern(SIZE);
    channel.write_all(b"take 1024\n").await.unwrap();
    channel.write_all(&there).await.unwrap();
    assert_eq!(line(&mut channel).await, "took");
    assert!(fs::read(&file).unwrap() == there, "the disk is not what was sent");

    channel.write_all(b"send 1024\n").await.unwrap();
    let mut back = vec![0; SIZE];
    channel.read_exact(&mut back).await.unwrap();
    assert!(back == there, "what came back is not what was sent");

    // A clean end leaves nothing behind for the next one.
    channel.shutdown().await.unwrap();
    let mut next = site.open_channel(spec.vm, 0, Takeover::Refuse).await.unwrap();
    next.write_all(b"hello\n").await.unwrap();
    assert_eq!(line(&mut next).await, "serials causeway-0 causeway-1 ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_taken_over_by_force_only_and_freed_by_dropping() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let spec = start(&site, "web2").await;
    let mut first = site.open_channel(spec.vm, 0, Takeover::Refuse).await.unwrap();
    first.write_all(b"hello\n").await.unwrap();
    line(&mut first).await;

    let Err(refused) = site.open_channel(spec.vm, 0, Takeover::Refuse).await else {
        panic!("two coordinators hold one channel");
    };
    assert_eq!(refused.kind, SiteErrorKind::Conflict);
    let mut second = site.open_channel(spec.vm, 0, Takeover::Force).await.unwrap();
    let mut byte = [0];
    let ended = first.read(&mut byte).await;
    assert!(matches!(ended, Err(_) | Ok(0)), "the first stream goes on: {ended:?}");
    second.write_all(b"hello\n").await.unwrap();
    assert_eq!(line(&mut second).await, "serials causeway-0 causeway-1 ");

    // The other port is nobody's yet, and both go at once.
    let other = site.open_channel(spec.vm, 1, Takeover::Refuse).await.unwrap();
    drop((second, other));
    let mut third = loop {
        // Dropping cuts it off in the background.
        match site.open_channel(spec.vm, 0, Takeover::Refuse).await {
            Ok(stream) => break stream,
            Err(error) => assert_eq!(error.kind, SiteErrorKind::Conflict, "{error}"),
        }
    };
    third.write_all(b"hello\n").await.unwrap();
    assert_eq!(line(&mut third).await, "serials causeway-0 causeway-1 ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_ends_with_its_helper() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let spec = start(&site, "web2").await;
    let mut channel = site.open_channel(spec.vm, 0, Takeover::Refuse).await.unwrap();
    site.power_off(spec.vm).await.unwrap();
    let mut byte = [0];
    let ended = channel.read(&mut byte).await;
    assert!(matches!(ended, Err(_) | Ok(0)), "{ended:?}");
    assert_eq!(
        site.placeholder(spec.vm).await.unwrap(),
        PlaceholderState::Held { migration: spec.migration, epoch: spec.epoch, power: Power::Off }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_is_neither_taken_nor_removed() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let spec = spec("web2");
    let volume = daemon.images().join(&spec.disks[0].volume);
    fs::write(&volume, b"somebody's").unwrap();
    daemon.virsh(&["pool-refresh", "images"]).unwrap();
    let taken = site.create_disk(&spec.migration, &spec.disks[0]).await.unwrap_err();
    assert_eq!(taken.kind, SiteErrorKind::Conflict);
    let leftover = Leftover::Volume {
        pool: "images".to_owned(),
        volume: spec.disks[0].volume.clone(),
        location: volume.display().to_string(),
    };
    let removed = site.remove(&leftover).await.unwrap_err();
    assert_eq!(removed.kind, SiteErrorKind::Conflict);
    assert_eq!(fs::read(&volume).unwrap(), b"somebody's");
    assert!(site.leftovers(&spec.migration).await.unwrap().is_empty());
}

/// A VM as a spec that would make it once more, under another id and name.
fn likeness(vm: &model::Vm, name: &str) -> PlaceholderSpec {
    let disks = vm.disks.iter().zip(0_u16..).map(|(disk, no)| NewDisk {
        no: units::DiskNo(no),
        pool: "images".to_owned(),
        volume: format!("{name}-{}", disk.target),
        size: disk.size,
        format: disk.format.clone(),
        target: disk.target.clone(),
        bus: disk.bus,
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
        machine: vm.machine.clone(),
        disks: disks.collect(),
        nics: nics.collect(),
        ..spec(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_vm_has_its_disks_and_cards_in_the_slots_that_the_guest_knows() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    for (name, machine) in [("old", "pc"), ("new", "q35")] {
        let image = daemon.images().join(format!("{name}.raw"));
        fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let disk = |target: &str, bus: &str, serial: &str| {
            let path = daemon.images().join(format!("{name}-source-{target}"));
            fs::File::create(&path).unwrap().set_len((1 << 20) + 512).unwrap();
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/>\
                 <source file='{}'/><target dev='{target}' bus='{bus}'/>\
                 <serial>{serial}</serial></disk>",
                path.display()
            )
        };
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='{machine}'>hvm</type></os><devices>\
             {}{}{}<controller type='scsi' model='virtio-scsi'/>\
             <interface type='network'><source network='default'/><model type='virtio'/></interface>\
             <interface type='network'><source network='default'/><model type='e1000e'/></interface>\
             <video><model type='none'/></video></devices></domain>",
            disk("vda", "virtio", "A1"),
            disk("sda", "scsi", "S1"),
            disk("vdb", "virtio", "B2"),
        );
        daemon.define("define", &xml);
        let before = site.vm(name).await.unwrap();
        assert!(before.nics.iter().all(|nic| nic.address.is_some()), "the control has no slots");

        let mut spec = likeness(&before, &format!("{name}-again"));
        spec.appliance = site.put_appliance(&appliance()).await.unwrap();
        for disk in &spec.disks {
            site.create_disk(&spec.migration, disk).await.unwrap();
        }
        site.define_placeholder(&spec).await.unwrap();
        let held = site.vm(&spec.name).await.unwrap();
        assert!(held.nics.is_empty(), "a held VM has a card of the guest's");
        let mark =
            Mark { migration: spec.migration.clone(), epoch: spec.epoch, receipt: "00".to_owned() };
        site.write_mark(spec.vm, &mark).await.unwrap();
        site.start_from_own_disk(&spec).await.unwrap();
        let after = site.vm(&spec.name).await.unwrap();
        let slots = |vm: &model::Vm| -> Vec<_> {
            let disks = vm.disks.iter().map(|disk| {
                (disk.target.clone(), disk.bus, disk.serial.clone(), disk.address, disk.size)
            });
            disks.collect()
        };
        assert_eq!(slots(&after), slots(&before), "{machine}");
        assert_eq!(after.nics, before.nics, "{machine}");
        assert_eq!((after.machine, after.power), (before.machine, Power::Running));
    }
}
