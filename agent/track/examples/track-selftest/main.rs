//! Proves a tracker in a guest: writers write, rounds copy what the tracker names, the file
//! systems are frozen, and disk and copy are compared byte by byte.
//!
//! It runs as the guest's init, and as nothing else: it freezes every file system it mounts.
//! `tests/e2e/tests/tracker_in_guest.rs` builds the guest and reads the verdicts off the console.
//!
//! Arguments: `tracker=bpf|rescan|issue-only`, `drop=COMPLETIONS,ISSUES` (of 256), `audit=no`,
//! `runs=N`, `disk=NAME[:PARTITION],FILESYSTEM` (repeated), `raw=NAME` (a disk to discard and zero),
//! `passthrough=NAME` (of the disks).

mod guest;
mod plan;
mod raw;
mod rounds;
mod scsi;
mod writers;

use anyhow::{Context, Result, bail};
use track::{TrackedDisk, Tracker};

use crate::plan::{Kind, Plan};
use crate::rounds::Rounds;
use crate::writers::Writers;

fn main() -> Result<()> {
    if std::process::id() != 1 {
        bail!("this freezes file systems: it only runs as the init of a test guest");
    }
    let result = guest::prepare().and_then(|()| run());
    match result {
        Ok(()) => guest::say("selftest ended"),
        Err(error) => guest::say(&format!("selftest broke: {error:#}")),
    }
    guest::power_off()
}

fn run() -> Result<()> {
    let plan = Plan::parse(std::env::args().skip(1))?;
    let mut names: Vec<&str> = plan.disks.iter().map(|disk| disk.name.as_str()).collect();
    names.extend(plan.raw.as_deref());
    let disks = names
        .iter()
        .enumerate()
        .map(|(no, name)| guest::disk(no, name))
        .collect::<Result<Vec<_>>>()?;
    for disk in &plan.disks {
        guest::mount(&disk.mounted, &disk.file_system)?;
    }

    // Written to before it starts, as a guest is that is to be moved.
    let writers = Writers::start(&plan.disks);
    let mut tracker = start(&plan, disks.clone())?;
    if let Some(name) = &plan.raw {
        let disk = disks.last().context("the raw disk was added last")?;
        raw::discard_and_zero(&mut *tracker, disk, name)?;
    }
    let mut rounds = Rounds::new(&plan, disks)?;
    rounds.copy_everything(&mut *tracker)?;
    for run in 0..plan.runs {
        rounds.run(&mut *tracker, run)?;
    }
    writers.stop()
}

fn start(plan: &Plan, disks: Vec<TrackedDisk>) -> Result<Box<dyn Tracker>> {
    match plan.kind {
        Kind::Chosen(preference) => {
            let (tracker, reason) = track::choose(disks, preference)?;
            guest::say(&format!("chosen {}: {reason}", tracker.kind()));
            guest::say(&format!("reason {reason:?}"));
            Ok(tracker)
        }
        Kind::Broken(faults) => Ok(Box::new(faults.start(disks)?)),
    }
}
