//! Takes an agent out of a guest.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use thiserror::Error;

use super::place::{Place, PlaceError};

/// How long an agent may take to put the guest back (services start again) before it is killed.
/// Its warden then does the same.
const END_WITHIN: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Error)]
pub enum RemoveError {
    #[error("cannot end the agent, process {pid}")]
    Kill { pid: i32, source: std::io::Error },

    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// Ends the agent, which puts the guest back as it was, and removes its files. Says what it did;
/// nothing to do is success.
pub fn run(place: &Place) -> Result<Vec<String>, RemoveError> {
    let mut done = Vec::new();
    if let Some(pid) = place.running()? {
        end(pid)?;
        done.push(format!("ended process {}", pid.as_raw_nonzero()));
    }
    let removed = place.clear()?;
    done.extend(removed.into_iter().map(|path| format!("removed {}", path.display())));
    Ok(done)
}

fn end(pid: Pid) -> Result<(), RemoveError> {
    let signal = |signal| match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => {
            Err(RemoveError::Kill { pid: pid.as_raw_nonzero().get(), source: errno.into() })
        }
    };
    signal(Signal::TERM)?;
    let began = Instant::now();
    while test_kill_process(pid).is_ok() {
        if began.elapsed() > END_WITHIN {
            return signal(Signal::KILL);
        }
        sleep(PAUSE);
    }
    Ok(())
}
