//! Where a guest is and how to get in.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::host_key::HostKeyPolicy;

/// A guest as SSH sees it. Holds no secret: keys stay in their files or in the user's agent.
#[derive(Clone, Debug)]
pub struct SshTarget {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub host_key: HostKeyPolicy,
    pub auth: SshAuth,
    /// Reached through this one (as `ssh -J`), which has its own pinned key.
    pub jump: Option<Box<Self>>,
    pub timing: Timing,
}

impl SshTarget {
    /// Port 22, the identities that `ssh` would use, directly.
    pub fn new(host: impl Into<String>, user: impl Into<String>, host_key: HostKeyPolicy) -> Self {
        Self {
            host: host.into(),
            port: 22,
            user: user.into(),
            host_key,
            auth: SshAuth::default(),
            jump: None,
            timing: Timing::default(),
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint { user: self.user.clone(), host: self.host.clone(), port: self.port }
    }
}

/// `user@host:port`, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub user: String,
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "{}@[{}]:{}", self.user, self.host, self.port)
        } else {
            write!(f, "{}@{}:{}", self.user, self.host, self.port)
        }
    }
}

/// What we may authenticate with. The user's agent is asked first for the keys of the identity
/// files, then the files are read, then the agent's other keys are offered.
#[derive(Clone, Debug)]
pub struct SshAuth {
    /// Private keys without a passphrase. One that has a passphrase is used only if the user's
    /// agent holds it.
    pub identity_files: Vec<PathBuf>,
    pub agent: UserAgent,
}

impl Default for SshAuth {
    fn default() -> Self {
        Self { identity_files: Vec::new(), agent: UserAgent::FromEnv }
    }
}

/// The user's own SSH agent (not Causeway's).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserAgent {
    Never,
    /// Where `SSH_AUTH_SOCK` points; none if it is not set.
    FromEnv,
    Socket(PathBuf),
}

/// How long to wait before a path counts as dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// For each of: TCP, key exchange, authentication.
    pub connect: Duration,
    /// Silence after which the other end is asked for a sign of life.
    pub keepalive: Duration,
    /// Questions without an answer before the connection counts as lost.
    pub keepalive_count: u8,
}

impl Timing {
    /// How long a dead path goes unnoticed, at most.
    pub fn patience(&self) -> Duration {
        self.keepalive * (u32::from(self.keepalive_count) + 1)
    }
}

impl Default for Timing {
    /// 15 s to connect; a dead path is noticed within 20 s.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            keepalive: Duration::from_secs(5),
            keepalive_count: 3,
        }
    }
}
