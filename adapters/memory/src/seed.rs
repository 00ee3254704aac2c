//! VMs to begin with.

use model::{
    Cpu, Disk, DiskBus, DiskFormat, DiskLocation, DiskUse, Firmware, NetworkRef, Nic, PciAddress,
    Power, Vm, VmId,
};
use units::Bytes;
use uuid::Uuid;

/// A VM that is at a site before the test begins; everything but the name may be left alone.
#[derive(Clone, Debug)]
pub struct Seed {
    pub(crate) vm: Vm,
    pub(crate) contents: Vec<Vec<u8>>,
}

impl Seed {
    /// A running VM with one disk of 1 MiB in the pool `default`, on the network `default`.
    pub fn new(name: &str) -> Self {
        Self::with_disks(name, &[1 << 20])
    }

    /// As [`Seed::new`], with disks of these sizes in bytes, each full of a pattern of its own.
    pub fn with_disks(name: &str, sizes: &[usize]) -> Self {
        let vm = Vm {
            id: VmId(Uuid::new_v4()),
            name: name.to_owned(),
            vcpus: 1,
            memory: Bytes::mib(256),
            arch: "x86_64".to_owned(),
            machine: "q35".to_owned(),
            cpu: Cpu::Default,
            firmware: Firmware::Bios,
            disks: Vec::new(),
            nics: vec![Nic {
                mac: "52:54:00:00:00:01".to_owned(),
                model: "virtio".to_owned(),
                network: NetworkRef::Network("default".to_owned()),
                address: Some(PciAddress { domain: 0, bus: 1, slot: 0, function: 0 }),
            }],
            devices: Vec::new(),
            power: Power::Running,
            autostart: true,
            persistent: true,
        };
        Self { vm, contents: Vec::new() }.disks(sizes)
    }

    /// Its disks, by their sizes in bytes, each full of a pattern of its own.
    #[must_use]
    pub fn disks(self, sizes: &[usize]) -> Self {
        let contents = sizes.iter().zip(1_u8..).map(|(size, seed)| pattern(*size, seed)).collect();
        self.contents(contents)
    }

    /// Its disks, by what is on them.
    #[must_use]
    pub fn contents(mut self, contents: Vec<Vec<u8>>) -> Self {
        let name = self.vm.name.clone();
        self.vm.disks = contents
            .iter()
            .zip('a'..='z')
            .map(|(content, letter)| Disk {
                target: format!("vd{letter}"),
                bus: DiskBus::Virtio,
                format: DiskFormat::Raw,
                size: Bytes(u64::try_from(content.len()).unwrap_or(u64::MAX)),
                allocated: None,
                location: DiskLocation::Volume {
                    pool: "default".to_owned(),
                    volume: format!("{name}-vd{letter}"),
                    path: None,
                },
                usage: DiskUse::Data,
                serial: None,
                address: None,
                boot_order: None,
            })
            .collect();
        self.contents = contents;
        self
    }

    /// Changes anything else of it.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Vm)) -> Self {
        change(&mut self.vm);
        self
    }
}

/// Bytes that repeat neither within a sector nor between disks, so that a misplaced copy shows.
fn pattern(size: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed).wrapping_mul(0x9e37_79b9) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    })
    .take(size)
    .collect()
}
