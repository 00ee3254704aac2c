//! How long a VM may stand still is meant for all of it. QEMU counts what it has to send, and no more: the handover
//! comes after that, so that QEMU is allowed less.

use std::sync::OnceLock;
use std::time::Duration;

use model::VmId;
use site::SiteError;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};
use units::chain;

use crate::custody::Carried;
use crate::progress::Meters;
use crate::serve::Agent;

/// From the last byte until the VM runs, in milliseconds, beyond what libvirt takes by itself (`tests/bench/README.md`).
const HANDOVER_MS: u64 = 120;
/// Of what is allowed, the handover takes one part in so many at most: else little that is written fast would ever
/// fit.
const PARTS: u64 = 2;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Its guest may stand still meanwhile, and libvirt puts it back as well.
const PUT_BACK_MAX: Duration = Duration::from_millis(300);

/// QEMU's own setting, which outlives an attempt.
pub struct Allowance {
    vm: VmId,
    /// What it was, and what it is now, in milliseconds.
    lowered: OnceLock<(u64, u64)>,
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
        let lowered = async {
            let before = agent.site.max_downtime_ms(self.vm).await?;
            let now = before - HANDOVER_MS.min(before / PARTS);
            // Known before it is so: whoever stops waiting for it does not stop it.
            self.lowered.get_or_init(|| (before, now));
            agent.site.allow_downtime_ms(self.vm, now).await?;
            Ok::<_, SiteError>((before, now))
        };
        match lowered.await {
            Ok((before_ms, now_ms)) => {
                debug!(before_ms, now_ms, "QEMU is allowed less, for the handover is part of it");
            }
            Err(error) => debug!("how long it may stand still is not known: {}", chain(&error)),
        }
    }

    /// The VM stays. Whoever has allowed it something else since is not overruled; they hear that it has ended after
    /// this.
    pub async fn put_back(&self, agent: &Agent) {
        let Some((before_ms, now_ms)) = self.lowered.get().copied() else { return };
        let put_back = async {
            if agent.site.max_downtime_ms(self.vm).await? == now_ms {
                agent.site.allow_downtime_ms(self.vm, before_ms).await?;
            }
            Ok::<_, SiteError>(())
        };
        let why = match timeout(PUT_BACK_MAX, put_back).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "no answer".to_owned(),
        };
        info!(before_ms, now_ms, "the downtime that was allowed is not put back: {why}");
    }
}
