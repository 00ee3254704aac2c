//! Whether ledgers, random files and a witness's notes agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    book::{Alarm, Arrival, Book},
    chain::Chain,
    random::{Damage, Fault, scan},
    record::{LedgerId, RecordHash, RunId},
};

/// Problems that a verdict lists one by one; more are only counted.
const LISTED: usize = 50;

/// What was checked and what was found wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub ok: bool,
    pub ledgers: Vec<LedgerFacts>,
    /// Absent when no witness was asked.
    pub witness: Option<WitnessFacts>,
    pub problem_count: usize,
    /// The first problems.
    pub problems: Vec<Problem>,
}

/// One directory, in figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerFacts {
    pub dir: PathBuf,
    pub ledger: Option<LedgerId>,
    pub records: u64,
    pub last_hash: RecordHash,
    pub runs: Vec<RunId>,
    /// Bytes of a last record that was not finished: normal after a power cut.
    pub torn_tail: u64,
    /// Records of other ledgers among those verified that this one refers to.
    pub references: usize,
    pub blocks_checked: u64,
    pub blocks_blank: u64,
    pub blocks_durable: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessFacts {
    pub acknowledged: usize,
    /// Acknowledged records that the ledgers have with the same hash.
    pub found: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    Unreadable {
        dir: PathBuf,
        cause: String,
    },
    /// The directory has no record at all.
    Empty {
        dir: PathBuf,
    },
    Broken {
        dir: PathBuf,
        offset: u64,
        records_before: u64,
        cause: String,
    },
    /// A writer found this many damaged blocks before it overwrote any.
    DamagedBefore {
        dir: PathBuf,
        run: RunId,
        blocks: u32,
    },
    Block {
        dir: PathBuf,
        #[serde(flatten)]
        damage: Damage,
    },
    /// Record `sequence` saw a record of the ledger in `other` that is not there: the two were
    /// copied at different moments.
    Contradiction {
        dir: PathBuf,
        sequence: u64,
        other: PathBuf,
        other_sequence: u64,
    },
    /// Acknowledged to the witness, not in the ledger.
    Missing {
        dir: String,
        ledger: LedgerId,
        sequence: u64,
    },
    /// The ledger has another record in the place of the acknowledged one.
    Replaced {
        dir: String,
        ledger: LedgerId,
        sequence: u64,
    },
    /// The witness knows a ledger that was not among those verified.
    LedgerMissing {
        dir: String,
        ledger: LedgerId,
        records: usize,
    },
    Split {
        #[serde(flatten)]
        alarm: Alarm,
    },
}

/// Checks each ledger with its random files, and the ledgers against one another. A writer may be
/// at work meanwhile.
#[must_use]
pub fn verify_dirs(dirs: &[PathBuf]) -> Verdict {
    verify(dirs, None, None)
}

/// Checks one ledger with its random files.
#[must_use]
pub fn verify_dir(dir: &Path) -> Verdict {
    verify_dirs(&[dir.to_owned()])
}

/// Like [`verify_dirs`], and every record that a witness saw acknowledged by `vm` (by anyone, if
/// absent) must be in the ledgers.
#[must_use]
pub fn verify_witnessed(dirs: &[PathBuf], arrivals: &[Arrival], vm: Option<&str>) -> Verdict {
    verify(dirs, Some(arrivals), vm)
}

fn verify(dirs: &[PathBuf], arrivals: Option<&[Arrival]>, vm: Option<&str>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut shelves = Vec::new();
    for dir in dirs {
        match verdict.read(dir) {
            Ok(shelf) => shelves.extend(shelf),
            Err(error) => {
                verdict.add(Problem::Unreadable { dir: dir.clone(), cause: error.to_string() });
            }
        }
    }
    // Ledgers grow while they are read one after the other: read again, to have what was referred
    // to in the meantime.
    for shelf in &mut shelves {
        if let Ok(newer) = Chain::read(&shelf.dir) {
            shelf.chain = newer;
        }
    }
    verdict.cross_check(&shelves);
    if let Some(arrivals) = arrivals {
        verdict.ask_witness(&shelves, arrivals, vm);
    }
    verdict.ok = verdict.problem_count == 0;
    verdict
}

struct Shelf {
    dir: PathBuf,
    ledger: LedgerId,
    chain: Chain,
    /// References as they were when first read.
    seen: Vec<(u64, super::record::Seen)>,
}

impl Verdict {
    fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < LISTED {
            self.problems.push(problem);
        }
    }

    fn read(&mut self, dir: &Path) -> io::Result<Option<Shelf>> {
        let mut chain = Chain::read(dir)?;
        let mut found = scan(dir, &chain)?;
        if found.damage.iter().any(|damage| matches!(damage.fault, Fault::Foreign { .. })) {
            // Perhaps a run that has begun since the ledger was read.
            chain = Chain::read(dir)?;
            found = scan(dir, &chain)?;
        }
        let dir = dir.to_owned();
        self.ledgers.push(LedgerFacts {
            dir: dir.clone(),
            ledger: chain.ledger,
            records: chain.next_sequence(),
            last_hash: chain.last_hash(),
            runs: chain.runs.iter().map(|run| run.id).collect(),
            torn_tail: chain.torn_tail,
            references: chain.seen.len(),
            blocks_checked: found.checked,
            blocks_blank: found.blank,
            blocks_durable: chain.durable.len(),
        });
        if let Some(broken) = &chain.broken {
            let (offset, records_before) = (broken.offset, chain.next_sequence());
            let cause = broken.why.to_string();
            self.add(Problem::Broken { dir: dir.clone(), offset, records_before, cause });
        }
        for run in chain.runs.iter().filter(|run| run.damaged > 0) {
            let (run, blocks) = (run.id, run.damaged);
            self.add(Problem::DamagedBefore { dir: dir.clone(), run, blocks });
        }
        for damage in found.damage {
            self.add(Problem::Block { dir: dir.clone(), damage });
        }
        let Some(ledger) = chain.ledger else {
            self.add(Problem::Empty { dir });
            return Ok(None);
        };
        let seen = std::mem::take(&mut chain.seen);
        Ok(Some(Shelf { dir, ledger, chain, seen }))
    }

    fn cross_check(&mut self, shelves: &[Shelf]) {
        let by_id: BTreeMap<_, _> = shelves.iter().map(|shelf| (shelf.ledger, shelf)).collect();
        for shelf in shelves {
            for (sequence, seen) in &shelf.seen {
                let Some(other) = by_id.get(&seen.ledger) else { continue };
                if other.chain.hash_at(seen.sequence) != Some(seen.hash) {
                    self.add(Problem::Contradiction {
                        dir: shelf.dir.clone(),
                        sequence: *sequence,
                        other: other.dir.clone(),
                        other_sequence: seen.sequence,
                    });
                }
            }
        }
    }

    fn ask_witness(&mut self, shelves: &[Shelf], arrivals: &[Arrival], vm: Option<&str>) {
        let mut book = Book::default();
        let mut unknown: BTreeMap<LedgerId, (&str, BTreeSet<u64>)> = BTreeMap::new();
        let mut facts = WitnessFacts::default();
        for arrival in arrivals.iter().filter(|it| vm.is_none_or(|vm| vm == it.record.vm)) {
            book.enter(arrival.clone());
            facts.acknowledged += 1;
            let record = &arrival.record;
            let (dir, ledger, sequence) = (record.dir.clone(), record.ledger, record.sequence);
            let Some(shelf) = shelves.iter().find(|shelf| shelf.ledger == ledger) else {
                let entry = unknown.entry(ledger).or_insert((&record.dir, BTreeSet::new()));
                entry.1.insert(sequence);
                continue;
            };
            match shelf.chain.hash_at(sequence) {
                Some(hash) if hash == record.hash => facts.found += 1,
                Some(_) => self.add(Problem::Replaced { dir, ledger, sequence }),
                None => self.add(Problem::Missing { dir, ledger, sequence }),
            }
        }
        for (ledger, (dir, records)) in unknown {
            let (dir, records) = (dir.to_owned(), records.len());
            self.add(Problem::LedgerMissing { dir, ledger, records });
        }
        for alarm in book.alarms() {
            self.add(Problem::Split { alarm: alarm.clone() });
        }
        self.witness = Some(facts);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string_pretty(self).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ledger::{
        append::{Appender, Header},
        book::Acknowledged,
        chain::chain_file,
        record::{Body, Seen},
    };

    fn acknowledged(header: &Header) -> Arrival {
        let Header { ledger, run, started, sequence, hash } = *header;
        let (vm, dir) = ("vm".to_owned(), "d".to_owned());
        let record = Acknowledged { vm, dir, ledger, run, started, sequence, hash };
        Arrival { arrival_ms: sequence, record }
    }

    fn work(dir: &Path, records: usize) -> Vec<Arrival> {
        let (mut appender, _) = Appender::open(dir).unwrap();
        let mut headers = vec![appender.announce(0).unwrap()];
        for _ in 1..records {
            let body = Body::Payload { seen: Vec::new(), bytes: vec![1; 40] };
            headers.push(appender.append(body).unwrap());
        }
        headers.iter().map(acknowledged).collect()
    }

    fn check(dir: &Path, arrivals: &[Arrival]) -> Vec<Problem> {
        verify_witnessed(&[dir.to_owned()], arrivals, None).problems
    }

    #[test]
    fn a_ledger_and_its_witness_agree() {
        let dir = tempfile::tempdir().unwrap();
        let mut arrivals = work(dir.path(), 5);
        arrivals.extend(work(dir.path(), 5));
        let verdict = verify_witnessed(&[dir.path().to_owned()], &arrivals, Some("vm"));
        assert!(verdict.ok, "{verdict}");
        assert_eq!(verdict.ledgers[0].records, 10);
        assert_eq!(verdict.witness, Some(WitnessFacts { acknowledged: 10, found: 10 }));
    }

    #[test]
    fn an_acknowledged_record_that_was_cut_off_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let arrivals = work(dir.path(), 5);
        let path = chain_file(dir.path());
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        assert!(verify_dir(dir.path()).ok, "a torn tail alone is normal");
        assert!(matches!(check(dir.path(), &arrivals)[..], [Problem::Missing { sequence: 4, .. }]));
    }

    #[test]
    fn a_writer_that_went_on_without_an_acknowledged_record_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut arrivals = work(dir.path(), 5);
        let path = chain_file(dir.path());
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        arrivals.extend(work(dir.path(), 3));
        let problems = check(dir.path(), &arrivals);
        assert!(matches!(problems[0], Problem::Replaced { sequence: 4, .. }), "{problems:?}");
        assert!(matches!(problems[1], Problem::Split { .. }), "{problems:?}");
    }

    #[test]
    fn a_broken_chain_is_reported_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        work(dir.path(), 5);
        let path = chain_file(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[300] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let problems = verify_dir(dir.path()).problems;
        assert!(matches!(problems[..], [Problem::Broken { .. }]), "{problems:?}");
    }

    #[test]
    fn a_ledger_that_is_gone_is_missed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut arrivals = work(dir.path(), 2);
        arrivals.extend(work(other.path(), 3));
        let problems = check(dir.path(), &arrivals);
        assert!(matches!(problems[..], [Problem::LedgerMissing { records: 3, .. }]));
    }

    #[test]
    fn damage_found_at_the_start_of_a_run_is_never_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (mut appender, _) = Appender::open(dir.path()).unwrap();
        appender.announce(2).unwrap();
        let problems = verify_dir(dir.path()).problems;
        assert!(matches!(problems[..], [Problem::DamagedBefore { blocks: 2, .. }]));
    }

    #[test]
    fn disks_of_different_moments_contradict_each_other() {
        let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = [left.path().to_owned(), right.path().to_owned()];
        let (mut a, _) = Appender::open(left.path()).unwrap();
        let (mut b, _) = Appender::open(right.path()).unwrap();
        a.announce(0).unwrap();
        let older = fs::read(chain_file(left.path())).unwrap();
        let payload = |seen| Body::Payload { seen, bytes: vec![1; 40] };
        let seen: Vec<Seen> = vec![a.append(payload(Vec::new())).unwrap().seen()];
        b.announce(0).unwrap();
        b.append(payload(seen)).unwrap();
        assert!(verify_dirs(&dirs).ok);
        fs::write(chain_file(left.path()), older).unwrap();
        let problems = verify_dirs(&dirs).problems;
        assert!(
            matches!(problems[..], [Problem::Contradiction { sequence: 1, other_sequence: 1, .. }]),
            "{problems:?}"
        );
    }
}
