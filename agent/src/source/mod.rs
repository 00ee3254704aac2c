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
//! Everything but the streams outlives the coordinator: it comes back, says Hello with the same
//! key, and asks again for whatever it is not sure of.

mod error;
mod rest;
mod round;
mod streams;
mod tracked;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::sync::Mutex as AsyncMutex;
use transfer::RoundOptions;
use transfer::secure::{Identity, PublicKey};
use units::MigrationId;
use wire::control::{
    AgentDisk, AgentRole, AgentStatus, Endpoint, ErrorCode, Failure, Reply, Request, TrackerReport,
    TrackerWish,
};
use wire::data::STREAMS_MAX;

use crate::inspect::{self, Tree};
use crate::log::Log;
use crate::session::{ByteStream, Events, Role, failure, lock};
use error::{SourceError, to_failure};
use rest::Rest;
use round::Rounds;
use streams::Arrivals;
use tracked::Tracked;
pub use tracked::tracker_report;

pub struct Source {
    tree: Tree,
    identity: Identity,
    events: Events,
    log: Log,
    arrivals: Arrivals,
    tracked: Mutex<Option<Arc<Tracked>>>,
    /// Held while tracking starts or streams are opened: one at a time.
    connecting: AsyncMutex<()>,
    rounds: Rounds,
    rest: AsyncMutex<Option<Rest>>,
    /// The same without waiting: which rest it is, counted from 1; 0 while the guest works.
    at_rest: Arc<AtomicU64>,
    rests: AtomicU64,
    /// Stops a quiesce under way between two steps.
    called_off: Arc<AtomicBool>,
}

impl Source {
    pub fn new(identity: Identity, events: Events, log: Log) -> Arc<Self> {
        Arc::new(Self {
            tree: Tree::of_this_system(),
            identity,
            events,
            log,
            arrivals: Arrivals::default(),
            tracked: Mutex::new(None),
            connecting: AsyncMutex::new(()),
            rounds: Rounds::default(),
            rest: AsyncMutex::new(None),
            at_rest: Arc::default(),
            rests: AtomicU64::new(0),
            called_off: Arc::default(),
        })
    }

    fn tracked(&self) -> Result<Arc<Tracked>, SourceError> {
        let what = "no disks are tracked";
        lock(&self.tracked).clone().ok_or(SourceError::State { what, hint: "ask to track first" })
    }

    async fn inspect(&self) -> Result<Reply, SourceError> {
        let tree = self.tree.clone();
        let known = lock(&self.tracked).as_ref().map(|tracked| tracked.report.clone());
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
        let known = lock(&self.tracked).clone();
        if let Some(known) = known {
            if known.disks == disks {
                return Ok(known.report.clone());
            }
            let disks: Vec<String> = known.names().into_iter().collect();
            return Err(SourceError::OtherDisks { disks: disks.join(", ") });
        }
        let tree = self.tree.clone();
        let start = move || Tracked::start(migration, disks, wish, &tree);
        let tracked = tokio::task::spawn_blocking(start).await??;
        let report = tracked.report.clone();
        tracing::info!(choice = %report.choice, reason = %report.reason, "tracking");
        *lock(&self.tracked) = Some(Arc::new(tracked));
        Ok(report)
    }

    async fn connect(
        &self,
        generation: u64,
        streams: u16,
        peer_key: &str,
        endpoint: Endpoint,
    ) -> Result<(), SourceError> {
        let peer: PublicKey = peer_key.parse()?;
        if streams == 0 || streams > STREAMS_MAX {
            let what = "a connection has from 1 to 64 streams";
            return Err(SourceError::State { what, hint: "plan with other options" });
        }
        let tracked = self.tracked()?;
        let _one = self.connecting.lock().await;
        match tracked.sender.generation() {
            Some(known) if known == generation => return Ok(()),
            Some(known) if known > generation => {
                return Err(SourceError::OldGeneration { asked: generation, known });
            }
            _ => {}
        }
        let opened =
            streams::open(&self.arrivals, &self.identity, generation, streams, peer, endpoint);
        let opened = opened.await?;
        tracked.sender.connect(generation, opened).await?;
        tracing::info!(generation, streams, "connected");
        Ok(())
    }

    async fn disconnect(&self) {
        self.arrivals.clear();
        if let Ok(tracked) = self.tracked() {
            tracked.sender.disconnect().await;
        }
    }

    async fn status(&self) -> AgentStatus {
        let tracked = lock(&self.tracked).clone();
        AgentStatus {
            role: AgentRole::Source,
            boot_id: inspect::boot_id(&self.tree),
            generation: tracked
                .as_ref()
                .map(|tracked| tracked.sender.last_generation())
                .filter(|last| *last > 0),
            tracking: tracked.map(|tracked| tracked.report.clone()),
            frozen: self.at_rest().is_some(),
            round: self.rounds.running(),
            memory: inspect::own_memory(&self.tree),
        }
    }

    async fn do_it(
        self: &Arc<Self>,
        owner: MigrationId,
        request: Request,
    ) -> Result<Reply, SourceError> {
        match request {
            Request::Status => return Ok(Reply::Status(self.status().await)),
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
                let options = RoundOptions { limit_rate, limit_read, compress };
                self.start_round(number, options).await?;
            }
            Request::LimitRate { bytes_per_s } => self.tracked()?.sender.limit_rate(bytes_per_s),
            Request::StopRound => self.tracked()?.sender.stop_round(),
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

    async fn data(self: Arc<Self>, generation: u64, number: u16, stream: ByteStream) {
        self.arrivals.put(generation, number, stream);
    }

    async fn wind_up(self: Arc<Self>) {
        self.thaw(&[]).await;
        self.disconnect().await;
    }
}
