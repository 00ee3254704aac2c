//! After the source's libvirt has been answered: seeing that its VM is dead, and only then telling
//! the other agent that its copy is the VM now; or that it never will be.
//!
//! Nothing here ends by time. What is not known is looked at again.

use std::sync::Arc;
use std::time::Duration;

use handover::Attestation;
use model::{Power, SiteName, VmId};
use site::{SiteError, StoppedBy};
use site_ledger::NativePaper;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, error, info, info_span, warn};
use units::{Epoch, MigrationId, chain};

use super::{GOODBYE_MAX, Leave, dial, left, word};
use crate::custody::{Death, Fenced, HandoverError};
use crate::ledger::{Attempt, Entry, LedgerError, Source, Stage};
use crate::serve::Agent;
use crate::wan::message::{Decided, Decision, Message, Purpose};
use crate::wan::{Control, WanError};

/// What the other agent takes for a record and its libvirt.
const DECIDE_MAX: Duration = Duration::from_secs(30);
/// A guest stands still meanwhile.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// libvirt looks every 200 ms whether the QEMU that it ended has gone, and says so once it has.
const SHORT_PAUSES: u32 = 40;
/// What takes longer is told.
const LONG_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between tries of what only a person can put right.
const HOPELESS_PAUSE: Duration = Duration::from_secs(30);

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
    let decided = CancellationToken::new();
    let watch = Watch { over, leave: Leave::None, is_led: false, is_new: false, decided };
    spawn(agent, entry.id.clone(), None, watch);
}

/// What is known of the source since success was said to it.
pub struct Watch {
    /// Its connection has ended, so that nothing more comes of what it was told.
    pub over: CancellationToken,
    pub leave: Leave,
    /// By its libvirtd itself, whose connection ends with it: no other one had the VM run before it took leave.
    pub is_led: bool,
    /// This agent has been there since. One that was away does not know what the VM went through meanwhile: what
    /// was left paused then is its operator's.
    pub is_new: bool,
    /// By then the other agent has said what is decided, and it is on record.
    pub decided: CancellationToken,
}

pub fn spawn(agent: &Arc<Agent>, id: MigrationId, control: Option<Control>, watch: Watch) {
    let whose = Arc::clone(agent);
    let settled = async move {
        if let Err(error) = settle(&whose, &id, control, &watch).await {
            error!("not settled, and not before this agent is started again: {}", chain(&error));
        }
    };
    agent.spawn(settled.instrument(Span::current()));
}

async fn settle(
    agent: &Agent,
    id: &MigrationId,
    mut control: Option<Control>,
    watch: &Watch,
) -> Result<(), LedgerError> {
    let mut may_wake = watch.is_new;
    // Shown once more only where it is not at hand.
    let mut fence = None;
    while let Some(entry) = agent.ledger.entry(id) {
        let Stage::Source(stage) = entry.stage else { return Ok(()) };
        let next = match stage {
            Source::AttemptKnown => Some(Source::Released),
            Source::FenceIntent => fenced(agent, &entry, watch, &mut control, &mut fence).await,
            Source::Fenced => granted(agent, &entry, watch, &mut control, fence.take()).await,
            Source::Released => released(agent, &entry, watch, &mut control, &mut may_wake).await,
            Source::Ended => return Ok(()),
        };
        match next {
            Some(next) => agent.ledger.record(id, Stage::Source(next)).await?,
            // It was told why. Whoever puts that right need not start this agent again.
            None => sleep(HOPELESS_PAUSE).await,
        }
    }
    Ok(())
}

/// Until the VM is known to be dead, and that is on record with its fence; or to run.
async fn fenced(
    agent: &Agent,
    entry: &Entry,
    watch: &Watch,
    control: &mut Option<Control>,
    fence: &mut Option<Fenced>,
) -> Option<Source> {
    let Entry { id, name, attempt, .. } = entry;
    let Some(Attempt { paper, epoch }) = attempt else {
        error!("success was said for {name}, and nothing is known of its attempt");
        return None;
    };
    let mut watched = watch.leave == Leave::Taken;
    // A crash came before that was recorded here. As long as it is not known, nothing is concluded from how the VM is.
    let has_receipt = || agent.custody.has_receipt(paper, *epoch);
    let known = match has_receipt().await {
        Ok(known) => known,
        Err(_) => {
            // Nobody has looked at it meanwhile.
            watched = false;
            until_done("what became of its fence", has_receipt).await?
        }
    };
    if known {
        return Some(Source::Fenced);
    }
    if let Leave::Ended { .. } = watch.leave {
        info!("{name} has ended at the source");
    }
    loop {
        let death = match watch.leave {
            // That stays so, whatever becomes of its libvirtd.
            Leave::Ended { was_persistent } => Death::OfProcess { was_persistent },
            Leave::Taken | Leave::None => {
                match evidence(agent, entry, watch, &mut watched, control).await {
                    Seen::Dead(word) => word.map_or(Death::Shown, Death::Attested),
                    Seen::Alive => return Some(Source::Released),
                }
            }
        };
        match agent.custody.is_fenced(paper, *epoch, death).await {
            Ok(made) => {
                debug!("its fence is on record");
                *fence = Some(made);
                return Some(Source::Fenced);
            }
            // Somebody has started it meanwhile: it is looked at again.
            Err(HandoverError::NotAsItShould { found }) => {
                watched = false;
                warn!("{name} is {found} here again");
            }
            Err(error) if error.is_final() => {
                error!("{id} stops here, since its fence is refused: {}", chain(&error));
                return None;
            }
            Err(error) => {
                // Nobody looks at it until it is tried again.
                watched = false;
                warn!("its fence is not on record yet: {}", chain(&error));
            }
        }
        // A guest stands still.
        sleep(LONG_PAUSE).await;
    }
}

/// With the receipt that the VM is dead here the destination decides; its grant ends it here.
async fn granted(
    agent: &Agent,
    entry: &Entry,
    watch: &Watch,
    control: &mut Option<Control>,
    fence: Option<Fenced>,
) -> Option<Source> {
    let neighbour = &agent.config.neighbour.name;
    let Entry { id, name, attempt, .. } = entry;
    let Attempt { paper, epoch } = attempt.as_ref()?;
    let fence = match fence {
        Some(fence) => Ok(fence),
        None => shown(agent, name, (paper, *epoch)).await,
    };
    let fence = match fence {
        Ok(Fenced::By(fence)) => fence,
        // A crash came before that was recorded here.
        Ok(Fenced::Retired) => return Some(Source::Ended),
        Err(HandoverError::NotAsItShould { found }) => {
            warn!("{name} is {found} here, fenced or not: it does not move, unless it did already");
            return Some(Source::Released);
        }
        Err(error) => {
            warn!("its fence cannot be shown yet: {}", chain(&error));
            return None;
        }
    };
    match tell(agent, id, Decision::Grant { fence: fence.to_string() }, control).await {
        Decided::Granted { receipt } => {
            info!("{name} has moved to {neighbour}");
            let retires = || agent.custody.retires(paper, *epoch, &receipt);
            until_done("the grant", retires).await?;
            if let Leave::Ended { .. } = watch.leave {
                look_again(agent, entry, watch).await;
            }
            Some(Source::Ended)
        }
        Decided::Revoked { .. } => {
            error!("{name} is off here, and {neighbour} has given it up: start it here");
            Some(Source::Released)
        }
        Decided::Unknown | Decided::Waits | Decided::Lost => knows_nothing(neighbour, name),
    }
}

/// Its fence, looked at once more. A libvirtd that comes back may have a VM for paused whose process has ended, until it
/// has looked itself.
async fn shown(
    agent: &Agent,
    name: &str,
    (paper, epoch): (&NativePaper, Epoch),
) -> Result<Fenced, HandoverError> {
    let mut pauses = Pauses::default();
    let mut told = false;
    loop {
        match agent.custody.is_fenced(paper, epoch, Death::Shown).await {
            Err(HandoverError::NotAsItShould { found: Power::Paused }) => {
                if pauses.are_long() && !std::mem::replace(&mut told, true) {
                    warn!(
                        "{name} is paused here, and was known to be dead: it waits until that is so again"
                    );
                }
                pauses.pause().await;
            }
            shown => return shown,
        }
    }
}

/// What was made start-proof before the VM ended is looked at once its libvirt has done with it: somebody may have
/// changed it in between.
async fn look_again(agent: &Agent, entry: &Entry, watch: &Watch) {
    let Entry { name, attempt, .. } = entry;
    let Some(Attempt { paper, epoch }) = attempt else { return };
    let _ = timeout(GOODBYE_MAX, watch.over.cancelled()).await;
    let mut pauses = Pauses::default();
    while let Err(error) = agent.custody.stays_fenced(paper, *epoch).await {
        if pauses.are_long() {
            let neighbour = &agent.config.neighbour.name;
            return error!(
                "{name} is {neighbour}'s now, and may be started here as well: remove its definition: {}",
                chain(&error)
            );
        }
        pauses.pause().await;
    }
}

/// The destination gives up for good; with its receipt the VM is this site's as before. `may_wake`: it has been looked
/// at without a break since its migration began, and was not seen to run.
async fn released(
    agent: &Agent,
    entry: &Entry,
    watch: &Watch,
    control: &mut Option<Control>,
    may_wake: &mut bool,
) -> Option<Source> {
    // It runs, or may be started, whenever the destination answers.
    if let Some(Attempt { paper, epoch }) = &entry.attempt
        && let Err(error) = agent.custody.unfences(paper, *epoch).await
    {
        let name = &entry.name;
        warn!(
            "if the definition of {name} is fenced, it is so until {} answers: {}",
            agent.config.neighbour.name,
            chain(&error)
        );
    }
    let given_up = tokio::select! {
        biased;
        given_up = given_up(agent, entry, control) => given_up,
        never = left::look_on(agent, entry, may_wake) => match never {},
    };
    if given_up.is_none() {
        // Nobody looks until it is tried again.
        *may_wake = false;
        return None;
    }
    info!("{} stays here", entry.name);
    watch.decided.cancel();
    match *may_wake {
        true => left::wake(agent, entry).await,
        false => left::tell_of_paused(agent, entry).await,
    }
    Some(Source::Ended)
}

/// By the other agent, and on record here.
async fn given_up(agent: &Agent, entry: &Entry, control: &mut Option<Control>) -> Option<()> {
    let neighbour = &agent.config.neighbour.name;
    let Entry { id, name, attempt, .. } = entry;
    match tell(agent, id, Decision::Revoke, control).await {
        Decided::Granted { .. } => {
            error!("{name} is this site's, and was granted to {neighbour} as well: stop one");
            None
        }
        Decided::Revoked { receipt } => {
            if let (Some(receipt), Some(Attempt { paper, epoch })) = (receipt, attempt) {
                let is_released = || agent.custody.is_released(paper, *epoch, &receipt);
                until_done("the release", is_released).await?;
            }
            Some(())
        }
        Decided::Unknown if attempt.is_none() => Some(()),
        Decided::Unknown | Decided::Waits | Decided::Lost => knows_nothing(neighbour, name),
    }
}

/// It had the attempt, or this agent would not: what it says is no answer.
fn knows_nothing<T>(neighbour: &SiteName, name: &str) -> Option<T> {
    error!(
        "{neighbour} knows nothing of {name}: does its libvirtd answer its agent, with the records that it kept? It is asked again (LIVE.md)"
    );
    None
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

/// What the source shows of its VM.
enum Seen {
    /// By its platform; or by its operator's word, where nobody saw it end.
    Dead(Option<Attestation>),
    Alive,
}

/// Looks at the source until its VM is known to be dead, or to run. `watched`: it took leave as one does
/// whose VM is handed over, and was seen all the time since; not so any more where a look fails, or shows
/// the VM running. Then one that is gone or off may have run on before, and only libvirt's own word that it
/// was migrated away counts, or its operator's.
async fn evidence(
    agent: &Agent,
    entry: &Entry,
    watch: &Watch,
    watched: &mut bool,
    control: &mut Option<Control>,
) -> Seen {
    let Entry { id, vm, name, .. } = entry;
    let Watch { over, is_new, .. } = watch;
    let mut pauses = Pauses::default();
    let mut told = None;
    let mut paused = left::Paused::default();
    loop {
        let seen = look(agent, *vm).await;
        let is_long = paused.seen(matches!(seen, Ok((Power::Paused, _))));
        match &seen {
            Ok((Power::Off, Some(StoppedBy::Migrated))) => {
                info!("{name} is off at the source");
                return Seen::Dead(None);
            }
            // Its libvirt has ended it, or its operator.
            Ok(
                (Power::Absent, _) | (Power::Off, Some(StoppedBy::Other | StoppedBy::PoweredOff)),
            ) if *watched => {
                info!("{name} is gone from the source");
                return Seen::Dead(None);
            }
            // It ended by itself where it stood still, before libvirt came to end it, or to say that it moved.
            Ok((Power::Off, Some(StoppedBy::Crashed))) if *watched && watch.is_led => {
                info!("{name} is gone from the source: its QEMU ended before libvirt ended it");
                return Seen::Dead(None);
            }
            // It ran on there until its own end: what came over is older than its disks.
            Ok((Power::Off, Some(StoppedBy::Shutdown | StoppedBy::Crashed | StoppedBy::Saved)))
                if over.is_cancelled() =>
            {
                warn!("{name} ran on at the source, and ended there: it was not handed over");
                return Seen::Alive;
            }
            // Whoever was told otherwise is still at it while its connection stands.
            Ok((Power::Running, _)) if over.is_cancelled() => {
                warn!("{name} runs at the source again: it was not handed over");
                return Seen::Alive;
            }
            Ok((Power::Running, _)) | Err(_) => *watched = false,
            Ok((Power::Absent | Power::Off, _)) => {
                if let Some(word) = word::given(&agent.config.site.state_dir, id) {
                    warn!("{name} is taken for dead at the source, by word of {}", word.by);
                    return Seen::Dead(Some(word));
                }
            }
            Ok((Power::Paused, _)) if *is_new && over.is_cancelled() && is_long => {
                let there = async { ask(agent, id, &Decision::Look, control).await.ok() };
                match left::take_up(agent, entry, there).await {
                    Some(left::Turn::Ended) => *watched = true,
                    Some(left::Turn::Stays) => return Seen::Alive,
                    // Nobody has looked meanwhile.
                    None => *watched = false,
                }
            }
            Ok((Power::Paused, _)) => {}
        }
        let (state, hint) = match &seen {
            Ok((power @ (Power::Absent | Power::Off), _)) => (
                format!("is {power} at the source, and nobody saw how it ended"),
                format!(
                    "if it never ran on there: causeway-mobility vouch --config FILE {id} --reason WHY; if it did, start it there"
                ),
            ),
            Ok((power, _)) => {
                (format!("is {power} at the source"), "resume it there, or destroy it".to_owned())
            }
            Err(error) => {
                (format!("is not seen: {}", chain(error)), "bring its libvirt back".to_owned())
            }
        };
        if pauses.are_long() && told.as_ref() != Some(&state) {
            warn!("{name} {state}; until that is settled it runs nowhere else: {hint}");
            told = Some(state);
        }
        pauses.pause().await;
    }
}

/// How it is, and how it came to a stop, if it did.
async fn look(agent: &Agent, vm: VmId) -> Result<(Power, Option<StoppedBy>), SiteError> {
    let power = agent.site.power(vm).await?;
    let stopped = if power == Power::Off { agent.site.stopped_by(vm).await? } else { None };
    Ok((power, stopped))
}

/// Until the other agent has it on record.
async fn tell(
    agent: &Agent,
    id: &MigrationId,
    decision: Decision,
    control: &mut Option<Control>,
) -> Decided {
    let mut pauses = Pauses::default();
    let mut told: Option<String> = None;
    loop {
        match ask(agent, id, &decision, control).await {
            Ok(decided) => return decided,
            Err(AskError::Failed(text)) if told.as_ref() != Some(&text) => {
                warn!(?decision, "the other agent does not: {text}");
                told = Some(text);
            }
            Err(AskError::Line(error)) if pauses.are_long() && told.is_none() => {
                let why = chain(&error);
                warn!(?decision, "the other agent is not told yet: {why}");
                told = Some(why);
            }
            Err(_) => {}
        }
        pauses.pause().await;
    }
}

enum AskError {
    /// In its words.
    Failed(String),
    Line(WanError),
    /// To something else, and too late.
    Answer,
}

/// Once.
async fn ask(
    agent: &Agent,
    id: &MigrationId,
    decision: &Decision,
    control: &mut Option<Control>,
) -> Result<Decided, AskError> {
    let mut line = match control.take() {
        Some(line) => line,
        None => {
            let purpose = Purpose::Decision { id: id.clone() };
            Control::new(dial(agent, purpose).await.map_err(AskError::Line)?)
        }
    };
    match line.ask(Message::Decide(decision.clone()), DECIDE_MAX).await {
        Ok(Message::Decided(decided)) => {
            *control = Some(line);
            Ok(decided)
        }
        Ok(Message::Failed(failed)) => Err(AskError::Failed(failed.text)),
        Ok(_) => Err(AskError::Answer),
        Err(error) => Err(AskError::Line(error)),
    }
}

/// Short at first.
struct Pauses {
    next: Duration,
    short: u32,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: FIRST_PAUSE, short: SHORT_PAUSES }
    }
}

impl Pauses {
    async fn pause(&mut self) {
        sleep(self.next).await;
        self.short = self.short.saturating_sub(1);
        if self.short == 0 {
            self.next = (self.next * 5 / 4).min(LONGEST_PAUSE);
        }
    }

    fn are_long(&self) -> bool {
        self.next > LONG_PAUSE
    }
}
