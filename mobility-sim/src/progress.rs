//! How far the data of a migration is, in the log and for whoever asks the site.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use site::Site;
use site_ledger::{LiveWire, keep_wire};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{debug, info};
use units::{Bytes, chain};

use crate::custody::Carried;
use crate::ledger::Attempt;
use crate::relay::Meter;

/// Bytes of one migration, from the source's hypervisor and back.
#[derive(Clone, Debug, Default)]
pub struct Meters {
    pub memory: Arc<Meter>,
    pub disks: Arc<Meter>,
}

const EVERY: Duration = Duration::from_secs(10);
/// A coordinator looks once a second.
const TOLD_EVERY: Duration = Duration::from_secs(2);

impl Meters {
    /// Until it is dropped.
    pub async fn report(&self) {
        let mut due = interval_at(Instant::now() + EVERY, EVERY);
        loop {
            due.tick().await;
            self.show("under way");
        }
    }

    /// Writes to disks that the source's hypervisor takes for done, and that are not answered.
    pub fn owed(&self) -> u64 {
        self.disks.owed.load(Ordering::Relaxed)
    }

    /// What the source's hypervisor has sent.
    pub fn taken(&self) -> Carried {
        let of = |meter: &Meter| Bytes(meter.taken.load(Ordering::Relaxed));
        Carried { memory: of(&self.memory), disks: of(&self.disks) }
    }

    /// What has reached the destination's.
    pub fn given(&self) -> Carried {
        let of = |meter: &Meter| Bytes(meter.given.load(Ordering::Relaxed));
        Carried { memory: of(&self.memory), disks: of(&self.disks) }
    }

    /// Tells the site of it, until it is dropped.
    pub async fn told_to(&self, site: &dyn Site, attempt: &Attempt) {
        let mut due = interval_at(Instant::now() + TOLD_EVERY, TOLD_EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            self.tell(site, attempt).await;
        }
    }

    /// For people: a migration does not end for it.
    pub async fn tell(&self, site: &dyn Site, attempt: &Attempt) {
        let ((memory, memory_wire), (disks, disks_wire)) = self.both();
        let counted =
            LiveWire { carried: Bytes(memory + disks), wire: Bytes(memory_wire + disks_wire) };
        let Ok(vm) = attempt.paper.vm_key() else { return };
        if let Err(error) = keep_wire(site, &vm, attempt.epoch, counted).await {
            debug!("how far it is is not on record: {}", chain(&error));
        }
    }

    /// Of memory and of disks: what hypervisors said, and what that was on the line.
    fn both(&self) -> ((u64, u64), (u64, u64)) {
        let read = |meter: &Meter| {
            let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
            (of(&meter.taken) + of(&meter.given), of(&meter.sent) + of(&meter.received))
        };
        (read(&self.memory), read(&self.disks))
    }

    pub fn show(&self, how_far: &str) {
        let ((memory, memory_wire), (disks, disks_wire)) = self.both();
        let wire = memory_wire + disks_wire;
        info!(memory, disks, wire, ratio = %ratio(memory + disks, wire), "data {how_far}");
    }
}

/// How many bytes one on the line stood for, to a hundredth.
fn ratio(raw: u64, wire: u64) -> String {
    if wire == 0 {
        return "-".to_owned();
    }
    let hundredths = u128::from(raw) * 100 / u128::from(wire);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::ratio;

    #[test]
    fn a_ratio_is_what_one_byte_on_the_line_stood_for() {
        assert_eq!(ratio(250, 100), "2.50");
        assert_eq!(ratio(7, 0), "-");
        assert_eq!(ratio(u64::MAX, u64::MAX), "1.00");
    }
}
