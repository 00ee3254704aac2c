//! One SSH connection: TCP, host key, login, and how it ended.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use russh::client::{Config, DisconnectReason, Handle, Handler, Msg};
use russh::keys::PublicKeyOrCertificate;
use russh::keys::ssh_key::{Algorithm, PublicKey};
use russh::{AlgorithmKind, Channel};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{debug, instrument, warn};

use crate::auth;
use crate::error::{Lost, SshError};
use crate::host_key::Expected;
use crate::shell::printable_tail;
use crate::target::{Endpoint, SshTarget};

/// A connection that is logged in. Closed when dropped.
pub(crate) struct Connection {
    handle: Handle<Watcher>,
    endpoint: Endpoint,
    lost: Arc<OnceLock<Lost>>,
    /// Carries this one; lives as long.
    _via: Option<Box<Self>>,
}

/// Credit for data of the guest that has not arrived. Also what is buffered here at most, twice.
const WINDOW: u32 = 2 * 1024 * 1024;
/// The largest packet that every server must accept (RFC 4253, 6.1).
const PACKET: u32 = 32 * 1024;
/// Packets that wait for a slow reader before TCP is left unread: 1 MiB.
const UNREAD_PACKETS: usize = 32;

impl Connection {
    #[instrument(skip_all, fields(endpoint = %target.endpoint()))]
    pub(crate) async fn dial(target: &SshTarget) -> Result<Self, SshError> {
        let endpoint = target.endpoint();
        let expected = Arc::new(Expected::of(&target.host_key, &endpoint).await?);
        let mut seen = Vec::new();
        let mut refusal = None;
        for kinds in expected.offers() {
            match Self::dial_for(target, &expected, kinds).await {
                Err(SshError::ChangedHostKey { endpoint, mut seen_fingerprints, expected }) => {
                    seen.append(&mut seen_fingerprints);
                    let seen_fingerprints = seen.clone();
                    refusal =
                        Some(SshError::ChangedHostKey { endpoint, seen_fingerprints, expected });
                }
                // The server has no key of these kinds.
                Err(SshError::Handshake { endpoint, cause })
                    if matches!(
                        *cause,
                        russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, .. }
                    ) =>
                {
                    refusal.get_or_insert(SshError::Handshake { endpoint, cause });
                }
                done => return done,
            }
        }
        Err(refusal.expect("there is at least one offer, and each ended in a refusal"))
    }

    async fn dial_for(
        target: &SshTarget,
        expected: &Arc<Expected>,
        kinds: Vec<Algorithm>,
    ) -> Result<Self, SshError> {
        let endpoint = target.endpoint();
        let lost = Arc::new(OnceLock::new());
        let watcher = Watcher {
            endpoint: endpoint.clone(),
            expected: Arc::clone(expected),
            lost: Arc::clone(&lost),
        };
        let config = Arc::new(config(target, kinds));
        let waited = target.timing.connect;
        let late = |during| {
            let endpoint = endpoint.clone();
            move |_| SshError::Unanswered { endpoint, during, waited }
        };

        let (greeted, via) = match &target.jump {
            None => {
                let tcp =
                    timeout(waited, tcp_connect(target)).await.map_err(late("connecting"))??;
                let greeting = russh::client::connect_stream(config, tcp, watcher);
                (timeout(waited, greeting).await, None)
            }
            Some(jump) => {
                let via = Box::pin(Self::dial(jump)).await?;
                let opening = via.handle.channel_open_direct_tcpip(
                    target.host.as_str(),
                    u32::from(target.port),
                    "127.0.0.1",
                    0,
                );
                let channel = timeout(waited, opening)
                    .await
                    .map_err(late("connecting"))?
                    .map_err(|cause| via.cannot_open(cause))?;
                let greeting =
                    russh::client::connect_stream(config, channel.into_stream(), watcher);
                (timeout(waited, greeting).await, Some(Box::new(via)))
            }
        };
        let mut handle = greeted
            .map_err(late("key exchange"))?
            .map_err(|error| error.into_ssh_error(&endpoint))?;
        timeout(waited, auth::log_in(&mut handle, target)).await.map_err(late("login"))??;
        Ok(Self { handle, endpoint, lost, _via: via })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.handle.is_closed()
    }

    /// The error for something that this connection broke in the middle of.
    pub(crate) fn lost(&self) -> SshError {
        SshError::Lost { endpoint: self.endpoint.clone(), reason: self.how_lost() }
    }

    pub(crate) fn how_lost(&self) -> Lost {
        self.lost.get().cloned().unwrap_or(Lost::Closed)
    }

    pub(crate) async fn open_session(&self) -> Result<Channel<Msg>, SshError> {
        self.handle.channel_open_session().await.map_err(|cause| self.cannot_open(cause))
    }

    fn cannot_open(&self, cause: russh::Error) -> SshError {
        match cause {
            russh::Error::ChannelOpenFailure(_) => {
                SshError::NoSession { endpoint: self.endpoint.clone(), cause: Box::new(cause) }
            }
            _ => self.lost(),
        }
    }
}

async fn tcp_connect(target: &SshTarget) -> Result<TcpStream, SshError> {
    let unreachable = |cause| SshError::Unreachable { endpoint: target.endpoint(), cause };
    let tcp = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    if let Err(error) = watch_path(&tcp, target) {
        warn!(%error, "a dead path may be noticed late");
    }
    Ok(tcp)
}

/// SSH's keepalive notices a dead path only after the login and while we wait for the guest.
/// Before that, and while we are stuck writing to it, TCP has to.
fn watch_path(tcp: &TcpStream, target: &SshTarget) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    let patience = u32::try_from(target.timing.patience().as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(tcp, patience)?;
    // TCP counts these in whole seconds.
    let interval = target.timing.keepalive.max(Duration::from_secs(1));
    sockopt::set_tcp_keepidle(tcp, interval)?;
    sockopt::set_tcp_keepintvl(tcp, interval)?;
    sockopt::set_tcp_keepcnt(tcp, u32::from(target.timing.keepalive_count.max(1)))?;
    sockopt::set_socket_keepalive(tcp, true)
}

fn config(target: &SshTarget, kinds: Vec<Algorithm>) -> Config {
    Config {
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: UNREAD_PACKETS,
        keepalive_interval: Some(target.timing.keepalive.max(Duration::from_millis(1))),
        keepalive_max: usize::from(target.timing.keepalive_count.max(1)),
        preferred: russh::Preferred { key: Cow::Owned(kinds), ..russh::Preferred::DEFAULT },
        nodelay: true,
        ..Config::default()
    }
}

/// Looks at what the server shows, and keeps how the connection ended.
pub(crate) struct Watcher {
    endpoint: Endpoint,
    expected: Arc<Expected>,
    lost: Arc<OnceLock<Lost>>,
}

/// Why the greeting failed: our refusal, or SSH's.
#[derive(Debug)]
pub(crate) enum Broken {
    Refused(SshError),
    Ssh(russh::Error),
}

impl From<russh::Error> for Broken {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl Broken {
    fn into_ssh_error(self, endpoint: &Endpoint) -> SshError {
        let endpoint = endpoint.clone();
        match self {
            Self::Refused(error) => error,
            Self::Ssh(russh::Error::IO(cause)) => SshError::Unreachable { endpoint, cause },
            Self::Ssh(cause @ (russh::Error::Disconnect | russh::Error::HUP)) => {
                SshError::NoSession { endpoint, cause: Box::new(cause) }
            }
            Self::Ssh(cause) => SshError::Handshake { endpoint, cause: Box::new(cause) },
        }
    }
}

impl Handler for Watcher {
    type Error = Broken;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Broken> {
        let key = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.clone(),
            PublicKeyOrCertificate::Certificate(certificate) => {
                PublicKey::new(certificate.public_key().clone(), "")
            }
        };
        self.expected.judge(&self.endpoint, &key).map_err(Broken::Refused)?;
        Ok(true)
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Broken>) -> Result<(), Broken> {
        let lost = match &reason {
            DisconnectReason::ReceivedDisconnect(said) => {
                Lost::Goodbye(printable_tail(said.message.as_bytes(), 200))
            }
            DisconnectReason::Error(Broken::Ssh(error)) => how_lost(error),
            DisconnectReason::Error(Broken::Refused(_)) => Lost::Protocol("host key".to_owned()),
        };
        debug!(endpoint = %self.endpoint, reason = %lost, "disconnected");
        // The first reason is the real one.
        drop(self.lost.set(lost));
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            DisconnectReason::Error(error) => Err(error),
        }
    }
}

fn how_lost(error: &russh::Error) -> Lost {
    match error {
        russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout => Lost::Silent,
        russh::Error::Disconnect | russh::Error::HUP => Lost::Closed,
        russh::Error::IO(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Lost::Closed
        }
        russh::Error::IO(error) if error.kind() == std::io::ErrorKind::TimedOut => Lost::Silent,
        russh::Error::IO(error) => Lost::Network(error.kind()),
        error => Lost::Protocol(error.to_string()),
    }
}
