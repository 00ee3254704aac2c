//! Brings the guest's disks to rest, and puts it back.
//!
//! ```text
//!  stop services → hooks → swap off → no raw writers left → write out what they left
//!       │     → sync → freeze, deepest first → look again
//!       ╰──────┴── each failure ──┴──────────────┴──── put it all back
//! ```
//!
//! Every step is told to the [`warden`] before it is taken, so that a guest whose agent dies in
//! the middle puts itself back. While file systems are frozen this process allocates and logs in
//! memory only.

mod devices;
mod ear;
pub mod guard;
pub mod hooks;
mod services;
mod undo;
pub mod warden;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use thiserror::Error;
use units::Bytes;
use wire::control::{ErrorCode, RawWriter};

use crate::failure::Blame;
use crate::inspect::filesystems::{self, Mounted};
use crate::inspect::mounts::{self, DeviceNumber};
use crate::inspect::stack::Stack;
use crate::inspect::swaps::{self, Swap};
use crate::inspect::{self, Tree, writers};
use crate::sys;
use ear::Ear;
use guard::{Guard, GuardError};
use hooks::CommandError;
pub use services::systemd_runs;
use undo::{Done, Undo};
use warden::{Warden, WardenError};

/// What has to stay free when swap is emptied into memory.
const MEMORY_MARGIN: Bytes = Bytes::mib(64);

/// Programs like udev open a device for a moment only: how often it is looked again, and when.
const WRITER_LOOKS: u32 = 10;
const WRITER_PAUSE: Duration = Duration::from_millis(100);

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// systemd services to stop.
    pub units: Vec<String>,
    pub hooks: Vec<String>,
    pub thaw_hooks: Vec<String>,
    pub thaw_after: Duration,
    /// The whole disks whose writes are tracked, by name. Nothing else is ever frozen.
    pub tracked: BTreeSet<String>,
}

#[derive(Debug, Error)]
pub enum QuiesceError {
    #[error("systemd does not run this guest, so these services cannot be stopped: {units}")]
    NoSystemd { units: String },

    #[error("not the name of a service: {name:?}")]
    UnitName { name: String },

    #[error(transparent)]
    Command(#[from] CommandError),

    #[error("{used} are swapped out and {available} of memory are available: they do not fit")]
    SwapMemory { used: Bytes, available: Bytes },

    #[error("cannot turn swap {path} off")]
    SwapOff { path: String, source: io::Error },

    #[error("programs write to disks past any file system: {writers}")]
    Writers { writers: String },

    #[error("what was written to /dev/{device} past any file system cannot be written out")]
    WriteOut { device: String, source: io::Error },

    #[error("file systems on {devices} are in use, but no longer mounted anywhere")]
    Unreachable { devices: String },

    #[error(transparent)]
    Guard(#[from] GuardError),

    #[error("{path} ({kind}) cannot be frozen, and cannot be made read-only")]
    NotFreezable { path: String, kind: String, source: io::Error },

    #[error("{path} is frozen already, by something else")]
    AlreadyFrozen { path: String },

    #[error("cannot freeze {path}")]
    Freeze { path: String, source: io::Error },

    #[error("changed while it was being frozen: {what}")]
    Changed { what: String },

    #[error("called off")]
    CalledOff,

    #[error("the deadline passed before everything was frozen")]
    TooLate,

    #[error(transparent)]
    Warden(#[from] WardenError),
}

/// The guest could not be brought to rest.
#[derive(Debug, Error)]
#[error("the guest was put back as it was{}", list(complaints))]
pub struct QuiesceFailed {
    pub cause: QuiesceError,
    /// What could not be put back.
    pub complaints: Vec<String>,
}

fn list(complaints: &[String]) -> String {
    if complaints.is_empty() { String::new() } else { format!(", but: {}", complaints.join("; ")) }
}

impl Blame for QuiesceFailed {
    fn code(&self) -> ErrorCode {
        match self.cause {
            QuiesceError::NoSystemd { .. } => ErrorCode::Unsupported,
            _ => ErrorCode::Quiesce,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match &self.cause {
            QuiesceError::NoSystemd { .. } => "stop them in a hook instead",
            QuiesceError::SwapMemory { .. } => {
                "free memory in the guest, or stop a large service for the switchover"
            }
            QuiesceError::Writers { .. } => {
                "stop these programs by naming their services or in a hook"
            }
            QuiesceError::WriteOut { .. } => "see the guest's kernel log for errors of this device",
            QuiesceError::Unreachable { .. } => {
                "end the programs that keep files on them open (lsof +L1), or restart the guest"
            }
            QuiesceError::Guard(GuardError::Untracked { .. }) => {
                "take the missing disk into the migration"
            }
            QuiesceError::NotFreezable { .. } => {
                "stop what keeps files on it open for writing, or unmount it in a hook"
            }
            QuiesceError::AlreadyFrozen { .. } => {
                "end the backup or snapshot that is under way, then try again"
            }
            QuiesceError::TooLate => "allow a longer time, or copy until less is dirty",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// A guest at rest. Dropped without [`Quiesced::put_back`], its warden puts it back.
#[derive(Debug)]
pub struct Quiesced {
    warden: Warden,
    guards: Arc<Vec<Guard>>,
    undo: Undo,
    ear: Ear,
}

/// Brings it to rest. `on_thawed` is called if it thaws by itself later.
pub fn quiesce(
    order: &Order,
    tree: &Tree,
    called_off: &AtomicBool,
    on_thawed: impl Fn() + Send + 'static,
) -> Result<Quiesced, QuiesceFailed> {
    let failed = |cause| QuiesceFailed { cause, complaints: Vec::new() };
    check_units(&order.units).map_err(failed)?;
    let warden = Warden::start().map_err(|error| failed(error.into()))?;
    let mut work = Work { order, tree, called_off, warden, undo: Undo::default() };
    let guards = match work.prepare().and_then(|()| work.guards()) {
        Ok(guards) => Arc::new(guards),
        Err(cause) => return Err(work.give_up(&[], cause)),
    };
    let ear = match Ear::open(&work.warden, &guards, on_thawed) {
        Ok(ear) => ear,
        Err(cause) => return Err(work.give_up(&guards, cause.into())),
    };
    let frozen = work.freeze(&guards).and_then(|()| work.look_again(&guards));
    let frozen =
        frozen.and_then(|()| if ear.thawed() { Err(QuiesceError::TooLate) } else { Ok(()) });
    if let Err(cause) = frozen {
        ear.expect_end();
        return Err(work.give_up(&guards, cause));
    }
    Ok(Quiesced { warden: work.warden, guards, undo: work.undo, ear })
}

impl Quiesced {
    /// Moves the deadline. An error: it has thawed already.
    pub fn extend(&mut self, thaw_after: Duration) -> Result<(), QuiesceError> {
        self.ear.expect_count();
        self.warden.deadline(thaw_after)?;
        if self.ear.counts() { Ok(()) } else { Err(QuiesceError::TooLate) }
    }

    /// Did it thaw by itself?
    pub fn thawed(&self) -> bool {
        self.ear.thawed()
    }

    /// Thaws, and undoes the rest; says what could not be undone. `hooks`, if there are any, stand
    /// for the thaw hooks of the order.
    pub fn put_back(mut self, hooks: &[String]) -> Vec<String> {
        self.ear.expect_end();
        thaw(&self.guards);
        self.undo.replace_hooks(hooks);
        let complaints = self.undo.put_back();
        self.warden.release();
        complaints
    }
}

fn check_units(units: &[String]) -> Result<(), QuiesceError> {
    if let Some(name) = units.iter().find(|name| !services::is_unit_name(name)) {
        return Err(QuiesceError::UnitName { name: name.clone() });
    }
    if !units.is_empty() && !services::systemd_runs() {
        return Err(QuiesceError::NoSystemd { units: units.join(", ") });
    }
    Ok(())
}

/// Every writable file system on a tracked disk. What lies on a file of another one comes before
/// that, and a mount before those above it; the root is last.
fn writable(tree: &Tree, tracked: &BTreeSet<String>) -> Result<Vec<Mounted>, QuiesceError> {
    let mounts = mounts::all(tree);
    let stack = Stack::new(tree, &mounts);
    let mut lost = filesystems::unreachable(tree, &mounts);
    lost.retain(|device| !stack.ground(device).disks.is_disjoint(tracked));
    if !lost.is_empty() {
        let devices = lost.into_iter().collect::<Vec<_>>().join(", ");
        return Err(QuiesceError::Unreachable { devices });
    }
    let mut found = filesystems::mounted(tree, &mounts);
    found.retain(|one| one.writable() && !one.ground.disks.is_disjoint(tracked));
    found.sort_by_key(|one| {
        let depth = one.mount.path.split('/').filter(|part| !part.is_empty()).count();
        std::cmp::Reverse((one.ground.loops, depth))
    });
    Ok(found)
}

/// In the opposite order of freezing. What is not frozen is as wanted.
fn thaw(guards: &[Guard]) {
    for guard in guards.iter().rev() {
        let _thawed = guard.thaw();
    }
}

/// The steps under way.
struct Work<'a> {
    order: &'a Order,
    tree: &'a Tree,
    called_off: &'a AtomicBool,
    warden: Warden,
    undo: Undo,
}

impl Work<'_> {
    /// All that can be done before anything is frozen.
    fn prepare(&mut self) -> Result<(), QuiesceError> {
        for unit in &self.order.units {
            self.go_on()?;
            if services::is_active(unit) {
                self.record(Done::Stopped { unit: unit.clone() })?;
                services::stop(unit)?;
            }
        }
        if !self.order.hooks.is_empty() || !self.order.thaw_hooks.is_empty() {
            self.record(Done::Hooked { thaw_hooks: self.order.thaw_hooks.clone() })?;
        }
        for hook in &self.order.hooks {
            self.go_on()?;
            hooks::run(hook, "quiesce", hooks::COMMAND_TIMEOUT)?;
        }
        self.swap_off()?;
        self.go_on()?;
        self.no_writers()?;
        self.go_on()?;
        devices::write_out(self.tree, &self.order.tracked)
            .map_err(|(device, source)| QuiesceError::WriteOut { device, source })
    }

    fn go_on(&self) -> Result<(), QuiesceError> {
        let off = self.called_off.load(Ordering::Relaxed);
        if off { Err(QuiesceError::CalledOff) } else { Ok(()) }
    }

    fn record(&mut self, done: Done) -> Result<(), QuiesceError> {
        self.warden.doing(&done)?;
        self.undo.record(done);
        Ok(())
    }

    fn swap_off(&mut self) -> Result<(), QuiesceError> {
        let found = self.swaps_on_tracked_disks();
        let used = found.iter().map(|swap| swap.used).sum();
        let available = inspect::memory(self.tree, "MemAvailable:").unwrap_or(Bytes::ZERO);
        if used > available.saturating_sub(MEMORY_MARGIN) && used > Bytes::ZERO {
            return Err(QuiesceError::SwapMemory { used, available });
        }
        for Swap { path, priority, .. } in found {
            self.go_on()?;
            self.record(Done::SwappedOff { path: path.clone(), priority })?;
            sys::swap_off(&path).map_err(|source| QuiesceError::SwapOff { path, source })?;
        }
        Ok(())
    }

    fn swaps_on_tracked_disks(&self) -> Vec<Swap> {
        let mounts = mounts::own(self.tree);
        let stack = Stack::new(self.tree, &mounts);
        let mut found = swaps::swaps(self.tree);
        found.retain(|swap| swaps::disks(&stack, swap).iter().any(|disk| self.tracks(disk)));
        found
    }

    fn tracks(&self, disk: &String) -> bool {
        self.order.tracked.contains(disk)
    }

    fn no_writers(&self) -> Result<(), QuiesceError> {
        let mounts = mounts::own(self.tree);
        let stack = Stack::new(self.tree, &mounts);
        let mut left = Vec::new();
        for _ in 0..WRITER_LOOKS {
            left = writers::raw_writers(self.tree, &stack);
            left.retain(|writer| writer.disks.iter().any(|disk| self.tracks(disk)));
            if left.is_empty() {
                return Ok(());
            }
            sleep(WRITER_PAUSE);
        }
        let name = |w: &RawWriter| format!("{} (pid {}) to {}", w.program, w.pid, w.device);
        let writers = left.iter().map(name).collect::<Vec<_>>().join(", ");
        Err(QuiesceError::Writers { writers })
    }

    /// Every writable file system on a tracked disk, open and known to the warden, in the order in
    /// which they are to be frozen. What cannot be frozen is read-only afterwards.
    fn guards(&mut self) -> Result<Vec<Guard>, QuiesceError> {
        let mut guards = Vec::new();
        for file_system in writable(self.tree, &self.order.tracked)? {
            let guard = Guard::of(&file_system, &self.order.tracked)?;
            if file_system.freezable() {
                self.warden.opening(guard.place())?;
                guards.push(guard);
                continue;
            }
            let mounts::Mount { path, kind, options, .. } = file_system.mount;
            self.record(Done::Remounted { path: path.clone(), options: options.clone() })?;
            guard
                .sync()
                .and_then(|()| undo::make_read_only(&path, &options))
                .map_err(|source| QuiesceError::NotFreezable { path, kind, source })?;
        }
        Ok(guards)
    }

    fn freeze(&mut self, guards: &[Guard]) -> Result<(), QuiesceError> {
        // Twice: the first may take long, and what is written meanwhile is the second's.
        for guard in guards.iter().chain(guards) {
            self.go_on()?;
            let path = || guard.place().path.clone();
            guard.sync().map_err(|source| QuiesceError::Freeze { path: path(), source })?;
        }
        self.warden.deadline(self.order.thaw_after)?;
        for (number, guard) in (0..).zip(guards) {
            self.go_on()?;
            self.warden.freezing(number)?;
            guard.freeze().map_err(|source| {
                let path = guard.place().path.clone();
                match source.raw_os_error() {
                    Some(libc::EBUSY) => QuiesceError::AlreadyFrozen { path },
                    _ => QuiesceError::Freeze { path, source },
                }
            })?;
            self.warden.frozen(number)?;
        }
        Ok(())
    }

    /// Did anything appear between looking and freezing?
    fn look_again(&self, guards: &[Guard]) -> Result<(), QuiesceError> {
        let at_rest: BTreeSet<DeviceNumber> = mounts::all(self.tree)
            .into_iter()
            .filter(|mount| guards.iter().any(|guard| guard.place().mount_id == mount.id))
            .map(|mount| mount.device)
            .collect();
        let changed = |what: &str| Err(QuiesceError::Changed { what: what.to_owned() });
        let writable = writable(self.tree, &self.order.tracked)?;
        if let Some(new) = writable.iter().find(|one| !at_rest.contains(&one.mount.device)) {
            return changed(&format!("{} was mounted", new.mount.path));
        }
        if let Some(swap) = self.swaps_on_tracked_disks().first() {
            return changed(&format!("swap {} was turned on", swap.path));
        }
        self.no_writers()
    }

    fn give_up(mut self, guards: &[Guard], cause: QuiesceError) -> QuiesceFailed {
        // One that something else froze is not ours to thaw.
        let foreign = match &cause {
            QuiesceError::AlreadyFrozen { path } => {
                guards.iter().position(|guard| guard.place().path == *path)
            }
            _ => None,
        };
        thaw(&guards[..foreign.unwrap_or(guards.len())]);
        let complaints = self.undo.put_back();
        self.warden.release();
        QuiesceFailed { cause, complaints }
    }
}

#[cfg(test)]
mod tests;
