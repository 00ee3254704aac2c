//! What a page that is only named is made to take, so that QEMU stops its VM no longer than it means to.
//!
//! QEMU stops the VM when what is left would take no longer than the downtime it was granted, at the rate
//! that it measured last. Pages that are named go ten times as fast as others, and the rest of memory need
//! not have any: measured on a guest with a large page cache, it was stopped for 2.8 s where 0.3 s were
//! granted. So the less is left, the slower named pages go, at the end as slowly as those that are sent:
//! never so fast that QEMU would think it is done, and on most of the way as fast as they come.

use std::time::Duration;

/// What is left takes at least so long at the rate that QEMU sees. It grants 0.3 s unless it is told
/// otherwise, and where it is told more, it may be more.
const AHEAD: Duration = Duration::from_millis(450);
/// Over so many pages that are sent it is averaged what one takes.
const AVERAGE_OVER: f64 = 1024.0;
/// Timers are no finer, and nobody waits longer at a time: the other end hears from us meanwhile.
const AT_LEAST: Duration = Duration::from_millis(2);
const AT_MOST: Duration = Duration::from_secs(1);

/// Pages of one stretch of a stream.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pages {
    pub(super) named: u32,
    pub(super) sent: u32,
}

/// Follows one stream.
#[derive(Debug, Default)]
pub(super) struct Toll {
    /// Seconds that a page takes which is sent.
    per_page: f64,
    /// Seconds, too few to wait for as yet.
    owed: f64,
}

impl Toll {
    /// It took so long to pack and send these pages, and so long since the ones before them were, waits
    /// and all; so many are left of memory. How long to wait before more are read.
    pub(super) fn of(
        &mut self,
        pages: Pages,
        work: Duration,
        took: Duration,
        left: u64,
    ) -> Duration {
        let (named, sent) = (f64::from(pages.named), f64::from(pages.sent));
        if pages.sent > 0 {
            let each = work.as_secs_f64() / sent;
            // The first is all that is known.
            let before = if self.per_page > 0.0 { self.per_page } else { each };
            self.per_page = before + sent / (sent + AVERAGE_OVER) * (each - before);
        }
        let fits = if left == 0 { f64::INFINITY } else { AHEAD.as_secs_f64() / left as f64 };
        let each = self.per_page.min(fits);
        let wait = ((named + sent) * each - took.as_secs_f64()).min(named * each);
        self.owed += wait.max(0.0);
        if self.owed < AT_LEAST.as_secs_f64() {
            return Duration::ZERO;
        }
        let wait = Duration::try_from_secs_f64(self.owed).unwrap_or(AT_MOST);
        self.owed = 0.0;
        wait.min(AT_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BOTH: Pages = Pages { named: 64, sent: 64 };
    const ALL: u64 = u64::MAX;

    /// Of a stream on which pages are sent in 0.1 ms each.
    fn wait(pages: Pages, took: Duration, left: u64) -> Duration {
        let mut toll = Toll::default();
        for _ in 0..100 {
            assert_eq!(toll.of(BOTH, Duration::from_micros(6400), 10 * MS, ALL), Duration::ZERO);
        }
        toll.of(pages, Duration::from_micros(100) * pages.sent, took, left)
    }

    fn is(found: Duration, ms: f64) {
        assert!((found.as_secs_f64() * 1000.0 - ms).abs() < 0.01, "{found:?}, not {ms} ms");
    }

    #[test]
    fn a_named_page_takes_as_long_as_a_sent_one_when_nothing_is_left() {
        is(wait(BOTH, Duration::from_micros(6400), 0), 6.4);
        is(wait(Pages { named: 128, sent: 0 }, MS, 0), 11.8);
        is(wait(Pages { named: 0, sent: 100 }, MS, 0), 0.0);
        is(wait(BOTH, 20 * MS, 0), 0.0);
    }

    #[test]
    fn the_more_is_left_the_less_it_takes() {
        let pages = Pages { named: 1000, sent: 0 };
        is(wait(pages, Duration::ZERO, 4_000), 100.0);
        is(wait(pages, Duration::ZERO, 9_000), 50.0);
        is(wait(pages, Duration::ZERO, 90_000), 5.0);
        is(wait(pages, Duration::ZERO, ALL), 0.0);
    }

    #[test]
    fn what_is_too_short_to_wait_for_is_added_up() {
        let mut toll = Toll::default();
        toll.of(BOTH, Duration::from_micros(6400), 10 * MS, ALL);
        let few = Pages { named: 8, sent: 0 };
        let waits: Vec<_> = (0..6).map(|_| toll.of(few, MS, Duration::ZERO, 0)).collect();
        assert_eq!(waits.iter().filter(|wait| wait.is_zero()).count(), 4, "{waits:?}");
        is(waits.iter().sum(), 4.8);
    }

    #[test]
    fn who_sends_nothing_is_not_held_and_nobody_for_long() {
        let mut toll = Toll::default();
        let named = Pages { named: u32::MAX, sent: 0 };
        assert_eq!(toll.of(named, MS, MS, 0), Duration::ZERO);
        toll.of(BOTH, MS, MS, ALL);
        assert_eq!(toll.of(named, MS, MS, 0), AT_MOST);
    }
}
