//! Which tracker a machine gets, and why.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use thiserror::Error;
use units::{Bytes, DiskNo};

use crate::bpf::{Bpf, BpfError, Facts};
use crate::{Rescan, TrackedDisk, Tracker, TrackerKind};

/// Since 5.12 programs have an atomic OR; in older ones block_rq_issue has another signature too.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// BPF where it can be had.
    #[default]
    Best,
    /// This one, or an error.
    Only(TrackerKind),
}

/// Why this tracker: for the operator.
#[derive(Debug)]
pub enum Reason {
    Bpf { release: String, facts: Facts },
    AskedForRescan,
    NoBpf(Obstacle),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bpf { release, facts } => {
                write!(f, "kernel {release} tracks by BPF, {} of marks", facts.kernel_memory)
            }
            Self::AskedForRescan => f.write_str("rescan by hash, as asked for"),
            Self::NoBpf(obstacle) => write!(f, "{}: rescan by hash", obstacle.chain()),
        }
    }
}

/// Why a machine or a disk cannot be tracked by BPF.
#[derive(Debug, Error)]
pub enum Obstacle {
    #[error("kernel {release} is older than 5.12")]
    KernelTooOld { release: String },

    #[error("kernel {release} has no BTF")]
    NoTypes { release: String },

    #[error("not running as root")]
    NotRoot,

    /// Its writes do not become requests: pmem, zram, brd, NVMe multipath and other bio-based disks.
    #[error("disk {disk} ({device}) does not work by requests")]
    NotByRequests { disk: DiskNo, device: String },

    #[error("disk {disk} ({device}) is zoned")]
    Zoned { disk: DiskNo, device: String },

    #[error("the kernel does not count what disk {disk} ({device}) writes")]
    IostatsOff { disk: DiskNo, device: String },

    #[error(transparent)]
    Bpf(#[from] BpfError),
}

impl Obstacle {
    /// What the operator can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::NotRoot => "run the agent as root or by sudo".to_owned(),
            Self::IostatsOff { device, .. } => {
                format!("echo 1 > /sys/dev/block/{device}/queue/iostats")
            }
            Self::Bpf(BpfError::Program { .. } | BpfError::Object(_)) => {
                "see whether kernel lockdown forbids BPF (cat /sys/kernel/security/lockdown), or \
                 let the tracker be chosen"
                    .to_owned()
            }
            _ => "let the tracker be chosen: the disks are then rescanned by hash".to_owned(),
        }
    }

    /// With all its causes, in one line.
    fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// BPF was asked for and cannot be had.
#[derive(Debug, Error)]
#[error("the BPF tracker cannot be used here")]
pub struct ChooseError {
    #[from]
    pub obstacle: Obstacle,
}

/// Starts the best tracker for these disks, or the one asked for.
///
/// All disks get the same kind: one that BPF cannot see makes them all be rescanned.
pub fn choose(
    disks: Vec<TrackedDisk>,
    preference: Preference,
) -> Result<(Box<dyn Tracker>, Reason), ChooseError> {
    let rescan = |disks, reason| {
        let tracker: Box<dyn Tracker> = Box::new(Rescan::start(disks));
        Ok((tracker, reason))
    };
    if preference == Preference::Only(TrackerKind::Rescan) {
        return rescan(disks, Reason::AskedForRescan);
    }
    let machine = Machine::this();
    let started = machine.obstacle(&disks).map_or_else(
        || Bpf::start(disks.clone(), machine.free_memory).map_err(Obstacle::from),
        Err,
    );
    match started {
        Ok(bpf) => {
            let facts = bpf.facts();
            Ok((Box::new(bpf), Reason::Bpf { release: machine.release, facts }))
        }
        Err(obstacle) if preference == Preference::Best => rescan(disks, Reason::NoBpf(obstacle)),
        Err(obstacle) => Err(ChooseError { obstacle }),
    }
}

/// What decides about a machine before anything is loaded.
#[derive(Debug)]
pub(crate) struct Machine {
    release: String,
    types: PathBuf,
    is_root: bool,
    pub(crate) free_memory: Bytes,
}

impl Machine {
    pub(crate) fn this() -> Self {
        Self {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            types: PathBuf::from(KERNEL_TYPES),
            is_root: rustix::process::geteuid().is_root(),
            free_memory: free_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        }
    }

    fn obstacle(&self, disks: &[TrackedDisk]) -> Option<Obstacle> {
        let release = || self.release.clone();
        if version(&self.release).is_none_or(|version| version < OLDEST_KERNEL) {
            return Some(Obstacle::KernelTooOld { release: release() });
        }
        if !self.types.exists() {
            return Some(Obstacle::NoTypes { release: release() });
        }
        if !self.is_root {
            return Some(Obstacle::NotRoot);
        }
        disks.iter().find_map(obstacle_of)
    }
}

fn obstacle_of(disk: &TrackedDisk) -> Option<Obstacle> {
    let (no, device) = (disk.no, disk.device.to_string());
    // The kernel shows the queues of blk-mq there; bio-based disks have none.
    if !disk.sysfs.join("mq").exists() {
        return Some(Obstacle::NotByRequests { disk: no, device });
    }
    if is_zoned(&disk.sysfs) {
        return Some(Obstacle::Zoned { disk: no, device });
    }
    (!disk.counts_writes()).then_some(Obstacle::IostatsOff { disk: no, device })
}

fn is_zoned(sysfs: &Path) -> bool {
    fs::read_to_string(sysfs.join("queue/zoned")).is_ok_and(|model| model.trim() != "none")
}

/// Major and minor of a kernel release like `6.1.0-56-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What /proc/meminfo calls available; nothing when it does not say.
fn free_memory(meminfo: &str) -> Bytes {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Bytes(kib.unwrap_or_default().saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use units::BlockSize;

    use super::*;
    use crate::DeviceId;

    /// A machine and a disk on which nothing stands in the way.
    fn fit() -> (Machine, TrackedDisk, TempDir) {
        let sysfs = tempfile::tempdir().unwrap();
        fs::create_dir_all(sysfs.path().join("mq")).unwrap();
        fs::create_dir_all(sysfs.path().join("queue")).unwrap();
        fs::write(sysfs.path().join("queue/iostats"), "1\n").unwrap();
        fs::write(sysfs.path().join("queue/zoned"), "none\n").unwrap();
        let machine = Machine {
            release: "6.1.0-56-cloud-amd64".to_owned(),
            types: sysfs.path().to_owned(),
            is_root: true,
            free_memory: Bytes::mib(1024),
        };
        let disk = TrackedDisk {
            no: DiskNo(1),
            device: DeviceId { major: 254, minor: 16 },
            size: Bytes::mib(100),
            block_size: BlockSize::MIN,
            sysfs: sysfs.path().to_owned(),
        };
        (machine, disk, sysfs)
    }

    fn said(machine: &Machine, disk: &TrackedDisk) -> String {
        let obstacle = machine.obstacle(std::slice::from_ref(disk));
        obstacle.map(|obstacle| Reason::NoBpf(obstacle).to_string()).unwrap_or_default()
    }

    #[test]
    fn nothing_stands_in_the_way_of_a_fit_machine() {
        let (machine, disk, _sysfs) = fit();
        assert_eq!(said(&machine, &disk), "");
    }

    #[test]
    fn each_obstacle_is_named_for_the_operator() {
        let (mut machine, disk, sysfs) = fit();
        fs::write(sysfs.path().join("queue/iostats"), "0\n").unwrap();
        let expected = "the kernel does not count what disk 1 (254:16) writes: rescan by hash";
        assert_eq!(said(&machine, &disk), expected);
        fs::write(sysfs.path().join("queue/zoned"), "host-managed\n").unwrap();
        assert_eq!(said(&machine, &disk), "disk 1 (254:16) is zoned: rescan by hash");
        fs::remove_dir(sysfs.path().join("mq")).unwrap();
        let expected = "disk 1 (254:16) does not work by requests: rescan by hash";
        assert_eq!(said(&machine, &disk), expected);
        machine.is_root = false;
        assert_eq!(said(&machine, &disk), "not running as root: rescan by hash");
        machine.types = sysfs.path().join("absent");
        let expected = "kernel 6.1.0-56-cloud-amd64 has no BTF: rescan by hash";
        assert_eq!(said(&machine, &disk), expected);
        machine.release = "4.19.0-27-amd64".to_owned();
        let expected = "kernel 4.19.0-27-amd64 is older than 5.12: rescan by hash";
        assert_eq!(said(&machine, &disk), expected);
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("5.9.0"), Some((5, 9)));
        assert!(version("5.9.0") < Some(OLDEST_KERNEL) && version("6.1-rc1") > Some(OLDEST_KERNEL));
        assert_eq!(version("odd"), None);
    }

    #[test]
    fn available_memory_is_read() {
        assert_eq!(free_memory("MemFree: 5 kB\nMemAvailable:    2048 kB\n"), Bytes::mib(2));
        assert_eq!(free_memory(""), Bytes::ZERO);
    }

    #[test]
    fn rescan_can_be_asked_for_anywhere() {
        let (_, disk, _sysfs) = fit();
        let only = Preference::Only(TrackerKind::Rescan);
        let (tracker, reason) = choose(vec![disk], only).unwrap();
        assert_eq!(tracker.kind(), TrackerKind::Rescan);
        assert_eq!(reason.to_string(), "rescan by hash, as asked for");
    }
}
