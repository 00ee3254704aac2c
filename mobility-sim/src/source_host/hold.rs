//! Nobody resumes a VM that waits here.
//!
//! libvirtd itself keeps it from being changed, for a migration *from* here that began with change
//! protection and never goes on: whatever would resume it, reset it or send it elsewhere waits, and is refused
//! after 30 s. It can be suspended and ended. What libvirtd holds it forgets with the connection, and as it is
//! restarted; then it is held anew, and whoever resumed it in between sees it suspended again.
//!
//! A VM that is off, since its host was, is held by nobody: if it is started it runs until it is seen, a second
//! later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::VmId;
use rpc::error::Code;
use rpc::flags::Flags;
use rpc::params::Params;
use rpc::procedures::{Begin, Call, Confirm, Domain, Reply};
use site::Site;
use tokio::select;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, error, warn};
use units::{MigrationId, chain};

use super::error::ArrivalError;
use crate::libvirt::client::{Daemon, DaemonError};
use crate::serve::Agent;

/// Longer than libvirtd lets a call wait for another one's end.
const HOLD_MAX: Duration = Duration::from_secs(40);
const LOOK_MAX: Duration = Duration::from_secs(30);
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Unsafe it would be if it went on: what disks hold is not asked.
const FLAGS: Flags = Flags(Flags::LIVE.0 | Flags::CHANGE_PROTECTION.0 | Flags::UNSAFE.0);
/// `VIR_DOMAIN_RUNNING`
const RUNNING: i32 = 1;

/// Those that are held, or are to be.
#[derive(Default)]
pub struct Holds(Mutex<HashMap<MigrationId, Keeping>>);

/// It is told to end by `release`, and has by `released`.
#[derive(Clone, Default)]
struct Keeping {
    release: CancellationToken,
    released: CancellationToken,
}

/// A VM that waits.
#[derive(Clone)]
pub struct Waiting {
    pub id: MigrationId,
    pub vm: VmId,
    pub name: String,
}

/// From when the VM has arrived. It is kept, whatever this returns, until it is [let go](let_go).
///
/// # Errors
/// It is not held, or somebody was faster and resumed it; it stands still again then.
pub async fn hold(
    agent: &Arc<Agent>,
    who: &Waiting,
    daemon: &Arc<Daemon>,
    domain: Domain,
) -> Result<(), ArrivalError> {
    let held = match Held::begin(Arc::clone(daemon), domain).await {
        Ok(held) => held,
        Err(error) => {
            keep(agent, who, None);
            return Err(error.into());
        }
    };
    let stood_still = held.stands_still(agent, who).await;
    keep(agent, who, Some(held));
    match stood_still? {
        true => Ok(()),
        false => Err(ArrivalError::Resumed),
    }
}

/// Until it is let go, from now on or from when libvirtd can be asked.
pub fn keep(agent: &Arc<Agent>, who: &Waiting, held: Option<Held>) {
    let Some(keeping) = agent.arrivals.holds.enter(&who.id) else { return };
    let (agent, who) = (Arc::clone(agent), who.clone());
    let kept = async move {
        keep_until(&agent, &who, held, &keeping.release).await;
        agent.arrivals.holds.leave(&who.id);
        keeping.released.cancel();
    };
    tokio::spawn(kept.instrument(Span::current()));
}

/// Whatever is asked of libvirtd afterwards need not wait.
pub async fn let_go(agent: &Agent, id: &MigrationId) {
    let Some(Keeping { release, released }) = agent.arrivals.holds.find(id) else { return };
    release.cancel();
    // It ends with its connection if not by word.
    let _ = timeout(LOOK_MAX, released.cancelled()).await;
}

async fn keep_until(
    agent: &Agent,
    who: &Waiting,
    mut held: Option<Held>,
    release: &CancellationToken,
) {
    let mut told = String::new();
    loop {
        let now = match held.take() {
            Some(held) => Ok(held),
            None => select! {
                held = Held::anew(agent, who) => held,
                () = release.cancelled() => return,
            },
        };
        match now {
            Ok(held) => select! {
                () = held.daemon.over() => {
                    warn!("libvirtd is gone, and held {} no more: it is held anew", who.name);
                    told.clear();
                }
                () = release.cancelled() => return held.end().await,
            },
            Err(error) => {
                let why = match &error {
                    DaemonError::Refused(error) if error.code == Code::NO_DOMAIN => {
                        "waited here, and is gone with its host".to_owned()
                    }
                    _ => format!("waits here and is not held: {}", chain(&error)),
                };
                if why != told {
                    error!("{} {why}", who.name);
                    told = why;
                }
            }
        }
        select! {
            () = sleep(TRY_AGAIN_AFTER) => {}
            () = release.cancelled() => return,
        }
    }
}

/// One that libvirtd keeps from being changed.
pub struct Held {
    daemon: Arc<Daemon>,
    domain: Domain,
}

impl Held {
    async fn begin(daemon: Arc<Daemon>, domain: Domain) -> Result<Self, DaemonError> {
        let begin = Begin { domain: domain.clone(), params: Params::new(), flags: FLAGS };
        daemon.call(Call::Begin(begin), HOLD_MAX).await?;
        Ok(Self { daemon, domain })
    }

    async fn anew(agent: &Agent, who: &Waiting) -> Result<Self, DaemonError> {
        let daemon = Daemon::open(&agent.config.site.socket).await?;
        let lookup = Call::LookupByUuid(who.vm.0.into_bytes());
        let Reply::Found(_, domain) = daemon.call(lookup, LOOK_MAX).await? else {
            return Err(DaemonError::Lost);
        };
        let held = Self::begin(Arc::new(daemon), domain).await?;
        if !held.stands_still(agent, who).await? {
            // What it wrote meanwhile is nobody's to throw away.
            let ran = agent.ledger.learn(&who.id, |entry| entry.ran = true).await;
            if let Err(error) = ran {
                error!("that it ran is not on record: {}", chain(&error));
            }
        }
        Ok(held)
    }

    /// It does afterwards; whether it did before.
    async fn stands_still(&self, agent: &Agent, who: &Waiting) -> Result<bool, DaemonError> {
        let domain = self.domain.clone();
        let look = Call::GetState { domain, flags: 0 };
        let Reply::State { state, .. } = self.daemon.call(look, LOOK_MAX).await? else {
            return Err(DaemonError::Lost);
        };
        if state != RUNNING {
            return Ok(true);
        }
        let (name, source) = (&who.name, &agent.config.neighbour.name);
        match agent.site.suspend(who.vm).await {
            Ok(()) => error!(
                "somebody resumed {name} here while it waited: it is suspended again, for it may run at {source}"
            ),
            Err(error) => error!(
                "somebody resumed {name} here, and it may run at {source} as well: suspend it: {}",
                chain(&error)
            ),
        }
        Ok(false)
    }

    async fn end(self) {
        let Self { daemon, domain } = self;
        let (params, cookie) = (Params::new(), Vec::new());
        let confirm = Confirm { domain, params, cookie, flags: FLAGS, cancelled: true };
        // One that has ended meanwhile is held no more.
        if let Err(error) = daemon.call(Call::Confirm(confirm), LOOK_MAX).await {
            debug!("libvirtd: {}", chain(&error));
        }
    }
}

impl Holds {
    /// `None`: it is kept already.
    fn enter(&self, id: &MigrationId) -> Option<Keeping> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.contains_key(id) {
            return None;
        }
        let keeping = Keeping::default();
        all.insert(id.clone(), keeping.clone());
        Some(keeping)
    }

    fn find(&self, id: &MigrationId) -> Option<Keeping> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn leave(&self, id: &MigrationId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}
