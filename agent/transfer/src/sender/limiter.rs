//! Limits of rates: on the wire, and of reading the source's disks.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use units::Bytes;

/// A limit over all streams or workers of a sender. Whoever wants to go on waits until what was done
/// before has been paid for; so a pause saves nothing up, and the average is kept however large
/// the pieces are.
#[derive(Debug, Default)]
pub struct Limiter {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes_per_s: Option<u64>,
    /// When everything sent so far will have been paid for.
    paid_at: Option<Instant>,
}

/// How much one stream sends at a time under a limit.
pub const PIECE: usize = 16 << 10;

/// The lowest limit, in bytes per second. With as many streams as there may be, each still sends a
/// piece every 16 s, before the receiver takes it for dead.
const RATE_MIN: u64 = 64 << 10;

impl Limiter {
    pub fn set(&self, rate: Option<Bytes>) {
        let mut state = self.lock();
        state.bytes_per_s = rate.map(|rate| rate.0.max(RATE_MIN));
        state.paid_at = None;
        drop(state);
        self.changed.notify_waiters();
    }

    pub fn is_set(&self) -> bool {
        self.lock().bytes_per_s.is_some()
    }

    /// Waits until `len` bytes may be sent.
    pub async fn pass(&self, len: usize) {
        loop {
            let changed = self.changed.notified();
            let paid_at = {
                let mut state = self.lock();
                let Some(rate) = state.bytes_per_s else { return };
                let now = Instant::now();
                match state.paid_at {
                    Some(paid_at) if paid_at > now => paid_at,
                    _ => {
                        state.paid_at = Some(now + time_for(len, rate));
                        return;
                    }
                }
            };
            tokio::select! {
                () = sleep_until(paid_at) => {}
                () = changed => {}
            }
        }
    }

    /// For threads: how long to wait before more is done; `None`: go on.
    pub fn unpaid(&self) -> Option<Duration> {
        let paid_at = self.lock().paid_at?;
        paid_at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// `len` bytes were done, and are to be paid for by whoever comes next.
    pub fn owe(&self, len: usize) {
        let mut state = self.lock();
        let Some(rate) = state.bytes_per_s else { return };
        let now = Instant::now();
        let from = state.paid_at.map_or(now, |paid_at| paid_at.max(now));
        state.paid_at = Some(from + time_for(len, rate));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn time_for(len: usize, bytes_per_s: u64) -> Duration {
    let nanos = len as u128 * 1_000_000_000 / u128::from(bytes_per_s);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Virtual time: exact.
    #[tokio::test(start_paused = true)]
    async fn several_streams_together_keep_to_the_rate() {
        let limiter = Arc::new(Limiter::default());
        limiter.set(Some(Bytes::mib(1)));
        let start = Instant::now();
        let streams: Vec<_> = (0..4)
            .map(|_| {
                let limiter = Arc::clone(&limiter);
                tokio::spawn(async move {
                    for _ in 0..64 {
                        limiter.pass(PIECE).await;
                    }
                })
            })
            .collect();
        for stream in streams {
            stream.await.unwrap();
        }
        // 4 MiB, the last piece of which is not waited for; the clock ticks in milliseconds.
        let took = start.elapsed().as_millis();
        assert!((3_930..4_100).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_several_workers_owe_adds_up_and_is_forgiven_with_the_limit() {
        let limiter = Limiter::default();
        limiter.owe(1 << 30);
        assert_eq!(limiter.unpaid(), None, "there is no limit");
        limiter.set(Some(Bytes::mib(1)));
        (0..3).for_each(|_| limiter.owe(1 << 20));
        assert_eq!(limiter.unpaid(), Some(Duration::from_secs(3)));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(limiter.unpaid(), None);
        limiter.owe(1 << 20);
        limiter.set(None);
        assert_eq!(limiter.unpaid(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_lifted_lets_those_who_wait_pass() {
        let limiter = Arc::new(Limiter::default());
        limiter.set(Some(Bytes(0)));
        limiter.pass(1 << 20).await;
        let waiting = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.pass(1000).await }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        limiter.set(None);
        waiting.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
