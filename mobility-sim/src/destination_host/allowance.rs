//! How long a VM may stand still is meant for all of it. QEMU counts what it has to send, and no more: the handover
//! comes after that, so that QEMU is allowed less. It stops the VM as soon as what is left fits, and not when there is
//! as little left as there can be: it is allowed little at first, and the rest when that was of no use.

use std::sync::OnceLock;
use std::time::Duration;

use model::VmId;
use site::SiteError;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};
use units::{Bytes, chain};

use crate::custody::Carried;
use crate::progress::Meters;
use crate::serve::Agent;

/// From the last byte until the VM runs, in milliseconds, beyond what libvirt takes by itself (`tests/bench/README.md`).
const HANDOVER_MS: u64 = 120;
/// Of what is allowed, the handover takes one part in so many at most: else little that is written fast would ever
/// fit.
const PARTS: u64 = 2;
/// Of what QEMU is allowed in the end, one part in so many at first.
const FIRST_PARTS: u64 = 6;
/// As QEMU counts its passes over memory, with its first look: then the whole, what changed meanwhile, and what changed
/// while that went. A guest whose memory does not fit by then hardly will.
const PASSES_WITH_LITTLE: u64 = 4;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const RAISE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Its guest may stand still meanwhile, and libvirt puts it back as well.
const PUT_BACK_MAX: Duration = Duration::from_millis(300);

/// QEMU's own setting, which outlives an attempt.
pub struct Allowance {
    vm: VmId,
    lowered: OnceLock<Lowered>,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug)]
struct Lowered {
    /// What it was.
    before: u64,
    first: u64,
    most: u64,
}

impl Lowered {
    fn of(before: u64) -> Self {
        let most = before - HANDOVER_MS.min(before / PARTS);
        Self { before, first: most.div_ceil(FIRST_PARTS), most }
    }
}

impl Allowance {
    pub fn of(vm: VmId) -> Self {
        Self { vm, lowered: OnceLock::new() }
    }

    /// Once data flows: by then libvirt has noted what it was, and puts that back if the VM stays.
    pub async fn lower(&self, agent: &Agent, meters: &Meters) {
        while meters.taken() == Carried::default() {
            sleep(LOOK_EVERY).await;
        }
        let before = match agent.site.max_downtime_ms(self.vm).await {
            Ok(before) => before,
            Err(error) => {
                debug!("how long it may stand still is not known: {}", chain(&error));
                return;
            }
        };
        // Known before it is so: whoever stops waiting for it does not stop it.
        let lowered = *self.lowered.get_or_init(|| Lowered::of(before));
        let Lowered { first, most, .. } = lowered;
        match agent.site.allow_downtime_ms(self.vm, first).await {
            Ok(()) => debug!(?lowered, "QEMU is allowed less, for the handover is part of it"),
            // It may be so all the same, and then it has to be raised.
            Err(error) => debug!("that QEMU is allowed less is not known: {}", chain(&error)),
        }
        self.is_of_no_use(agent, meters).await;
        while let Err(error) = self.raise(agent, first, most).await {
            debug!("it may not stand still for longer yet: {}", chain(&error));
            sleep(RAISE_AGAIN_AFTER).await;
        }
    }

    /// Whoever has allowed it something else since is not overruled.
    async fn raise(&self, agent: &Agent, first: u64, most: u64) -> Result<(), SiteError> {
        if agent.site.max_downtime_ms(self.vm).await? == first {
            agent.site.allow_downtime_ms(self.vm, most).await?;
            debug!(most, "its guest changes more than that");
        }
        Ok(())
    }

    /// Until memory has gone round often enough, or nobody says how often it has.
    async fn is_of_no_use(&self, agent: &Agent, meters: &Meters) {
        loop {
            sleep(LOOK_EVERY).await;
            if meters.taken().memory == Bytes(0) {
                continue;
            }
            match agent.site.live_job(self.vm).await {
                Ok(Some(job)) if job.passes <= PASSES_WITH_LITTLE => {}
                Ok(_) => return,
                Err(error) => {
                    debug!("how often memory has gone round is not known: {}", chain(&error));
                    return;
                }
            }
        }
    }

    /// The VM stays. Whoever has allowed it something else since is not overruled; they hear that it has ended after
    /// this.
    pub async fn put_back(&self, agent: &Agent) {
        let Some(lowered) = self.lowered.get().copied() else { return };
        let Lowered { before, first, most } = lowered;
        let put_back = async {
            if [first, most].contains(&agent.site.max_downtime_ms(self.vm).await?) {
                agent.site.allow_downtime_ms(self.vm, before).await?;
            }
            Ok::<_, SiteError>(())
        };
        let why = match timeout(PUT_BACK_MAX, put_back).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "no answer".to_owned(),
        };
        info!(?lowered, "the downtime that was allowed is not put back: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::Lowered;

    #[test]
    fn the_handover_is_part_of_what_is_allowed() {
        let of = |before| {
            let Lowered { first, most, .. } = Lowered::of(before);
            (first, most)
        };
        assert_eq!(of(300), (30, 180));
        assert_eq!(of(3000), (480, 2880));
        assert_eq!(of(100), (9, 50));
        assert_eq!(of(1), (1, 1));
        assert_eq!(of(0), (0, 0));
    }
}
