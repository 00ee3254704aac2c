//! A ledger file read back: is the chain whole, and what does it promise?

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::record::{Body, DecodeError, LedgerId, MAX_RECORD, Record, RecordHash, RunId, Seen};

/// The ledger's file in its directory.
#[must_use]
pub fn chain_file(dir: &Path) -> PathBuf {
    dir.join("chain.ledger")
}

/// All that a ledger file says, up to its end or its first break.
#[derive(Debug, Default)]
pub struct Chain {
    pub ledger: Option<LedgerId>,
    /// By sequence: the index is the record's number.
    pub records: Vec<Link>,
    pub runs: Vec<Run>,
    /// References to other ledgers, each with the sequence of the record that makes it.
    pub seen: Vec<(u64, Seen)>,
    /// The generation that is durable, by file and block.
    pub durable: HashMap<(u16, u32), u64>,
    /// The highest generation named in the ledger.
    pub generation: u64,
    /// Bytes of the file that are whole records.
    pub good_bytes: u64,
    /// Bytes of a last record that was not finished, hence never acknowledged.
    pub torn_tail: u64,
    pub broken: Option<Break>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub hash: RecordHash,
    pub run: RunId,
}

/// One life of the writer, as its first record tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub id: RunId,
    pub kernel_boot: [u8; 16],
    pub first_sequence: u64,
    pub cut: u32,
    pub damaged: u32,
}

/// Where and why a chain ends before its file does.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("chain broken at byte {offset}")]
pub struct Break {
    pub offset: u64,
    #[source]
    pub why: BreakReason,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BreakReason {
    #[error("unreadable record with others behind it: {0}")]
    Unreadable(DecodeError),
    #[error("record {found} where {expected} belongs")]
    Sequence { expected: u64, found: u64 },
    #[error("record {0} does not continue the record before it")]
    Previous(u64),
    #[error("record {0} is of another run, which did not open the ledger")]
    NotOpened(u64),
    #[error("run {0} opened the ledger twice, so two copies wrote")]
    CameBack(RunId),
    #[error("record {0} opens another ledger")]
    OtherLedger(u64),
}

impl Chain {
    /// Reads the ledger of `dir`.
    pub fn read(dir: &Path) -> io::Result<Self> {
        Ok(Self::parse(&fs::read(chain_file(dir))?))
    }

    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut chain = Self::default();
        let mut offset = 0;
        while offset < bytes.len() {
            let why = match Record::decode(&bytes[offset..]) {
                Ok((record, hash, length)) => match chain.take(record, hash) {
                    Ok(()) => {
                        offset += length;
                        chain.good_bytes = u64_of(offset);
                        continue;
                    }
                    Err(why) => why,
                },
                Err(_) if is_torn_tail(&bytes[offset..]) => {
                    chain.torn_tail = u64_of(bytes.len() - offset);
                    break;
                }
                Err(error) => BreakReason::Unreadable(error),
            };
            chain.broken = Some(Break { offset: u64_of(offset), why });
            break;
        }
        chain
    }

    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        u64_of(self.records.len())
    }

    #[must_use]
    pub fn last_hash(&self) -> RecordHash {
        self.records.last().map_or(RecordHash::NONE, |link| link.hash)
    }

    /// The hash of a record, if the ledger has it.
    #[must_use]
    pub fn hash_at(&self, sequence: u64) -> Option<RecordHash> {
        let index = usize::try_from(sequence).ok()?;
        self.records.get(index).map(|link| link.hash)
    }

    #[must_use]
    pub fn has_run(&self, run: RunId) -> bool {
        self.runs.iter().any(|known| known.id == run)
    }

    fn take(&mut self, record: Record, hash: RecordHash) -> Result<(), BreakReason> {
        let sequence = record.sequence;
        if sequence != self.next_sequence() {
            return Err(BreakReason::Sequence { expected: self.next_sequence(), found: sequence });
        }
        if record.previous != self.last_hash() {
            return Err(BreakReason::Previous(sequence));
        }
        let writing = self.runs.last().map(|run| run.id);
        match record.body {
            Body::Opened { ledger, kernel_boot, cut, damaged } => {
                if self.has_run(record.run) {
                    return Err(BreakReason::CameBack(record.run));
                }
                if *self.ledger.get_or_insert(ledger) != ledger {
                    return Err(BreakReason::OtherLedger(sequence));
                }
                let id = record.run;
                self.runs.push(Run { id, kernel_boot, first_sequence: sequence, cut, damaged });
            }
            _ if writing != Some(record.run) => return Err(BreakReason::NotOpened(sequence)),
            Body::Payload { seen, .. } => self.seen.extend(seen.iter().map(|s| (sequence, *s))),
            Body::Durable { writes } => {
                for write in writes {
                    self.generation = self.generation.max(write.generation);
                    for index in write.first..write.first.saturating_add(write.count.into()) {
                        let known = self.durable.entry((write.file, index)).or_default();
                        *known = write.generation.max(*known);
                    }
                }
            }
        }
        self.records.push(Link { hash, run: record.run });
        Ok(())
    }
}

/// Whether `rest`, which does not start with a record, is merely a last record that was not
/// finished: short, and with no whole record behind it.
fn is_torn_tail(rest: &[u8]) -> bool {
    rest.len() <= MAX_RECORD && (1..rest.len()).all(|at| Record::decode(&rest[at..]).is_err())
}

fn u64_of(size: usize) -> u64 {
    u64::try_from(size).expect("sizes in memory fit in 64 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEDGER: LedgerId = LedgerId([1; 16]);

    /// Builds chains by hand, honest or not.
    #[derive(Default)]
    struct Scribe {
        records: Vec<Vec<u8>>,
        previous: Option<RecordHash>,
        sequence: u64,
    }

    impl Scribe {
        fn open(&mut self, run: u8) {
            let body = Body::Opened { ledger: LEDGER, kernel_boot: [run; 16], cut: 0, damaged: 0 };
            self.put(run, body);
        }

        fn pay(&mut self, run: u8) {
            self.put(run, Body::Payload { seen: Vec::new(), bytes: vec![run; 40] });
        }

        fn put(&mut self, run: u8, body: Body) {
            let record = Record {
                sequence: self.sequence,
                time_ns: 0,
                run: RunId([run; 16]),
                previous: self.previous.unwrap_or(RecordHash::NONE),
                body,
            };
            let (bytes, hash) = record.encode();
            self.sequence += 1;
            self.previous = Some(hash);
            self.records.push(bytes);
        }

        fn bytes(&self) -> Vec<u8> {
            self.records.concat()
        }
    }

    fn honest(payloads: usize) -> Scribe {
        let mut scribe = Scribe::default();
        scribe.open(1);
        (0..payloads).for_each(|_| scribe.pay(1));
        scribe.open(2);
        (0..payloads).for_each(|_| scribe.pay(2));
        scribe
    }

    fn break_of(scribe: &Scribe) -> BreakReason {
        Chain::parse(&scribe.bytes()).broken.expect("the chain is broken").why
    }

    #[test]
    fn an_honest_ledger_of_two_runs_is_unbroken() {
        let chain = Chain::parse(&honest(5).bytes());
        assert_eq!(chain.broken, None);
        assert_eq!((chain.records.len(), chain.runs.len(), chain.torn_tail), (12, 2, 0));
        assert_eq!(chain.runs[1].first_sequence, 6);
    }

    #[test]
    fn a_run_that_comes_back_means_two_writers() {
        let mut scribe = honest(2);
        scribe.open(1);
        assert_eq!(break_of(&scribe), BreakReason::CameBack(RunId([1; 16])));
    }

    #[test]
    fn a_record_of_an_earlier_run_means_two_writers() {
        let mut scribe = honest(2);
        scribe.pay(1);
        assert_eq!(break_of(&scribe), BreakReason::NotOpened(6));
    }

    #[test]
    fn a_hidden_record_breaks_the_chain() {
        let mut scribe = honest(4);
        scribe.records.remove(3);
        assert_eq!(break_of(&scribe), BreakReason::Sequence { expected: 3, found: 4 });
    }

    #[test]
    fn a_record_rewritten_with_a_good_hash_breaks_the_chain() {
        let mut scribe = honest(4);
        let mut other = honest(4);
        other.records.truncate(3);
        other.sequence = 3;
        other.put(1, Body::Payload { seen: Vec::new(), bytes: vec![0; 40] });
        scribe.records[3] = other.records.remove(3);
        assert_eq!(break_of(&scribe), BreakReason::Previous(3));
    }

    proptest! {
        #[test]
        fn a_cut_anywhere_leaves_a_shorter_chain_and_a_torn_tail(at in any::<prop::sample::Index>()) {
            let scribe = honest(4);
            let bytes = scribe.bytes();
            let at = at.index(bytes.len());
            let chain = Chain::parse(&bytes[..at]);
            prop_assert_eq!(&chain.broken, &None);
            prop_assert_eq!(chain.good_bytes + chain.torn_tail, u64_of(at));
            let whole = scribe.records.iter().scan(0, |end, r| { *end += r.len(); Some(*end) });
            prop_assert_eq!(chain.records.len(), whole.filter(|&end| end <= at).count());
        }

        #[test]
        fn a_changed_byte_breaks_the_chain_or_tears_its_last_record(
            at in any::<prop::sample::Index>(), flip in 1_u8..,
        ) {
            let scribe = honest(4);
            let mut bytes = scribe.bytes();
            let last = bytes.len() - scribe.records.last().map_or(0, Vec::len);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let chain = Chain::parse(&bytes);
            if at < last {
                prop_assert!(chain.broken.is_some());
            } else {
                prop_assert_eq!(chain.records.len(), scribe.records.len() - 1);
            }
        }
    }
}
