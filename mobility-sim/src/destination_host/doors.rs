//! The ports that the source's hypervisor sends memory and disks to, and every connection to them
//! carried to the other agent.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use rpc::params::{Name, Params};
use site::ByteStream;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, Span, debug, warn};
use units::chain;

use super::error::OutgoingError;
use crate::net::Listener;
use crate::ports::{self, DataUri};
use crate::progress::Meters;
use crate::relay::templates::{BLOCKS_MAX, HASH_LEN, HASHES_AT_ONCE};
use crate::relay::{
    DEAD_AFTER, Early, EarlyError, Meter, Migration, Part, RelayError, Room, relay,
};
use crate::serve::Agent;
use crate::wan::WanError;
use crate::wan::message::{Door, Purpose, Token};

/// Open, with nobody behind them yet.
pub struct Doors {
    memory: Box<dyn Listener>,
    disks: Option<Box<dyn Listener>>,
    pub disks_port: Option<u16>,
    /// Where memory goes, if the operator has not said it in full.
    pub uri: Option<String>,
}

/// Whether the data connections of a migration cannot go on, and why.
#[derive(Clone, Default)]
pub struct Broken {
    is: CancellationToken,
    why: Arc<OnceLock<String>>,
}

impl Broken {
    /// The first one counts.
    pub fn because(&self, why: impl FnOnce() -> String) {
        self.why.get_or_init(why);
        self.is.cancel();
    }

    pub fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }

    pub async fn comes(&self) {
        self.is.cancelled().await;
    }
}

/// Connections are carried until this is dropped; then all of them are closed at once.
pub struct Carrying {
    _stop: DropGuard,
}

/// Connections of one migration at once to one door: multifd has 255 at most.
pub const CONNECTIONS_MAX: usize = 260;

impl Doors {
    pub fn open(agent: &Agent, params: &Params, with_disks: bool) -> Result<Self, OutgoingError> {
        let host = &agent.config.host;
        let listen = |named| ports::listen(&*agent.net, host.data_address, named, host.ports);
        let wanted = |name, what| {
            let uri: Option<&str> = params.get(name);
            uri.map(|uri| DataUri::parse(uri, what)).transpose()
        };
        let memory = wanted(&Name::MIGRATE_URI, "memory")?;
        let disks = wanted(&Name::DISKS_URI, "disks")?;
        let named_port = memory.as_ref().and_then(|uri| uri.port);
        let (listener, port) = listen(named_port)?;
        let uri = match (&memory, named_port) {
            (Some(_), Some(_)) => None,
            (Some(uri), None) => Some(ports::tcp_uri(&uri.host, port)),
            (None, _) => Some(ports::tcp_uri(&host.data_address.to_string(), port)),
        };
        let (disks, disks_port) = if with_disks {
            let port: Option<i32> = params.get(&Name::DISKS_PORT);
            let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
            let named = disks.and_then(|uri| uri.port).or(port);
            let (listener, port) = listen(named)?;
            (Some(listener), Some(port))
        } else {
            (None, None)
        };
        Ok(Self { memory: listener, disks, disks_port, uri })
    }

    /// `broken` is where the line to the other agent breaks, and closes everything where somebody else says so.
    pub fn carry(
        self,
        agent: &Arc<Agent>,
        token: &Token,
        Has { room, templates }: Has,
        meters: &Meters,
        broken: &Broken,
    ) -> Carrying {
        let stop = CancellationToken::new();
        // All connections of the migration know what the others have sent.
        let known = Arc::new(Migration::of(agent.budget.take(Room::default().at_most(room))));
        if templates > 0 && self.disks.is_some() && known.has_room() {
            let (whose, token, stop) = (Arc::clone(agent), token.clone(), stop.clone());
            let (known, meter) = (Arc::clone(&known), Arc::clone(&meters.disks));
            let learned = async move {
                let learn = learn_templates(&whose, token, templates, &known, &meter);
                let learned = tokio::select! {
                    learned = learn => learned,
                    () = stop.cancelled() => return,
                };
                match learned {
                    Ok(()) => debug!(blocks = templates, "what the other site has is known"),
                    // All of it comes, then.
                    Err(error) => warn!("what the other site has is not known: {}", chain(&error)),
                }
            };
            agent.spawn(learned.instrument(Span::current()));
        }
        let doors = [
            (Some(self.memory), Door::Memory, &meters.memory),
            (self.disks, Door::Disks, &meters.disks),
        ];
        for (listener, leads_to, meter) in doors {
            let Some(listener) = listener else { continue };
            let way = Way {
                agent: Arc::clone(agent),
                token: token.clone(),
                leads_to,
                known: Arc::clone(&known),
                meter: Arc::clone(meter),
                broken: broken.clone(),
            };
            let (stop, broken) = (stop.clone(), broken.clone());
            let carried = async move {
                tokio::select! {
                    () = carry_all(listener, way) => {}
                    () = broken.comes() => {}
                    () = stop.cancelled() => {}
                }
            };
            agent.spawn(carried.instrument(Span::current()));
        }
        Carrying { _stop: stop.drop_guard() }
    }
}

/// What the other end has.
pub struct Has {
    pub room: Room,
    /// Blocks of templates.
    pub templates: u32,
}

/// Asks for them. What is sent until they are known is sent.
async fn learn_templates(
    agent: &Agent,
    token: Token,
    blocks: u32,
    known: &Migration,
    meter: &Meter,
) -> Result<(), LearnError> {
    let mut far = super::dial(agent, Purpose::Templates { token }).await?;
    let mut left = blocks.min(BLOCKS_MAX) as usize;
    let mut hashes = vec![[0; HASH_LEN]; HASHES_AT_ONCE.min(left)];
    while left > 0 {
        let next = &mut hashes[..HASHES_AT_ONCE.min(left)];
        left -= next.len();
        let bytes = next.as_flattened_mut();
        let read = timeout(DEAD_AFTER, far.stream.read_exact(bytes)).await;
        let len = read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        meter.received.fetch_add(len as u64, Ordering::Relaxed);
        if !known.add_templates(next) {
            return Err(LearnError::Twice);
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum LearnError {
    #[error(transparent)]
    Line(#[from] WanError),
    #[error("the line broke")]
    Broken(#[from] io::Error),
    #[error("the other agent tells of a block twice")]
    Twice,
}

/// Where the connections of one door go.
#[derive(Clone)]
struct Way {
    agent: Arc<Agent>,
    token: Token,
    leads_to: Door,
    known: Arc<Migration>,
    meter: Arc<Meter>,
    broken: Broken,
}

/// Dropping it drops them all.
async fn carry_all(listener: Box<dyn Listener>, way: Way) {
    let mut carried = JoinSet::new();
    let mut index = 0;
    loop {
        tokio::select! {
            accepted = listener.accept(), if carried.len() < CONNECTIONS_MAX => match accepted {
                Ok((local, peer)) => {
                    debug!(%peer, leads_to = %way.leads_to, "a hypervisor connects");
                    let one = carry_one(local, index, way.clone());
                    carried.spawn(one.instrument(Span::current()));
                    index += 1;
                }
                Err(error) => {
                    warn!(%error, "a connection of the hypervisor was not taken");
                    return way.broken.because(|| format!("a connection was not taken: {error}"));
                }
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn carry_one(local: ByteStream, index: u32, way: Way) {
    let Way { agent, token, leads_to, known, meter, broken } = way;
    let part = Part::Sends { kind: leads_to.into(), index, migration: known };
    let carried = async {
        let far = super::dial(&agent, Purpose::Stream { token, leads_to, index }).await;
        let far = far.map_err(|error| RelayError::Far(std::io::Error::other(error)))?;
        match leads_to {
            Door::Memory => relay(local, far.stream, part, &meter).await,
            Door::Disks => {
                let early = Early::new(local, Arc::clone(&meter.owed));
                relay(early, far.stream, part, &meter).await
            }
        }
    };
    match carried.await {
        Ok(()) => debug!(%leads_to, "a connection has ended"),
        // One that it closed itself, and not one that was closed to it.
        Err(error @ RelayError::Local(_)) if !is_early(&error) => {
            debug!(%leads_to, "{}", chain(&error));
        }
        Err(error) => {
            // Once a VM is handed over, nothing more is carried and nobody minds.
            warn!(%leads_to, "data does not get through: {}", chain(&error));
            broken.because(|| chain(&error));
        }
    }
}

/// The hypervisor's connection was given up here, as what was said to it is not so.
fn is_early(error: &RelayError) -> bool {
    let RelayError::Local(cause) = error else { return false };
    cause.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<EarlyError>)
}
