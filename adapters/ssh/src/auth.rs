//! Logging in: with the user's SSH agent and identity files, nothing else.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::{Algorithm, HashAlg, PrivateKey, PublicKey};
use russh::keys::{PrivateKeyWithHashAlg, decode_secret_key};
use tokio::net::UnixStream;
use tracing::debug;
use zeroize::Zeroizing;

use crate::connection::Watcher;
use crate::error::{IdentityProblem, Lost, SshError};
use crate::target::{Endpoint, SshAuth, SshTarget, UserAgent};

/// Identities offered at most. OpenSSH's server closes the connection after 6 (MaxAuthTries).
const MAX_ATTEMPTS: usize = 5;

/// Proves who we are, or says why none of the identities will do.
pub(crate) async fn log_in(
    handle: &mut Handle<Watcher>,
    target: &SshTarget,
) -> Result<(), SshError> {
    let endpoint = target.endpoint();
    let mut agent = connect_agent(&target.auth).await?;
    let (identities, problems) = gather(&target.auth, agent.as_mut()).await?;
    let mut refused = Refused::default();
    for identity in identities.into_iter().take(MAX_ATTEMPTS) {
        let name = identity.name();
        match offer(handle, &endpoint, identity, agent.as_mut()).await? {
            AuthResult::Success => {
                debug!(%endpoint, identity = name, "logged in");
                return Ok(());
            }
            AuthResult::Failure { remaining_methods, .. } => {
                refused.tried.push(name);
                refused.accepts =
                    remaining_methods.iter().map(|m| <&str>::from(m).to_owned()).collect();
            }
        }
    }
    Err(refused.into_error(endpoint, problems))
}

#[derive(Default)]
struct Refused {
    tried: Vec<String>,
    accepts: Vec<String>,
}

impl Refused {
    /// An identity file that could not be used is the likelier reason than a guest that does not
    /// know the others.
    fn into_error(
        self,
        endpoint: Endpoint,
        mut problems: Vec<(PathBuf, IdentityProblem)>,
    ) -> SshError {
        if !problems.is_empty() {
            let (path, problem) = problems.swap_remove(0);
            return SshError::Identity { path, problem };
        }
        if self.tried.is_empty() {
            return SshError::NoIdentity { endpoint };
        }
        SshError::LoginRefused { endpoint, tried: self.tried, accepts: self.accepts }
    }
}

enum Identity {
    File { path: PathBuf, key: Arc<PrivateKey> },
    InAgent { key: Box<PublicKey> },
}

impl Identity {
    /// Fingerprint and origin, for messages.
    fn name(&self) -> String {
        match self {
            Self::File { path, key } => {
                format!("{} ({})", key.fingerprint(HashAlg::Sha256), path.display())
            }
            Self::InAgent { key } => format!("{} (SSH agent)", key.fingerprint(HashAlg::Sha256)),
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::File { key, .. } => key.algorithm(),
            Self::InAgent { key } => key.algorithm(),
        }
    }
}

/// What to offer, in order, and the identity files that are of no use.
async fn gather(
    auth: &SshAuth,
    agent: Option<&mut AgentClient<UnixStream>>,
) -> Result<(Vec<Identity>, Vec<(PathBuf, IdentityProblem)>), SshError> {
    let mut held = match agent {
        Some(agent) => {
            let identities = agent.request_identities().await;
            identities.map_err(|cause| SshError::UserAgent { cause: Box::new(cause) })?
        }
        None => Vec::new(),
    }
    .into_iter()
    .filter_map(|identity| match identity {
        AgentIdentity::PublicKey { key, .. } => Some(key),
        AgentIdentity::Certificate { .. } => None,
    })
    .collect::<Vec<_>>();

    let (mut chosen, mut problems) = (Vec::new(), Vec::new());
    for path in &auth.identity_files {
        let public = public_half(path).await;
        let in_agent = held.iter().position(|key| {
            public.as_ref().is_some_and(|public| public.key_data() == key.key_data())
        });
        if let Some(at) = in_agent {
            chosen.push(Identity::InAgent { key: Box::new(held.remove(at)) });
            continue;
        }
        match load(path).await {
            Ok(key) => chosen.push(Identity::File { path: path.clone(), key: Arc::new(key) }),
            Err(problem) => problems.push((path.clone(), problem)),
        }
    }
    chosen.extend(held.into_iter().map(|key| Identity::InAgent { key: Box::new(key) }));
    Ok((chosen, problems))
}

async fn connect_agent(auth: &SshAuth) -> Result<Option<AgentClient<UnixStream>>, SshError> {
    let socket = match &auth.agent {
        UserAgent::Never => return Ok(None),
        UserAgent::Socket(path) => path.clone(),
        UserAgent::FromEnv => match std::env::var_os("SSH_AUTH_SOCK") {
            Some(path) if !path.is_empty() => path.into(),
            _ => return Ok(None),
        },
    };
    match AgentClient::connect_uds(&socket).await {
        Ok(agent) => Ok(Some(agent)),
        // A stale variable is common, and harmless where files are named.
        Err(error) if auth.agent == UserAgent::FromEnv && !auth.identity_files.is_empty() => {
            debug!(%error, "no SSH agent");
            Ok(None)
        }
        Err(cause) => Err(SshError::UserAgent { cause: Box::new(cause) }),
    }
}

async fn offer(
    handle: &mut Handle<Watcher>,
    endpoint: &Endpoint,
    identity: Identity,
    agent: Option<&mut AgentClient<UnixStream>>,
) -> Result<AuthResult, SshError> {
    let lost = |_| SshError::Lost { endpoint: endpoint.clone(), reason: Lost::Closed };
    let hash = if matches!(identity.algorithm(), Algorithm::Rsa { .. }) {
        // A server that does not say gets SHA-256; SHA-1 is not offered.
        let best = handle.best_supported_rsa_hash().await.map_err(lost)?;
        Some(best.flatten().unwrap_or(HashAlg::Sha256))
    } else {
        None
    };
    let user = endpoint.user.clone();
    match (identity, agent) {
        (Identity::File { key, .. }, _) => {
            let key = PrivateKeyWithHashAlg::new(key, hash);
            handle.authenticate_publickey(user, key).await.map_err(lost)
        }
        (Identity::InAgent { key }, Some(agent)) => {
            match handle.authenticate_publickey_with(user, *key, hash, agent).await {
                Ok(result) => Ok(result),
                // It held the key a moment ago and now declines to sign: as good as a refusal.
                Err(error) => {
                    debug!(%error, "the SSH agent did not sign");
                    Ok(AuthResult::Failure {
                        remaining_methods: russh::MethodSet::empty(),
                        partial_success: false,
                    })
                }
            }
        }
        (Identity::InAgent { .. }, None) => {
            unreachable!("identities of the agent are gathered only from an agent")
        }
    }
}

/// The public key that belongs to an identity file, without its secret: from the file itself (the
/// OpenSSH format keeps it readable) or from the `.pub` beside it.
async fn public_half(path: &Path) -> Option<PublicKey> {
    let text = Zeroizing::new(tokio::fs::read_to_string(path).await.ok()?);
    if let Ok(key) = PrivateKey::from_openssh(text.as_bytes()) {
        return Some(key.public_key().clone());
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".pub");
    PublicKey::from_openssh(tokio::fs::read_to_string(beside).await.ok()?.trim()).ok()
}

async fn load(path: &Path) -> Result<PrivateKey, IdentityProblem> {
    let unreadable = |cause| IdentityProblem::Unreadable { cause };
    let mode = tokio::fs::metadata(path).await.map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityProblem::Exposed { mode });
    }
    let text = Zeroizing::new(tokio::fs::read_to_string(path).await.map_err(unreadable)?);
    match decode_secret_key(&text, None) {
        Ok(key) if key.is_encrypted() => Err(IdentityProblem::Passphrase),
        Ok(key) => Ok(key),
        Err(russh::keys::Error::KeyIsEncrypted) => Err(IdentityProblem::Passphrase),
        // The old formats say so in their header only.
        Err(_) if text.contains("ENCRYPTED") => Err(IdentityProblem::Passphrase),
        Err(cause) => Err(IdentityProblem::Malformed { cause: Box::new(cause) }),
    }
}
