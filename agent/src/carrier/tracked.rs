//! The disks that are being moved, and who knows what was written to them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use track::{Audited, Doubt, Moment, Preference, TrackedDisk, Tracker, TrackerKind};
use transfer::{BlockRead, Caching, Changes, FileDisk, Sender, SenderLimits, SourceDisk};
use units::{BlockIndex, Bytes, DiskNo, MigrationId, PageMask};
use wire::control::{AgentDisk, TrackerChoice, TrackerReport, TrackerWish};

use crate::inspect::Tree;
use crate::inspect::stat::{DiskStat, of_disk};
use crate::session::lock;
use crate::source::SourceError;

/// Disks, tracker and sender of one migration.
pub struct Tracked {
    /// In the plan's order, as they were asked for.
    pub disks: Vec<AgentDisk>,
    pub report: TrackerReport,
    pub marks: Arc<Marks>,
    pub sender: Sender,
}

/// The tracker, shared between the sender, which takes, and the source, which audits.
pub struct Marks {
    tracker: Mutex<Box<dyn Tracker>>,
    kind: TrackerKind,
}

/// Disks and tracker, before anything is sent: what needs the rights that the carrier gives up.
pub struct Opened {
    sources: Vec<SourceDisk>,
    marks: Arc<Marks>,
    report: TrackerReport,
}

impl Opened {
    /// Opens the disks and starts to track them. Blocking: loads programs into the kernel.
    pub fn open(disks: &[AgentDisk], wish: TrackerWish, tree: &Tree) -> Result<Self, SourceError> {
        let mut tracked = Vec::new();
        let mut sources = Vec::new();
        for disk in disks {
            let node = node_of(tree, disk)?;
            let found = TrackedDisk::find(disk.no, &node, disk.block_size)
                .map_err(|cause| SourceError::NoDisk { device: disk.device.clone(), cause })?;
            if found.size != disk.size {
                let (device, is, planned) = (disk.device.clone(), found.size, disk.size);
                return Err(SourceError::OtherSize { device, is, planned });
            }
            let file = FileDisk::open_source(&node, Caching::Direct)
                .map_err(|cause| SourceError::OpenDisk { device: disk.device.clone(), cause })?;
            let disk_read: Arc<dyn BlockRead> = Arc::new(file);
            let (no, size, block_size) = (disk.no, disk.size, disk.block_size);
            sources.push(SourceDisk { no, size, block_size, disk: disk_read });
            tracked.push(found);
        }
        let preference = match wish {
            TrackerWish::Auto => Preference::Best,
            TrackerWish::Bpf => Preference::Only(TrackerKind::Bpf),
            TrackerWish::Rescan => Preference::Only(TrackerKind::Rescan),
        };
        let (tracker, reason) = track::choose(tracked, preference)?;
        let kind = tracker.kind();
        let report = tracker_report(kind, &reason);
        let marks = Arc::new(Marks { tracker: Mutex::new(tracker), kind });
        Ok(Self { sources, marks, report })
    }
}

impl Tracked {
    pub fn new(
        migration: MigrationId,
        disks: Vec<AgentDisk>,
        opened: Opened,
        limits: SenderLimits,
    ) -> Result<Self, SourceError> {
        let Opened { sources, marks, report } = opened;
        let changes: Arc<dyn Changes> = Arc::<Marks>::clone(&marks);
        let sender = Sender::new(migration, sources, changes, limits)?;
        Ok(Self { disks, report, marks, sender })
    }

    /// What the kernel counts of each disk, where it counts.
    pub fn stats(&self, tree: &Tree) -> Vec<Option<DiskStat>> {
        self.disks.iter().map(|disk| of_disk(tree, &disk.device)).collect()
    }

    /// Every disk whose tracking cannot be trusted, and why. Its pages are all dirty afterwards.
    pub fn doubts(&self, moment: Moment) -> Vec<(DiskNo, String)> {
        let audits = self.disks.iter().map(|disk| (disk.no, self.marks.audit(disk.no, moment)));
        audits.filter_map(|(no, audit)| Some((no, audit.err()?.to_string()))).collect()
    }
}

/// The device node of a disk that the plan names as the kernel does.
fn node_of(tree: &Tree, disk: &AgentDisk) -> Result<PathBuf, SourceError> {
    let name = &disk.device;
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
    if !plain || !tree.exists(format!("sys/block/{name}")) {
        let there = tree.names("sys/block").join(", ");
        return Err(SourceError::UnknownDisk { device: name.clone(), there });
    }
    Ok(tree.path(format!("dev/{name}")))
}

pub fn tracker_report(kind: TrackerKind, reason: &track::Reason) -> TrackerReport {
    TrackerReport { choice: choice(kind), reason: reason.to_string() }
}

pub const fn choice(kind: TrackerKind) -> TrackerChoice {
    match kind {
        TrackerKind::Bpf => TrackerChoice::Bpf,
        TrackerKind::Rescan => TrackerChoice::Rescan,
    }
}

impl Marks {
    pub fn audit(&self, disk: DiskNo, moment: Moment) -> Result<Audited, Doubt> {
        lock(&self.tracker).audit(disk, moment)
    }

    pub const fn kind(&self) -> TrackerKind {
        self.kind
    }
}

impl Changes for Marks {
    fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex> {
        lock(&self.tracker).next_dirty(disk, from)
    }

    fn take(&self, disk: DiskNo, block: BlockIndex) -> PageMask {
        lock(&self.tracker).take(disk, block)
    }

    fn put_back(&self, disk: DiskNo, block: BlockIndex, mask: &PageMask) {
        lock(&self.tracker).put_back(disk, block, mask);
    }

    fn dirty(&self, disk: DiskNo) -> Bytes {
        lock(&self.tracker).dirty(disk).bytes
    }

    fn written(&self, disk: DiskNo) -> Bytes {
        lock(&self.tracker).written(disk)
    }

    fn precise(&self) -> bool {
        self.kind == TrackerKind::Bpf
    }
}
