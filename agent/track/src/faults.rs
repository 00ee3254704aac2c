//! Trackers broken on purpose, to show that the audit notices and that the test would.
//!
//! They load another object than the shipped one, which has no such switch.

use crate::bpf::{Bpf, BpfError, Marking, Object};
use crate::{TrackedDisk, choose};

/// What is broken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// How many of 256 completions the program does not see, at random.
    pub dropped_completions: u32,
    /// How many of 256 issues.
    pub dropped_issues: u32,
    pub trusted: Trusted,
}

/// Which event makes a page dirty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trusted {
    #[default]
    Completion,
    /// As a tracker would do that marks when requests are issued, and then only.
    Issue,
}

impl Faults {
    pub fn start(self, disks: Vec<TrackedDisk>) -> Result<Bpf, BpfError> {
        const OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/track-faults.bpf.o");
        let marking = match self.trusted {
            Trusted::Completion => Marking::Faithful,
            Trusted::Issue => Marking::Swapped,
        };
        let switches =
            [("drop_completions", self.dropped_completions), ("drop_issues", self.dropped_issues)];
        let object = Object { bytes: OBJECT, switches: &switches, marking };
        Bpf::start_object(object, disks, choose::Machine::this().free_memory)
    }
}
