//! All that one migration runs with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use handover::{Attestation, DestinationRequest};
use model::VmId;
use plan::Plan;
use plan::rounds::Budget;
use site::{ApplianceFiles, ApplianceRef, GuestAccess, NewDisk, NewNic, PlaceholderSpec, Site};
use tokio::sync::watch;
use tokio::time::Instant;
use transfer::secure::Identity;
use units::Epoch;

use crate::custody::{Custody, Papers, mark_seen};
use crate::error::{JournalError, StepError};
use crate::links::Links;
use crate::progress::{Progress, Watcher};
use crate::record::{Record, State};

/// The coordinator's own durable record of a migration.
#[async_trait]
pub trait Journal: Send {
    /// Returns once the record is on stable storage.
    async fn record(&mut self, record: &Record) -> Result<(), JournalError>;
}

/// What the operator wants, changing while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    Run,
    /// Stop as soon as nothing is at stake; keep everything.
    Interrupt,
}

/// The operator's say while a migration runs.
#[async_trait]
pub trait Operator: Send + Sync {
    /// Has `causeway switchover` been said for this migration?
    async fn has_released(&self) -> bool;

    /// Runs the plan's gate: may the destination start?
    ///
    /// # Errors
    /// Why not, in words.
    async fn passes(&self, gate: &str) -> Result<(), String>;
}

/// What the operator answers for, where nobody can be asked. Recorded with who said it and why.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Vouched {
    #[default]
    Nothing,
    /// For taking back: no copy ever ran at the destination. Its site may come back, with what was
    /// made there.
    NeverRan(Attestation),
    /// ... and the site is gone for good.
    DestinationGone(Attestation),
    /// For going on: the source was not released, and does not run.
    NotReleased(Attestation),
}

impl Vouched {
    /// For taking back.
    pub(crate) const fn never_ran(&self) -> Option<&Attestation> {
        match self {
            Self::NeverRan(word) | Self::DestinationGone(word) => Some(word),
            Self::Nothing | Self::NotReleased(_) => None,
        }
    }

    pub(crate) const fn not_released(&self) -> Option<&Attestation> {
        match self {
            Self::NotReleased(word) => Some(word),
            Self::Nothing | Self::NeverRan(_) | Self::DestinationGone(_) => None,
        }
    }
}

/// One migration: its plan, what happened so far, and everything it acts through.
pub struct Run {
    pub plan: Plan,
    pub state: State,
    pub source: Arc<dyn Site>,
    pub destination: Arc<dyn Site>,
    pub guest: Arc<dyn GuestAccess>,
    pub custody: Custody,
    /// Kept at the sites before anything else, for a coordinator that has lost everything.
    pub papers: Papers,
    pub journal: Box<dyn Journal>,
    /// The coordinator's key for this migration.
    pub identity: Identity,
    pub agent_binary: PathBuf,
    pub appliance: ApplianceFiles,
    pub operator: Arc<dyn Operator>,
    pub wish: watch::Receiver<Wish>,
    pub watcher: Watcher,
    /// How long a broken line may stay broken.
    pub patience: Duration,
    pub links: Links,
    pub vouched: Vouched,
    /// Drains of this process that came to nothing.
    pub voided: usize,
    /// When something of this round was last acknowledged, or it began.
    pub arrived_at: Instant,
    /// This process made the targets, all zeros, and nothing was sent to them yet. No journal is asked:
    /// one from a backup would have them empty after they were written to.
    pub targets_empty: bool,
    /// This process looked at the source's fence, and made its receipt of it.
    pub fenced_now: bool,
}

impl Run {
    /// Journal first, then memory, then whoever watches.
    pub async fn record(&mut self, record: Record) -> Result<(), StepError> {
        let from = self.state.phase;
        let mut next = self.state.clone();
        next.apply(&record)?;
        self.journal.record(&record).await?;
        self.state = next;
        if let Record::GaveUp { why } = &record {
            self.watcher.warn(format!("taking everything back: {why}"));
        }
        if self.state.phase != from {
            tracing::info!(?from, to = ?self.state.phase, "phase changed");
            self.watcher.tell(Progress::Phase { from, to: self.state.phase });
        }
        Ok(())
    }

    pub const fn vm(&self) -> VmId {
        self.plan.vm.id
    }

    /// The attempt that is under way. Before it began there is none; epoch 0 is never used.
    pub fn epoch(&self) -> Epoch {
        self.state.epoch.unwrap_or_default()
    }

    /// As [`Run::epoch`], and where the journal has none, since its process was killed before or it
    /// came from a backup, that of the attempt which the ledgers have of this migration.
    pub(crate) fn epoch_in_ledgers(&self) -> Option<Epoch> {
        self.state.epoch.or_else(|| self.custody.attempt_of_ours())
    }

    /// A request to the destination's role, given what its placeholder shows now.
    pub(crate) async fn tell_destination(
        &mut self,
        request: DestinationRequest,
    ) -> Result<(), StepError> {
        let mark = mark_seen(&*self.destination, self.vm()).await;
        self.custody.destination(self.epoch(), request, &mark).await?;
        Ok(())
    }

    /// The helper's kernel is at the destination, and the journal knows where.
    pub(crate) async fn put_appliance(&mut self) -> Result<(), StepError> {
        if self.state.appliance.is_none() {
            self.watcher.step(format!("putting the helper's kernel to {}", self.plan.to));
            let appliance = self.destination.put_appliance(&self.appliance).await?;
            self.record(Record::ApplianceReady { appliance }).await?;
        }
        Ok(())
    }

    /// What a switchover may cost and what it costs besides the drain.
    pub fn budget(&self) -> Budget {
        let rescan = self.state.tracker.as_ref().is_some_and(|(choice, _)| choice == "rescan");
        Budget {
            max_downtime_ms: self.plan.options.max_downtime_ms,
            fixed_ms: self.plan.forecast.fixed_ms(),
            full_pass_ms: self.state.rounds.last().filter(|_| rescan).map(|r| r.elapsed_ms),
            rounds_max: self.plan.options.rounds_max,
        }
    }

    /// [`StepError::Interrupted`] if the operator asked to stop.
    pub fn check_wish(&self) -> Result<(), StepError> {
        match *self.wish.borrow() {
            Wish::Run => Ok(()),
            Wish::Interrupt => Err(StepError::Interrupted),
        }
    }

    /// The placeholder, from the plan and what preparing made of it.
    pub fn placeholder(&self) -> Result<PlaceholderSpec, StepError> {
        let appliance = self.state.appliance.clone().ok_or_else(|| StepError::GuestChanged {
            what: "the journal names no appliance; the migration was not prepared".to_owned(),
        })?;
        Ok(self.spec(appliance))
    }

    /// As it becomes the VM proper: it boots its own disk, and no helper that a journal may not know.
    pub fn placeholder_own(&self) -> PlaceholderSpec {
        let none = ApplianceRef { kernel: String::new(), initrd: String::new() };
        self.spec(self.state.appliance.clone().unwrap_or(none))
    }

    fn spec(&self, appliance: ApplianceRef) -> PlaceholderSpec {
        let vm = &self.plan.vm;
        PlaceholderSpec {
            migration: self.plan.id.clone(),
            epoch: self.epoch(),
            vm: vm.id,
            name: vm.name.clone(),
            vcpus: vm.vcpus,
            memory: vm.memory,
            arch: vm.arch.clone(),
            machine: vm.machine.clone(),
            cpu: vm.cpu.clone(),
            firmware: vm.firmware.clone(),
            disks: self.new_disks(),
            nics: self
                .plan
                .nics
                .iter()
                .map(|nic| NewNic {
                    mac: nic.mac.clone(),
                    model: nic.model.clone(),
                    network: nic.network.clone(),
                    address: nic.address,
                })
                .collect(),
            autostart: vm.autostart,
            appliance,
            channels: 1 + self.plan.options.streams,
            helper_nic: self.plan.helper_card.clone(),
            helper_args: crate::links::helper_args(&self.plan.options.route),
        }
    }

    pub fn new_disks(&self) -> Vec<NewDisk> {
        self.plan
            .disks
            .iter()
            .map(|disk| NewDisk {
                no: disk.no,
                pool: disk.pool.clone(),
                volume: disk.volume.clone(),
                size: disk.size,
                format: disk.format.clone(),
                target: disk.target.clone(),
                bus: disk.bus,
                serial: disk.serial.clone(),
                address: disk.address,
                boot_order: disk.boot_order,
            })
            .collect()
    }
}

/// The wall clock, milliseconds since 1970. For people and receipts; no decision rests on it.
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or_default()
}
