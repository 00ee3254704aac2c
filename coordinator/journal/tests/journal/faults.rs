//! What a journal that was written before a crash holds after it.

use journal::faulty::{Disk, Fault};
use journal::{AppendError, Journal, OpenError, Opened, StoreId, Unfit};
use proptest::prelude::*;

const ID: StoreId = StoreId([3; 16]);

fn open(disk: &Disk) -> Result<Opened, OpenError> {
    Journal::open_on(disk.storage(), 1, ID)
}

/// Opens and appends records of `len` bytes until `count` are there; every acknowledged number.
fn run(disk: &Disk, count: u64, len: usize) -> Vec<u64> {
    let Ok(mut opened) = open(disk) else { return vec![] };
    let mut acknowledged: Vec<u64> = opened.records.iter().map(|record| record.number).collect();
    let mut stopped = false;
    for number in u64::try_from(opened.records.len()).unwrap()..count {
        let payload = vec![u8::try_from(number).unwrap(); len];
        match opened.journal.append(1, &payload) {
            Ok(n) => {
                assert!(!stopped, "a poisoned journal went on");
                acknowledged.push(n);
            }
            Err(error) => {
                assert_eq!(stopped, matches!(error, AppendError::Poisoned), "{error}");
                stopped = true;
            }
        }
    }
    acknowledged
}

fn assert_holds(disk: &Disk, acknowledged: &[u64], len: usize, what: &str) -> usize {
    let opened = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let numbers: Vec<u64> = opened.records.iter().map(|record| record.number).collect();
    assert!(numbers.starts_with(acknowledged), "{what}: {acknowledged:?} of {numbers:?}");
    assert!(numbers.len() <= acknowledged.len() + 1, "{what}: records nobody appended");
    for record in &opened.records {
        let byte = u8::try_from(record.number - 1).unwrap();
        assert_eq!(record.payload, vec![byte; len], "{what}");
    }
    numbers.len()
}

#[test]
fn whichever_operation_fails_what_was_acknowledged_is_there_and_the_rest_can_be_done() {
    let mut cases = 0;
    for len in [5, 2000] {
        for fault in [Fault::Io, Fault::NoSpace, Fault::Short, Fault::Killed] {
            for crash in [false, true] {
                for n in 1.. {
                    let disk = Disk::default();
                    disk.fail(n, fault);
                    let acknowledged = run(&disk, 4, len);
                    let clean = disk.fault_pending();
                    if crash {
                        disk.crash(|_| false);
                    } else {
                        disk.restart();
                    }
                    let what = format!("{fault:?} at {n}, crash {crash}, {len} bytes");
                    assert_holds(&disk, &acknowledged, len, &what);
                    assert_eq!(run(&disk, 4, len).len(), 4, "{what}");
                    if clean {
                        break;
                    }
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 150, "only {cases} faults were injected");
}

#[test]
fn a_fault_while_reopening_loses_nothing() {
    for fault in [Fault::Io, Fault::NoSpace, Fault::Short, Fault::Killed] {
        for n in 1.. {
            let disk = Disk::default();
            assert_eq!(run(&disk, 3, 700).len(), 3);
            // A torn fourth, so that reopening has a tail to cut off.
            disk.fail(1, Fault::Killed);
            assert!(open(&disk).is_err());
            let mut bytes = disk.bytes();
            bytes.extend([0xee; 70]);
            disk.replace(bytes);

            disk.fail(n, fault);
            drop(open(&disk));
            let clean = disk.fault_pending();
            disk.crash(|sector| sector % 2 == 0);
            assert_holds(&disk, &[1, 2, 3], 700, &format!("{fault:?} at {n}"));
            if clean {
                break;
            }
        }
    }
}

#[test]
fn a_record_whose_sync_failed_is_durable_before_it_is_handed_out() {
    let disk = Disk::default();
    let mut opened = open(&disk).unwrap();
    opened.journal.append(1, &[0; 3000]).unwrap();
    disk.fail(2, Fault::Io); // the sync of the next append
    assert!(matches!(opened.journal.append(1, &[1; 3000]), Err(AppendError::Failed { .. })));

    // The machine stays up: the page cache still shows the record.
    disk.restart();
    let shown = open(&disk).unwrap().records;
    assert_eq!(shown.len(), 2);
    disk.crash(|_| false);
    assert_eq!(open(&disk).unwrap().records, shown);
}

#[test]
fn a_header_whose_sync_failed_is_durable_before_a_record_is_acknowledged() {
    let disk = Disk::default();
    disk.fail(2, Fault::Io);
    assert!(open(&disk).is_err());
    disk.restart();
    let acknowledged = run(&disk, 1, 10);
    disk.crash(|_| false);
    assert_eq!(assert_holds(&disk, &acknowledged, 10, "header"), 1);
}

#[test]
fn a_poisoned_journal_appends_nothing_more() {
    let disk = Disk::default();
    let mut journal = open(&disk).unwrap().journal;
    disk.fail(1, Fault::NoSpace);
    assert!(matches!(journal.append(1, b"a"), Err(AppendError::Failed { record: 1, .. })));
    let before = disk.bytes();
    assert!(matches!(journal.append(1, b"b"), Err(AppendError::Poisoned)));
    assert_eq!(disk.bytes(), before);
}

#[test]
fn a_record_that_is_refused_does_not_poison() {
    let disk = Disk::default();
    let mut journal = open(&disk).unwrap().journal;
    let too_long = vec![0; journal::MAX_PAYLOAD + 1];
    assert!(matches!(
        journal.append(1, &too_long),
        Err(AppendError::Refused(Unfit::TooLong { len })) if len == too_long.len()
    ));
    assert!(matches!(journal.append(0, b""), Err(AppendError::Refused(Unfit::KindZero))));
    assert_eq!(journal.append(1, &too_long[1..]).unwrap(), 1);
    disk.restart();
    assert_eq!(open(&disk).unwrap().records.len(), 1);
}

proptest! {
    #[test]
    fn a_crash_in_an_append_leaves_every_earlier_record_whatever_sectors_survive(
        len in 0_usize..4000, before in 0_u64..4, at in 1_u64..=2, survivors in any::<u64>(),
    ) {
        let disk = Disk::default();
        run(&disk, before, len);
        disk.restart();
        let mut opened = open(&disk).unwrap();
        disk.fail(at, Fault::Killed);
        let byte = u8::try_from(before).unwrap();
        prop_assert!(opened.journal.append(1, &vec![byte; len]).is_err());
        disk.crash(|sector| survivors >> (sector % 64) & 1 == 1);
        let acknowledged: Vec<u64> = (1..=before).collect();
        assert_holds(&disk, &acknowledged, len, "crash");
    }
}

#[test]
fn a_second_writer_is_refused_and_a_reader_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let mut first = Journal::open(&path, 1, ID).unwrap();
    assert!(first.created);
    first.journal.append(5, b"kept").unwrap();
    assert!(matches!(Journal::open(&path, 1, ID), Err(OpenError::Locked)));
    assert_eq!(journal::read(&path).unwrap().unwrap().records.len(), 1);
    let path_begun = folder.path().join("begun");
    std::fs::write(&path_begun, [0; 7]).unwrap();
    assert!(journal::read(&path_begun).unwrap().is_none());

    let head = first.journal.head();
    drop(first);
    let second = Journal::open(&path, 1, StoreId([9; 16])).unwrap();
    assert!(!second.created);
    assert_eq!(second.records[0].payload, b"kept");
    assert_eq!((second.journal.id(), second.journal.head()), (ID, head));
}

#[test]
fn a_ledger_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    drop(Journal::open(&path, 1, ID).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}
