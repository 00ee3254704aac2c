//! After the source's libvirt has been answered: seeing that its VM is dead, and only then telling
//! the other agent that its copy is the VM now; or that it never will be.
//!
//! Nothing here ends by time. What is not known is looked at again.

use std::sync::Arc;
use std::time::Duration;

use model::Power;
use site::{Site, StoppedBy};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, info, info_span, warn};
use units::{MigrationId, chain};

use super::dial;
use crate::custody::HandoverError;
use crate::ledger::{Attempt, Entry, LedgerError, Source, Stage};
use crate::serve::Agent;
use crate::wan::Control;
use crate::wan::message::{Decided, Decision, Message, Purpose};

/// What the other agent takes for a record and its libvirt.
const DECIDE_MAX: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What an earlier life left open.
pub fn go_on(agent: &Arc<Agent>, entry: &Entry) {
    if entry.stage == Stage::Source(Source::Ended) {
        return;
    }
    let span = info_span!("out", id = %entry.id, vm = %entry.name);
    let _entered = span.enter();
    warn!(stage = ?entry.stage, "not settled before this agent ended: going on");
    // Its connections ended with it.
    let over = CancellationToken::new();
    over.cancel();
    spawn(agent, entry.id.clone(), None, over);
}

/// `over`: the source's connection has ended, so that nothing more comes of what it was told.
pub fn spawn(
    agent: &Arc<Agent>,
    id: MigrationId,
    control: Option<Control>,
    over: CancellationToken,
) -> JoinHandle<()> {
    let agent = Arc::clone(agent);
    let settled = async move {
        if let Err(error) = settle(&agent, &id, control, &over).await {
            error!("not settled, and not before this agent is started again: {}", chain(&error));
        }
    };
    tokio::spawn(settled.instrument(Span::current()))
}

async fn settle(
    agent: &Agent,
    id: &MigrationId,
    mut control: Option<Control>,
    over: &CancellationToken,
) -> Result<(), LedgerError> {
    while let Some(Entry { stage: Stage::Source(stage), name, .. }) = agent.ledger.entry(id) {
        let next = match stage {
            Source::AttemptKnown => Source::Released,
            Source::FenceIntent => evidence(agent, id, over).await,
            Source::Fenced => {
                granted(agent, id, &name, &mut control).await;
                Source::Ended
            }
            Source::Released => {
                released(agent, id, &name, &mut control).await;
                Source::Ended
            }
            Source::Ended => return Ok(()),
        };
        agent.ledger.record(id, Stage::Source(next)).await?;
    }
    Ok(())
}

/// With the receipt that the VM is dead here the destination decides; its grant ends it here.
async fn granted(agent: &Agent, id: &MigrationId, name: &str, control: &mut Option<Control>) {
    let neighbour = &agent.config.neighbour.name;
    let Some(Entry { attempt: Some(attempt), carried: Some(carried), .. }) = agent.ledger.entry(id)
    else {
        return error!("{name} is dead here, and nothing is known of what came over");
    };
    let Attempt { paper, epoch } = &attempt;
    let fence = until_done("the fence", || agent.custody.is_fenced(paper, *epoch, carried)).await;
    let Some(fence) = fence else { return };
    let decision = Decision::Grant { fence: fence.to_string() };
    match tell(agent, id, decision, control).await {
        Decided::Granted { receipt } => {
            info!("{name} has moved to {neighbour}");
            until_done("the grant", || agent.custody.retires(paper, *epoch, &receipt)).await;
        }
        decided => error!(?decided, "{name} is dead here, and {neighbour} has no copy to start"),
    }
}

/// The destination gives up for good; with its receipt the VM is this site's as before.
async fn released(agent: &Agent, id: &MigrationId, name: &str, control: &mut Option<Control>) {
    let neighbour = &agent.config.neighbour.name;
    match tell(agent, id, Decision::Revoke, control).await {
        Decided::Granted { .. } => {
            error!("{name} runs here, and was granted to {neighbour} as well");
        }
        Decided::Revoked { receipt } => {
            info!("{name} stays here");
            let entry = agent.ledger.entry(id);
            let attempt = entry.and_then(|entry| entry.attempt);
            if let (Some(receipt), Some(Attempt { paper, epoch })) = (receipt, attempt) {
                until_done("the release", || agent.custody.is_released(&paper, epoch, &receipt))
                    .await;
            }
        }
        Decided::Unknown => info!("{name} stays here"),
    }
}

/// As long as it takes, but for what asking again does not change.
async fn until_done<T, F>(what: &str, act: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, HandoverError>>,
{
    let mut pauses = Pauses::default();
    let mut told = false;
    loop {
        match act().await {
            Ok(done) => return Some(done),
            Err(error) if error.is_final() => {
                error!("{what} is not on record, and will not be: {}", chain(&error));
                return None;
            }
            Err(error) if !told => {
                warn!("{what} is not on record yet: {}", chain(&error));
                told = true;
            }
            Err(_) => {}
        }
        pauses.pause().await;
    }
}

/// Looks at the source until its VM is known to be dead, or to run.
async fn evidence(agent: &Agent, id: &MigrationId, over: &CancellationToken) -> Source {
    let Some(Entry { vm, name, .. }) = agent.ledger.entry(id) else { return Source::Released };
    let mut pauses = Pauses::default();
    let mut told = None;
    loop {
        let seen = agent.site.power(vm).await;
        match &seen {
            Ok(Power::Absent) => {
                info!("{name} is gone from the source");
                return Source::Fenced;
            }
            Ok(Power::Off) => match agent.site.stopped_by(vm).await {
                // Its libvirt has ended it, or its operator.
                Ok(Some(StoppedBy::Other | StoppedBy::PoweredOff)) => {
                    info!("{name} is off at the source");
                    return Source::Fenced;
                }
                // It ran on there until its own end: what came over is older than its disks.
                Ok(Some(StoppedBy::Shutdown | StoppedBy::Crashed | StoppedBy::Saved))
                    if over.is_cancelled() =>
                {
                    warn!("{name} ran on at the source, and ended there: it was not handed over");
                    return Source::Released;
                }
                Ok(_) | Err(_) => {}
            },
            // Whoever was told otherwise is still at it while its connection stands.
            Ok(Power::Running) if over.is_cancelled() => {
                warn!("{name} runs at the source again: it was not handed over");
                return Source::Released;
            }
            Ok(_) | Err(_) => {}
        }
        let (state, hint) = match &seen {
            Ok(power) => {
                (format!("is {power} at the source"), "resume or start it there, or destroy it")
            }
            Err(error) => (format!("is not seen: {}", chain(error)), "bring its libvirt back"),
        };
        if pauses.are_long() && told.as_ref() != Some(&state) {
            warn!("{name} {state}; until that is settled it runs nowhere else: {hint}");
            told = Some(state);
        }
        pauses.pause().await;
    }
}

/// Until the other agent has it on record.
async fn tell(
    agent: &Agent,
    id: &MigrationId,
    decision: Decision,
    control: &mut Option<Control>,
) -> Decided {
    let mut pauses = Pauses::default();
    let mut told = false;
    loop {
        let asked = match control {
            Some(control) => control.ask(Message::Decide(decision.clone()), DECIDE_MAX).await,
            None => match dial(agent, Purpose::Decision { id: id.clone() }).await {
                Ok(stream) => {
                    let line = control.insert(Control::new(stream));
                    line.ask(Message::Decide(decision.clone()), DECIDE_MAX).await
                }
                Err(error) => Err(error),
            },
        };
        match asked {
            Ok(Message::Decided(decided)) => return decided,
            // An answer to something else, which came too late.
            Ok(_) => *control = None,
            Err(error) => {
                *control = None;
                if pauses.are_long() && !told {
                    warn!(?decision, "the other agent is not told yet: {}", chain(&error));
                    told = true;
                }
            }
        }
        pauses.pause().await;
    }
}

/// Short at first, while a guest may stand still.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    async fn pause(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 5 / 4).min(LONGEST_PAUSE);
    }

    fn are_long(&self) -> bool {
        self.0 > FIRST_PAUSE * 10
    }
}
