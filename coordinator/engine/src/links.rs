//! The connections of a running migration: control to both agents, data streams between them.
//! All of it can be lost at any moment and is made again from what the agents still know.

use std::time::Duration;

use plan::Route;
use site::Takeover;
use tokio::time::{Instant, sleep};
use transfer::meet::{self, MeetError};
use units::{Bytes, chain};
use wire::control::{
    AgentDisk, DiskProgress, Endpoint, ErrorCode, Event, Reply, Request, RoundEnd, RoundProgress,
    TrackerReport, TrackerWish,
};
use wire::purpose::Purpose;

use crate::agents::Agent;
use crate::error::{AgentError, StepError};
use crate::progress::Progress;
use crate::record::Record;
use crate::relay::Relay;
use crate::run::Run;

/// What is connected now.
#[derive(Default)]
pub struct Links {
    pub(crate) source: Option<Agent>,
    pub(crate) destination: Option<Agent>,
    relay: Relay,
    streams_up: bool,
}

impl Links {
    /// Drops everything; agents notice and put back what was in flight.
    pub(crate) fn cut(&mut self) {
        *self = Self::default();
    }
}

/// How much is to be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Control streams to both agents.
    Agents,
    /// And data streams between them.
    Streams,
}

/// Between two tries to open a broken line.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(15);
/// Both agents already answered on their control streams.
const MEET_WITHIN: Duration = Duration::from_secs(30);
/// The helper's data ports follow its control port.
const FIRST_DATA_PORT: u16 = 1;
/// Where the helper listens for direct connections.
const DIRECT_PORT: u16 = 7447;

impl Run {
    /// The source's agent, tracking this migration's disks.
    pub(crate) async fn source_agent(&mut self) -> Result<&mut Agent, StepError> {
        if self.links.source.is_none() {
            self.guest.install(&self.plan.id, &self.agent_binary).await?;
            let stream = self.guest.open(&self.plan.id).await?;
            let at = format!("in {}", self.plan.vm.name);
            let agent = Agent::greet(&at, stream, &self.identity, &self.plan.id).await?;
            self.know_guest(&agent).await?;
            self.links.source = Some(agent);
            if self.state.tracker.is_some() {
                self.track().await?;
            }
        }
        Ok(self.links.source.as_mut().expect("set five lines above"))
    }

    /// Starts tracking, or finds it going on.
    pub(crate) async fn track(&mut self) -> Result<TrackerReport, StepError> {
        let wish = match self.plan.options.tracker {
            plan::Tracker::Auto => TrackerWish::Auto,
            plan::Tracker::Bpf => TrackerWish::Bpf,
            plan::Tracker::Rescan => TrackerWish::Rescan,
        };
        let device = |disk: &plan::PlannedDisk| {
            let known = self.state.devices.get(usize::from(disk.no.0));
            known.unwrap_or(&disk.device).clone()
        };
        let disks = self.agent_disks(device, false);
        let agent = Box::pin(self.source_agent()).await?;
        match agent.call(Request::Track { disks, wish }).await? {
            Reply::Tracking(report) => Ok(report),
            other => Err(agent.unexpected(&other).into()),
        }
    }

    /// The helper's agent, with the targets attached.
    pub(crate) async fn destination_agent(&mut self) -> Result<&mut Agent, StepError> {
        if self.links.destination.is_none() {
            let vm = self.plan.vm.id;
            self.destination.start_helper(vm).await?;
            // This process holds the state directory's lock: a stream still open is a dead one's.
            let stream = self.destination.open_channel(vm, 0, Takeover::Force).await?;
            let at = format!("in the helper at {}", self.plan.to);
            let mut agent = Agent::greet(&at, stream, &self.identity, &self.plan.id).await?;
            let disks =
                self.agent_disks(|disk| format!("causeway-{}", disk.no), self.targets_empty);
            self.attach(&mut agent, disks).await?;
            self.links.destination = Some(agent);
        }
        Ok(self.links.destination.as_mut().expect("set five lines above"))
    }

    /// Waits for the targets to be ready, showing how far reading them is.
    async fn attach(&self, agent: &mut Agent, disks: Vec<AgentDisk>) -> Result<(), StepError> {
        agent.start(Request::Attach { disks }).await?;
        loop {
            match agent.answer_or_event().await? {
                Ok(Reply::Done) => return Ok(()),
                Ok(other) => return Err(agent.unexpected(&other).into()),
                Err(Event::Indexing { done, total }) => {
                    self.watcher.tell(Progress::Indexing { done, total });
                }
                Err(event) => self.pass_on(event),
            }
        }
    }

    /// The source's agent if it is still there; nothing is installed.
    pub(crate) async fn reattach_source(&mut self) -> Result<(), StepError> {
        let stream = self.guest.open(&self.plan.id).await?;
        let at = format!("in {}", self.plan.vm.name);
        self.links.source = Some(Agent::greet(&at, stream, &self.identity, &self.plan.id).await?);
        Ok(())
    }

    fn agent_disks(
        &self,
        device: impl Fn(&plan::PlannedDisk) -> String,
        fresh: bool,
    ) -> Vec<AgentDisk> {
        let disks = self.plan.disks.iter();
        disks
            .map(|disk| AgentDisk {
                no: disk.no,
                size: disk.size,
                block_size: disk.block_size,
                device: device(disk),
                fresh,
            })
            .collect()
    }

    /// Both agents and the data streams between them. Tries again while the line is broken, for as
    /// long as the operator's patience lasts.
    pub(crate) async fn connect(&mut self) -> Result<(), StepError> {
        self.connect_to(Goal::Streams).await
    }

    /// As [`Run::connect`], but for `goal`.
    pub(crate) async fn connect_to(&mut self, goal: Goal) -> Result<(), StepError> {
        let began = Instant::now();
        let mut pause = RETRY_FIRST;
        loop {
            self.check_wish()?;
            let error = match self.connect_once(goal).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.links.cut();
            if !error.is_line() {
                return Err(error);
            }
            let waited = began.elapsed();
            let whom = match &error {
                StepError::Site(error) => error.site.to_string(),
                StepError::Agent(_) => "the agents".to_owned(),
                _ => self.plan.vm.name.clone(),
            };
            if waited >= self.patience {
                return Err(StepError::OutOfPatience { whom, waited, last: Box::new(error) });
            }
            let why = chain(&error);
            tracing::warn!(%why, "line broken, trying again");
            self.watcher.tell(Progress::Reconnecting { whom, why });
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    async fn connect_once(&mut self, goal: Goal) -> Result<(), StepError> {
        self.source_agent().await?;
        self.destination_agent().await?;
        if goal == Goal::Agents || self.links.streams_up {
            return Ok(());
        }
        let generation = self.next_generation().await?;
        self.record(Record::Connecting { generation }).await?;
        let streams = self.plan.options.streams;
        let (source_key, destination_key) = {
            let links = &self.links;
            let key = |agent: &Option<Agent>| agent.as_ref().map(|a| a.key.clone());
            (key(&links.source).unwrap_or_default(), key(&links.destination).unwrap_or_default())
        };
        let direct = matches!(self.plan.options.route, Route::Direct { .. });
        let helper = self.destination_agent().await?;
        let expect = Request::Expect { generation, streams, peer_key: source_key, listen: direct };
        let addresses = match helper.call(expect).await? {
            Reply::Listening { addresses } => addresses,
            other => return Err(helper.unexpected(&other).into()),
        };
        let endpoint = if direct {
            Endpoint::Direct { addresses }
        } else {
            self.join_streams(generation, streams).await?;
            Endpoint::Relay
        };
        let connect = Request::Connect { generation, streams, peer_key: destination_key, endpoint };
        self.source_agent().await?.tell(connect).await?;
        self.links.streams_up = true;
        Ok(())
    }

    /// Higher than any that an agent was told of. The journal may be an old one, or made again.
    async fn next_generation(&mut self) -> Result<u64, StepError> {
        let mut known = self.state.generation;
        for agent in [&self.links.source, &self.links.destination].into_iter().flatten() {
            match agent.call(Request::Status).await? {
                Reply::Status(status) => known = known.max(status.generation.unwrap_or_default()),
                other => return Err(agent.unexpected(&other).into()),
            }
        }
        Ok(known + 1)
    }

    async fn join_streams(&mut self, generation: u64, streams: u16) -> Result<(), StepError> {
        self.links.relay = Relay::default();
        for number in 0..streams {
            let purpose = Purpose::Data { generation, stream: number };
            let lost = |cause: MeetError| {
                AgentError::lost(format!("on data stream {number}"), Box::new(cause))
            };
            let ours = self.guest.open(&self.plan.id).await?;
            let ours = meet::open(ours, purpose, MEET_WITHIN).await.map_err(lost)?;
            let port = FIRST_DATA_PORT + number;
            let theirs =
                self.destination.open_channel(self.plan.vm.id, port, Takeover::Force).await?;
            let theirs = meet::open(theirs, purpose, MEET_WITHIN).await.map_err(lost)?;
            self.links.relay.join(number, Box::new(ours), Box::new(theirs));
        }
        Ok(())
    }

    /// One round over what differs. Ends when all of it is acknowledged on stable storage, or
    /// with the line.
    pub(crate) async fn round(&mut self, number: u32) -> Result<RoundEnd, StepError> {
        let budget = self.budget();
        let goodput = plan::rounds::goodput(&self.state.rounds);
        let request = Request::Round {
            number,
            limit_rate: self.plan.options.limit_rate,
            // A guest that stands still has no use for its disks.
            limit_read: self.plan.options.limit_read.filter(|_| !self.state.phase.is_downtime()),
            compress: self.plan.options.compress,
        };
        self.source_agent().await?.tell(request).await?;
        let mut arrived = Bytes::ZERO;
        loop {
            let Links { source: Some(source), destination: Some(helper), relay, .. } =
                &mut self.links
            else {
                return Err(AgentError::Lost { at: "of this round".to_owned(), cause: None }.into());
            };
            let mut wish = self.wish.clone();
            let event = tokio::select! {
                event = source.event() => event?,
                event = helper.event() => event?,
                why = relay.broken() => {
                    tracing::warn!(%why, "data streams broken");
                    return Err(AgentError::lost("on the data streams", why.into()).into());
                }
                _ = wish.changed(), if !self.state.phase.is_downtime() => {
                    self.check_wish()?;
                    continue;
                }
            };
            match event {
                Event::Round(progress) => {
                    if acknowledged(&progress) > arrived {
                        arrived = acknowledged(&progress);
                        self.arrived_at = Instant::now();
                    }
                    let forecast_ms = plan::rounds::forecast_ms(progress.dirtied, goodput, budget);
                    let budget_ms = budget.max_downtime_ms;
                    self.watcher.tell(Progress::Round { progress, forecast_ms, budget_ms });
                }
                Event::RoundEnded(end) => return self.round_ended(end),
                event => self.pass_on(event),
            }
        }
    }

    fn round_ended(&self, end: RoundEnd) -> Result<RoundEnd, StepError> {
        for (disk, doubt) in &end.doubts {
            self.watcher.warn(format!("disk {disk} is read again in full: {doubt}"));
        }
        match end.failure {
            None => Ok(end),
            Some(failure) => Err(AgentError::Refused {
                at: format!("in {}", self.plan.vm.name),
                request: "round",
                failure,
            }
            .into()),
        }
    }

    fn pass_on(&self, event: Event) {
        match event {
            Event::Indexing { done, total } => {
                self.watcher.tell(Progress::Indexing { done, total });
            }
            Event::Note { text } => self.watcher.warn(text),
            Event::Thawed => self.watcher.warn("the guest thawed by itself"),
            // A round that we no longer wait for.
            Event::Round(_) | Event::RoundEnded(_) => {}
        }
    }
}

/// Content that was sent and is there for good.
fn acknowledged(progress: &RoundProgress) -> Bytes {
    let of = |disk: &DiskProgress| disk.done.saturating_sub(disk.equal).saturating_sub(disk.zero);
    progress.disks.iter().map(of).sum()
}

/// The kernel arguments that configure the helper's own card.
pub(crate) fn helper_args(route: &Route) -> Vec<String> {
    match route {
        Route::Relay => Vec::new(),
        Route::Direct { address, .. } => {
            vec![format!("causeway.net={address}"), format!("causeway.listen={DIRECT_PORT}")]
        }
    }
}

impl StepError {
    /// Did the agent find that the drain is not clean?
    pub(crate) fn is_not_clean(&self) -> bool {
        matches!(self, Self::Agent(AgentError::Refused { failure, .. }) if failure.code == ErrorCode::NotClean)
    }
}
