//! Hears what the warden says, on a thread of its own.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::guard::Guard;
use super::warden::{Said, Warden, WardenError, hear};

/// How long the warden may take to say that it counts. It does nothing else.
const COUNT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Ear {
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

#[derive(Debug, Default)]
struct Heard {
    counting: bool,
    thawed: bool,
    /// The agent puts the guest back itself: nothing that comes now is news.
    ending: bool,
}

impl Ear {
    /// `guards`: thawed here if the warden is gone.
    pub fn open(
        warden: &Warden,
        guards: &Arc<Vec<Guard>>,
        on_thawed: impl Fn() + Send + 'static,
    ) -> Result<Self, WardenError> {
        let mut socket = warden.ear()?;
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let (shared, guards) = (Arc::clone(&heard), Arc::clone(guards));
        let listen = move || loop {
            let said = hear(&mut socket);
            let mut heard = lock(&shared.0);
            match said {
                Said::Counting => heard.counting = true,
                Said::Thawed | Said::Gone => {
                    let news = !heard.ending && !heard.thawed;
                    heard.thawed = true;
                    if said == Said::Gone && news {
                        super::thaw(&guards);
                    }
                    drop(heard);
                    shared.1.notify_all();
                    if news {
                        on_thawed();
                    }
                    if said == Said::Gone {
                        return;
                    }
                    continue;
                }
            }
            drop(heard);
            shared.1.notify_all();
        };
        thread::Builder::new()
            .name("warden's ear".to_owned())
            .stack_size(128 << 10)
            .spawn(listen)
            .map_err(WardenError::Start)?;
        Ok(Self { heard })
    }

    /// To be called before a deadline is told.
    pub fn expect_count(&self) {
        lock(&self.heard.0).counting = false;
    }

    /// Waits until the warden says that it counts; false if it thawed before.
    pub fn counts(&self) -> bool {
        let waiting = |heard: &mut Heard| !heard.counting && !heard.thawed;
        let waited = self.heard.1.wait_timeout_while(lock(&self.heard.0), COUNT_WITHIN, waiting);
        let (heard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        heard.counting && !heard.thawed
    }

    pub fn thawed(&self) -> bool {
        lock(&self.heard.0).thawed
    }

    pub fn expect_end(&self) {
        lock(&self.heard.0).ending = true;
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}
