//! Which pages of a guest's disks were written: the trackers.
//!
//! [`choose`] starts the best [`Tracker`] that the machine allows and says why:
//!
//! | tracker | needs | a pass reads |
//! |---|---|---|
//! | [`Bpf`] | Linux 5.12 with BTF, root, disks that work by requests (virtio, SCSI, NVMe, ...) and are counted (`queue/iostats`) | what was written |
//! | [`Rescan`] | nothing | everything |
//!
//! # Nothing is trusted unaudited
//!
//! A tracker that misses one write corrupts a disk silently. So the BPF tracker marks each write
//! twice, and what it saw is held against the kernel's own disk statistics
//! ([`Tracker::audit`]). What does not agree, and whatever else casts a [`Doubt`] (passthrough
//! commands, a disk that grew or was exchanged, statistics switched off), makes every page of the
//! disk dirty: the next pass compares the whole disk by hash.
//!
//! # What no tracker here sees
//!
//! Writes that do not come from this kernel: by another machine to a shared disk, by the host to
//! the image, to the file behind a loop device. Such disks must not be moved by a running guest.
//! Nor Format NVM and Sanitize, which an NVMe controller is told and not its disk.
//!
//! Passthrough commands without data are all doubts, since what they do cannot be told: a program
//! that asks a SCSI disk whether it is ready (multipathd, smartd) costs a rescan each time, and is
//! best stopped for the switchover.
//!
//! # Memory
//!
//! | disks in all | a bit stands for | kernel memory |
//! |---|---|---|
//! | up to just under 2 TiB | 4 KiB | 64 MiB per TiB, allocated at the start |
//! | under 4, 8, ... 128 TiB | 8, 16, ... 256 KiB | at most 128 MiB |
//! | more | | refused: rescan |
//!
//! On a machine short of memory the marks get a sixteenth of what is available and become coarser
//! earlier. The agent's own part is below 1 KiB per GiB, unless pages all over the disk are put
//! back: then up to 32 MiB per TiB.

mod audit;
mod bpf;
mod choose;
mod device;
mod doubt;
#[cfg(feature = "fault-injection")]
pub mod faults;
mod map;
mod marks;
mod overlay;
mod rescan;
mod tracker;
mod watch;

pub use bpf::{Bpf, BpfError, Facts, KERNEL_MEMORY, MAX_DISKS};
pub use choose::{ChooseError, Obstacle, Preference, Reason, choose};
pub use device::{DeviceError, DeviceId, TrackedDisk};
pub use doubt::{Doubt, Figures, Sectors};
pub use rescan::Rescan;
pub use tracker::{Audited, Dirty, Moment, Tracker, TrackerKind};
