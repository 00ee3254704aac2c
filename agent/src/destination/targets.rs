//! The disks that are written: found by serial number, never mounted, never used by the kernel.

use std::sync::Arc;

use transfer::{BlockWrite, Caching, FileDisk, Holds, TargetDisk};
use units::Bytes;
use wire::control::AgentDisk;

use super::error::DestinationError;
use crate::inspect::{Tree, devices, mounts};

/// A target that is open.
#[derive(Clone)]
pub struct Target {
    pub asked: AgentDisk,
    pub disk: Arc<dyn BlockWrite>,
}

impl Target {
    pub fn open(tree: &Tree, asked: &AgentDisk) -> Result<Self, DestinationError> {
        let name = find(tree, &asked.device)?;
        check(tree, &name, asked)?;
        let node = tree.path(format!("dev/{name}"));
        let disk = FileDisk::open_target(&node, Caching::Direct)
            .map_err(|cause| DestinationError::Open { serial: asked.device.clone(), cause })?;
        tracing::info!(disk = %asked.no, serial = asked.device, device = name, "target attached");
        Ok(Self { asked: asked.clone(), disk: Arc::new(disk) })
    }

    pub fn to_receive(&self) -> TargetDisk {
        TargetDisk {
            no: self.asked.no,
            size: self.asked.size,
            block_size: self.asked.block_size,
            disk: Arc::clone(&self.disk),
            holds: if self.asked.fresh { Holds::Zeros } else { Holds::Anything },
        }
    }
}

/// The disk whose serial number is `serial`. Devices report at most 20 bytes of it over virtio, so
/// a longer one is known by its beginning.
fn find(tree: &Tree, serial: &str) -> Result<String, DestinationError> {
    const VIRTIO_SERIAL_MAX: usize = 20;
    let cut = serial.get(..VIRTIO_SERIAL_MAX).unwrap_or(serial);
    let disks: Vec<(String, String)> = tree
        .names("sys/block")
        .into_iter()
        .map(|name| (devices::serial(tree, &name).unwrap_or_default(), name))
        .collect();
    let found: Vec<&str> = disks
        .iter()
        .filter(|(known, _)| !serial.is_empty() && (known == serial || known == cut))
        .map(|(_, name)| name.as_str())
        .collect();
    match found.as_slice() {
        [name] => Ok((*name).to_owned()),
        [] => {
            let there: Vec<String> =
                disks.into_iter().map(|(serial, name)| format!("{name} {serial:?}")).collect();
            Err(DestinationError::NoTarget { serial: serial.to_owned(), there: there.join(", ") })
        }
        names => {
            let names = names.join(", ");
            Err(DestinationError::TwoTargets { serial: serial.to_owned(), names })
        }
    }
}

/// Nothing in this machine may write to a target but this agent.
fn check(tree: &Tree, name: &str, asked: &AgentDisk) -> Result<(), DestinationError> {
    let serial = || asked.device.clone();
    let is = Bytes(tree.number::<u64>(format!("sys/block/{name}/size")).unwrap_or(0) * 512);
    if is < asked.size {
        return Err(DestinationError::TooSmall { serial: serial(), is, planned: asked.size });
    }
    if tree.text(format!("sys/block/{name}/ro")).as_deref() == Some("1") {
        return Err(DestinationError::ReadOnly { serial: serial() });
    }
    let class = format!("sys/class/block/{name}");
    let mut parts = vec![name.to_owned()];
    let partition = |part: &String| tree.exists(format!("{class}/{part}/partition"));
    parts.extend(tree.names(&class).into_iter().filter(partition));
    for part in parts {
        if let Some(holder) = tree.names(format!("sys/class/block/{part}/holders")).first() {
            return Err(DestinationError::InUse { serial: serial(), by: holder.clone() });
        }
        let number = tree.number_of(&part);
        let mounted = mounts::own(tree).into_iter().find(|mount| Some(mount.device) == number);
        if let Some(mount) = mounted {
            return Err(DestinationError::InUse { serial: serial(), by: mount.path });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use units::{BlockSize, DiskNo};

    use super::*;
    use crate::inspect::testing::FakeSystem;

    fn asked(serial: &str, sectors: u64) -> AgentDisk {
        AgentDisk {
            no: DiskNo(0),
            size: Bytes(sectors * 512),
            block_size: BlockSize::MIN,
            device: serial.to_owned(),
            fresh: true,
        }
    }

    fn system() -> FakeSystem {
        let system = FakeSystem::new();
        system.disk("vda", "254:0", 100).file("sys/block/vda/serial", "causeway-0");
        system.disk("vdb", "254:16", 100).file("sys/block/vdb/serial", "a-serial-of-20-bytes");
        system
    }

    #[test]
    fn a_target_is_known_by_its_serial_number_even_cut_short() {
        let tree = system().tree();
        drop(tree);
        let system = system();
        assert_eq!(find(&system.tree(), "causeway-0").unwrap(), "vda");
        assert_eq!(find(&system.tree(), "a-serial-of-20-bytes-and-more").unwrap(), "vdb");
        assert!(matches!(find(&system.tree(), "causeway"), Err(DestinationError::NoTarget { .. })));
        assert!(matches!(find(&system.tree(), ""), Err(DestinationError::NoTarget { .. })));
    }

    #[test]
    fn two_disks_of_one_serial_number_are_refused() {
        let system = system();
        system.disk("vdc", "254:32", 100).file("sys/block/vdc/serial", "causeway-0");
        assert!(matches!(
            find(&system.tree(), "causeway-0"),
            Err(DestinationError::TwoTargets { .. })
        ));
    }

    #[test]
    fn a_target_that_is_small_read_only_or_in_use_is_refused() {
        let system = system();
        assert!(check(&system.tree(), "vda", &asked("causeway-0", 100)).is_ok());
        let small = check(&system.tree(), "vda", &asked("causeway-0", 101));
        assert!(matches!(small, Err(DestinationError::TooSmall { .. })));
        system.partition("vda", "vda1", "254:1").stacked("dm-0", "253:0", &["vda1"]);
        let used = check(&system.tree(), "vda", &asked("causeway-0", 100));
        assert!(matches!(used, Err(DestinationError::InUse { .. })), "{used:?}");
        system.mountinfo("20 1 254:16 / /mnt rw - ext4 /dev/vdb rw\n");
        let mounted = check(&system.tree(), "vdb", &asked("x", 100));
        assert!(matches!(mounted, Err(DestinationError::InUse { .. })), "{mounted:?}");
        system.file("sys/block/vdb/ro", "1");
        let fixed = check(&system.tree(), "vdb", &asked("x", 100));
        assert!(matches!(fixed, Err(DestinationError::ReadOnly { .. })));
    }
}
