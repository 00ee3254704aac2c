//! Which tracker a machine gets, and why.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use thiserror::Error;
use units::{Bytes, DiskNo};

use crate::bpf::{Bpf, BpfError};
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
    Bpf { release: String, kernel_memory: Bytes },
    AskedForRescan,
    NoBpf(Obstacle),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bpf { release, kernel_memory } => {
                write!(f, "kernel {release} tracks by BPF, {kernel_memory} of marks")
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
            let kernel_memory = bpf.facts().kernel_memory;
            Ok((Box::new(bpf), Reason::Bpf { release: machine.release, kernel_memory }))
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
