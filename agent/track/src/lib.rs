//! Which pages of a disk were written: the trackers.

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
