//! `serve`: takes a folder, listens on a socket in it, and lives until it is asked to end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};
use transfer::secure::Identity;

use super::place::{Place, PlaceError};
use crate::inspect::{self, Tree};
use crate::log::Log;
use crate::session::{Allowed, Events, Host, Role, Tasks};
use crate::source::Source;
use crate::{PROGRAM, sys};

/// What a waiting parent is told when the socket is there.
const READY: &str = "ready\n";

/// Streams that are open at the same time: control, data of two generations, and some to spare.
const STREAMS_MAX: usize = 160;

const IDLE_LOOK: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Serve {
    pub place: Place,
    /// After so long without a coordinator the agent removes itself.
    pub idle_max: Duration,
    /// Who waits for [`READY`] on standard output, after which nothing of a terminal is kept.
    pub parent: Parent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    Waits,
    /// Started by hand, in the foreground.
    None,
}

#[derive(Debug, Error)]
pub enum ServeError {
    #[error(transparent)]
    Place(#[from] PlaceError),

    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },

    #[error("cannot write the log {}", path.display())]
    Log { path: PathBuf, source: io::Error },

    #[error("cannot start a process in the background")]
    Detach(#[source] io::Error),

    #[error("the agent did not start: it says why above")]
    NotStarted,

    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

/// Starts the daemon in the background and waits until it listens.
pub fn start_detached(place: &Place, idle_max: Duration) -> Result<(), ServeError> {
    let mut child = Command::new("/proc/self/exe")
        .arg0(PROGRAM)
        // In this order: `serve --dir DIR` is how others know an agent among processes.
        .args(["serve", "--dir"])
        .arg(place.dir())
        .args(["--foreground", "--parent-waits", "--idle-max-s"])
        .arg(idle_max.as_secs().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(ServeError::Detach)?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        let len = u64::try_from(READY.len()).unwrap_or(u64::MAX);
        stdout.by_ref().take(len).read_to_string(&mut said).map_err(ServeError::Detach)?;
    }
    if said == READY {
        return Ok(());
    }
    child.wait().map_err(ServeError::Detach)?;
    Err(ServeError::NotStarted)
}

/// The daemon itself, to its end. The log goes to `log`, which is held while disks are frozen.
pub async fn serve(serve: Serve, log: Log) -> Result<(), ServeError> {
    let claim = serve.place.claim()?;
    let listener = listen(&serve.place)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    if serve.parent == Parent::Waits {
        detach().map_err(ServeError::Detach)?;
    }

    let key = Identity::generate_pkcs8();
    let identity = Identity::from_pkcs8(&key).expect("a key that was just generated is valid");
    let events = Events::default();
    let source = Source::new(key, events.clone(), log);
    let boot_id = inspect::boot_id(&Tree::of_this_system());
    let host = Host::new(source, identity, events, boot_id);
    info!(pid = std::process::id(), dir = %serve.place.dir().display(), "agent listens");

    let mut streams = Tasks::new();
    let mut idle = interval(IDLE_LOOK);
    idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept(), if streams.len() < STREAMS_MAX => match accepted {
                Ok((stream, _)) => take(&mut streams, &host, stream),
                Err(error) => {
                    warn!(%error, "no stream accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = streams.join_next() => {
                if let Err(error) = ended {
                    error!(%error, "a stream's task failed");
                }
            }
            () = host.ended() => {
                info!("asked to end");
                break;
            }
            _ = terminate.recv() => {
                info!("terminated");
                break;
            }
            _ = interrupt.recv() => {
                info!("interrupted");
                break;
            }
            _ = idle.tick() => {
                if host.idle() > serve.idle_max {
                    info!("no coordinator for too long");
                    break;
                }
            }
        }
    }
    host.role().wind_up().await;
    let cleared = serve.place.clear();
    drop(claim);
    cleared?;
    Ok(())
}

fn take(streams: &mut Tasks, host: &Arc<Host<Source>>, stream: UnixStream) {
    let host = Arc::clone(host);
    streams.spawn(async move { host.serve(stream, Allowed::Everything).await });
}

fn listen(place: &Place) -> Result<UnixListener, ServeError> {
    let path = place.socket();
    let failed = |source| ServeError::Listen { path: path.clone(), source };
    // Of an agent that died: this one holds the folder's lock.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // The folder is private already; the socket is too, in case someone opens the folder up.
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Tells the parent, then lets go of everything that belongs to its login session.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}

/// The exit code of [`end_on_panic`]: EX_SOFTWARE of <sysexits.h>.
const PANICKED: i32 = 70;

/// A bug ends the process, whichever thread or task has it: what is left could hold a guest frozen
/// that nobody thaws. Its end tells the warden. No abort: a core dump to a frozen disk would keep
/// the process from ending.
pub fn end_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        usual(what);
        error!("a bug in the agent, which ends: {what}");
        end_after_bug();
    }));
}

#[expect(clippy::disallowed_methods, reason = "there is no state left that could be trusted")]
pub fn end_after_bug() -> ! {
    std::process::exit(PANICKED)
}

/// The guest's own work goes first. Each of these is a courtesy: without one the agent still works.
/// To be called before there is a second thread: priorities belong to threads, which inherit them.
pub fn make_modest() {
    let _name = rustix::thread::set_name(c"causeway-agent");
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        warn!(%error, "priority not lowered");
    }
    if let Err(error) = sys::lowest_io_priority() {
        warn!(%error, "priority of disk access not lowered");
    }
    // If memory runs out, better the agent than the guest's work; never so early that any
    // shortage ends a migration.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "200") {
        warn!(%error, "not offered to the out-of-memory killer");
    }
    // Out of the login session's control group, which may be killed at logout.
    let own = std::process::id().to_string();
    for group in ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/systemd/cgroup.procs"] {
        if fs::write(group, &own).is_ok() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_any_thread_ends_the_process() {
        const INNER: &str = "CAUSEWAY_TEST_PANICS";
        if std::env::var_os(INNER).is_some() {
            end_on_panic();
            let _panicked = std::thread::spawn(|| panic!("as a bug would")).join();
            return;
        }
        let this_test = "daemon::serve::tests::a_panic_in_any_thread_ends_the_process";
        let inner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this_test])
            .env(INNER, "1")
            .output();
        let inner = inner.unwrap();
        assert_eq!(inner.status.code(), Some(PANICKED), "{inner:?}");
    }
}
