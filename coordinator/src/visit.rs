//! The agent's visit to the guest of a plan in the making. Where the migration follows at once it
//! stays: nothing is uploaded and started twice.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use engine::{Agent, AgentError};
use site::{GuestAccess, SiteError};
use transfer::secure::Identity;
use units::MigrationId;
use wire::control::{ErrorCode, GuestReport, Reply, Request};

use crate::facts::chain;
use crate::failure::{Failure, Kind};
use crate::guest::SshGuest;
use crate::interrupts::Interrupts;
use crate::show;

pub struct Visit {
    guest: Arc<SshGuest>,
    id: MigrationId,
    /// Stored before the agent is there: it knows its coordinator by the first key that it is shown,
    /// and the migration, or another try after a crash, comes with the same.
    key: Identity,
    forget_key: Box<dyn Fn() + Send + Sync>,
    agent: AtomicU8,
}

/// What of the visit is in the guest.
const NOTHING: u8 = 0;
/// Perhaps an agent of ours, perhaps one that works for somebody else who runs the same plan.
const SOMEBODYS: u8 = 1;
const OURS: u8 = 2;

/// Why the guest was not looked at.
pub enum Unseen {
    Access(SiteError),
    Agent { why: String, hint: Option<String> },
}

impl From<SiteError> for Unseen {
    fn from(error: SiteError) -> Self {
        Self::Access(error)
    }
}

impl From<AgentError> for Unseen {
    fn from(error: AgentError) -> Self {
        let hint = match &error {
            AgentError::Refused { failure, .. } => failure.hint.clone(),
            _ => None,
        };
        Self::Agent { why: chain(&error), hint }
    }
}

impl Visit {
    /// `forget_key` deletes the stored `key` when the visit comes to nothing.
    pub fn new(
        guest: Arc<SshGuest>,
        id: MigrationId,
        key: Identity,
        forget_key: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { guest, id, key, forget_key: Box::new(forget_key), agent: AtomicU8::new(NOTHING) }
    }

    pub fn guest(&self) -> &Arc<SshGuest> {
        &self.guest
    }

    /// Installs the agent and lets it look around.
    pub async fn look(&self, vm: &str, binary: &Path) -> Result<Box<GuestReport>, Unseen> {
        self.agent.store(SOMEBODYS, Ordering::Relaxed);
        self.guest.install(&self.id, binary).await?;
        let agent = self.greet(vm).await?;
        match agent.call(Request::Inspect).await? {
            Reply::Guest(report) => Ok(report),
            other => Err(agent.unexpected(&other).into()),
        }
    }

    async fn greet(&self, vm: &str) -> Result<Agent, Unseen> {
        let stream = self.guest.open(&self.id).await?;
        let agent = Agent::greet(&format!("in {vm}"), stream, &self.key, &self.id).await;
        match &agent {
            Ok(_) => self.agent.store(OURS, Ordering::Relaxed),
            Err(error) if is_foreign(error) => self.agent.store(NOTHING, Ordering::Relaxed),
            Err(_) => {}
        }
        Ok(agent?)
    }

    /// Takes the agent out of the guest again, if it is not somebody else's.
    pub async fn end(&self) {
        if self.agent.load(Ordering::Relaxed) == SOMEBODYS {
            // Whatever comes of it: only an agent that says so is not ours.
            let _asked = self.greet("the guest").await;
        }
        if self.agent.swap(NOTHING, Ordering::Relaxed) != NOTHING
            && let Err(error) = self.guest.remove(&self.id).await
        {
            let why = chain(&error);
            show::error(&format!(
                "the agent stays in the guest's memory, until its next boot or for seven days: {why}"
            ));
            return;
        }
        (self.forget_key)();
    }

    /// Waits for `what`, but leaves the guest when the operator interrupts.
    pub async fn unless_interrupted<T>(
        &self,
        interrupts: &mut Interrupts,
        what: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = what => return Ok(done),
            () = interrupts.next() => {}
        }
        tokio::select! {
            () = self.end() => Err(Failure::new(Kind::Refused, "interrupted, nothing was touched")),
            () = interrupts.next() => {
                let left = "interrupted; the agent may be left in the guest's memory, until its next \
                            boot or for seven days";
                Err(Failure::new(Kind::Refused, left))
            }
        }
    }
}

fn is_foreign(error: &AgentError) -> bool {
    matches!(error, AgentError::Refused { failure, .. } if failure.code == ErrorCode::Foreign)
}
