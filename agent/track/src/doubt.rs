//! Why a tracker is not to be trusted.

use thiserror::Error;
use units::Bytes;

/// Why what was tracked on a disk since the last audit cannot be trusted. The disk is compared by
/// hash, whatever the reason.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Doubt {
    #[error("the kernel's statistics and the tracker do not agree: {figures}")]
    Unbalanced { figures: Figures },

    #[error("{requests} passthrough requests (SG_IO, NVMe ioctl) may have written anywhere")]
    Passthrough { requests: u64 },

    #[error("{requests} writes lie outside the map")]
    OutsideMap { requests: u64 },

    #[error("the disk's size changed from {was} to {is}")]
    Resized { was: Bytes, is: Bytes },

    #[error("another device took the number {device}")]
    Replaced { device: String },

    #[error("the disk is gone: {device}")]
    Gone { device: String },

    #[error("the kernel's disk statistics were off (queue/iostats)")]
    IostatsOff,

    #[error("the disk was too busy to take a baseline when tracking started")]
    NoBaseline,

    #[error("the disk is still busy though nothing should write")]
    StillBusy,
}

/// What an audit compared, in sectors of 512 bytes since the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// By the kernel's statistics.
    pub kernel: Sectors,
    /// Seen completed.
    pub completed: Sectors,
    /// Seen issued, less what was put back into its queue.
    pub issued: Sectors,
}

/// Sectors of 512 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sectors {
    pub written: u64,
    pub discarded: u64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "sectors written {} counted, {} completed, {} issued; discarded {} counted, {} completed, {} issued",
            self.kernel.written,
            self.completed.written,
            self.issued.written,
            self.kernel.discarded,
            self.completed.discarded,
            self.issued.discarded,
        )
    }
}
