//! The source host that the destination's libvirt believes in.
//!
//! ```text
//!  Prepare: definition, volumes made; libvirtd told ──► streams ──► Finish, paused ──► on record
//!     │                                                                │
//!     ▼ whatever fails: libvirtd lets go of it, volumes are removed ◄──┘
//! ```
//! One connection to libvirtd holds the VM until Finish: should this agent die, libvirtd tidies up.
//! From there on the VM waits for the source's word, which alone starts or ends it ([`decision`]), and is held
//! meanwhile ([`hold`]).

mod decision;
mod disks;
mod error;
mod hold;
mod place;
mod streams;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rpc::error::{Code, Origin};
use site::LiveJob;
use site_ledger::keep_job;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, Span, debug, info, info_span, warn};
use units::{MigrationId, chain};

use crate::custody::Carried;
use crate::ledger::{Attempt, Destination, Stage};
use crate::progress::Meters;
use crate::relay::Room;
use crate::serve::Agent;
use crate::wan::Control;
use crate::wan::message::{Decision, Failed, Finish, Finished, Message, Token};
use decision::decide;
pub use decision::go_on;
use error::ArrivalError;
use hold::{Holds, Waiting};
use place::{Placed, place};
use streams::Streams;
pub use streams::{carry, tell_templates};

/// How long a question may take to come.
const ASK_MAX: Duration = Duration::from_secs(30);
/// What has come is counted by then.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);
/// So long it is waited for an arrival that was told to end; whoever asks for it asks again.
const LEAVE_MAX: Duration = Duration::from_secs(20);

/// VMs that are coming in now.
#[derive(Default)]
pub struct Arrivals {
    coming: Mutex<HashMap<MigrationId, Coming>>,
    /// Those that something is left of, which is tried again and again.
    undone: Mutex<HashSet<MigrationId>>,
    streams: Streams,
    holds: Holds,
}

/// One that comes in. It is told to end by `end`, and has by `ended`.
#[derive(Clone)]
struct Coming {
    end: CancellationToken,
    ended: CancellationToken,
}

/// While it is there, the migration is coming in.
struct Entered<'a> {
    arrivals: &'a Arrivals,
    id: &'a MigrationId,
    end: CancellationToken,
    _ended: DropGuard,
}

impl Arrivals {
    /// `None`: it is coming in already.
    fn enter<'a>(&'a self, id: &'a MigrationId) -> Option<Entered<'a>> {
        let (end, ended) = (CancellationToken::new(), CancellationToken::new());
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        if coming.contains_key(id) {
            return None;
        }
        coming.insert(id.clone(), Coming { end: end.clone(), ended: ended.clone() });
        Some(Entered { arrivals: self, id, end, _ended: ended.drop_guard() })
    }

    /// Whether it is not coming in any more, by its own end or by this.
    async fn end(&self, id: &MigrationId) -> bool {
        let coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        let Some(Coming { end, ended }) = coming else { return true };
        end.cancel();
        timeout(LEAVE_MAX, ended.cancelled()).await.is_ok()
    }

    /// Whether nobody undoes it yet; then whoever asks does.
    fn undoes(&self, id: &MigrationId) -> bool {
        self.undone.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone())
    }

    fn has_undone(&self, id: &MigrationId) {
        self.undone.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.arrivals.coming.lock().unwrap_or_else(PoisonError::into_inner).remove(self.id);
    }
}

/// The line of one migration, to its end.
pub async fn receive(agent: &Arc<Agent>, id: MigrationId, token: Token, mut control: Control) {
    let span = info_span!("in", %id, vm = tracing::field::Empty);
    async {
        let heard = take_over(agent, &id, token, &mut control).await;
        hear_decisions(agent, &id, control, heard).await;
    }
    .instrument(span)
    .await;
}

/// The whole story of one arrival, until the VM is here, or nothing of it is. Answers with the source's word
/// on it, if that has come already.
async fn take_over(
    agent: &Arc<Agent>,
    id: &MigrationId,
    token: Token,
    control: &mut Control,
) -> Option<Decision> {
    // What is on record under this id is somebody's VM: nothing of it is undone.
    if agent.ledger.entry(id).is_some() {
        warn!("a migration of this id has come in before");
        return None;
    }
    let Some(entered) = agent.arrivals.enter(id) else {
        warn!("a migration of this id is coming in already");
        return None;
    };
    let Ok(Ok(Message::Prepare(ask))) = timeout(ASK_MAX, control.hear()).await else {
        warn!("the other agent did not say what is to come");
        return None;
    };
    let share = agent.budget.take(Room::default());
    // What was begun is ended before anybody undoes it, so nothing interrupts it.
    let templates = agent.templates.index();
    let told = templates.as_ref().map_or(0, |index| index.hashes().len());
    let told = u32::try_from(told).unwrap_or(0);
    let (placed, prepared) = match place(agent, id, ask, share.room(), told).await {
        Ok(placed) => placed,
        Err(error) => {
            warn!("refused: {}", chain(&error));
            fail(agent, id, control, &error).await;
            return None;
        }
    };
    let streams = agent.arrivals.streams.open(token, placed.data, share, templates, &entered.end);
    info!("{} may come: memory and disks are taken in", placed.name);
    let next = if control.say(Message::Prepared(prepared)).await.is_err() {
        Err("the line broke")
    } else {
        tokio::select! {
            next = control.hear() => next.map_err(|_| "the line broke"),
            () = entered.end.cancelled() => Err("the source gave up"),
            () = placed.daemon.over() => Err("libvirtd is gone"),
        }
    };
    let (why, heard) = match next {
        Ok(Message::Finish(ask)) => {
            match finish(agent, id, &placed, streams.meters(), ask).await {
                Ok((finished, job)) => {
                    let name = &placed.name;
                    info!("{name} is whole and stands still: it waits for the source's word");
                    decision::watch(agent, id);
                    // One that is not heard is asked for by the source's word.
                    let _ = control.say(Message::Finished(finished)).await;
                    tell_job(agent, &placed.attempt, job);
                }
                Err(error) => {
                    warn!("not taken over: {}", chain(&error));
                    drop(placed);
                    fail(agent, id, control, &error).await;
                }
            }
            return None;
        }
        Ok(Message::Decide(decision)) => ("the source gave up", Some(decision)),
        Ok(_) => ("the other agent says what nobody says now", None),
        Err(why) => (why, None),
    };
    warn!("{} does not come: {why}", placed.name);
    // Libvirtd lets go of it, and then its volumes are removed.
    placed.cancel().await;
    decision::undo(agent, id).await;
    heard
}

/// The VM is here when this returns, and durably known to be; it stands still.
async fn finish(
    agent: &Arc<Agent>,
    id: &MigrationId,
    placed: &Placed,
    meters: &Meters,
    ask: Finish,
) -> Result<(Finished, Option<LiveJob>), ArrivalError> {
    let (domain, finished, then) = placed.finish(agent, ask).await?;
    // Libvirt forgets it as the VM is held. Nobody waits for it to be told.
    let job = agent.site.last_live_job(placed.attempt.paper.vm).await.ok().flatten();
    let who = Waiting { id: id.clone(), vm: placed.attempt.paper.vm, name: placed.name.clone() };
    hold::hold(agent, &who, &placed.daemon, domain).await?;
    all_arrived(meters, finished.carried).await?;
    let Attempt { paper, epoch } = &placed.attempt;
    agent.custody.has_it(paper, *epoch, finished.carried).await?;
    // Before the source hears of it: whoever knows of it finds it here.
    let synced = Stage::Destination(Destination::Synced(then));
    agent.ledger.record(id, synced).await?;
    Ok((finished, job))
}

/// For whoever asks how it went. The VM does not wait for it.
fn tell_job(agent: &Arc<Agent>, attempt: &Attempt, job: Option<LiveJob>) {
    let (Some(job), Ok(vm)) = (job, attempt.paper.vm_key()) else { return };
    let (whose, epoch) = (Arc::clone(agent), attempt.epoch);
    let told = async move {
        if let Err(error) = keep_job(&*whose.site, &vm, epoch, job).await {
            debug!("how it went is not told: {}", chain(&error));
        }
    };
    agent.spawn(told.instrument(Span::current()));
}

/// What left the source's hypervisor has reached ours: the VM could be loaded, and may have been so a
/// moment before the last of it is counted.
async fn all_arrived(meters: &Meters, carried: Carried) -> Result<(), ArrivalError> {
    let until = Instant::now() + COUNTED_WITHIN;
    loop {
        let given = meters.given();
        if given == carried {
            return Ok(());
        }
        if Instant::now() > until {
            let (what, theirs, ours) = match given.memory == carried.memory {
                true => ("disks", carried.disks, given.disks),
                false => ("memory", carried.memory, given.memory),
            };
            return Err(ArrivalError::Short { what, theirs, ours });
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn fail(agent: &Arc<Agent>, id: &MigrationId, control: &Control, error: &ArrivalError) {
    decision::undo(agent, id).await;
    let failed = error.for_the_source(&agent.config.site.name);
    // One that does not hear it has lost the line, and gives up by itself.
    let _ = control.say(Message::Failed(failed)).await;
}

/// The source's word on VMs that wait here, for as long as its line stands; `heard` has come before.
pub async fn hear_decisions(
    agent: &Arc<Agent>,
    id: &MigrationId,
    mut control: Control,
    heard: Option<Decision>,
) {
    let mut next = heard.map(Message::Decide);
    loop {
        let message = match next.take() {
            Some(message) => message,
            None => match control.hear().await {
                Ok(message) => message,
                Err(_) => return,
            },
        };
        let Message::Decide(decision) = message else {
            return warn!("the other agent says something else than its word");
        };
        let answer = match decide(agent, id, decision).await {
            Ok(decided) => Message::Decided(decided),
            Err(error) => {
                let text = chain(&error);
                warn!("nothing was decided: {text}");
                let (code, origin) = (Code::OPERATION_FAILED.0, Origin::QEMU.0);
                Message::Failed(Failed { code, origin, text })
            }
        };
        if control.say(answer).await.is_err() {
            return;
        }
    }
}
