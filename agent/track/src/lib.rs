//! Which pages of a disk were written: the trackers.

mod device;
mod doubt;
mod rescan;
mod tracker;

pub use device::{DeviceError, DeviceId, TrackedDisk};
pub use doubt::{Doubt, Figures, Sectors};
pub use rescan::Rescan;
pub use tracker::{Audited, Dirty, Moment, Tracker, TrackerKind};
