//! A VM that the source's libvirt has left paused: whoever led its migration is gone, and nobody else ends or
//! resumes it. Libvirt's own words are "third party needs to check what to do next"; the agent is that party.
//!
//! Where the other agent still has it, whole, it is ended here, and goes on there; held meanwhile, so that
//! nobody resumes it. Where the other agent has given it up, it is resumed.

use std::time::Duration;

use model::Power;
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
    let Entry { vm, name, .. } = entry;
    let neighbour = &agent.config.neighbour.name;
    let held = match left(agent, entry).await {
        Ok(held) => held?,
        Err(error) => {
            debug!("whether it was left is not known: {}", chain(&error));
            return None;
        }
    };
    let turn = match there.await {
        Some(Decided::Waits) => {
            warn!("{name} was left paused here, and is whole at {neighbour}: it is ended here");
            match agent.site.power_off(*vm).await {
                Ok(()) => Some(Turn::Ended),
                Err(error) => {
                    warn!("{name} is not ended here yet: {}", chain(&error));
                    None
                }
            }
        }
        Some(Decided::Lost | Decided::Revoked { .. }) => {
            warn!("{name} was left paused here, and is lost at {neighbour}");
            Some(Turn::Stays)
        }
        Some(Decided::Granted { .. } | Decided::Unknown) | None => None,
    };
    held.end().await;
    turn
}

/// One that stays here runs again afterwards, unless somebody else wants it paused.
pub async fn wake(agent: &Agent, entry: &Entry) {
    let Entry { vm, name, .. } = entry;
    let mut paused = Paused::default();
    loop {
        match agent.site.power(*vm).await {
            Ok(Power::Paused) if paused.seen(true) => match left(agent, entry).await {
                Ok(Some(held)) => {
                    held.end().await;
                    match agent.site.resume(*vm).await {
                        Ok(()) => return info!("{name} was left paused here: it runs again"),
                        Err(error) => warn!("{name} is paused here, still: {}", chain(&error)),
                    }
                }
                Ok(None) => return,
                Err(error) => debug!("whether it was left is not known: {}", chain(&error)),
            },
            // Its libvirtd comes back, or its leader goes.
            Ok(Power::Paused) | Err(_) => {}
            Ok(Power::Running | Power::Off | Power::Absent) => return,
        }
        sleep(LOOK_EVERY).await;
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
