//! What becomes of a VM that has arrived: the source's word, on record before it is acted upon, and
//! once for ever.

use std::sync::Arc;
use std::time::Duration;

use handover::Refusal;
use model::{Power, VmId};
use rpc::procedures::{Call, Reply};
use site::{Leftover, SiteError, StoppedBy};
use site_ledger::{CustodyError, NativePaper};
use tokio::time::sleep;
use tracing::{Instrument, Span, debug, error, info, info_span, warn};
use units::{Epoch, MigrationId, chain};

use super::hold::{self, Waiting};
use crate::custody::HandoverError;
use crate::ledger::{Attempt, Destination, Entry, LedgerError, Stage, Then};
use crate::libvirt::client::{Daemon, DaemonError};
use crate::serve::Agent;
use crate::wan::message::{Decided, Decision};

const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// What an earlier life left open. A VM that waits goes on waiting.
pub fn go_on(agent: &Arc<Agent>, entry: &Entry) {
    let Stage::Destination(stage) = entry.stage else { return };
    let span = info_span!("in", id = %entry.id, vm = %entry.name);
    let _entered = span.enter();
    match stage {
        Destination::Started | Destination::Ended => return,
        Destination::Synced(_) => {
            hold::keep(agent, &waiting(entry), None);
            watch(agent, &entry.id);
        }
        // The source was never told that it is here: it goes.
        Destination::AttemptKnown | Destination::Placed | Destination::Revoked => {
            let (whose, entry) = (Arc::clone(agent), entry.clone());
            let undone = async move {
                if entry.ran {
                    hold_if_ours(&whose, &entry).await;
                }
                undo(&whose, &entry.id).await;
            };
            agent.spawn(undone.instrument(Span::current()));
        }
        Destination::Granted(then) => begin(agent, entry.clone(), then),
    }
    warn!(?stage, "not settled before this agent ended: going on");
}

/// It is its operator's, and does not run beside the source's. One that came here in another way is nobody's to hold.
async fn hold_if_ours(agent: &Arc<Agent>, entry: &Entry) {
    loop {
        match ours(agent, entry).await {
            Ok(Some(_)) => break,
            Ok(None) => return,
            Err(_) => sleep(TRY_AGAIN_AFTER).await,
        }
    }
    let now = agent.ledger.entry(&entry.id);
    if now.is_some_and(|now| now.stage != Stage::Destination(Destination::Ended)) {
        hold::keep(agent, &waiting(entry), None);
    }
}

/// Puts the source's word on record, unless there is another one already, and acts upon what is there.
pub async fn decide(
    agent: &Arc<Agent>,
    id: &MigrationId,
    decision: Decision,
) -> Result<Decided, DecideError> {
    if decision == Decision::Revoke && !agent.arrivals.end(id).await {
        return Err(DecideError::Coming);
    }
    let Some(entry) = agent.ledger.entry(id) else { return Ok(Decided::Unknown) };
    let Stage::Destination(stage) = entry.stage else { return Ok(Decided::Unknown) };
    let Some(Attempt { paper, epoch }) = entry.attempt.clone() else {
        // No ledger ever had it.
        undo(agent, id).await;
        return Ok(Decided::Revoked { receipt: None });
    };
    Ok(match (stage, decision) {
        (Destination::Synced(_), Decision::Look) => {
            let is_there = ours(agent, &entry).await? == Some(Power::Paused) && !entry.ran;
            if is_there { Decided::Waits } else { Decided::Lost }
        }
        (Destination::Synced(then), Decision::Grant { fence }) => {
            let let_go = || hold::let_go(agent, id);
            match agent.custody.grants(&paper, epoch, &fence, let_go).await {
                Ok(grant) => {
                    agent.ledger.record(id, Stage::Destination(Destination::Granted(then))).await?;
                    debug!("granted");
                    begin(agent, entry, then);
                    Decided::Granted { receipt: grant.to_string() }
                }
                // The VM that waited is gone with its host, before anything was decided.
                Err(HandoverError::Custody(CustodyError::Refused(Refusal::PlaceholderGone))) => {
                    error!("{} waited here, and is gone: it is given up", entry.name);
                    revoke(agent, id, &paper, epoch).await?
                }
                Err(error) => return Err(error.into()),
            }
        }
        (Destination::Granted(_) | Destination::Started, _) => {
            Decided::Granted { receipt: agent.custody.granted(&paper, epoch).await?.to_string() }
        }
        (
            Destination::AttemptKnown | Destination::Placed,
            Decision::Grant { .. } | Decision::Look,
        ) => Decided::Unknown,
        (_, Decision::Revoke) | (Destination::Revoked | Destination::Ended, _) => {
            revoke(agent, id, &paper, epoch).await?
        }
    })
}

/// For good, and then nothing is left of it.
async fn revoke(
    agent: &Arc<Agent>,
    id: &MigrationId,
    paper: &NativePaper,
    epoch: Epoch,
) -> Result<Decided, DecideError> {
    let receipt = agent.custody.revokes(paper, epoch).await?;
    let now = agent
        .ledger
        .entry(id)
        .filter(|entry| entry.stage != Stage::Destination(Destination::Ended));
    if let Some(entry) = now {
        agent.ledger.record(id, Stage::Destination(Destination::Revoked)).await?;
        undo(agent, id).await;
        // Somebody has resumed it: before the source hears that it is its own again, it stands still here.
        if ours(agent, &entry).await? == Some(Power::Running) {
            return Err(DecideError::Runs(entry.name));
        }
    }
    Ok(Decided::Revoked { receipt: receipt.map(|receipt| receipt.to_string()) })
}

#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    #[error("its arrival is being ended still: ask again")]
    Coming,
    #[error("somebody resumed {0} here, and it cannot be suspended: virsh suspend {0}")]
    Runs(String),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error(transparent)]
    Site(#[from] SiteError),
}

/// The VM is this site's. It is started until it runs.
fn begin(agent: &Arc<Agent>, entry: Entry, then: Then) {
    let begins = Arc::clone(agent);
    let begun = async move {
        let agent = begins;
        let Entry { id, vm, name, attempt, transient, ran, .. } = entry;
        loop {
            // Libvirtd may carry out after this what it was asked before.
            let is_kept = hold::is_kept(&agent, &id);
            let started = match then {
                Then::Runs => start(&agent, vm, &name, transient || ran).await,
                Then::StaysPaused => Ok(()),
            };
            match started {
                Ok(()) if is_kept => {
                    hold::let_go(&agent, &id).await;
                    continue;
                }
                Ok(()) => break,
                Err(error) => error!("{name} is this site's and does not run: {}", chain(&error)),
            }
            sleep(TRY_AGAIN_AFTER).await;
        }
        if then == Then::StaysPaused {
            info!("{name} is here and stays paused, as was asked for");
        }
        if transient {
            forget_definition(&agent, vm, &name).await;
        }
        while let Some(Attempt { paper, epoch }) = &attempt
            && let Err(error) = agent.custody.started(paper, *epoch).await
        {
            error!("that it was started is not on record: {}", chain(&error));
            if error.is_final() {
                break;
            }
            sleep(TRY_AGAIN_AFTER).await;
        }
        let started = agent.ledger.record(&id, Stage::Destination(Destination::Started)).await;
        if let Err(error) = started {
            error!("not on record: {}", chain(&error));
        }
    };
    agent.spawn(begun.instrument(Span::current()));
}

/// It was defined while it waited, and nobody asked for more.
async fn forget_definition(agent: &Agent, vm: VmId, name: &str) {
    while let Err(error) = undefine(agent, vm, DEFINITION_ALONE).await {
        warn!("{name} is still defined here, which nobody asked for: {}", chain(&error));
        if matches!(error, DaemonError::Refused(_)) {
            return;
        }
        sleep(TRY_AGAIN_AFTER).await;
    }
}

/// `may_be_gone`: it is undefined when it runs, and not before; or an agent that knows nothing of it any more had it run.
async fn start(agent: &Agent, vm: VmId, name: &str, may_be_gone: bool) -> Result<(), SiteError> {
    use StoppedBy as By;
    match agent.site.power(vm).await? {
        Power::Absent if may_be_gone => {
            warn!("{name} ran here already, and has ended");
            return Ok(());
        }
        // One that waits is paused: it does neither.
        Power::Off
            if matches!(
                agent.site.stopped_by(vm).await?,
                Some(By::Shutdown | By::Migrated | By::Saved)
            ) =>
        {
            warn!("{name} ran here already, and has ended");
            return Ok(());
        }
        Power::Off => {
            warn!("{name}'s memory is lost, and its disks are not: it is started from them");
            agent.site.power_on(vm).await?;
        }
        Power::Running | Power::Paused | Power::Absent => agent.site.resume(vm).await?,
    }
    info!("{name} runs here");
    Ok(())
}

fn waiting(entry: &Entry) -> Waiting {
    Waiting { id: entry.id.clone(), vm: entry.vm, name: entry.name.clone() }
}

/// Says now and then that a VM waits.
pub fn watch(agent: &Arc<Agent>, id: &MigrationId) {
    let (whose, id) = (Arc::clone(agent), id.clone());
    let reminded = async move {
        loop {
            sleep(REMIND_EVERY).await;
            match whose.ledger.entry(&id) {
                Some(Entry { stage: Stage::Destination(Destination::Synced(_)), name, .. }) => {
                    let source = &whose.config.neighbour.name;
                    warn!(
                        "{name} is here, paused, and is not started without the word of {source}"
                    );
                }
                _ => return,
            }
        }
    };
    agent.spawn(reminded.instrument(Span::current()));
}

/// Nothing is left of it afterwards; what cannot be removed now is removed later. One that was
/// granted is left alone, and so is one that nobody began.
pub async fn undo(agent: &Arc<Agent>, id: &MigrationId) {
    let Some(entry) = agent.ledger.entry(id) else { return };
    if matches!(
        entry.stage,
        Stage::Source(_)
            | Stage::Destination(
                Destination::Granted(_) | Destination::Started | Destination::Ended
            )
    ) {
        return;
    }
    let Err(error) = try_undo(agent, &entry).await else { return };
    warn!("something is left of it, for now: {}", chain(&error));
    if !agent.arrivals.undoes(id) {
        return;
    }
    let whose = Arc::clone(agent);
    let undone = async move {
        match until_undone(&whose, &entry).await {
            Ok(()) => info!("nothing is left of it"),
            Err(error) => error!("something is left of it, and stays: {}", chain(&error)),
        }
        whose.arrivals.has_undone(&entry.id);
    };
    agent.spawn(undone.instrument(Span::current()));
}

/// As long as asking again may help; of one that ran, as long as its operator has not ended it.
async fn until_undone(agent: &Agent, entry: &Entry) -> Result<(), UndoError> {
    let mut told = String::new();
    loop {
        match try_undo(agent, entry).await {
            Err(UndoError::Handover(error)) if error.is_final() => return Err(error.into()),
            Err(error @ UndoError::Ledger(_)) => return Err(error),
            Err(error) => {
                let why = chain(&error);
                if told != why {
                    warn!("not removed yet: {why}");
                    told = why;
                }
            }
            Ok(()) => return Ok(()),
        }
        sleep(TRY_AGAIN_AFTER).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum UndoError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error(
        "{name} ran here, although it was never started, or may have while this agent knew nothing of it, and nobody ends it but its operator: virsh destroy and undefine it here, and remove its volumes, if nothing in them is wanted: {volumes}"
    )]
    Ran { name: String, volumes: String },
}

async fn try_undo(agent: &Agent, entry: &Entry) -> Result<(), UndoError> {
    let Entry { id, vm, attempt, .. } = entry;
    let now = agent.ledger.entry(id).unwrap_or_else(|| entry.clone());
    if now.stage == Stage::Destination(Destination::Ended) {
        return Ok(());
    }
    if now.stage != Stage::Destination(Destination::Revoked) {
        // Looked at before it is removed: a mark on it would say that it was decided otherwise.
        if let Some(Attempt { paper, epoch }) = attempt {
            agent.custody.revokes(paper, *epoch).await?;
        }
        agent.ledger.record(id, Stage::Destination(Destination::Revoked)).await?;
    }
    // What does not bear this migration's name is somebody else's, a later migration's perhaps.
    let power = ours(agent, entry).await?;
    if power == Some(Power::Running) {
        agent.site.suspend(*vm).await?;
    }
    if power == Some(Power::Running) || agent.ledger.entry(id).is_some_and(|entry| entry.ran) {
        // Once it is off, its operator may do with it what they like.
        if !power.is_some_and(Power::is_loaded) {
            hold::let_go(agent, id).await;
        }
        let volumes = agent.site.leftovers(id).await?.into_iter().filter_map(|left| match left {
            Leftover::Volume { location, .. } => Some(location),
            Leftover::Placeholder { .. } => None,
        });
        let volumes = volumes.collect::<Vec<_>>().join(", ");
        if power.is_some() || !volumes.is_empty() {
            return Err(UndoError::Ran { name: entry.name.clone(), volumes });
        }
    }
    if power.is_some() {
        agent.site.power_off(*vm).await?;
        hold::let_go(agent, id).await;
        // It was to stay for good, and came with Finish.
        if ours(agent, entry).await? == Some(Power::Off) {
            undefine(agent, *vm, WITH_ALL).await?;
        }
    }
    for leftover in agent.site.leftovers(id).await? {
        // The VM itself went above, or stays.
        if !matches!(&leftover, Leftover::Placeholder { vm: found, .. } if found == vm) {
            agent.site.remove(&leftover).await?;
        }
    }
    if let (Some(belongings), Some(Attempt { epoch, .. })) = (&now.belongings, attempt) {
        agent.site.remove_belongings(id, *epoch, *vm, belongings).await?;
    }
    hold::let_go(agent, id).await;
    agent.ledger.record(id, Stage::Destination(Destination::Ended)).await?;
    Ok(())
}

/// How this migration's VM is, if the VM of its id is this migration's.
async fn ours(agent: &Agent, entry: &Entry) -> Result<Option<Power>, SiteError> {
    hold::ours(agent, &waiting(entry)).await
}

/// With what libvirt keeps beside a definition: saved memory, firmware variables.
const WITH_ALL: u32 = 1 | 4;
/// Without its firmware's variables: the VM has them.
const DEFINITION_ALONE: u32 = 8;
const LOOK_MAX: Duration = Duration::from_secs(30);

async fn undefine(agent: &Agent, vm: VmId, flags: u32) -> Result<(), DaemonError> {
    let daemon = Daemon::open(&*agent.net, &agent.config.site.socket).await?;
    let found = daemon.call(Call::LookupByUuid(vm.0.into_bytes()), LOOK_MAX).await?;
    if let Reply::Found(_, domain) = found {
        daemon.call(Call::Undefine { domain, flags }, LOOK_MAX).await?;
    }
    Ok(())
}
