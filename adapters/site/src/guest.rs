//! How the engine reaches a guest: put the agent there, talk to it, take it away.

use std::path::Path;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use units::MigrationId;

use crate::{ByteStream, SiteError};

/// A running guest that lets us in.
#[async_trait]
pub trait GuestAccess: Send + Sync {
    /// How it is reached, for messages: `root@10.0.0.5:22`.
    fn describe(&self) -> String;

    /// Looks around with what every guest has. Changes nothing.
    async fn probe(&self) -> Result<GuestProbe, SiteError>;

    /// Puts the agent there and starts it. Harmless where it already runs.
    async fn install(&self, migration: &MigrationId, agent: &Path) -> Result<(), SiteError>;

    /// A new byte stream to the running agent.
    async fn open(&self, migration: &MigrationId) -> Result<ByteStream, SiteError>;

    /// Ends the agent and removes its files. Says what it removed; nothing there is success.
    async fn remove(&self, migration: &MigrationId) -> Result<Vec<String>, SiteError>;
}

/// What a guest is, seen from outside the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestProbe {
    pub kernel: String,
    pub arch: String,
    pub os: String,
    pub boot_id: String,
    /// `None`: neither root nor `sudo` without a password.
    pub privilege: Option<Privilege>,
    /// Programs that the agent calls and that are not there.
    pub missing_tools: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Privilege {
    Root,
    Sudo,
}
