//! What the kernel says of a block device in sysfs.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fmt, str};

use thiserror::Error;
use units::{BlockCount, BlockSize, Bytes, DiskNo};

use crate::Doubt;

/// The unit of the kernel's disk statistics and sizes, whatever the disk's own sectors are.
pub(crate) const SECTOR_SIZE: u64 = 512;

/// A block device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A whole disk to be tracked.
#[derive(Clone, Debug)]
pub struct TrackedDisk {
    pub no: DiskNo,
    pub device: DeviceId,
    pub size: Bytes,
    /// The unit in which this disk's pages are taken.
    pub block_size: BlockSize,
    /// The kernel's folder on the device.
    pub(crate) sysfs: PathBuf,
}

/// Why a path is no disk that can be tracked.
#[derive(Debug, Error)]
pub enum DeviceError {
    #[error("cannot look at {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },

    #[error("{} is not a block device", path.display())]
    NotABlockDevice { path: PathBuf },

    #[error("{} is a partition: track the disk it lies on", path.display())]
    Partition { path: PathBuf },

    #[error("{} does not hold a number: {text:?}", path.display())]
    NotANumber { path: PathBuf, text: String },
}

impl TrackedDisk {
    /// The disk behind a device node like `/dev/vda`.
    pub fn find(no: DiskNo, node: &Path, block_size: BlockSize) -> Result<Self, DeviceError> {
        let metadata = fs::metadata(node)
            .map_err(|source| DeviceError::Unreadable { path: node.to_owned(), source })?;
        if !metadata.file_type().is_block_device() {
            return Err(DeviceError::NotABlockDevice { path: node.to_owned() });
        }
        let device = DeviceId {
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
        };
        let sysfs = PathBuf::from(format!("/sys/dev/block/{device}"));
        if sysfs.join("partition").exists() {
            return Err(DeviceError::Partition { path: node.to_owned() });
        }
        let size = size_in(&sysfs)?;
        Ok(Self { no, device, size, block_size, sysfs })
    }

    pub fn block_count(&self) -> BlockCount {
        self.block_size.blocks_to_hold(self.size)
    }

    /// Whether the kernel counts this disk's writes (`queue/iostats`).
    pub(crate) fn counts_writes(&self) -> bool {
        fs::read_to_string(self.sysfs.join("queue/iostats")).is_ok_and(|text| text.trim() != "0")
    }

    pub(crate) fn size_now(&self) -> Result<Bytes, DeviceError> {
        size_in(&self.sysfs)
    }
}

fn size_in(sysfs: &Path) -> Result<Bytes, DeviceError> {
    let path = sysfs.join("size");
    let text = fs::read_to_string(&path)
        .map_err(|source| DeviceError::Unreadable { path: path.clone(), source })?;
    let sectors = text.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(SECTOR_SIZE));
    sectors.map(Bytes).ok_or(DeviceError::NotANumber { path, text })
}

/// Which device this is, beyond its number: numbers are given again after a disk is pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Grows with every disk the kernel meets (5.15 and later).
    sequence: Option<String>,
    /// The folder that the number stands for, and its inode: a new one per device.
    folder: PathBuf,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(disk: &TrackedDisk) -> io::Result<Self> {
        let folder = fs::canonicalize(&disk.sysfs)?;
        let inode = fs::metadata(&folder)?.ino();
        let sequence = fs::read_to_string(disk.sysfs.join("diskseq")).ok();
        Ok(Self { sequence, folder, inode })
    }

    /// Whether `disk` is still the one that this was taken of, in its size too.
    pub(crate) fn still(&self, disk: &TrackedDisk) -> Result<(), Doubt> {
        let device = || disk.device.to_string();
        let now = Self::of(disk).map_err(|_| Doubt::Gone { device: device() })?;
        if now != *self {
            return Err(Doubt::Replaced { device: device() });
        }
        let size = disk.size_now().map_err(|_| Doubt::Gone { device: device() })?;
        if size != disk.size {
            return Err(Doubt::Resized { was: disk.size, is: size });
        }
        Ok(())
    }
}

/// The disk's statistics, kept open: reading them takes some microseconds.
#[derive(Debug)]
pub(crate) struct StatFile {
    stat: File,
    /// Tells reads from writes. Where the kernel has no such file, `stat` has to do.
    inflight: Option<File>,
}

/// One reading of a disk's statistics, since the disk appeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Sectors written, zeroes written by command included.
    pub(crate) written: u64,
    pub(crate) discarded: u64,
    /// Writes and discards that the device is working on; reads too where the kernel does not tell
    /// them apart.
    pub(crate) inflight: u64,
}

impl StatFile {
    pub(crate) fn open(disk: &TrackedDisk) -> io::Result<Self> {
        let inflight = File::open(disk.sysfs.join("inflight")).ok();
        Ok(Self { stat: File::open(disk.sysfs.join("stat"))?, inflight })
    }

    pub(crate) fn read(&self) -> io::Result<Stat> {
        // 17 numbers of at most 20 digits, each with a space.
        let mut buffer = [0; 512];
        // First: a write that ends between the two looks is in flight, or counted.
        let inflight = self.inflight.as_ref().and_then(|file| {
            let text = text(file, &mut buffer).ok()?;
            text.split_ascii_whitespace().nth(1)?.parse().ok()
        });
        let text = text(&self.stat, &mut buffer)?;
        let stat = Stat::parse(text, inflight);
        stat.ok_or_else(|| io::Error::other(format!("odd disk statistics: {text:?}")))
    }
}

fn text<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let len = file.read_at(buffer, 0)?;
    Ok(str::from_utf8(&buffer[..len]).unwrap_or_default())
}

impl Stat {
    /// Documentation/block/stat.rst: the fields in order, of which 4.18 and older kernels have the
    /// first 11 and know no discards. The ninth is all that is in flight.
    fn parse(text: &str, inflight: Option<u64>) -> Option<Self> {
        let fields: Option<Vec<u64>> =
            text.split_ascii_whitespace().map(|field| field.parse().ok()).collect();
        let fields = fields?;
        Some(Self {
            written: *fields.get(6)?,
            inflight: inflight.or_else(|| fields.get(8).copied())?,
            discarded: fields.get(13).copied().unwrap_or_default(),
        })
    }
}

/// Bytes written to one disk since the start.
#[derive(Debug)]
pub(crate) struct Written {
    stat: Option<StatFile>,
    at_start: u64,
    /// What was said last: the answer when the disk is gone.
    said: Cell<u64>,
}

impl Written {
    pub(crate) fn start(disk: &TrackedDisk) -> Self {
        let stat = StatFile::open(disk).ok();
        let at_start = stat.as_ref().and_then(|stat| stat.read().ok()).map_or(0, |s| s.written);
        Self { stat, at_start, said: Cell::new(0) }
    }

    pub(crate) fn so_far(&self) -> Bytes {
        if let Some(now) = self.stat.as_ref().and_then(|stat| stat.read().ok()) {
            self.said.set(self.said.get().max(now.written.saturating_sub(self.at_start)));
        }
        Bytes(self.said.get().saturating_mul(SECTOR_SIZE))
    }
}
