//! Is it still the VM that was planned? Time passes: guests reboot, operators attach disks.

use model::WriteCount;
use plan::GuestDevice;
use wire::control::{BlockDevice, Reply, Request};

use crate::agents::Agent;
use crate::error::StepError;
use crate::record::Record;
use crate::run::Run;

impl Run {
    /// Learns, once for each boot of the guest, what it calls its disks: the kernel names them as it
    /// finds them, and two of equal size may have changed places.
    pub(crate) async fn know_guest(&mut self, agent: &Agent) -> Result<(), StepError> {
        if self.state.boot_id.as_ref() == Some(&agent.boot_id) {
            return Ok(());
        }
        let boot_id = agent.boot_id.clone();
        let report = match agent.call(Request::Inspect).await? {
            Reply::Guest(report) => report,
            other => return Err(agent.unexpected(&other).into()),
        };
        let found = guest_devices(report.devices);
        let devices = plan::devices_of(&self.plan.disks, &found)
            .map_err(|refusal| StepError::GuestChanged { what: refusal.text })?;
        for (disk, device) in self.plan.disks.iter().zip(&devices) {
            if *device != disk.device {
                self.watcher.warn(format!(
                    "disk {} is {device} in the guest by now; it was {}",
                    disk.target, disk.device
                ));
            }
        }
        self.record(Record::GuestKnown { boot_id, devices }).await
    }

    /// What the platform has counted of each disk, which are those that were planned: of one that
    /// was attached since nothing was copied, and the fence would take it along.
    pub(crate) async fn planned_counts(&self) -> Result<Vec<WriteCount>, StepError> {
        let counts = self.source.write_counts(self.vm()).await?;
        let planned: Vec<_> = self.plan.disks.iter().map(|disk| disk.target.as_str()).collect();
        same_disks(&planned, &counts)?;
        Ok(counts)
    }
}

/// What an agent found, as plans know it.
pub fn guest_devices(found: Vec<BlockDevice>) -> Vec<GuestDevice> {
    let known = |device: BlockDevice| GuestDevice {
        name: device.name,
        size: device.size,
        serial: device.serial,
        pci: device.pci,
        scsi: device.scsi,
        read_only: device.read_only,
    };
    found.into_iter().map(known).collect()
}

fn same_disks(planned: &[&str], found: &[WriteCount]) -> Result<(), StepError> {
    let changed = |what| Err(StepError::GuestChanged { what });
    if let Some(new) = found.iter().find(|count| !planned.contains(&count.target.as_str())) {
        let name = &new.target;
        return changed(format!(
            "disk {name} was attached after the plan was drawn up and is not copied; detach it and resume, or abort and migrate anew"
        ));
    }
    match planned.iter().find(|name| found.iter().all(|count| count.target != **name)) {
        None => Ok(()),
        Some(gone) => changed(format!(
            "disk {gone} was detached after the plan was drawn up; attach it again and resume, or abort and migrate anew"
        )),
    }
}

#[cfg(test)]
mod tests {
    use units::Bytes;

    use super::*;

    #[test]
    fn a_disk_that_came_or_went_since_the_plan_is_noticed() {
        let count = |target: &str| WriteCount {
            target: target.to_owned(),
            requests: 0,
            bytes: Bytes::ZERO,
        };
        let check = |found: &[&str]| {
            let found: Vec<_> = found.iter().map(|target| count(target)).collect();
            same_disks(&["vda", "vdb"], &found)
        };
        assert!(check(&["vdb", "vda"]).is_ok());
        for found in [&["vda", "vdb", "vdc"][..], &["vda"], &["vda", "vdc"], &[]] {
            assert!(check(found).is_err(), "{found:?}");
        }
    }
}
