//! Wakes a libvirt connection on which a call of one thread waits for another thread to notice it.
//!
//! In libvirt's client the thread that reads the socket gives up its lock before it enters its
//! event loop. A second thread that queues its call in between wakes a loop that does not run yet:
//! the wake-up is lost, and the call is only sent when something arrives by chance. A third thread
//! that makes any call then wakes the loop for both.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use tracing::debug;
use virt::connect::Connect;

/// A call that takes longer is looked after. Calls that wait for the guest to read take longer too:
/// for them the nudge is a waste, no more.
const PATIENCE: Duration = Duration::from_millis(10);

/// A nudge can be lost as the call was, so there are several, each as likely to get through, with
/// pauses that double.
const NUDGES: u32 = 8;

pub(crate) struct Watchdog {
    news: Sender<News>,
}

enum News {
    Begun,
    Done,
}

impl Watchdog {
    pub(crate) fn new(connection: Connect) -> io::Result<Self> {
        let (news, told) = mpsc::channel();
        thread::Builder::new().name("channel-watch".to_owned()).spawn(move || {
            // Waits without end while nothing is being sent; ends with the sender.
            while let Ok(news) = told.recv() {
                if matches!(news, News::Done) {
                    continue;
                }
                let mut patience = PATIENCE;
                for _ in 0..NUDGES {
                    match told.recv_timeout(patience) {
                        Err(RecvTimeoutError::Timeout) => nudge(connection.clone()),
                        Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
                    }
                    patience *= 2;
                }
            }
        })?;
        Ok(Self { news })
    }

    /// Does `call`, which uses the connection while another thread waits on it too.
    pub(crate) fn watch<T>(&self, call: impl FnOnce() -> T) -> T {
        // The watchdog ends after us: what cannot be told has nobody to tell it to.
        let _ = self.news.send(News::Begun);
        let result = call();
        let _ = self.news.send(News::Done);
        result
    }
}

/// Any call will do. It may itself have to wait, so it has a thread, which ends with it.
fn nudge(connection: Connect) {
    let spawned = thread::Builder::new().name("channel-nudge".to_owned()).spawn(move || {
        if let Err(said) = connection.lib_version() {
            debug!(%said, "nudged a connection that is gone");
        }
    });
    if let Err(cause) = spawned {
        debug!(%cause, "no thread for a nudge");
    }
}
