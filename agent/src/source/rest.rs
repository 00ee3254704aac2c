//! The guest at rest: quiesce, seal, thaw.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use wire::control::{Event, Sealed};

use super::Source;
use super::error::SourceError;
use crate::carrier::{Order as CarrierOrder, leave_memory, stay_in_memory};
use crate::quiesce::{self, Order, Quiesced};

/// A guest at rest, and whether it still is.
pub struct Rest {
    quiesced: Quiesced,
}

impl Source {
    /// Which rest the guest is in, if it is.
    pub(super) fn at_rest(&self) -> Option<u64> {
        Some(self.at_rest.load(Ordering::SeqCst)).filter(|rest| *rest != 0)
    }

    pub(super) async fn quiesce(
        self: &Arc<Self>,
        units: Vec<String>,
        hooks: Vec<String>,
        thaw_hooks: Vec<String>,
        thaw_after_ms: u64,
    ) -> Result<(), SourceError> {
        let carried = self.carried()?;
        let thaw_after = Duration::from_millis(thaw_after_ms);
        let mut rest = self.rest.lock().await;
        if let Some(known) = rest.as_mut().filter(|known| !known.quiesced.thawed()) {
            return known.quiesced.extend(thaw_after).map_err(SourceError::Thawed);
        }
        if let Some(Rest { quiesced }) = rest.take() {
            self.put_back(quiesced, Vec::new()).await;
        }
        self.called_off.store(false, Ordering::Relaxed);
        let order = Order { units, hooks, thaw_hooks, thaw_after, tracked: carried.names() };
        let (tree, called_off) = (self.tree.clone(), Arc::clone(&self.called_off));
        let log = self.log.clone();
        let (source, runtime) = (Arc::clone(self), Handle::current());
        let on_thawed = move || {
            source.at_rest.store(0, Ordering::SeqCst);
            let source = Arc::clone(&source);
            runtime.spawn(async move {
                source.tell_rest().await;
                source.thawed_by_itself().await;
            });
        };
        tracing::info!(tracked = ?order.tracked, thaw_after_ms, "quiescing");
        carried.carrier.ask(CarrierOrder::StayInMemory).await?;
        let work = move || {
            stay_in_memory();
            log.hold();
            let quiesced = quiesce::quiesce(&order, &tree, &called_off, on_thawed);
            if quiesced.is_err() {
                log.release();
                leave_memory();
            }
            quiesced
        };
        let quiesced = match tokio::task::spawn_blocking(work).await? {
            Ok(quiesced) => quiesced,
            Err(failed) => {
                self.carrier_leaves_memory().await;
                return Err(failed.into());
            }
        };
        self.at_rest.store(self.rests.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        if quiesced.thawed() {
            self.at_rest.store(0, Ordering::SeqCst);
        }
        *rest = Some(Rest { quiesced });
        self.tell_rest().await;
        Ok(())
    }

    /// Everything that was ever written is at the destination, and can be known to be: or an
    /// error.
    pub(super) async fn seal(&self, thaw_after_ms: u64) -> Result<Sealed, SourceError> {
        let carried = self.carried()?;
        let mut rest = self.rest.lock().await;
        let Some(rest) = rest.as_mut() else {
            let what = "the guest is not at rest";
            return Err(SourceError::State { what, hint: "quiesce and drain first" });
        };
        let number = self.at_rest.load(Ordering::SeqCst);
        let sealed = carried.carrier.seal(number).await?;
        // Last: it also says that there was no moment until now in which the guest could write.
        rest.quiesced.extend(Duration::from_millis(thaw_after_ms)).map_err(SourceError::Thawed)?;
        Ok(sealed)
    }

    /// Puts the guest back; nothing to do is fine.
    pub(super) async fn thaw(&self, hooks: &[String]) {
        self.called_off.store(true, Ordering::Relaxed);
        let mut rest = self.rest.lock().await;
        if let Some(Rest { quiesced }) = rest.take() {
            self.put_back(quiesced, hooks.to_vec()).await;
        }
    }

    async fn thawed_by_itself(&self) {
        let mut rest = self.rest.lock().await;
        let Some(Rest { quiesced }) = rest.take() else { return };
        self.put_back(quiesced, Vec::new()).await;
        tracing::warn!("the guest thawed by itself: the deadline passed");
        self.events.tell(Event::Thawed);
    }

    async fn put_back(&self, quiesced: Quiesced, hooks: Vec<String>) {
        self.at_rest.store(0, Ordering::SeqCst);
        // The guest does not wait for the carrier.
        let undone = tokio::task::spawn_blocking(move || quiesced.put_back(&hooks));
        let (undone, ()) = tokio::join!(undone, self.tell_rest());
        self.log.release();
        leave_memory();
        self.carrier_leaves_memory().await;
        match undone {
            Ok(complaints) => complaints.into_iter().for_each(|text| self.events.note(text)),
            Err(error) => self.events.note(format!("putting the guest back failed: {error}")),
        }
    }

    /// Tells the carrier whether the guest is at rest. Whoever comes last tells what is true then.
    async fn tell_rest(&self) {
        let Ok(carried) = self.carried() else { return };
        let _one = self.telling.lock().await;
        let number = self.at_rest.load(Ordering::SeqCst);
        if let Err(error) = carried.carrier.ask(CarrierOrder::Rest { number }).await {
            let error = units::chain(&error);
            tracing::warn!(error, "the carrier does not know whether the guest is at rest");
        }
    }

    async fn carrier_leaves_memory(&self) {
        let Ok(carried) = self.carried() else { return };
        if let Err(error) = carried.carrier.ask(CarrierOrder::LeaveMemory).await {
            tracing::warn!(error = %units::chain(&error), "the carrier's memory stays locked");
        }
    }
}
