//! A VM that libvirtd keeps from being changed, for us.
//!
//! A migration of it has begun with change protection and never goes on: whatever would resume it, reset it or
//! send it elsewhere waits, and is refused after 30 s. It can be suspended and ended. What libvirtd holds it
//! forgets with the connection, and as it is restarted.

use std::sync::Arc;
use std::time::Duration;

use model::VmId;
use rpc::flags::Flags;
use rpc::params::Params;
use rpc::procedures::{Begin, Call, Confirm, Domain, Reply};
use tracing::debug;
use units::chain;

use super::Endpoint;
use super::client::{Daemon, DaemonError};
use crate::net::Net;

/// Longer than libvirtd lets a call wait for another one's end.
const HOLD_MAX: Duration = Duration::from_secs(40);
const LOOK_MAX: Duration = Duration::from_secs(30);
/// Unsafe it would be if it went on: what disks hold is not asked.
const FLAGS: Flags = Flags(Flags::LIVE.0 | Flags::CHANGE_PROTECTION.0 | Flags::UNSAFE.0);

/// Until it ends, or is dropped.
pub struct Held {
    daemon: Arc<Daemon>,
    domain: Domain,
}

/// How a VM that is held can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    Runs,
    /// Its libvirt paused it to migrate it, and nobody has resumed it since.
    LeftPaused,
    StandsStill,
}

impl Held {
    /// # Errors
    /// It does not run, paused or not; or another migration holds it.
    pub async fn begin(daemon: Arc<Daemon>, domain: Domain) -> Result<Self, DaemonError> {
        let begin = Begin { domain: domain.clone(), params: Params::new(), flags: FLAGS };
        daemon.call(Call::Begin(begin), HOLD_MAX).await?;
        Ok(Self { daemon, domain })
    }

    pub async fn anew(net: &dyn Net, endpoint: &Endpoint, vm: VmId) -> Result<Self, DaemonError> {
        let daemon = Daemon::open(net, endpoint).await?;
        let lookup = Call::LookupByUuid(vm.0.into_bytes());
        match daemon.call(lookup, LOOK_MAX).await? {
            Reply::Found(_, domain) => Self::begin(Arc::new(daemon), domain).await,
            _ => Err(DaemonError::Lost),
        }
    }

    pub async fn stand(&self) -> Result<Stand, DaemonError> {
        let domain = self.domain.clone();
        let look = Call::GetState { domain, flags: 0 };
        // `virDomainState` and `virDomainPausedReason`
        match self.daemon.call(look, LOOK_MAX).await? {
            Reply::State { state: 1, .. } => Ok(Stand::Runs),
            Reply::State { state: 3, reason: 2 } => Ok(Stand::LeftPaused),
            Reply::State { .. } => Ok(Stand::StandsStill),
            _ => Err(DaemonError::Lost),
        }
    }

    /// It is held no more.
    pub async fn over(&self) {
        self.daemon.over().await;
    }

    pub async fn end(self) {
        let Self { daemon, domain } = self;
        let (params, cookie) = (Params::new(), Vec::new());
        let confirm = Confirm { domain, params, cookie, flags: FLAGS, cancelled: true };
        // One that has ended meanwhile is held no more.
        if let Err(error) = daemon.call(Call::Confirm(confirm), LOOK_MAX).await {
            debug!("libvirtd: {}", chain(&error));
        }
    }
}
