//! The memory cloud keeps the rules that real clouds are held to.

use std::path::PathBuf;

use model::{Cpu, DiskBus, DiskFormat, Firmware, NetworkRef, SiteName, VmId};
use site::conformance::{Fixture, run};
use site::{ApplianceFiles, ApplianceRef, NewDisk, NewNic, PlaceholderSpec};
use site_memory::{Seed, World};
use units::{Bytes, Digest, DiskNo, Epoch};
use uuid::Uuid;

fn spec() -> PlaceholderSpec {
    let disk = |no: u16, size: u64| NewDisk {
        no: DiskNo(no),
        pool: "default".to_owned(),
        volume: format!("web2-{no}"),
        size: Bytes(size),
        format: DiskFormat::Raw,
        target: if no == 0 { "vda".to_owned() } else { "vdb".to_owned() },
        bus: DiskBus::Virtio,
        serial: None,
        address: None,
        boot_order: None,
    };
    PlaceholderSpec {
        migration: "web2-1".parse().expect("a migration id"),
        epoch: Epoch(1),
        vm: VmId(Uuid::new_v4()),
        name: "web2".to_owned(),
        vcpus: 1,
        memory: Bytes::mib(256),
        arch: "x86_64".to_owned(),
        machine: "q35".to_owned(),
        cpu: Cpu::Default,
        firmware: Firmware::Bios,
        disks: vec![disk(0, 1 << 20), disk(1, (1 << 20) + 512)],
        nics: vec![NewNic {
            mac: "52:54:00:00:00:02".to_owned(),
            model: "virtio".to_owned(),
            network: NetworkRef::Network("default".to_owned()),
            address: None,
        }],
        autostart: true,
        appliance: ApplianceRef { kernel: String::new(), initrd: String::new() },
        channels: 2,
        helper_nic: None,
        helper_args: Vec::new(),
    }
}

#[tokio::test]
async fn the_memory_cloud_keeps_every_rule() {
    let name: SiteName = "east".parse().unwrap();
    let world = World::new();
    let site = world.site(&name);
    let source = world.seed(&name, Seed::new("web1").disks(&[1 << 20, 100_000]));
    let fixture = Fixture {
        source,
        placeholder: spec(),
        appliance: ApplianceFiles {
            kernel: PathBuf::from("/nonexistent/kernel"),
            initrd: PathBuf::from("/nonexistent/initrd"),
            digest: Digest([7; 32]),
            pool: "default".to_owned(),
        },
        stranger: "stranger-1".parse().unwrap(),
        content: Box::new({
            let (world, name) = (world.clone(), name.clone());
            move |disk| world.disk(&name, &disk.location).unwrap().lock().unwrap().clone()
        }),
    };
    run(&site, &fixture).await.unwrap_or_else(|breach| panic!("{breach}"));
}
