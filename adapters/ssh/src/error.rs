//! Why a guest could not be reached or did not do as asked, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use site::Remedy;
use thiserror::Error;

use crate::exec::Exit;
use crate::target::Endpoint;

/// Why something with a guest failed. [`SshError::hint`] says what the operator can do.
#[derive(Debug, Error)]
pub enum SshError {
    #[error("cannot reach {endpoint}")]
    Unreachable {
        endpoint: Endpoint,
        #[source]
        cause: io::Error,
    },

    #[error("{endpoint} did not answer within {} s, during {during}", waited.as_secs())]
    Unanswered { endpoint: Endpoint, during: &'static str, waited: Duration },

    #[error("cannot agree on a way to speak SSH with {endpoint}")]
    Handshake {
        endpoint: Endpoint,
        #[source]
        cause: Box<russh::Error>,
    },

    #[error("the host key of {endpoint} is unknown: {}", seen.fingerprint)]
    UnknownHostKey { endpoint: Endpoint, seen: Box<SeenKey> },

    #[error(
        "the host key of {endpoint} is not the expected one: saw {}, expected {}",
        seen_fingerprints.join(", "),
        expected.join(" or ")
    )]
    ChangedHostKey { endpoint: Endpoint, seen_fingerprints: Vec<String>, expected: Vec<String> },

    #[error("the host key of {endpoint} is revoked: {seen_fingerprint}")]
    RevokedHostKey { endpoint: Endpoint, seen_fingerprint: String },

    #[error("cannot read the known hosts file {}", path.display())]
    KnownHosts {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },

    #[error("cannot use the identity file {}", path.display())]
    Identity {
        path: PathBuf,
        #[source]
        problem: IdentityProblem,
    },

    #[error("cannot talk to the SSH agent")]
    UserAgent {
        #[source]
        cause: Box<russh::keys::Error>,
    },

    #[error("no identity to log in to {endpoint} with")]
    NoIdentity { endpoint: Endpoint },

    #[error("{endpoint} refused every identity: {}", tried.join(", "))]
    LoginRefused {
        endpoint: Endpoint,
        /// Fingerprints, with the file or agent that they came from.
        tried: Vec<String>,
        /// Ways to log in that the guest would accept; empty if it did not say.
        accepts: Vec<String>,
    },

    #[error("the connection to {endpoint} was lost")]
    Lost {
        endpoint: Endpoint,
        #[source]
        reason: Lost,
    },

    #[error("{endpoint} did not open a session")]
    NoSession {
        endpoint: Endpoint,
        #[source]
        cause: Box<russh::Error>,
    },

    #[error("{attempt} took longer than {} s", waited.as_secs())]
    TimedOut { attempt: String, waited: Duration },

    #[error("{attempt} printed more than {limit} bytes")]
    TooMuchOutput { attempt: String, limit: usize },

    #[error("{attempt} failed ({exit}): {stderr}")]
    Failed { attempt: String, exit: Exit, stderr: String },

    #[error("{attempt} gave an answer that we do not understand: {answer}")]
    Garbled { attempt: String, answer: String },

    #[error("{endpoint} is not root and has no sudo without a password: {said}")]
    NotPrivileged { endpoint: Endpoint, said: String },

    #[error("tools are missing in the guest: {}", tools.join(", "))]
    MissingTools { tools: Vec<String> },

    #[error("no file system in memory has {needed} free bytes and may run programs: {looked_at}")]
    NoPlace { needed: u64, looked_at: String },

    #[error("the agent is built for {agent}, the guest is {guest}")]
    WrongMachine { agent: String, guest: String },

    #[error("{dir} exists in the guest and is not ours")]
    ForeignDir { dir: String },

    #[error("the agent arrived damaged: sent sha256 {sent}, the guest has {arrived}")]
    Damaged { sent: String, arrived: String },

    #[error("the agent did not start: {log}")]
    AgentNotStarted { log: String },
}

/// A host key that nobody told us of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenKey {
    /// `SHA256:…`
    pub fingerprint: String,
    /// The key as an OpenSSH line, without comment.
    pub line: String,
    /// The known hosts files that do not have it.
    pub looked_in: Vec<PathBuf>,
}

/// Why an identity file is of no use.
#[derive(Debug, Error)]
pub enum IdentityProblem {
    #[error("it cannot be read")]
    Unreadable {
        #[source]
        cause: io::Error,
    },
    #[error("others may read it (mode {mode:03o})")]
    Exposed { mode: u32 },
    #[error("it has a passphrase, and the SSH agent does not hold it")]
    Passphrase,
    #[error("it is not a private key that we know")]
    Malformed {
        #[source]
        cause: Box<russh::keys::Error>,
    },
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Lost {
    #[error("the other end gives no sign of life")]
    Silent,
    #[error("the other end closed the connection")]
    Closed,
    #[error("the other end said goodbye: {0}")]
    Goodbye(String),
    #[error("the network failed: {0}")]
    Network(io::ErrorKind),
    #[error("the other end broke the protocol: {0}")]
    Protocol(String),
}

/// A rest before asking an unreachable guest again.
const PAUSE: Duration = Duration::from_secs(2);

impl SshError {
    /// Short and stable, for scripts.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. }
            | Self::Unanswered { .. }
            | Self::Lost { .. }
            | Self::NoSession { .. } => "guest-unreachable",
            Self::UnknownHostKey { .. }
            | Self::ChangedHostKey { .. }
            | Self::RevokedHostKey { .. }
            | Self::KnownHosts { .. } => "host-key",
            Self::Identity { .. }
            | Self::UserAgent { .. }
            | Self::NoIdentity { .. }
            | Self::LoginRefused { .. } => "login",
            Self::NotPrivileged { .. } => "not-root",
            Self::MissingTools { .. } => "guest-tools",
            Self::NoPlace { .. } => "guest-memory",
            Self::WrongMachine { .. } => "guest-machine",
            Self::Handshake { .. }
            | Self::TimedOut { .. }
            | Self::TooMuchOutput { .. }
            | Self::Failed { .. }
            | Self::Garbled { .. }
            | Self::ForeignDir { .. }
            | Self::Damaged { .. }
            | Self::AgentNotStarted { .. } => "guest-ssh",
        }
    }

    pub const fn remedy(&self) -> Remedy {
        match self {
            Self::Unreachable { .. } | Self::Unanswered { .. } | Self::NoSession { .. } => {
                Remedy::RetryAfter(PAUSE)
            }
            // The command may have run.
            Self::Lost { .. } | Self::TimedOut { .. } | Self::TooMuchOutput { .. } => {
                Remedy::Reconcile
            }
            // Uploading again writes a fresh file.
            Self::Damaged { .. } => Remedy::RetryAfter(Duration::ZERO),
            Self::Handshake { .. }
            | Self::UnknownHostKey { .. }
            | Self::ChangedHostKey { .. }
            | Self::RevokedHostKey { .. }
            | Self::KnownHosts { .. }
            | Self::Identity { .. }
            | Self::UserAgent { .. }
            | Self::NoIdentity { .. }
            | Self::LoginRefused { .. }
            | Self::Failed { .. }
            | Self::Garbled { .. }
            | Self::NotPrivileged { .. }
            | Self::MissingTools { .. }
            | Self::NoPlace { .. }
            | Self::WrongMachine { .. }
            | Self::ForeignDir { .. }
            | Self::AgentNotStarted { .. } => Remedy::GiveUp,
        }
    }

    /// What the operator can do, in one sentence or two.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { endpoint, .. } | Self::Unanswered { endpoint, .. } => {
                format!(
                    "check that an SSH server answers at {} port {}",
                    endpoint.host, endpoint.port
                )
            }
            Self::Handshake { .. } => "update the SSH server of the guest: it offers only \
                 algorithms that are no longer considered safe, or it is not an SSH server"
                .to_owned(),
            Self::UnknownHostKey { endpoint, seen } => {
                let SeenKey { fingerprint, line, looked_in } = seen.as_ref();
                let compare = format!(
                    "compare it on the guest's console with `{}`; if it is the same, pin it with \
                     `--host-key {fingerprint}`",
                    list_fingerprints(line)
                );
                match looked_in.first() {
                    Some(file) => format!(
                        "{compare} or `echo '{} {line}' >> {}`",
                        known_hosts_name(&endpoint.host, endpoint.port),
                        file.display()
                    ),
                    None => compare,
                }
            }
            Self::ChangedHostKey { endpoint, seen_fingerprints, .. } => format!(
                "someone may be in between, or the guest was installed anew: compare on its \
                 console with `ssh-keygen -lf` over /etc/ssh/ssh_host_*_key.pub; if it is right, \
                 pin it with `--host-key {}`, and remove an old entry with `ssh-keygen -R '{}'`",
                seen_fingerprints.first().map_or("SHA256:...", String::as_str),
                known_hosts_name(&endpoint.host, endpoint.port),
            ),
            Self::RevokedHostKey { .. } => {
                "give the guest a new host key; a revoked one is never accepted".to_owned()
            }
            Self::KnownHosts { path, .. } => {
                format!("make {} readable, or pin the key with `--host-key`", path.display())
            }
            Self::Identity { path, problem } => match problem {
                IdentityProblem::Unreadable { .. } => {
                    format!("check that {} exists and is yours", path.display())
                }
                IdentityProblem::Exposed { .. } => format!("`chmod 600 {}`", path.display()),
                IdentityProblem::Passphrase => {
                    format!("`ssh-add {}`, then run again in the same session", path.display())
                }
                IdentityProblem::Malformed { .. } => format!(
                    "name the private key, not the .pub file; `ssh-keygen -p -f {}` rewrites an \
                     old format",
                    path.display()
                ),
            },
            Self::UserAgent { .. } => {
                "check SSH_AUTH_SOCK and `ssh-add -l`, or name an identity file".to_owned()
            }
            Self::NoIdentity { .. } => {
                "name an identity file, or `ssh-add` one to the SSH agent".to_owned()
            }
            Self::LoginRefused { endpoint, accepts, .. } => {
                let also = if accepts.is_empty() || accepts.iter().any(|a| a == "publickey") {
                    String::new()
                } else {
                    format!("; it accepts only {}, and we need publickey", accepts.join(", "))
                };
                format!(
                    "add the public key to ~{}/.ssh/authorized_keys in the guest{also}",
                    endpoint.user
                )
            }
            Self::Lost { .. } => "the network between here and the guest broke".to_owned(),
            Self::NoSession { .. } => {
                "the guest refuses sessions: see MaxSessions and its sshd log".to_owned()
            }
            Self::NotPrivileged { endpoint, .. } => format!(
                "log in as root, or let {0} run sudo without a password: \
                 `echo '{0} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/causeway` in the guest",
                endpoint.user
            ),
            Self::MissingTools { tools } => {
                format!("install {} in the guest (coreutils or busybox)", tools.join(", "))
            }
            Self::NoPlace { .. } => {
                "give the guest one: `mkdir -p /run/causeway && mount -t tmpfs \
                 -o size=64m,mode=0755 causeway /run/causeway`"
                    .to_owned()
            }
            Self::WrongMachine { guest, .. } => format!("use an agent built for {guest}"),
            Self::ForeignDir { dir } => format!("look what {dir} is and remove it"),
            Self::TimedOut { .. }
            | Self::TooMuchOutput { .. }
            | Self::Failed { .. }
            | Self::Garbled { .. }
            | Self::Damaged { .. }
            | Self::AgentNotStarted { .. } => return None,
        })
    }
}

/// The command that shows, on the guest, the fingerprint of the key that we saw.
fn list_fingerprints(key_line: &str) -> String {
    let kind = match key_line.split(' ').next() {
        Some("ssh-ed25519") => "ed25519",
        Some("ssh-rsa") => "rsa",
        Some(name) if name.starts_with("ecdsa-") => "ecdsa",
        _ => "*",
    };
    format!("ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub")
}

/// The name of a host as known_hosts has it.
pub(crate) fn known_hosts_name(host: &str, port: u16) -> String {
    if port == 22 { host.to_lowercase() } else { format!("[{}]:{port}", host.to_lowercase()) }
}
