//! The agent's visit to the guest of a plan in the making. Where the migration follows at once it
//! stays: nothing is uploaded and started twice.

use std::cell::Cell;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use engine::{Agent, AgentError};
use plan::{Problem, Request};
use site::{GuestAccess, SiteError};
use transfer::secure::Identity;
use units::{MigrationId, chain};
use wire::control::{self, GuestReport, Reply};

use crate::context::Context;
use crate::failure::{Failure, Kind, problem};
use crate::guest::{GuestLogin, SshGuest};
use crate::interrupts::Interrupts;
use crate::store::Store;
use crate::{keys, show};

pub struct Visit {
    guest: Arc<SshGuest>,
    store: Store,
    id: MigrationId,
    /// Its name, for messages.
    vm: String,
    /// Stored before the agent is there: it knows its coordinator by the first key that it is shown,
    /// and the migration, or another try after a crash, comes with the same.
    key: Identity,
    agent: Cell<Presence>,
}

/// Whose agent is in the guest, in the place of this plan's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Nobodys,
    /// Ours, or that of somebody who runs the same plan from elsewhere.
    Unknown,
    Ours,
    /// It refuses us or is mute. It may be at work.
    NotOurs,
}

impl Visit {
    /// Nothing is in the guest yet.
    pub fn new(
        context: &Context,
        request: &Request,
        vm: &str,
        login: &GuestLogin,
    ) -> Result<Self, Failure> {
        let binary = context.agent_binary();
        Ok(Self {
            guest: SshGuest::new(request.from.clone(), login.clone(), binary)?,
            key: keys::of_coordinator(&context.store, &request.id)?,
            store: context.store.clone(),
            id: request.id.clone(),
            vm: vm.to_owned(),
            agent: Cell::new(Presence::Nobodys),
        })
    }

    pub fn guest(&self) -> &Arc<SshGuest> {
        &self.guest
    }

    /// All that keeps the agent from being installed.
    pub async fn refusals(&self, binary: &Path) -> Result<Vec<SiteError>, SiteError> {
        self.guest.refusals(&self.id, binary).await
    }

    /// Installs the agent and lets it look around.
    pub async fn look(&self, binary: &Path) -> Result<Box<GuestReport>, Problem> {
        self.agent.set(Presence::Unknown);
        self.guest.install(&self.id, binary).await.map_err(|error| problem(&error))?;
        let agent = self.greet().await?;
        let asked = agent.call(control::Request::Inspect).await;
        match asked.map_err(|error| self.agent_problem(&error))? {
            Reply::Guest(report) => Ok(report),
            other => Err(self.agent_problem(&agent.unexpected(&other))),
        }
    }

    async fn greet(&self) -> Result<Agent, Problem> {
        let stream = self.guest.open(&self.id).await.map_err(|error| problem(&error))?;
        let at = format!("in {}", self.vm);
        let greeted = Agent::greet(&at, stream, &self.key, &self.id).await;
        match &greeted {
            Ok(_) => self.agent.set(Presence::Ours),
            Err(AgentError::Refused { .. } | AgentError::Silent { .. }) => {
                self.agent.set(Presence::NotOurs);
            }
            Err(AgentError::Lost { .. } | AgentError::Protocol { .. }) => {}
        }
        greeted.map_err(|error| self.agent_problem(&error))
    }

    fn agent_problem(&self, error: &AgentError) -> Problem {
        let hint = match error {
            AgentError::Refused { failure, .. } => failure.hint.clone(),
            _ => None,
        };
        Problem {
            code: "guest-agent".to_owned(),
            text: format!("the agent in {} does not work: {}", self.vm, chain(error)),
            hint: hint.unwrap_or_else(|| {
                "see --verbose; `causeway-agent selfcheck` in the guest says what its kernel allows"
                    .to_owned()
            }),
        }
    }

    /// Takes the agent out of the guest again, and says if something may be left. An interrupt ends
    /// the waiting.
    pub async fn end(&self, interrupts: &mut Interrupts) {
        let left = tokio::select! {
            left = self.leave() => left,
            () = interrupts.insisted() => Err("interrupted".to_owned()),
        };
        match left {
            Ok(()) => keys::forget_coordinator(&self.store, &self.id),
            Err(why) => show::error(&format!(
                "an agent may stay in the memory of {}, until its next boot or for seven days: {why}",
                self.vm
            )),
        }
    }

    async fn leave(&self) -> Result<(), String> {
        if self.agent.get() == Presence::Unknown
            && let Err(problem) = self.greet().await
        {
            tracing::info!(problem.text, "whose agent is in the guest");
        }
        match self.agent.get() {
            Presence::Nobodys => {}
            Presence::NotOurs => return Err("it is not known to be this coordinator's".to_owned()),
            // One that does not listen works for nobody.
            Presence::Unknown | Presence::Ours => {
                self.guest.remove(&self.id).await.map_err(|error| chain(&error))?;
            }
        }
        self.agent.set(Presence::Nobodys);
        Ok(())
    }

    /// Waits for `what`, but leaves the guest when the operator interrupts.
    pub async fn unless_interrupted<T>(
        &self,
        interrupts: &mut Interrupts,
        what: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        if let Some(done) = interrupts.before(what).await {
            return Ok(done);
        }
        self.end(interrupts).await;
        Err(Failure::new(Kind::Refused, "interrupted before anything was begun"))
    }
}
