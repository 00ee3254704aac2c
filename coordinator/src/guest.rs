//! Guests reached over SSH, as the engine sees them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use guest_ssh::{
    AgentBinary, AgentDir, Guest, GuestReport, HostKeyPolicy, Installed, SshAuth, SshError,
    SshTarget,
};
use model::SiteName;
use site::{ByteStream, GuestAccess, GuestProbe, Privilege, Remedy, SiteError, SiteErrorKind};
use tokio::sync::{Mutex, OnceCell};
use units::MigrationId;

pub use store::GuestLogin;

use crate::failure::{Failure, Kind};

/// `user@host`, `user@host:port`, `user@[v6]:port`.
pub fn parse_login(text: &str) -> Result<GuestLogin, Failure> {
    let bad = || {
        Failure::new(Kind::Usage, format!("not a login: {text}"))
            .hint("write it as root@10.0.0.5 or ops@web1:2222")
    };
    let (user, rest) = text.split_once('@').ok_or_else(bad)?;
    let (host, port) = match rest.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or_else(bad)?;
            (host, rest.strip_prefix(':').unwrap_or("22"))
        }
        None => rest.split_once(':').unwrap_or((rest, "22")),
    };
    let port = port.parse().map_err(|_| bad())?;
    if user.is_empty() || host.is_empty() {
        return Err(bad());
    }
    Ok(GuestLogin {
        user: user.to_owned(),
        host: host.to_owned(),
        port,
        identity: None,
        host_key: None,
        known_hosts: None,
    })
}

fn target_of(login: &GuestLogin) -> Result<SshTarget, Failure> {
    let policy = match &login.host_key {
        Some(key) => HostKeyPolicy::Pinned(vec![key.parse().map_err(
            |error: guest_ssh::PinnedKeyError| {
                Failure::new(Kind::Usage, "--host-key is not a host key").caused_by(&error)
            },
        )?]),
        None => HostKeyPolicy::KnownHosts(match &login.known_hosts {
            Some(file) => vec![file.clone()],
            None => known_hosts_of_user(),
        }),
    };
    let mut target = SshTarget::new(login.host.clone(), login.user.clone(), policy);
    target.port = login.port;
    target.auth = SshAuth {
        identity_files: login.identity.clone().map_or_else(identities_of_user, |file| vec![file]),
        ..SshAuth::default()
    };
    Ok(target)
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}

fn known_hosts_of_user() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/ssh/ssh_known_hosts")];
    files.extend(home().map(|home| home.join(".ssh/known_hosts")));
    files
}

/// The keys that `ssh` would try, those that exist.
fn identities_of_user() -> Vec<PathBuf> {
    let Some(home) = home() else { return Vec::new() };
    let names = ["id_ed25519", "id_ecdsa", "id_rsa"];
    names.iter().map(|name| home.join(".ssh").join(name)).filter(|path| path.exists()).collect()
}

/// A guest over SSH.
pub struct SshGuest {
    /// The site that it runs at, for messages.
    site: SiteName,
    login: GuestLogin,
    target: SshTarget,
    /// The agent's program on this machine.
    agent: PathBuf,
    guest: OnceCell<Guest>,
    /// What was found there before the agent was.
    report: OnceCell<GuestReport>,
    /// What this process put there: it is not sent and summed up again while it can be started.
    installed: Mutex<Option<Installed>>,
    binary: OnceCell<AgentBinary>,
    /// Where the agent lives in this guest: looked for once, the same for every stream.
    dir: OnceCell<AgentDir>,
}

impl SshGuest {
    pub fn new(site: SiteName, login: GuestLogin, agent: PathBuf) -> Result<Arc<Self>, Failure> {
        let target = target_of(&login)?;
        Ok(Arc::new(Self {
            site,
            login,
            target,
            agent,
            guest: OnceCell::new(),
            report: OnceCell::new(),
            installed: Mutex::new(None),
            binary: OnceCell::new(),
            dir: OnceCell::new(),
        }))
    }

    async fn guest(&self) -> Result<&Guest, SiteError> {
        let dial = || self.dial();
        self.guest.get_or_try_init(dial).await.map_err(|error| self.error("log in", error))
    }

    /// Servers drop logins that come too fast after one another; only what says that waiting helps
    /// is tried again.
    async fn dial(&self) -> Result<Guest, SshError> {
        let mut tries = 0;
        loop {
            let error = match Guest::connect(&self.target).await {
                Ok(guest) => return Ok(guest),
                Err(error) => error,
            };
            tries += 1;
            match error.remedy() {
                Remedy::RetryAfter(pause) if tries < DIALS => tokio::time::sleep(pause).await,
                _ => return Err(error),
            }
        }
    }

    async fn dir(
        &self,
        migration: &MigrationId,
        agent: &AgentBinary,
    ) -> Result<AgentDir, SiteError> {
        let (guest, report) = self.report().await?;
        if let Some(refusal) = report.refusals(guest, migration, agent).into_iter().next() {
            return Err(self.error("install the agent", refusal));
        }
        report.agent_dir(migration, agent).map_err(|error| self.error("install the agent", error))
    }

    async fn binary(&self, path: &Path) -> Result<&AgentBinary, SiteError> {
        self.binary.get_or_try_init(|| AgentBinary::load(path)).await.map_err(|error| SiteError {
            site: self.site.clone(),
            kind: SiteErrorKind::NotFound,
            attempt: "install the agent".to_owned(),
            what: "the agent's program is missing on this machine".to_owned(),
            hint: Some("build it with `make programs`, or name it in CAUSEWAY_AGENT".to_owned()),
            remedy: Remedy::GiveUp,
            source: Some(Box::new(error)),
        })
    }

    async fn report(&self) -> Result<(&Guest, &GuestReport), SiteError> {
        let guest = self.guest().await?;
        let report = self.report.get_or_try_init(|| guest.probe()).await;
        Ok((guest, report.map_err(|error| self.error("look around", error))?))
    }

    /// All that keeps the agent from being installed, for the plan.
    pub async fn refusals(
        &self,
        migration: &MigrationId,
        agent: &Path,
    ) -> Result<Vec<SiteError>, SiteError> {
        let agent = self.binary(agent).await?;
        let (guest, report) = self.report().await?;
        let refusals = report.refusals(guest, migration, agent);
        Ok(refusals.into_iter().map(|e| self.error("install the agent", e)).collect())
    }

    fn error(&self, attempt: &str, error: SshError) -> SiteError {
        let kind = match &error {
            SshError::Unreachable { .. } | SshError::Unanswered { .. } | SshError::Lost { .. } => {
                SiteErrorKind::Unreachable
            }
            SshError::UnknownHostKey { .. }
            | SshError::ChangedHostKey { .. }
            | SshError::RevokedHostKey { .. }
            | SshError::LoginRefused { .. }
            | SshError::NoIdentity { .. }
            | SshError::NotPrivileged { .. } => SiteErrorKind::Denied,
            _ => SiteErrorKind::Platform,
        };
        SiteError {
            site: self.site.clone(),
            kind,
            attempt: format!("{attempt} ({})", self.describe()),
            what: error.to_string(),
            hint: error.hint(),
            remedy: error.remedy(),
            source: Some(Box::new(error)),
        }
    }
}

/// Logins that are tried before a guest counts as unreachable.
const DIALS: u32 = 3;

fn probe_of(report: GuestReport) -> GuestProbe {
    GuestProbe {
        os: report.os.get("PRETTY_NAME").cloned().unwrap_or_default(),
        kernel: report.kernel,
        arch: report.machine,
        boot_id: report.boot_id,
        privilege: report.privilege.map(|privilege| match privilege {
            guest_ssh::Privilege::Root => Privilege::Root,
            guest_ssh::Privilege::Sudo => Privilege::Sudo,
        }),
        missing_tools: report.missing_tools,
    }
}

#[async_trait]
impl GuestAccess for SshGuest {
    fn describe(&self) -> String {
        format!("{}@{}:{}", self.login.user, self.login.host, self.login.port)
    }

    async fn probe(&self) -> Result<GuestProbe, SiteError> {
        let guest = self.guest().await?;
        Ok(probe_of(guest.probe().await.map_err(|error| self.error("look around", error))?))
    }

    async fn install(&self, migration: &MigrationId, agent: &Path) -> Result<(), SiteError> {
        let binary = self.binary(agent).await?;
        let dir = self.installed_dir(migration).await?;
        let guest = self.guest().await?;
        let failed = |error| self.error("install the agent", error);
        let mut before = self.installed.lock().await;
        if let Some(installed) = &*before {
            match guest.start(installed, &[]).await {
                Ok(_) => return Ok(()),
                // It is gone, or broken: it is put there anew.
                Err(SshError::AgentNotStarted { log }) => tracing::info!(log, "the agent is gone"),
                Err(error) => return Err(failed(error)),
            }
        }
        let installed = guest.install(binary, &dir).await.map_err(failed)?;
        guest.start(&installed, &[]).await.map_err(failed)?;
        *before = Some(installed);
        Ok(())
    }

    async fn open(&self, migration: &MigrationId) -> Result<ByteStream, SiteError> {
        let guest = self.guest().await?;
        let dir = self.installed_dir(migration).await?;
        let stream = guest.open_agent(&dir).await;
        Ok(Box::new(stream.map_err(|error| self.error("open a stream to the agent", error))?))
    }

    async fn remove(&self, migration: &MigrationId) -> Result<Vec<String>, SiteError> {
        let dir = self.installed_dir(migration).await?;
        let removed = self.guest().await?.remove(&dir).await;
        let removed = removed.map_err(|error| self.error("remove the agent", error))?;
        let mut words: Vec<_> =
            removed.stopped.iter().map(|pid| format!("stopped the agent (pid {pid})")).collect();
        words.extend(removed.deleted);
        Ok(words)
    }
}

impl SshGuest {
    /// Where this migration's agent is, or would be.
    async fn installed_dir(&self, migration: &MigrationId) -> Result<AgentDir, SiteError> {
        let find = || async {
            let binary = self.binary(&self.agent).await?;
            self.dir(migration, binary).await
        };
        self.dir.get_or_try_init(find).await.cloned()
    }
}
