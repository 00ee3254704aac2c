//! A VM that the source's libvirt has left paused: whoever led its migration is gone, and nobody else ends or
//! resumes it. Libvirt's own words are "third party needs to check what to do next"; the agent is that party.
//!
//! Where the other agent still has it, whole, it is ended here, and goes on there; held meanwhile, so that
//! nobody resumes it. Where the other agent has given it up, it is resumed.

use std::convert::Infallible;
use std::time::Duration;

use model::Power;
use rpc::error::Code;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};
use units::chain;

use crate::ledger::Entry;
use crate::libvirt::client::DaemonError;
use crate::libvirt::held::{Held, Stand};
use crate::serve::Agent;
use crate::wan::message::Decided;

/// Whoever leads it, and is there, is done by then.
const LEFT_AFTER: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long it has been seen paused, without a break.
#[derive(Default)]
pub struct Paused(Option<Instant>);

impl Paused {
    /// Whether that is so long that it may have been left.
    pub fn seen(&mut self, is_paused: bool) -> bool {
        if !is_paused {
            self.0 = None;
            return false;
        }
        self.0.get_or_insert_with(Instant::now).elapsed() > LEFT_AFTER
    }
}

/// What is done about it.
pub enum Turn {
    /// It is dead here, and was seen to be paused until it was.
    Ended,
    /// It is not there any more: it stays here.
    Stays,
}

/// `None`: it was not left, or nothing is known yet. `there` is what the other agent says of it.
pub async fn take_up(
    agent: &Agent,
    entry: &Entry,
    there: impl Future<Output = Option<Decided>>,
) -> Option<Turn> {
    let (name, neighbour) = (&entry.name, &agent.config.neighbour.name);
    let held = match left(agent, entry).await {
        Ok(held) => held?,
        Err(error) => {
            debug!("whether it was left is not known: {}", chain(&error));
            return None;
        }
    };
    let turn = match there.await {
        Some(Decided::Waits) => end(agent, entry, &held).await.then_some(Turn::Ended),
        Some(Decided::Lost | Decided::Revoked { .. }) => {
            warn!("{name} was left paused here, and is lost at {neighbour}, or may have run there");
            Some(Turn::Stays)
        }
        Some(Decided::Granted { .. } | Decided::Unknown) | None => None,
    };
    held.end().await;
    turn
}

/// Whether it was held, paused, from before the other agent was asked until it was dead. The answer took its time:
/// a libvirtd that was restarted meanwhile holds nothing, and lets anybody resume it.
async fn end(agent: &Agent, entry: &Entry, held: &Held) -> bool {
    let (name, neighbour) = (&entry.name, &agent.config.neighbour.name);
    match held.stand().await {
        Ok(Stand::LeftPaused) => {}
        Ok(_) => return false,
        Err(error) => {
            debug!("whether it was left is not known: {}", chain(&error));
            return false;
        }
    }
    warn!("{name} was left paused here, and is whole at {neighbour}: it is ended here");
    if let Err(error) = agent.site.power_off(entry.vm).await {
        warn!("{name} is not ended here yet: {}", chain(&error));
        return false;
    }
    match held.stand().await {
        Ok(Stand::StandsStill) => true,
        Err(DaemonError::Refused(error)) if error.code == Code::NO_DOMAIN => true,
        Ok(Stand::Runs | Stand::LeftPaused) => false,
        Err(error) => {
            warn!("{name} is ended here, and was not held all the time: {}", chain(&error));
            false
        }
    }
}

/// Looks at a VM until this is dropped, while the other agent is told that it stays here. `may_wake` is no more once it
/// was seen to run.
///
/// What the attempt left paused may, where that takes long, have been resumed since and sent elsewhere by its
/// operator, and be left paused by that: to resume it then could make two.
pub async fn look_on(agent: &Agent, entry: &Entry, may_wake: &mut bool) -> Infallible {
    loop {
        // That its libvirtd is away says nothing: nobody resumes it then.
        if let Ok(Power::Running | Power::Off | Power::Absent) = agent.site.power(entry.vm).await {
            *may_wake = false;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// One that stays here runs again afterwards, unless somebody else wants it paused.
pub async fn wake(agent: &Agent, entry: &Entry) {
    let Entry { vm, name, .. } = entry;
    let mut paused = Paused::default();
    let mut told = String::new();
    let mut tell = |why: String| {
        if why != told {
            warn!(
                "{name} is paused here, still: {why}; virsh resume {name}, if nothing else has it paused"
            );
            told = why;
        }
    };
    loop {
        match agent.site.power(*vm).await {
            Ok(Power::Paused) if paused.seen(true) => match left(agent, entry).await {
                Ok(Some(held)) => {
                    held.end().await;
                    match agent.site.resume(*vm).await {
                        Ok(()) => return info!("{name} was left paused here: it runs again"),
                        Err(error) => tell(chain(&error)),
                    }
                }
                Ok(None) => return,
                Err(error) => tell(chain(&error)),
            },
            // Its libvirtd comes back, or its leader goes.
            Ok(Power::Paused) | Err(_) => {}
            Ok(Power::Running | Power::Off | Power::Absent) => return,
        }
        sleep(LOOK_EVERY).await;
    }
}

/// One of which it is not known what it went through is its operator's.
pub async fn tell_of_paused(agent: &Agent, entry: &Entry) {
    let Entry { vm, name, .. } = entry;
    if matches!(agent.site.power(*vm).await, Ok(Power::Paused)) {
        warn!(
            "{name} stays here, paused: if it runs nowhere else and nobody wants it so, virsh resume {name}"
        );
    }
}

/// Held, if it was left paused.
async fn left(agent: &Agent, entry: &Entry) -> Result<Option<Held>, DaemonError> {
    let held = Held::anew(&*agent.net, &agent.config.site.socket, entry.vm).await?;
    if held.stand().await? == Stand::LeftPaused {
        return Ok(Some(held));
    }
    held.end().await;
    Ok(None)
}
