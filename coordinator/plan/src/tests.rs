//! Every refusal, each from one change to facts that give a plan.

use std::collections::BTreeMap;

use model::{
    Capability, Cpu, Device, Disk, DiskBus, DiskFormat, DiskLocation, DiskUse, FenceOffer,
    Firmware, NetworkOffer, NetworkRef, Nic, PoolOffer, Power, SiteReport, Vm, VmId,
};
use units::Bytes;
use uuid::Uuid;

use crate::facts::{
    Facts, GuestDevice, GuestFacts, GuestFinding, GuestMount, GuestSwap, GuestWriter, Problem,
    Taken,
};
use crate::request::{Options, Request, Route, Tracker};
use crate::{Plan, draw_up};

fn disk(target: &str, mib: u64) -> Disk {
    Disk {
        target: target.to_owned(),
        bus: DiskBus::Virtio,
        format: DiskFormat::Qcow2,
        size: Bytes::mib(mib),
        allocated: Some(Bytes::mib(mib / 2)),
        location: DiskLocation::File { path: format!("/srv/{target}") },
        usage: DiskUse::Data,
        serial: None,
        address: None,
        boot_order: None,
    }
}

fn device(name: &str, mib: u64) -> GuestDevice {
    GuestDevice {
        name: name.to_owned(),
        size: Bytes::mib(mib),
        serial: String::new(),
        pci: None,
        scsi: None,
        read_only: false,
    }
}

fn site(pools: &[(&str, u64)], networks: &[&str]) -> SiteReport {
    SiteReport {
        platform: "libvirt 9.0.0".to_owned(),
        host: "west-1".to_owned(),
        arch: "x86_64".to_owned(),
        machines: vec!["pc".to_owned(), "q35".to_owned()],
        firmwares: vec![Firmware::Bios],
        cpu_models: vec!["qemu64".to_owned()],
        vcpus_max: 8,
        memory_free: Some(Bytes::mib(8192)),
        pools: pools
            .iter()
            .map(|(name, mib)| PoolOffer {
                name: (*name).to_owned(),
                capacity: Bytes::mib(*mib),
                available: Bytes::mib(*mib),
                active: true,
                kind: "dir".to_owned(),
            })
            .collect(),
        networks: networks
            .iter()
            .map(|name| NetworkOffer {
                network: NetworkRef::Bridge((*name).to_owned()),
                active: true,
            })
            .collect(),
        capabilities: vec![
            Capability::HelperByKernel,
            Capability::ManagementChannel,
            Capability::Records,
            Capability::Suspend,
            Capability::WriteCounters,
        ],
        outdated: vec![],
        warnings: vec![],
    }
}

fn request() -> Request {
    Request {
        id: "web1-1".parse().unwrap(),
        vm: "web1".to_owned(),
        from: "east".parse().unwrap(),
        to: "west".parse().unwrap(),
        pools: BTreeMap::new(),
        networks: BTreeMap::from([("br0".to_owned(), "br1".to_owned())]),
        options: Options::default(),
    }
}

fn facts() -> Facts {
    Facts {
        source: Ok(site(&[], &[])),
        destination: Ok(site(&[("default", 10_000)], &["br1"])),
        vm: Ok(Vm {
            id: VmId(Uuid::from_u128(7)),
            name: "web1".to_owned(),
            vcpus: 2,
            memory: Bytes::mib(512),
            arch: "x86_64".to_owned(),
            machine: "pc".to_owned(),
            cpu: Cpu::Model("qemu64".to_owned()),
            firmware: Firmware::Bios,
            disks: vec![disk("vda", 1000), disk("vdb", 500)],
            nics: vec![Nic {
                mac: "52:54:00:00:00:01".to_owned(),
                model: "virtio".to_owned(),
                network: NetworkRef::Bridge("br0".to_owned()),
                address: None,
            }],
            devices: vec![],
            power: Power::Running,
            autostart: true,
            persistent: true,
        }),
        fence: Ok(FenceOffer { means: vec![], does_not_stop: vec![] }),
        guest: Ok(GuestFacts {
            devices: vec![device("sda", 500), device("sdb", 1000)],
            memory_available: Bytes::mib(300),
            ..GuestFacts::default()
        }),
        taken: Vec::new(),
        appliance: Ok(()),
        line: None,
    }
}

/// The codes of all refusals after `change`; empty where a plan comes of it.
fn refused(change: impl FnOnce(&mut Request, &mut Facts)) -> Vec<String> {
    let (mut request, mut facts) = (request(), facts());
    change(&mut request, &mut facts);
    draw_up(&request, &facts).err().unwrap_or_default().into_iter().map(|r| r.code).collect()
}

fn plan(change: impl FnOnce(&mut Request, &mut Facts)) -> Plan {
    let (mut request, mut facts) = (request(), facts());
    change(&mut request, &mut facts);
    draw_up(&request, &facts).expect("a plan")
}

fn vm(facts: &mut Facts) -> &mut Vm {
    facts.vm.as_mut().unwrap()
}

fn guest(facts: &mut Facts) -> &mut GuestFacts {
    facts.guest.as_mut().unwrap()
}

fn destination(facts: &mut Facts) -> &mut SiteReport {
    facts.destination.as_mut().unwrap()
}

fn mount(mount_point: &str, kind: &str, disks: &[&str]) -> GuestMount {
    GuestMount {
        mount_point: mount_point.to_owned(),
        kind: kind.to_owned(),
        disks: disks.iter().map(|name| (*name).to_owned()).collect(),
        read_only: false,
        freezable: kind != "vfat",
    }
}

fn problem(code: &str) -> Problem {
    Problem { code: code.to_owned(), text: "text".to_owned(), hint: "hint".to_owned() }
}

#[test]
fn disks_are_matched_to_the_guests_own_names() {
    let plan = plan(|_, _| ());
    let names: Vec<_> = plan.disks.iter().map(|d| (d.target.as_str(), d.device.as_str())).collect();
    assert_eq!(names, [("vda", "sdb"), ("vdb", "sda")]);
}

/// Two disks of one size, told apart by their serial numbers.
fn twins(facts: &mut Facts) {
    vm(facts).disks[1].size = Bytes::mib(1000);
    vm(facts).disks[0].serial = Some("root".to_owned());
    vm(facts).disks[1].serial = Some("data".to_owned());
    guest(facts).devices[0] = GuestDevice { serial: "data".to_owned(), ..device("vda", 1000) };
    guest(facts).devices[1] = GuestDevice { serial: "root".to_owned(), ..device("vdb", 1000) };
}

#[test]
fn a_serial_number_decides_between_twins() {
    let plan = plan(|_, facts| twins(facts));
    assert_eq!(plan.disks[0].device, "vdb");
    assert_eq!(plan.disks[1].device, "vda");
}

#[test]
fn twins_that_changed_places_in_a_reboot_are_found_where_they_are_now() {
    let plan = plan(|_, facts| twins(facts));
    let now = [
        GuestDevice { serial: "root".to_owned(), ..device("vda", 1000) },
        GuestDevice { serial: "data".to_owned(), ..device("vdb", 1000) },
    ];
    assert_eq!(crate::devices_of(&plan.disks, &now).unwrap(), ["vda", "vdb"]);
    assert_eq!(
        crate::devices_of(&plan.disks, &now[..1]).unwrap_err().code,
        "disk-unknown-in-guest"
    );
}

#[test]
fn twins_without_serial_or_address_are_refused_and_not_guessed() {
    let codes = refused(|_, facts| {
        vm(facts).disks[1].size = Bytes::mib(1000);
        guest(facts).devices[0].size = Bytes::mib(1000);
    });
    assert_eq!(codes, ["disk-unknown-in-guest", "disk-unknown-in-guest"]);
}

#[test]
fn a_disk_that_grew_at_the_site_but_not_in_the_guest_is_refused() {
    let codes = refused(|_, facts| {
        vm(facts).disks[0].serial = Some("root".to_owned());
        guest(facts).devices[1].serial = "root".to_owned();
        vm(facts).disks[0].size = Bytes::mib(1001);
    });
    assert_eq!(codes, ["disk-size"]);
}

#[test]
fn what_could_not_be_learned_is_a_refusal_beside_the_others() {
    let codes = refused(|_, facts| {
        facts.guest = Err(vec![problem("host-key"), problem("not-root")]);
        vm(facts).disks[0].usage = DiskUse::Shared;
        facts.appliance = Err(problem("appliance-missing"));
    });
    assert_eq!(codes, ["host-key", "not-root", "appliance-missing", "disk-kind"]);
}

#[test]
fn one_dead_site_is_said_once() {
    let codes = refused(|_, facts| {
        facts.source = Err(problem("unreachable"));
        facts.vm = Err(problem("unreachable"));
        facts.fence = Err(problem("unreachable"));
    });
    assert_eq!(codes, ["unreachable"]);
}

/// A change to request and facts.
type Change = fn(&mut Request, &mut Facts);

#[test]
fn each_obstacle_is_refused_by_its_own_code() {
    let cases: &[(&str, Change)] = &[
        ("same-site", |r, _| r.to = r.from.clone()),
        ("not-running", |_, f| vm(f).power = Power::Off),
        ("name-taken", |_, f| {
            f.taken.push(Taken {
                name: "web1".to_owned(),
                same_id: false,
                same_name: true,
                kept_by: None,
            });
        }),
        ("uuid-taken", |_, f| {
            f.taken.push(Taken {
                name: "old".to_owned(),
                same_id: true,
                same_name: false,
                kept_by: Some("web1-1".to_owned()),
            });
        }),
        ("no-space", |_, f| destination(f).pools[0].available = Bytes::mib(1400)),
        ("no-memory", |_, f| destination(f).memory_free = Some(Bytes::mib(100))),
        ("pool-unmapped", |_, f| {
            let other = PoolOffer { name: "fast".to_owned(), ..destination(f).pools[0].clone() };
            destination(f).pools.push(other);
            vm(f).disks.truncate(1);
        }),
        ("pool-missing", |r, f| {
            r.pools.insert("*".to_owned(), "nope".to_owned());
            vm(f).disks.truncate(1);
        }),
        ("network-unmapped", |r, _| r.networks.clear()),
        ("network-missing", |_, f| destination(f).networks[0].active = false),
        ("firmware-missing", |_, f| vm(f).firmware = Firmware::Uefi { secure_boot: false }),
        ("cpu-missing", |_, f| vm(f).cpu = Cpu::Model("EPYC".to_owned())),
        ("machine-type", |_, f| vm(f).machine = "microvm".to_owned()),
        ("version", |_, f| destination(f).outdated.push("libvirt 1.2.3 is too old".to_owned())),
        ("version", |_, f| {
            f.source.as_mut().unwrap().outdated.push("QEMU 0.15 is too old".to_owned());
        }),
        ("architecture", |_, f| vm(f).arch = "aarch64".to_owned()),
        ("vcpus", |_, f| vm(f).vcpus = 9),
        ("device", |_, f| {
            vm(f).devices.push(Device {
                kind: "hostdev".to_owned(),
                essential: true,
                details: BTreeMap::new(),
            });
        }),
        ("disk-kind", |_, f| vm(f).disks[0].usage = DiskUse::ReadOnly),
        ("disk-kind", |_, f| vm(f).disks[0].format = DiskFormat::Other("vmdk".to_owned())),
        ("no-disk", |_, f| vm(f).disks.clear()),
        ("file-system", |_, f| {
            guest(f).mounts.push(mount("/srv", "ext4", &["sda", "sdc"]));
        }),
        ("downtime-budget", |r, _| r.options.max_downtime_ms = 10_000),
        ("downtime-budget", |_, f| guest(f).boot_ms = Some(27_000)),
        ("swap", |_, f| {
            guest(f).swaps.push(GuestSwap {
                path: "/dev/sda2".to_owned(),
                used: Bytes::mib(290),
                disks: vec!["sda".to_owned()],
            });
        }),
        ("raw-writer", |_, f| {
            guest(f).raw_writers.push(GuestWriter {
                program: "oracle".to_owned(),
                pid: 7,
                device: "/dev/sdb3".to_owned(),
                disks: vec!["sdb".to_owned()],
            });
        }),
        ("initramfs-drivers", |_, f| {
            guest(f).findings.push(GuestFinding {
                check: "initramfs-drivers".to_owned(),
                blocking: true,
                text: "no virtio_blk".to_owned(),
                remedy: None,
            });
        }),
        ("tracker", |r, f| {
            r.options.tracker = Tracker::Bpf;
            guest(f).tracker = Some(("rescan".to_owned(), "kernel 4.19 has no BTF".to_owned()));
        }),
        ("source-capability", |_, f| {
            let source = f.source.as_mut().unwrap();
            source.capabilities.retain(|c| *c != Capability::WriteCounters);
        }),
        ("destination-capability", |_, f| {
            destination(f).capabilities.retain(|c| *c != Capability::ManagementChannel);
        }),
        ("source-capability", |_, f| {
            let source = f.source.as_mut().unwrap();
            source.capabilities.retain(|c| *c != Capability::Records);
        }),
        ("destination-capability", |_, f| {
            destination(f).capabilities.retain(|c| *c != Capability::Records);
        }),
        ("direct-network", |r, _| {
            r.options.route =
                Route::Direct { network: "nope".to_owned(), address: "dhcp".to_owned() };
        }),
    ];
    for (code, change) in cases {
        assert_eq!(refused(change), [*code], "one change, one refusal");
    }
}

#[test]
fn what_cannot_be_frozen_is_said_and_is_no_obstacle() {
    let plan = plan(|_, f| guest(f).mounts.push(mount("/boot/efi", "vfat", &["sda"])));
    assert!(plan.warnings.iter().any(|text| text.contains("/boot/efi")), "{:?}", plan.warnings);
}

#[test]
fn what_the_operator_says_of_the_boot_goes_before_what_the_last_one_took() {
    let plan = plan(|r, f| {
        guest(f).boot_ms = Some(27_000);
        r.options.boot_ms = Some(5_000);
    });
    assert_eq!(plan.forecast.fixed_ms(), 9_000);
}

#[test]
fn a_machine_type_keeps_its_version_where_that_is_known() {
    let kept = plan(|_, f| {
        vm(f).machine = "pc-q35-7.2".to_owned();
        destination(f).machines.push("pc-q35-7.2".to_owned());
    });
    assert_eq!((kept.vm.machine.as_str(), kept.warnings.len()), ("pc-q35-7.2", 0));
    let other = plan(|_, f| vm(f).machine = "pc-q35-7.2".to_owned());
    assert_eq!((other.vm.machine.as_str(), other.warnings.len()), ("q35", 1));
}

#[test]
fn refusals_come_all_at_once() {
    let codes = refused(|request, facts| {
        request.networks.clear();
        vm(facts).cpu = Cpu::Model("EPYC".to_owned());
        destination(facts).pools[0].available = Bytes::ZERO;
    });
    assert_eq!(codes, ["no-space", "network-unmapped", "cpu-missing"]);
}

#[test]
fn a_raw_writer_with_a_hook_that_stops_it_is_accepted() {
    let codes = refused(|request, facts| {
        request.options.hooks_before.push("systemctl stop oracle".to_owned());
        guest(facts).raw_writers.push(GuestWriter {
            program: "oracle".to_owned(),
            pid: 7,
            device: "/dev/sdb3".to_owned(),
            disks: vec!["sdb".to_owned()],
        });
    });
    assert!(codes.is_empty(), "{codes:?}");
}

#[test]
fn any_change_to_a_plan_changes_its_digest_but_for_what_resume_may_change() {
    let before = plan(|_, _| ());
    let mut after = before.clone();
    after.disks[0].volume.push('x');
    assert_ne!(before.digest().unwrap(), after.digest().unwrap());
    let mut after = before.clone();
    after.options.gate = Some("true".to_owned());
    assert_ne!(before.digest().unwrap(), after.digest().unwrap());
    let mut again: Plan = serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
    again.options.max_downtime_ms += 1;
    again.options.limit_rate = Some(Bytes(1 << 20));
    again.options.limit_read = Some(Bytes(1 << 20));
    assert_eq!(before.digest().unwrap(), again.digest().unwrap());
}

#[test]
fn what_a_guest_and_a_site_say_may_be_too_large_to_count_with() {
    let sizes = |facts: &mut Facts| {
        for (disk, size) in vm(facts).disks.iter_mut().zip([u64::MAX, u64::MAX - 1]) {
            (disk.size, disk.allocated) = (Bytes(size), Some(Bytes(size)));
        }
        for (device, size) in guest(facts).devices.iter_mut().zip([u64::MAX, u64::MAX - 1]) {
            device.size = Bytes(size);
        }
    };
    assert_eq!(refused(|_, facts| sizes(facts)), ["no-space"]);
    let codes = refused(|_, facts| guest(facts).boot_ms = Some(u64::MAX));
    assert_eq!(codes, ["downtime-budget"]);
    let codes = refused(|request, _| request.options.boot_ms = Some(u64::MAX));
    assert_eq!(codes, ["downtime-budget"]);
}

#[test]
fn a_hostile_name_does_not_reach_a_volumes_path() {
    let plan = plan(|_, facts| vm(facts).name = "../../etc/x\"/><disk".to_owned());
    assert_eq!(plan.disks[0].volume, "------etc-x----disk-vda.qcow2");
}
