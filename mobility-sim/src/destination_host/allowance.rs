//! How long a VM may stand still is meant for all of it. QEMU counts what it has to send, and no more: the handover
//! comes after that, so that QEMU is allowed less.

use model::VmId;
use tracing::{debug, info};
use units::chain;

use crate::serve::Agent;

/// From the last byte until the VM runs, in milliseconds, beyond what libvirt takes by itself (`tests/bench/README.md`).
const HANDOVER_MS: u64 = 100;
/// Of what is allowed, the handover takes one part in so many at most: else little that is written fast would ever
/// fit.
const PARTS: u64 = 3;

/// QEMU's own setting, which outlives the attempt.
pub struct Allowance {
    vm: VmId,
    before_ms: u64,
    now_ms: u64,
}

/// `None`: it is as it was.
pub async fn lower(agent: &Agent, vm: VmId) -> Option<Allowance> {
    let lowered = async {
        let before_ms = agent.site.max_downtime_ms(vm).await?;
        let now_ms = before_ms - HANDOVER_MS.min(before_ms / PARTS);
        agent.site.allow_downtime_ms(vm, now_ms).await?;
        Ok::<_, site::SiteError>(Allowance { vm, before_ms, now_ms })
    };
    match lowered.await {
        Ok(allowance) => {
            let Allowance { before_ms, now_ms, .. } = allowance;
            debug!(before_ms, now_ms, "QEMU is allowed less, for the handover is part of it");
            Some(allowance)
        }
        Err(error) => {
            debug!("how long it may stand still is not known: {}", chain(&error));
            None
        }
    }
}

impl Allowance {
    /// The VM stays. Whoever has allowed it something else since is not overruled.
    pub async fn put_back(self, agent: &Agent) {
        let Self { vm, before_ms, now_ms } = self;
        if agent.site.max_downtime_ms(vm).await.is_ok_and(|found| found == now_ms)
            && let Err(error) = agent.site.allow_downtime_ms(vm, before_ms).await
        {
            info!(
                before_ms,
                now_ms,
                "the downtime that was allowed is not put back: {}",
                chain(&error)
            );
        }
    }
}
