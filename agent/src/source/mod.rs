//! The agent at the source: inside the guest that is being moved.
//!
//! ```text
//!  Inspect       look around, change nothing
//!  Track      →  disks, tracker, sender
//!  Connect    →  data streams, secured, given to the sender
//!  Round ...  →  progress and end are events
//!  Quiesce    →  the guest rests, its warden counts
//!  Round      →  the drain
//!  Seal       →  digests, or not clean
//!  Thaw       →  as it was
//! ```
//!
//! Disks, tracker and streams are in a process of their own, the [`carrier`](crate::carrier): what
//! comes from the destination is never parsed here, where one has all rights.
//!
//! Everything but the streams outlives the coordinator: it comes back, says Hello with the same
//! key, and asks again for whatever it is not sure of.

mod arrivals;
mod error;
mod rest;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::net::UnixStream;
use tokio::sync::Mutex as AsyncMutex;
use transfer::meet::Met;
use transfer::secure::PublicKey;
use units::MigrationId;
use wire::control::{
    AgentDisk, AgentRole, AgentStatus, Endpoint, ErrorCode, Failure, Reply, Request, TrackerReport,
    TrackerWish,
};
use wire::data::STREAMS_MAX;

use crate::carrier::{Carrier, Order, Way};
use crate::inspect::{self, Tree};
use crate::log::Log;
use crate::session::{Events, Role, failure, lock};
use arrivals::Arrivals;
pub use error::{SourceError, to_failure};
use rest::Rest;

pub struct Source {
    tree: Tree,
    /// The agent's private key, PKCS #8: the carrier is the one that shows it to the destination.
    key: Vec<u8>,
    events: Events,
    log: Log,
    arrivals: Arrivals<Met<UnixStream>>,
    carried: Mutex<Option<Arc<Carried>>>,
    /// Held while tracking starts or streams are opened: one at a time.
    connecting: AsyncMutex<()>,
    rest: AsyncMutex<Option<Rest>>,
    /// The same without waiting: which rest it is, counted from 1; 0 while the guest works.
    at_rest: Arc<AtomicU64>,
    rests: AtomicU64,
    /// Held while the carrier is told of it.
    telling: AsyncMutex<()>,
    /// Stops a quiesce under way between two steps.
    called_off: Arc<AtomicBool>,
}

/// The disks that are being moved, and the process that carries them.
struct Carried {
    carrier: Carrier,
    /// In the plan's order, as they were asked for.
    disks: Vec<AgentDisk>,
    report: TrackerReport,
}

impl Carried {
    /// The whole disks by the kernel's names.
    fn names(&self) -> BTreeSet<String> {
        self.disks.iter().map(|disk| disk.device.clone()).collect()
    }
}

impl Source {
    /// `key`: the agent's private key, PKCS #8.
    pub fn new(key: Vec<u8>, events: Events, log: Log) -> Arc<Self> {
        Arc::new(Self {
            tree: Tree::of_this_system(),
            key,
            events,
            log,
            arrivals: Arrivals::default(),
            carried: Mutex::new(None),
            connecting: AsyncMutex::new(()),
            rest: AsyncMutex::new(None),
            at_rest: Arc::default(),
            rests: AtomicU64::new(0),
            telling: AsyncMutex::new(()),
            called_off: Arc::default(),
        })
    }

    fn carried(&self) -> Result<Arc<Carried>, SourceError> {
        let what = "no disks are tracked";
        lock(&self.carried).clone().ok_or(SourceError::State { what, hint: "ask to track first" })
    }

    async fn inspect(&self) -> Result<Reply, SourceError> {
        let tree = self.tree.clone();
        let known = lock(&self.carried).as_ref().map(|carried| carried.report.clone());
        let look = move || inspect::look_around(&tree, known.or_else(crate::selfcheck::tracker));
        let report = tokio::task::spawn_blocking(look).await?;
        Ok(Reply::Guest(Box::new(report)))
    }

    async fn track(
        &self,
        migration: MigrationId,
        disks: Vec<AgentDisk>,
        wish: TrackerWish,
    ) -> Result<TrackerReport, SourceError> {
        let _one = self.connecting.lock().await;
        let known = lock(&self.carried).clone();
        if let Some(known) = known {
            if known.disks == disks {
                return Ok(known.report.clone());
            }
            let disks: Vec<String> = known.names().into_iter().collect();
            return Err(SourceError::OtherDisks { disks: disks.join(", ") });
        }
        let (events, log) = (self.events.clone(), self.log.clone());
        let started = Carrier::start(migration, self.key.clone(), disks.clone(), wish, events, log);
        let (carrier, report) = started.await?;
        tracing::info!(choice = %report.choice, reason = %report.reason, "tracking");
        let carried = Carried { carrier, disks, report: report.clone() };
        *lock(&self.carried) = Some(Arc::new(carried));
        Ok(report)
    }

    async fn connect(
        &self,
        generation: u64,
        streams: u16,
        peer_key: &str,
        endpoint: Endpoint,
    ) -> Result<(), SourceError> {
        let _peer: PublicKey = peer_key.parse()?;
        if streams == 0 || streams > STREAMS_MAX {
            let what = "a connection has from 1 to 64 streams";
            return Err(SourceError::State { what, hint: "plan with other options" });
        }
        let carried = self.carried()?;
        let _one = self.connecting.lock().await;
        match carried.carrier.status().await?.connected {
            Some(known) if known == generation => return Ok(()),
            Some(known) if known > generation => {
                return Err(SourceError::OldGeneration { asked: generation, known });
            }
            _ => {}
        }
        let (way, sockets) = self.sockets(generation, streams, endpoint).await?;
        carried.carrier.connect(generation, peer_key.to_owned(), way, sockets).await?;
        tracing::info!(generation, streams, "connected");
        Ok(())
    }

    /// Those that the coordinator handed in, or new ones to the destination. Nothing that comes
    /// from there is read.
    async fn sockets(
        &self,
        generation: u64,
        streams: u16,
        endpoint: Endpoint,
    ) -> Result<(Way, Vec<OwnedFd>), SourceError> {
        let (mut sockets, mut ahead) = (Vec::new(), Vec::new());
        match endpoint {
            Endpoint::Relay => {
                for stream in self.arrivals.take(generation, streams).await? {
                    let (socket, read) = stream.into_parts();
                    sockets.push(socket.into_std().map_err(SourceError::Socket)?.into());
                    ahead.push(read);
                }
                Ok((Way::Relay { ahead }, sockets))
            }
            Endpoint::Direct { addresses } => {
                for socket in arrivals::dial(&addresses, streams).await? {
                    sockets.push(socket.into_std().map_err(SourceError::Socket)?.into());
                }
                Ok((Way::Direct, sockets))
            }
        }
    }

    async fn disconnect(&self) {
        self.arrivals.clear();
        if let Ok(carried) = self.carried()
            && let Err(error) = carried.carrier.ask(Order::Disconnect).await
        {
            tracing::warn!(error = %units::chain(&error), "streams not given up");
        }
    }

    async fn status(&self) -> Result<AgentStatus, SourceError> {
        let carried = lock(&self.carried).clone();
        let at_work = match &carried {
            Some(carried) => Some(carried.carrier.status().await?),
            None => None,
        };
        let pid = carried.as_ref().map(|carried| carried.carrier.pid());
        Ok(AgentStatus {
            role: AgentRole::Source,
            boot_id: inspect::boot_id(&self.tree),
            generation: at_work.map(|status| status.last).filter(|last| *last > 0),
            tracking: carried.map(|carried| carried.report.clone()),
            frozen: self.at_rest().is_some(),
            round: at_work.and_then(|status| status.round),
            memory: inspect::memory_with(&self.tree, pid),
        })
    }

    /// Asks the carrier, for what it alone does.
    async fn carry(&self, order: Order) -> Result<(), SourceError> {
        self.carried()?.carrier.ask(order).await.map(drop)
    }

    async fn do_it(
        self: &Arc<Self>,
        owner: MigrationId,
        request: Request,
    ) -> Result<Reply, SourceError> {
        match request {
            Request::Status => return Ok(Reply::Status(self.status().await?)),
            Request::Inspect => return self.inspect().await,
            Request::Track { disks, wish } => {
                return Ok(Reply::Tracking(self.track(owner, disks, wish).await?));
            }
            Request::Seal { thaw_after_ms } => {
                return Ok(Reply::Sealed(self.seal(thaw_after_ms).await?));
            }
            Request::Connect { generation, streams, peer_key, endpoint } => {
                self.connect(generation, streams, &peer_key, endpoint).await?;
            }
            Request::Disconnect => self.disconnect().await,
            Request::Round { number, limit_rate, limit_read, compress } => {
                self.carry(Order::Round { number, limit_rate, limit_read, compress }).await?;
            }
            Request::LimitRate { bytes_per_s } => {
                self.carry(Order::LimitRate { bytes_per_s }).await?;
            }
            Request::StopRound => self.carry(Order::StopRound).await?,
            Request::Quiesce { units, hooks, thaw_after_ms, thaw_hooks } => {
                self.quiesce(units, hooks, thaw_hooks, thaw_after_ms).await?;
            }
            Request::Thaw { units: _, hooks } => self.thaw(&hooks).await,
            _ => {
                let what = "this is asked of the destination's agent";
                return Err(SourceError::State { what, hint: "this is a bug of the coordinator" });
            }
        }
        Ok(Reply::Done)
    }
}

impl Role for Source {
    const ROLE: AgentRole = AgentRole::Source;

    type Stream = UnixStream;

    async fn answer(
        self: Arc<Self>,
        owner: MigrationId,
        request: Request,
    ) -> Result<Reply, Failure> {
        // A task of its own, so that a bug in one request is an answer and not the agent's end.
        let done =
            tokio::spawn(async move { self.do_it(owner, request).await.map_err(to_failure) });
        let panicked = |_| failure(ErrorCode::Io, "a bug in the agent: see its log");
        done.await.map_err(panicked)?
    }

    async fn data(self: Arc<Self>, generation: u64, number: u16, stream: Met<UnixStream>) {
        self.arrivals.put(generation, number, stream);
    }

    async fn wind_up(self: Arc<Self>) {
        self.thaw(&[]).await;
        self.disconnect().await;
        let carried = lock(&self.carried).take();
        if let Some(carried) = carried {
            carried.carrier.end().await;
        }
    }
}
