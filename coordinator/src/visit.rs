//! The agent's visit to the guest of a plan in the making. Where the migration follows at once it
//! stays: nothing is uploaded and started twice.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{Agent, AgentError};
use site::{GuestAccess, SiteError};
use tokio::signal::unix::{SignalKind, signal};
use transfer::secure::Identity;
use units::MigrationId;
use wire::control::{ErrorCode, GuestReport, Reply, Request};
use zeroize::Zeroizing;

use crate::facts::chain;
use crate::failure::{Failure, Kind};
use crate::guest::SshGuest;

pub struct Visit {
    guest: Arc<SshGuest>,
    id: MigrationId,
    /// PKCS #8. An agent knows its coordinator by the first key that it is shown.
    key: Zeroizing<Vec<u8>>,
    /// Something of ours may be in the guest.
    entered: AtomicBool,
}

/// Why the guest was not looked at.
pub enum Unseen {
    Access(SiteError),
    Agent(String),
}

impl From<SiteError> for Unseen {
    fn from(error: SiteError) -> Self {
        Self::Access(error)
    }
}

impl From<AgentError> for Unseen {
    fn from(error: AgentError) -> Self {
        Self::Agent(chain(&error))
    }
}

impl Visit {
    pub fn new(guest: Arc<SshGuest>, id: MigrationId) -> Self {
        let key = Zeroizing::new(Identity::generate_pkcs8());
        Self { guest, id, key, entered: AtomicBool::new(false) }
    }

    pub fn guest(&self) -> &Arc<SshGuest> {
        &self.guest
    }

    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Installs the agent and lets it look around.
    pub async fn look(&self, vm: &str, binary: &Path) -> Result<Box<GuestReport>, Unseen> {
        self.entered.store(true, Ordering::Relaxed);
        self.guest.install(&self.id, binary).await?;
        let stream = self.guest.open(&self.id).await?;
        let identity = Identity::from_pkcs8(&self.key).expect("made above");
        let greeted = Agent::greet(&format!("in {vm}"), stream, &identity, &self.id).await;
        if greeted.as_ref().is_err_and(is_foreign) {
            // It works for whoever ran this plan from somewhere else.
            self.entered.store(false, Ordering::Relaxed);
        }
        let agent = greeted?;
        match agent.call(Request::Inspect).await? {
            Reply::Guest(report) => Ok(report),
            other => Err(agent.unexpected(&other).into()),
        }
    }

    /// Takes the agent out of the guest again.
    pub async fn end(&self) {
        if !self.entered.swap(false, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.guest.remove(&self.id).await {
            tracing::warn!(%error, "the agent stays in the guest's memory until its next boot");
        }
    }

    /// Waits for `what`, but leaves the guest when the operator interrupts.
    pub async fn unless_interrupted<T>(&self, what: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            done = what => Ok(done),
            () = interrupted() => {
                self.end().await;
                Err(Failure::new(Kind::Refused, "interrupted, nothing was touched"))
            }
        }
    }
}

fn is_foreign(error: &AgentError) -> bool {
    matches!(error, AgentError::Refused { failure, .. } if failure.code == ErrorCode::Foreign)
}

/// Returns at Ctrl-C, at SIGTERM, and when the terminal is closed.
async fn interrupted() {
    let listen = |kind| signal(kind).expect("a runtime that listens for signals");
    let (mut interrupt, mut terminate, mut hangup) = (
        listen(SignalKind::interrupt()),
        listen(SignalKind::terminate()),
        listen(SignalKind::hangup()),
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
