//! Nobody resumes a VM that waits here.
//!
//! libvirtd itself [keeps it from being changed](Held), whatever dies: what it forgot is held anew, and
//! whoever resumed it in between sees it suspended again.
//!
//! A VM that is off, since its host was, or that another job of libvirtd's keeps from being held, is held by nobody:
//! if it is started it runs until it is seen, a second later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{Power, SiteName, VmId};
use rpc::error::Code;
use rpc::procedures::Domain;
use site::SiteError;
use tokio::time::{sleep, timeout};
use tokio::{join, select};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, warn};
use units::{MigrationId, chain};

use super::error::ArrivalError;
use crate::libvirt::client::{Daemon, DaemonError};
use crate::libvirt::held::{Held, Stand};
use crate::serve::Agent;

const LET_GO_MAX: Duration = Duration::from_secs(30);
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    let stood_still = stands_still(agent, who, &held).await;
    keep(agent, who, Some(held));
    match stood_still {
        Ok(true) => Ok(()),
        Err(HoldError::Daemon(error)) => Err(error.into()),
        Ok(false) | Err(HoldError::Runs { .. } | HoldError::NotOurs) => Err(ArrivalError::Resumed),
    }
}

/// Until it is let go, from now on or from when libvirtd can be asked.
pub fn keep(agent: &Arc<Agent>, who: &Waiting, held: Option<Held>) {
    let Some(keeping) = agent.arrivals.holds.enter(&who.id) else { return };
    let (whose, who) = (agent, who.clone());
    let agent = Arc::clone(agent);
    let kept = async move {
        keep_until(&agent, &who, held, &keeping.release).await;
        agent.arrivals.holds.leave(&who.id);
        keeping.released.cancel();
    };
    whose.spawn(kept.instrument(Span::current()));
}

/// Whether something may still be on its way to libvirtd that suspends it.
pub fn is_kept(agent: &Agent, id: &MigrationId) -> bool {
    agent.arrivals.holds.find(id).is_some()
}

/// Whatever is asked of libvirtd afterwards need not wait.
pub async fn let_go(agent: &Agent, id: &MigrationId) {
    let Some(Keeping { release, released }) = agent.arrivals.holds.find(id) else { return };
    release.cancel();
    // It ends with its connection if not by word.
    let _ = timeout(LET_GO_MAX, released.cancelled()).await;
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
            None => match anew(agent, who, release).await {
                Some(held) => held,
                None => return,
            },
        };
        // Whoever could not be suspended is held no more than that, and tried again.
        let now = match now {
            Ok(held) => stands_still(agent, who, &held).await.map(|_| held),
            Err(error) => Err(error.into()),
        };
        match now {
            Ok(held) => select! {
                () = held.over() => {
                    warn!("libvirtd is gone, and held {} no more: it is held anew", who.name);
                    told.clear();
                }
                () = release.cancelled() => return held.end().await,
            },
            Err(error) => {
                // Also where it is refused before anybody has looked.
                let error = calm(agent, who).await.err().unwrap_or(error);
                let why = match &error {
                    HoldError::Daemon(DaemonError::Refused(error))
                        if error.code == Code::NO_DOMAIN =>
                    {
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

/// `None`: it is let go. Whatever keeps it from being held, another job of libvirtd's for one, it does not run meanwhile.
async fn anew(
    agent: &Agent,
    who: &Waiting,
    release: &CancellationToken,
) -> Option<Result<Held, DaemonError>> {
    let enough = CancellationToken::new();
    let held = async {
        let held = select! {
            held = Held::anew(&*agent.net, &agent.config.site.socket, who.vm) => Some(held),
            () = release.cancelled() => None,
        };
        enough.cancel();
        held
    };
    join!(held, quiet(agent, who, &enough)).0
}

/// Until it is enough, and what was begun has ended: libvirt suspends it also when nobody waits for that any more,
/// after it was granted and resumed.
async fn quiet(agent: &Agent, who: &Waiting, enough: &CancellationToken) {
    let mut told = String::new();
    loop {
        if let Err(error) = calm(agent, who).await {
            let why = chain(&error);
            if why != told {
                error!("{why}");
                told = why;
            }
        }
        select! {
            () = sleep(TRY_AGAIN_AFTER) => {}
            () = enough.cancelled() => return,
        }
    }
}

/// It does not run afterwards. Where nobody answers, nobody resumes it either.
async fn calm(agent: &Agent, who: &Waiting) -> Result<(), HoldError> {
    match agent.site.power(who.vm).await {
        Ok(Power::Running) => suspend(agent, who).await,
        _ => Ok(()),
    }
}

/// It does afterwards; whether it did before.
async fn stands_still(agent: &Agent, who: &Waiting, held: &Held) -> Result<bool, HoldError> {
    if held.stand().await? != Stand::Runs {
        return Ok(true);
    }
    suspend(agent, who).await?;
    Ok(false)
}

/// How the VM is that came by this migration, if the one of its id is that.
pub async fn ours(agent: &Agent, who: &Waiting) -> Result<Option<Power>, SiteError> {
    use site::PlaceholderState as P;
    Ok(match agent.site.placeholder(who.vm).await? {
        P::Held { migration, power, .. } | P::Released { migration, power, .. }
            if migration == who.id =>
        {
            Some(power)
        }
        _ => None,
    })
}

async fn suspend(agent: &Agent, who: &Waiting) -> Result<(), HoldError> {
    let (name, source) = (&who.name, &agent.config.neighbour.name);
    // One that came here in another way runs as its owner wants it to.
    if ours(agent, who).await.is_ok_and(|ours| ours.is_none()) {
        return Err(HoldError::NotOurs);
    }
    // What it wrote meanwhile is nobody's to throw away.
    let ran = agent.ledger.learn(&who.id, |entry| entry.ran = true).await;
    if let Err(error) = ran {
        error!("that it ran is not on record: {}", chain(&error));
    }
    agent.site.suspend(who.vm).await.map_err(|cause| HoldError::Runs {
        name: name.clone(),
        source_site: source.clone(),
        cause,
    })?;
    error!(
        "somebody resumed {name} here while it waited: it is suspended again, for it may run at {source}"
    );
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error("the VM of its id here did not come by this migration")]
    NotOurs,
    #[error(
        "somebody resumed {name} here, and it may run at {source_site} as well: suspend it: virsh suspend {name}"
    )]
    Runs {
        name: String,
        source_site: SiteName,
        #[source]
        cause: SiteError,
    },
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
