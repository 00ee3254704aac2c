//! The control connection: opened when needed, reopened when dead, never waited for without limit.

use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use site::{Remedy, SiteError, SiteErrorKind};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, warn};
use virt::connect::Connect;

use crate::LibvirtConfig;
use crate::fault::{Fault, Op};
use crate::verdict::verdict;

/// A connection that was idle for longer is asked something harmless before it is trusted, and so is
/// every one before a change: a dead one must not be found out by a change whose outcome is then
/// open.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

static QUIET: Once = Once::new();

/// The way to one libvirt.
#[derive(Clone)]
pub(crate) struct Link {
    config: Arc<LibvirtConfig>,
    idle: Arc<Mutex<Option<Idle>>>,
}

struct Idle {
    /// `None` only while it is being dropped or taken.
    connection: Option<Connect>,
    since: Instant,
}

impl Idle {
    fn new(connection: Connect) -> Self {
        Self { connection: Some(connection), since: Instant::now() }
    }
}

/// Closing says goodbye, and waits for the answer of a host that may be gone: minutes, for which
/// nobody should wait.
impl Drop for Idle {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Without a thread the connection is closed here, which is slow at worst.
            drop(
                thread::Builder::new().name("libvirt-close".to_owned()).spawn(|| drop(connection)),
            );
        }
    }
}

impl Link {
    pub(crate) fn new(config: Arc<LibvirtConfig>) -> Self {
        // libvirt prints every error by default, and stdout and stderr are not ours.
        QUIET.call_once(virt::error::clear_error_callback);
        Self { config, idle: Arc::default() }
    }

    /// Does `work` with the control connection on a thread of its own.
    ///
    /// A call that hangs is left to itself: its thread ends when libvirt answers or the connection
    /// breaks, and later calls get a connection of their own. It is a thread and not one of tokio's
    /// blocking ones because a runtime waits for those when it ends.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        op: Op,
        attempt: String,
        limit: Duration,
        work: impl Fn(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, SiteError> {
        let link = self.clone();
        self.on_thread(op, attempt, limit, move || {
            let mut connection = link.take(op)?;
            let mut result = work(&connection);
            // Looking again is harmless, and a libvirtd that began anew answers on a new connection.
            if op == Op::Look && breaks(&result, op) {
                drop(Idle::new(connection));
                connection = link.open()?;
                result = work(&connection);
            }
            if !breaks(&result, op) {
                link.give_back(connection);
            }
            result
        })
        .await
    }

    /// Does `work`, which makes its own connections.
    pub(crate) async fn on_thread<T: Send + 'static>(
        &self,
        op: Op,
        attempt: String,
        limit: Duration,
        work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, SiteError> {
        let (answer, answered) = oneshot::channel();
        let spawned = thread::Builder::new().name("libvirt".to_owned()).spawn(move || {
            // Whoever asked may have given up: then nobody wants to know.
            let _ = answer.send(work());
        });
        if let Err(cause) = spawned {
            let error = self.error(SiteErrorKind::Exhausted, attempt, "no thread for the call");
            return Err(SiteError { source: Some(Box::new(cause)), ..error });
        }
        match timeout(limit, answered).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(fault))) => Err(self.judge(fault, op, attempt)),
            Ok(Err(_)) => {
                let error = self.error(SiteErrorKind::Internal, attempt, "the call panicked");
                Err(SiteError { remedy: hung(op), ..error })
            }
            Err(_) => {
                warn!(site = %self.config.name, %attempt, "libvirt did not answer in time");
                let what = format!("libvirt did not answer within {} s", limit.as_secs());
                let error = self.error(SiteErrorKind::Unreachable, attempt, &what);
                Err(SiteError { remedy: hung(op), ..error })
            }
        }
    }

    /// A connection of its own, for a stream. No keepalive: libvirt stops reading its socket while
    /// a stream's queue is full and would take the silence for death.
    pub(crate) fn open(&self) -> Result<Connect, Fault> {
        debug!(site = %self.config.name, "connecting");
        Ok(Connect::open(Some(&self.config.uri_to_open()))?)
    }

    pub(crate) fn error(&self, kind: SiteErrorKind, attempt: String, what: &str) -> SiteError {
        SiteError {
            site: self.config.name.clone(),
            kind,
            attempt,
            what: what.to_owned(),
            hint: None,
            remedy: Remedy::GiveUp,
            source: None,
        }
    }

    fn judge(&self, fault: Fault, op: Op, attempt: String) -> SiteError {
        match fault {
            Fault::Found(finding) => {
                let error = self.error(finding.kind, attempt, &finding.what);
                SiteError { hint: finding.hint, remedy: finding.remedy, ..error }
            }
            Fault::Said(said) => {
                let verdict = verdict(&said, op);
                SiteError {
                    hint: verdict.hint.map(str::to_owned),
                    remedy: verdict.remedy,
                    source: Some(Box::new(said)),
                    ..self.error(verdict.kind, attempt, verdict.what)
                }
            }
        }
    }

    fn take(&self, op: Op) -> Result<Connect, Fault> {
        let idle = self.idle().take();
        if let Some(mut idle) = idle
            && let Some(connection) = idle.connection.take()
        {
            let fresh = op == Op::Look
                && idle.since.elapsed() < TRUSTED_FOR
                && connection.is_alive().unwrap_or(false);
            if fresh || connection.lib_version().is_ok() {
                return Ok(connection);
            }
            drop(Idle::new(connection));
        }
        self.open()
    }

    fn give_back(&self, connection: Connect) {
        *self.idle() = Some(Idle::new(connection));
    }

    fn idle(&self) -> MutexGuard<'_, Option<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is the connection of no use after this?
fn breaks<T>(result: &Result<T, Fault>, op: Op) -> bool {
    match result {
        Err(Fault::Said(said)) => verdict(said, op).broken,
        Ok(_) | Err(Fault::Found(_)) => false,
    }
}

const fn hung(op: Op) -> Remedy {
    match op {
        Op::Look => Remedy::RetryAfter(Duration::from_secs(5)),
        Op::Change => Remedy::Reconcile,
    }
}
