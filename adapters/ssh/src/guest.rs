//! A guest that we are logged in to.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, OnceCell};
use tracing::info;

use crate::connection::Connection;
use crate::error::SshError;
use crate::exec::{ExecLimits, Exit, Output};
use crate::shell::{self, printable_tail};
use crate::stream::ByteStream;
use crate::target::SshTarget;

/// A guest that we are logged in to. A lost control connection is made anew by the next call;
/// the call that noticed the loss fails, because its command may have run.
pub struct Guest {
    target: SshTarget,
    /// Also serialises dialling: servers drop logins that come at the same time (OpenSSH's
    /// MaxStartups, dropbear's limit per address).
    dialling: Mutex<Option<Arc<Connection>>>,
    privilege: OnceCell<Privilege>,
}

/// How commands become root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    Root,
    /// By `sudo -n`.
    Sudo,
}

impl Guest {
    pub async fn connect(target: &SshTarget) -> Result<Self, SshError> {
        let connection = Connection::dial(target).await?;
        info!(endpoint = %connection.endpoint(), "connected to guest");
        Ok(Self {
            target: target.clone(),
            dialling: Mutex::new(Some(Arc::new(connection))),
            privilege: OnceCell::new(),
        })
    }

    pub fn target(&self) -> &SshTarget {
        &self.target
    }

    /// Runs `command` in the login shell of the user, as the user.
    ///
    /// # Errors
    /// Only if it could not be run; a command that fails is an [`Output`] too.
    pub async fn exec(&self, command: &str, stdin: impl Into<Bytes>) -> Result<Output, SshError> {
        self.exec_within(ExecLimits::default(), command, stdin).await
    }

    pub async fn exec_within(
        &self,
        limits: ExecLimits,
        command: &str,
        stdin: impl Into<Bytes>,
    ) -> Result<Output, SshError> {
        let connection = self.control().await?;
        connection.run(&format!("`{command}`"), command, stdin.into(), limits).await
    }

    /// How to become root here. Asked once.
    ///
    /// # Errors
    /// [`SshError::NotPrivileged`] if there is no way without a password.
    pub async fn privilege(&self) -> Result<Privilege, SshError> {
        self.privilege.get_or_try_init(|| self.find_privilege()).await.copied()
    }

    async fn find_privilege(&self) -> Result<Privilege, SshError> {
        let id = self.exec("id -u", Bytes::new()).await?.success("`id -u`")?;
        if id.answer() == "0" {
            return Ok(Privilege::Root);
        }
        let sudo = self.exec("sudo -n id -u", Bytes::new()).await?;
        if sudo.exit == Exit::Status(0) && sudo.answer() == "0" {
            return Ok(Privilege::Sudo);
        }
        let said = printable_tail(&sudo.stderr, 200);
        Err(SshError::NotPrivileged { endpoint: self.target.endpoint(), said })
    }

    /// A command line that runs these words as root.
    pub(crate) async fn as_root(&self, words: &[&str]) -> Result<String, SshError> {
        Ok(match self.privilege().await? {
            Privilege::Root => shell::join(words.iter().copied()),
            Privilege::Sudo => format!("sudo -n {}", shell::join(words.iter().copied())),
        })
    }

    /// Runs a POSIX shell script as root. It comes by stdin, so that no login shell needs to
    /// understand it; its commands must not read theirs.
    pub(crate) async fn script_as_root(
        &self,
        attempt: &str,
        script: &'static str,
        arguments: &[&str],
    ) -> Result<Output, SshError> {
        let words = [&["sh", "-s", "--"], arguments].concat();
        let command = self.as_root(&words).await?;
        self.script(attempt, &command, script).await
    }

    pub(crate) async fn script(
        &self,
        attempt: &str,
        command: &str,
        script: &'static str,
    ) -> Result<Output, SshError> {
        let connection = self.control().await?;
        let stdin = Bytes::from_static(script.as_bytes());
        connection.run(attempt, command, stdin, ExecLimits::default()).await
    }

    /// Runs `command` as the user with its stdin and stdout as a stream, on a connection of its
    /// own. Open as many as there are cores to keep busy.
    pub async fn open(&self, command: &str) -> Result<ByteStream, SshError> {
        let connection = {
            let _one_at_a_time = self.dialling.lock().await;
            Connection::dial(&self.target).await?
        };
        ByteStream::open(connection, command).await
    }

    /// [`Guest::open`] for a command of these words, as root.
    pub async fn open_as_root(&self, words: &[&str]) -> Result<ByteStream, SshError> {
        let command = self.as_root(words).await?;
        self.open(&command).await
    }

    pub(crate) async fn control(&self) -> Result<Arc<Connection>, SshError> {
        let mut control = self.dialling.lock().await;
        if let Some(connection) = control.as_ref().filter(|connection| !connection.is_lost()) {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(Connection::dial(&self.target).await?);
        info!(endpoint = %connection.endpoint(), "connected to guest again");
        *control = Some(Arc::clone(&connection));
        Ok(connection)
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("endpoint", &self.target.endpoint())
            .field("privilege", &self.privilege.get())
            .finish_non_exhaustive()
    }
}
