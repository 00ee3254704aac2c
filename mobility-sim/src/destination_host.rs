//! The destination host that the source's libvirt believes in.
//!
//! ```text
//!  Prepare ── asked of the other agent ──► data ──► Finish ── asked ──► offered, on record
//!     │ refused                              │         │ cancelled, or failed      │
//!     ▼                                      ▼         ▼                           ▼
//!  error                          data sockets      error: the source's  OK: the source ends its
//!                                 are closed        VM runs on           VM; `settle` sees that
//! ```

mod allowance;
mod doors;
mod error;
mod left;
mod settle;
pub mod word;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use model::VmId;
use rpc::error::{Code, Origin, RemoteError};
use rpc::flags::Flags;
use rpc::params::{Name, Params};
use rpc::procedures::{Domain, Finished, Prepared};
use rpc::server::Event;
use site::VmProcess;
use site_ledger::NativePaper;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio::{join, select};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, info_span, warn};
use units::{MigrationId, chain};
use uuid::Uuid;

use crate::custody::Carried;
use crate::domain::cookie::{self, Cookie};
use crate::domain::node::Element;
use crate::flags;
use crate::ledger::{Attempt, Entry, Source, Stage};
use crate::libvirt::server::Line;
use crate::progress::Meters;
use crate::serve::{Agent, new_id};
use crate::wan::message::{self, Failed, Leaving, Message, Purpose, Token};
use crate::wan::{self, Control};
use allowance::Allowance;
pub use doors::CONNECTIONS_MAX;
use doors::{Broken, Carrying, Doors};
use error::OutgoingError;
use settle::Watch;
pub use settle::go_on;

/// Of a VM's name, in bytes.
const NAME_MAX: usize = 255;
/// Volumes may be zeroed, and a hypervisor be asked for the first time what it can do.
const PREPARE_MAX: Duration = Duration::from_secs(150);
/// The destination loads what has come by then.
const FINISH_MAX: Duration = Duration::from_secs(60);
/// A round trip, and what a disk takes.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
const WRITTEN_EVERY: Duration = Duration::from_millis(5);
/// After success was offered: usually a few hundred milliseconds.
const GOODBYE_MAX: Duration = Duration::from_secs(5);
/// How long an error waits until nothing is left at the destination.
const TIDY_MAX: Duration = Duration::from_secs(10);

/// So long a connection has its place where others may want it, although nothing is migrated over it.
const IDLE_MAX: Duration = Duration::from_secs(5 * 60);

/// Hears one connection to its end. `is_crowded`: there is hardly a place left for others.
pub async fn serve(agent: Arc<Agent>, mut line: Line, is_crowded: impl Fn() -> bool) {
    // Of one that was told of a VM its own end is waited for.
    let mut was_used = false;
    loop {
        let event = match timeout(IDLE_MAX, line.next()).await {
            Ok(Some(event)) => event,
            Err(_) if was_used || !is_crowded() => continue,
            Ok(None) | Err(_) => return,
        };
        match event {
            Event::Prepare { serial, xml, params, cookie, flags } => {
                was_used = true;
                let asked = Asked { xml, params, cookie, flags };
                match new_id() {
                    Ok(id) => {
                        let span = info_span!("out", %id, vm = %asked.shown_name());
                        take_in(&agent, &mut line, id, serial, asked).instrument(span).await;
                    }
                    Err(error) => {
                        let error = RemoteError::internal(&error.to_string());
                        line.answer_prepare(serial, Err(error)).await;
                    }
                }
            }
            Event::Finish { serial, .. } => {
                let nothing = RemoteError::operation_failed("the migration has ended already");
                line.answer_finish(serial, Err(nothing)).await;
            }
            Event::Closing { .. } | Event::Closed(_) => {}
        }
    }
}

/// What a source wants of its neighbour.
struct Asked {
    xml: String,
    params: Params,
    cookie: Vec<u8>,
    flags: Flags,
}

/// A migration that the other agent is ready for.
struct Outgoing {
    control: Control,
    carrying: Carrying,
    meters: Meters,
    broken: Broken,
    prepared: Prepared,
    attempt: Attempt,
    /// The source's libvirtd leads it, and not a client of its.
    is_p2p: bool,
}

/// The whole story of one migration.
async fn take_in(agent: &Arc<Agent>, line: &mut Line, id: MigrationId, serial: u32, asked: Asked) {
    info!(flags = %asked.flags, "a VM is to leave for {}", agent.config.neighbour.name);
    let outgoing = match prepare(agent, &id, asked).await {
        Ok(outgoing) => outgoing,
        Err(error) => {
            warn!("refused: {}", chain(&error));
            tidy(agent, id, None).await;
            return line.answer_prepare(serial, Err(error.for_libvirt())).await;
        }
    };
    let Outgoing { mut control, carrying, meters, broken, prepared, attempt, is_p2p } = outgoing;
    line.answer_prepare(serial, Ok(prepared)).await;
    meters.show("begins");
    let allowance = Allowance::of(attempt.paper.vm);
    let told = async {
        join!(meters.told_to(&*agent.site, &attempt), allowance.lower(agent, &meters));
    };
    let Some(finish) = until_finish(line, &control, &meters, told, &broken).await else {
        meters.show("has ended");
        drop(carrying);
        warn!("the source's connection has ended before the VM was handed over: it stays there");
        join!(allowance.put_back(agent), tidy(agent, id, Some(control)));
        return;
    };
    meters.show("has ended");
    let Asking { serial, cancelled, ask } = finish;
    debug!(cancelled, "the source's libvirt asks to finish");
    // Data that did not get through the source itself has noticed; but not what its disks were told early.
    let has_lost = broken.why().is_some() && meters.owed() > 0;
    if cancelled || control.over.is_cancelled() || has_lost {
        drop(carrying);
        let neighbour = &agent.config.neighbour.name;
        let error = if control.over.is_cancelled() {
            let text = format!("the line to {neighbour} broke: nothing was migrated");
            RemoteError::operation_failed(&text)
        } else if let Some(why) = broken.why() {
            let text = format!("nothing was migrated, as data did not get to {neighbour}: {why}");
            RemoteError::operation_failed(&text)
        } else {
            RemoteError::migrate_finish_ok()
        };
        warn!("cancelled: {error}");
        join!(allowance.put_back(agent), tidy(agent, id, Some(control)));
        return line.answer_finish(serial, Err(error)).await;
    }
    // Its libvirtd itself is asking: before it resumes the VM it ends this connection.
    let sees_it_end = is_p2p && line.is_own_libvirtd;
    let offered = offer(agent, &id, &attempt, &meters, &mut control, ask, sees_it_end).await;
    drop(carrying);
    match offered {
        Ok((finished, process)) => {
            info!("the VM is whole at {} and stands still", agent.config.neighbour.name);
            line.answer_finish(serial, Ok(finished)).await;
            let leave = goodbye(line, process.as_deref()).await;
            let decided = CancellationToken::new();
            let over = line.over.clone();
            let watch = Watch { over, leave, is_led: is_p2p, is_new: true, decided };
            settle::spawn(agent, id, Some(control), watch);
            // A guest stands still: what is kept for whoever asks how it went comes after what is asked of the site for
            // it.
            if leave != Leave::None {
                let _ = timeout(GOODBYE_MAX, line.over.cancelled()).await;
            }
            meters.tell(&*agent.site, &attempt).await;
        }
        Err(error) => {
            error!("not handed over: {}", chain(&error));
            // An answer that is still to come would be taken for another one's.
            drop(control);
            join!(allowance.put_back(agent), tidy(agent, id, None));
            line.answer_finish(serial, Err(error.for_libvirt())).await;
        }
    }
}

async fn prepare(
    agent: &Arc<Agent>,
    id: &MigrationId,
    asked: Asked,
) -> Result<Outgoing, OutgoingError> {
    let (name, vm) = asked.who()?;
    let Asked { xml, params, cookie, flags } = asked;
    // Its end must be seen: by the libvirtd that this agent looks at, and no other.
    if !agent.site.power(vm).await?.is_loaded() {
        return Err(OutgoingError::NotHere { name });
    }
    let with_disks = flags.contains(Flags::NON_SHARED_DISK);
    // Before anything is asked of anybody: they are there when the source connects.
    let doors = Doors::open(agent, &params, with_disks)?;
    let cookie = cookie::text(&cookie)?.to_owned();
    let stage = Stage::Source(Source::AttemptKnown);
    let entry = Entry {
        id: id.clone(),
        vm,
        name: name.clone(),
        attempt: None,
        carried: None,
        transient: false,
        ran: false,
        belongings: None,
        stage,
    };
    agent.ledger.begin(entry).await?;
    let leaving = Leaving {
        vm,
        name: name.clone(),
        began_ms: now_ms(),
        key: agent.custody.key().await?.into(),
        last: agent.custody.last_epoch(vm).await?,
    };
    let began_ms = leaving.began_ms;
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    let token = Token::new(random);
    let purpose = Purpose::Migration { id: id.clone(), token: token.clone() };
    let mut control = Control::new(dial(agent, purpose).await?);
    let params = flags::passed_on(&params);
    let ask = Message::Prepare(message::Prepare { leaving, xml, cookie, flags: flags.0, params });
    let answer = match control.ask(ask, PREPARE_MAX).await? {
        Message::Prepared(answer) => answer,
        Message::Failed(failed) => return Err(OutgoingError::Theirs(failed)),
        _ => return Err(OutgoingError::Unexpected),
    };
    let theirs = Cookie::parse(answer.cookie.as_bytes())?;
    let here = (agent.config.site.name.clone(), agent.custody.key().await?);
    let there = (agent.config.neighbour.name.clone(), answer.key.get().ok_or(OutgoingError::Key)?);
    let attempt = Attempt {
        paper: NativePaper::new(id.clone(), (vm, name), here, there, began_ms),
        epoch: answer.epoch,
    };
    let learnt = attempt.clone();
    agent.ledger.learn(id, move |entry| entry.attempt = Some(learnt)).await?;
    agent.custody.begins(&attempt.paper, attempt.epoch).await?;
    let disks_port = theirs.nbd_port()?.and(doors.disks_port);
    let cookie = theirs.handed_on(&agent.config.host.in_cookies(), disks_port, None)?;
    let prepared = Prepared { cookie, uri: doors.uri.clone() };
    let (meters, broken) = (Meters::default(), Broken::default());
    let has = doors::Has { room: answer.room, templates: answer.templates };
    let carrying = doors.carry(agent, &token, has, &meters, &broken);
    let is_p2p = flags.contains(Flags::PEER2PEER);
    Ok(Outgoing { control, carrying, meters, broken, prepared, attempt, is_p2p })
}

struct Asking {
    serial: u32,
    cancelled: bool,
    ask: message::Finish,
}

/// `None`: the source's connection has ended. Where the line to the other agent breaks, so do both
/// data connections, at once: the source then gives up by itself.
async fn until_finish(
    line: &mut Line,
    control: &Control,
    meters: &Meters,
    told: impl Future<Output = ()>,
    broken: &Broken,
) -> Option<Asking> {
    let report = async { tokio::join!(meters.report(), told) };
    tokio::pin!(report);
    loop {
        let event = tokio::select! {
            event = line.next() => event,
            () = control.over.cancelled(), if broken.why().is_none() => {
                warn!("the line to the other agent broke: data connections are closed");
                broken.because(|| "the line broke".to_owned());
                continue;
            }
            _ = &mut report => continue,
        };
        match event? {
            Event::Finish { serial, name, params, cookie, flags, cancelled } => {
                let mut params = flags::passed_on(&params);
                let field = Name::DESTINATION_NAME.field.to_owned();
                params.push(message::Param { field, value: message::ParamValue::Text(name) });
                // The other agent reads it, and refuses what is none.
                let cookie = String::from_utf8_lossy(&cookie);
                let cookie = cookie.trim_end_matches('\0').to_owned();
                let carried = meters.taken();
                let ask = message::Finish { carried, cookie, flags: flags.0, params };
                return Some(Asking { serial, cancelled, ask });
            }
            Event::Closed(_) => return None,
            Event::Prepare { .. } | Event::Closing { .. } => {}
        }
    }
}

/// The VM is whole at the destination, and on record as offered, before the source's libvirt may hear
/// of it.
async fn offer(
    agent: &Agent,
    id: &MigrationId,
    attempt: &Attempt,
    meters: &Meters,
    control: &mut Control,
    ask: message::Finish,
    sees_it_end: bool,
) -> Result<(Finished, Option<Box<dyn VmProcess>>), OutgoingError> {
    let Attempt { paper, epoch } = attempt;
    // The guest stands still: what can be done meanwhile is.
    let captured = agent.custody.captures(paper, *epoch);
    let (arrived, unfence) = join!(finish_there(agent, control, ask), captured);
    let ((finished, arrived), unfence) = (arrived?, unfence?);
    all_written(meters).await?;
    let left = meters.taken();
    for (what, ours, theirs) in
        [("memory", left.memory, arrived.memory), ("disks", left.disks, arrived.disks)]
    {
        if ours != theirs {
            return Err(OutgoingError::Short { what, ours, theirs });
        }
    }
    let offers = agent.custody.offers(paper, *epoch, arrived, unfence, sees_it_end);
    let process = offers.await?;
    let offered = move |entry: &mut Entry| {
        (entry.carried, entry.stage) = (Some(arrived), Stage::Source(Source::FenceIntent));
    };
    agent.ledger.learn(id, offered).await?;
    Ok((finished, process))
}

/// What the source's disks were told early has been answered by the destination's since. QEMU flushes before, and then
/// it has; but not where its disk ignores flushes.
async fn all_written(meters: &Meters) -> Result<(), OutgoingError> {
    let until = Instant::now() + WRITTEN_WITHIN;
    loop {
        let owed = meters.owed();
        if owed == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(OutgoingError::NotWritten { owed });
        }
        sleep(WRITTEN_EVERY).await;
    }
}

async fn finish_there(
    agent: &Agent,
    control: &mut Control,
    ask: message::Finish,
) -> Result<(Finished, Carried), OutgoingError> {
    match control.ask(Message::Finish(ask), FINISH_MAX).await? {
        Message::Finished(message::Finished { name, uuid, id, cookie, carried }) => {
            let domain = Domain { name, uuid: uuid.into_bytes(), id };
            let cookie = match cookie.is_empty() {
                true => Vec::new(),
                false => Cookie::parse(cookie.as_bytes())?.handed_on(
                    &agent.config.host.in_cookies(),
                    None,
                    None,
                )?,
            };
            Ok((Finished { domain, cookie }, carried))
        }
        Message::Failed(failed) => Err(OutgoingError::Theirs(failed)),
        _ => Err(OutgoingError::Unexpected),
    }
}

/// How the source's libvirt went, to which success was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// As one does whose VM is handed over.
    Taken,
    /// Its VM's process has ended, while it still held on to what it was told.
    Ended { was_persistent: bool },
    /// Without a word, or it is still there.
    None,
}

/// Success was offered: the source's libvirt ends its VM, and then takes leave. Neither is waited
/// for without end; what it did is seen in its VM.
///
/// A process that ends while the connection stands ended where it stood still: a libvirtd that was not told of success has
/// found the connection broken, and closed it, before it resumes the VM.
async fn goodbye(line: &mut Line, mut process: Option<&dyn VmProcess>) -> Leave {
    let until = Instant::now() + GOODBYE_MAX;
    loop {
        let ended = async {
            match process {
                Some(process) => process.ended().await,
                None => pending().await,
            }
        };
        let event = select! {
            event = timeout_at(until, line.next()) => event,
            () = ended => {
                let was_persistent = process.take().is_some_and(VmProcess::is_persistent);
                if line.stands().await {
                    return Leave::Ended { was_persistent };
                }
                continue;
            }
        };
        match event {
            Ok(Some(Event::Closing { after_handover: true, .. })) => return Leave::Taken,
            Ok(Some(Event::Closed(_)) | None) | Err(_) => return Leave::None,
            Ok(Some(Event::Prepare { serial, .. })) => {
                let busy = RemoteError::operation_failed("another VM was just handed over: again");
                line.answer_prepare(serial, Err(busy)).await;
            }
            Ok(Some(Event::Finish { .. } | Event::Closing { .. })) => {}
        }
    }
}

/// Success was never offered, and never will be. What is left at the destination goes before the
/// source is told, if that is quick; and whatever happens, it goes.
async fn tidy(agent: &Arc<Agent>, id: MigrationId, control: Option<Control>) {
    let stands = control.as_ref().is_some_and(|control| !control.over.is_cancelled());
    let decided = CancellationToken::new();
    let over = CancellationToken::new();
    let leave = Leave::None;
    let watch = Watch { over, leave, is_led: false, is_new: true, decided: decided.clone() };
    settle::spawn(agent, id, control, watch);
    if stands && timeout(TIDY_MAX, decided.cancelled()).await.is_err() {
        warn!("the destination does not answer; what is left there goes when it does");
    }
}

async fn dial(agent: &Agent, purpose: Purpose) -> Result<wan::Stream, wan::WanError> {
    let neighbour = &agent.config.neighbour;
    let whom = (neighbour.address, neighbour.key);
    wan::dial(&*agent.net, whom, &agent.identity, purpose).await
}

/// For people; nothing rests on it.
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| since.as_millis().try_into().ok()).unwrap_or_default()
}

impl Asked {
    /// Of the VM, by its definition.
    fn who(&self) -> Result<(String, VmId), OutgoingError> {
        let definition = Element::parse(&self.xml, "domain")?;
        let text = |name: &str| definition.first(name).map(|element| element.text.clone());
        let uuid = text("uuid").and_then(|uuid| Uuid::parse_str(&uuid).ok());
        let name = text("name").filter(|name| !name.is_empty());
        let name = name.filter(|name| name.len() <= NAME_MAX);
        name.zip(uuid.map(VmId)).ok_or(OutgoingError::Nameless)
    }

    fn shown_name(&self) -> String {
        self.who().map_or_else(|_| "?".to_owned(), |(name, _)| name)
    }
}

impl OutgoingError {
    /// As the operator reads it, in virsh's own words.
    fn for_libvirt(&self) -> RemoteError {
        match self {
            Self::Theirs(Failed { code, origin, text }) => {
                RemoteError::new(Code(*code), Origin(*origin), text)
            }
            Self::DataUri(_) | Self::Listen(_) => RemoteError::unsupported(&chain(self)),
            _ => RemoteError::operation_failed(&chain(self)),
        }
    }
}
