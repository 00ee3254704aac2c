//! What a page that is only named is made to take, so that QEMU stops its VM no longer than it means to.
//!
//! QEMU stops the VM when what is left would take no longer than the downtime it was granted, at the rate
//! that it measured last. Pages that are named go ten times as fast as others, and the rest of memory need
//! not have any: measured on a guest with a large page cache, it was stopped for 2.8 s where 0.3 s were
//! granted. So before so little is left, a named page begins to take as long as one that is sent. Until
//! then, most of the way, it does not.

use std::time::Duration;

/// What is left at the rate at hand when it begins. QEMU grants 0.3 s unless it is told otherwise.
const AHEAD: Duration = Duration::from_millis(600);
/// Over so many pages that are sent it is averaged what one takes.
const AVERAGE_OVER: f64 = 1024.0;
/// The rate is that of the last so long, as with QEMU.
const RATE_OVER: Duration = Duration::from_millis(100);
/// Nobody waits longer at a time: the other end hears from us meanwhile.
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
    /// Of the stretch since the rate was measured last.
    pages: u32,
    took: Duration,
    /// Pages a second.
    rate: f64,
    /// It has begun. It does not end: who is slower again has more left to be fast on, and is stopped
    /// there.
    begun: bool,
}

impl Toll {
    /// It took so long to pack and send these pages, and so long since the ones before them were; so many
    /// are left of memory. How long to wait before more are read.
    pub(super) fn of(
        &mut self,
        pages: Pages,
        work: Duration,
        took: Duration,
        left: u64,
    ) -> Duration {
        if pages.sent > 0 {
            let weight = f64::from(pages.sent) / (f64::from(pages.sent) + AVERAGE_OVER);
            let each = work.as_secs_f64() / f64::from(pages.sent);
            // The first is all that is known.
            let before = if self.per_page > 0.0 { self.per_page } else { each };
            self.per_page = before + weight * (each - before);
        }
        self.pages = self.pages.saturating_add(pages.named).saturating_add(pages.sent);
        self.took += took;
        if self.took >= RATE_OVER {
            self.rate = f64::from(self.pages) / self.took.as_secs_f64();
            (self.pages, self.took) = (0, Duration::ZERO);
        }
        let soon = Duration::try_from_secs_f64(left as f64 / self.rate);
        self.begun |= soon.is_ok_and(|soon| soon <= AHEAD);
        if !self.begun {
            return Duration::ZERO;
        }
        let wait = Duration::try_from_secs_f64(f64::from(pages.named) * self.per_page);
        // It belongs to what the pages took.
        let wait = wait.unwrap_or(AT_MOST).min(AT_MOST);
        self.took += wait;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BOTH: Pages = Pages { named: 64, sent: 64 };

    /// Each ten milliseconds that many pages.
    fn waits(pages: Pages, left: u64) -> Duration {
        let mut toll = Toll::default();
        (0..100).map(|_| toll.of(pages, 6 * MS, 10 * MS, left)).max().unwrap()
    }

    #[test]
    fn a_named_page_takes_as_long_as_a_sent_one_when_little_is_left() {
        assert_eq!(waits(BOTH, 0).as_millis(), 6);
        assert_eq!(waits(Pages { named: 128, ..BOTH }, 1000).as_millis(), 12);
        assert_eq!(waits(Pages { named: 0, ..BOTH }, 0), Duration::ZERO);
    }

    #[test]
    fn it_takes_nothing_on_most_of_the_way() {
        let mut toll = Toll::default();
        for _ in 0..100 {
            toll.of(BOTH, 6 * MS, 10 * MS, 1_000_000);
        }
        // 12,800 pages a second: 7,680 are half a second and a bit.
        assert_eq!(toll.of(BOTH, 6 * MS, 10 * MS, 8_000), Duration::ZERO);
        assert!(toll.of(BOTH, 6 * MS, 10 * MS, 7_000) > Duration::ZERO);
        assert!(toll.of(BOTH, 6 * MS, 10 * MS, 8_000) > Duration::ZERO, "it ends again");
    }

    #[test]
    fn who_sends_nothing_is_not_held() {
        assert_eq!(waits(Pages { named: 64, sent: 0 }, 0), Duration::ZERO);
        let mut toll = Toll::default();
        let huge = Pages { named: u32::MAX, sent: 1 };
        let second = Duration::from_secs(1);
        assert_eq!(toll.of(huge, second, second, 0), AT_MOST);
    }
}
