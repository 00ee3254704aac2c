//! What a witness knows: which records were acknowledged, when, and whether one writer alone can
//! have written them.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use super::record::{LedgerId, RecordHash, RunId};

/// A record that is on the writer's stable storage, as the writer tells the witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The name that the writer was given, usually that of its VM.
    pub vm: String,
    /// The directory of the ledger, as the writer sees it.
    pub dir: String,
    pub ledger: LedgerId,
    pub run: RunId,
    /// The sequence of the run's first record.
    pub started: u64,
    pub sequence: u64,
    pub hash: RecordHash,
}

/// An acknowledgement and when it came, in milliseconds of the witness's own steady clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    pub arrival_ms: u64,
    #[serde(flatten)]
    pub record: Acknowledged,
}

/// Proof that two copies of one ledger were written, or that acknowledged records were lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "alarm", rename_all = "snake_case")]
pub enum Alarm {
    /// Two different records have the same number.
    TwoRecords { ledger: LedgerId, sequence: u64, hashes: [RecordHash; 2] },
    /// `earlier` wrote on at or behind the record with which `later` took over.
    RunsOverlap { ledger: LedgerId, earlier: RunId, later: RunId, sequence: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    New,
    /// Known already: the writer sends again what it got no answer for.
    Repeated,
}

/// All acknowledgements in their order of arrival.
#[derive(Debug, Clone, Default)]
pub struct Book {
    arrivals: Vec<Arrival>,
    ledgers: BTreeMap<LedgerId, Page>,
    alarms: Vec<Alarm>,
}

#[derive(Debug, Clone, Default)]
struct Page {
    records: BTreeMap<u64, RecordHash>,
    /// First and highest known sequence of each run.
    runs: BTreeMap<RunId, (u64, u64)>,
}

impl Book {
    pub fn enter(&mut self, arrival: Arrival) -> Entry {
        let record = &arrival.record;
        let page = self.ledgers.entry(record.ledger).or_default();
        match page.records.get(&record.sequence) {
            Some(known) if *known == record.hash => return Entry::Repeated,
            Some(known) => self.alarms.push(Alarm::TwoRecords {
                ledger: record.ledger,
                sequence: record.sequence,
                hashes: [*known, record.hash],
            }),
            None => {
                page.records.insert(record.sequence, record.hash);
            }
        }
        let run = page.runs.entry(record.run).or_insert((record.started, record.sequence));
        run.1 = run.1.max(record.sequence);
        self.alarms.extend(page.overlap(record));
        self.arrivals.push(arrival);
        Entry::New
    }

    #[must_use]
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// Empty as long as one writer at a time explains everything.
    #[must_use]
    pub fn alarms(&self) -> &[Alarm] {
        &self.alarms
    }

    /// The highest acknowledged sequence of each ledger.
    #[must_use]
    pub fn last_sequences(&self) -> BTreeMap<LedgerId, u64> {
        let last = |page: &Page| page.records.last_key_value().map(|(&sequence, _)| sequence);
        self.ledgers.iter().filter_map(|(&id, page)| Some((id, last(page)?))).collect()
    }

    /// The longest time in `window` (milliseconds) in which nothing arrived from `vm`, or from
    /// anyone: the downtime as it is seen from outside. The window's own ends count as arrivals.
    #[must_use]
    pub fn largest_gap(&self, window: Range<u64>, vm: Option<&str>) -> u64 {
        let ours = |arrival: &&Arrival| vm.is_none_or(|vm| vm == arrival.record.vm);
        let inside = self.arrivals.iter().filter(ours).map(|arrival| arrival.arrival_ms);
        let mut last = window.start;
        let mut largest = 0;
        for at in inside.filter(|at| window.contains(at)).chain([window.end]) {
            largest = largest.max(at.saturating_sub(last));
            last = at;
        }
        largest
    }
}

impl Page {
    /// Runs follow one another: each owns the sequences from its first to the next run's first.
    fn overlap(&self, record: &Acknowledged) -> Option<Alarm> {
        let (started, highest) = self.runs.get(&record.run).copied()?;
        self.runs.iter().find_map(|(&other, &(other_started, other_highest))| {
            let (earlier, later, sequence) = match started.cmp(&other_started) {
                std::cmp::Ordering::Less => (record.run, other, highest),
                _ => (other, record.run, other_highest),
            };
            let overlaps = other != record.run && sequence >= started.max(other_started);
            let ledger = record.ledger;
            overlaps.then_some(Alarm::RunsOverlap { ledger, earlier, later, sequence })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arrival(arrival_ms: u64, run: u8, started: u64, sequence: u64) -> Arrival {
        let mut hash = [run; 32];
        hash[..8].copy_from_slice(&sequence.to_le_bytes());
        let record = Acknowledged {
            vm: "vm".into(),
            dir: "/".into(),
            ledger: LedgerId([1; 16]),
            run: RunId([run; 16]),
            started,
            sequence,
            hash: RecordHash(hash),
        };
        Arrival { arrival_ms, record }
    }

    #[test]
    fn a_repeated_record_is_no_arrival() {
        let mut book = Book::default();
        assert_eq!(book.enter(arrival(1, 1, 0, 0)), Entry::New);
        assert_eq!(book.enter(arrival(9, 1, 0, 0)), Entry::Repeated);
        assert_eq!(book.largest_gap(0..9, None), 8);
        assert_eq!(book.alarms(), []);
    }

    #[test]
    fn two_records_with_one_number_raise_the_alarm() {
        let mut book = Book::default();
        book.enter(arrival(1, 1, 0, 5));
        book.enter(arrival(2, 2, 5, 5));
        assert!(matches!(book.alarms()[0], Alarm::TwoRecords { sequence: 5, .. }));
    }

    #[test]
    fn an_old_run_that_writes_behind_its_successor_raises_the_alarm() {
        let mut book = Book::default();
        book.enter(arrival(1, 1, 0, 4));
        book.enter(arrival(2, 2, 5, 5));
        assert_eq!(book.alarms(), []);
        book.enter(arrival(3, 1, 0, 6));
        assert!(matches!(book.alarms(), [Alarm::RunsOverlap { sequence: 6, .. }]));
    }

    #[test]
    fn a_run_that_starts_before_known_records_of_another_raises_the_alarm() {
        let mut book = Book::default();
        book.enter(arrival(1, 1, 0, 9));
        book.enter(arrival(2, 2, 5, 8));
        assert!(matches!(book.alarms(), [Alarm::RunsOverlap { sequence: 9, .. }]));
    }

    #[test]
    fn the_gap_counts_silence_at_both_ends_of_the_window() {
        let mut book = Book::default();
        book.enter(arrival(100, 1, 0, 0));
        book.enter(arrival(130, 1, 0, 1));
        assert_eq!(book.largest_gap(90..140, None), 30);
        assert_eq!(book.largest_gap(0..140, None), 100);
        assert_eq!(book.largest_gap(100..300, None), 170);
        assert_eq!(book.largest_gap(0..50, Some("vm")), 50);
        assert_eq!(book.largest_gap(90..140, Some("other")), 50);
    }

    proptest! {
        /// One writer that dies and comes back, seen through a network that repeats and delays.
        #[test]
        fn a_single_writer_never_raises_the_alarm(
            lives in prop::collection::vec(1_u64..20, 1..6),
            order in any::<prop::sample::Index>(),
            seed in prop::collection::vec(any::<prop::sample::Index>(), 100),
        ) {
            let mut all = Vec::new();
            for (run, length) in (1_u8..).zip(&lives) {
                let started = all.len() as u64;
                all.extend((0..*length).map(|n| arrival(0, run, started, started + n)));
            }
            for pick in seed {
                let (a, b) = (pick.index(all.len()), order.index(all.len()));
                all.swap(a, b);
                let again = all[a].clone();
                all.push(again);
            }
            let mut book = Book::default();
            for arrival in all {
                book.enter(arrival);
            }
            prop_assert_eq!(book.alarms(), []);
        }

        /// Two copies of one disk that both go on from the same record.
        #[test]
        fn two_copies_always_raise_the_alarm(
            common in 1_u64..10, left in 1_u64..10, right in 1_u64..10,
        ) {
            let mut book = Book::default();
            for n in 0..common {
                book.enter(arrival(0, 1, 0, n));
            }
            // The source never stopped; the copy was booted and opened a run of its own.
            for n in 0..left {
                book.enter(arrival(0, 1, 0, common + n));
            }
            for n in 0..right {
                book.enter(arrival(0, 2, common, common + n));
            }
            prop_assert!(!book.alarms().is_empty());
        }
    }
}
