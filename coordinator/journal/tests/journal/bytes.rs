//! What is in the file, and what becomes of a file that is not what it was.

use journal::faulty::Disk;
use journal::{Damage, Journal, OpenError, Opened, Record, StoreId};
use proptest::prelude::*;

const KIND: u16 = 7;
const ID: StoreId = StoreId([0xa5; 16]);

/// A journal of two records as the first release wrote it. Never edited: a new layout is a new
/// version with its own constant.
const V1: &str = concat!(
    "43574a4f55524e4c01000700a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5", // header: magic, version 1, kind 7, id
    "cdb5eac4",                                                 // CRC32C
    "0500000001000100000000000000", // record 1: length 5, kind 1, number 1
    "94cd738d422532b1e789629b59e3040a7b358e7258322e2d21b3429ea87ed149", // BLAKE3 of the header
    "5a09a19e",                     // CRC32C of id and head
    "66656e6365",                   // "fence"
    "6bbf12f2",                     // CRC32C of id, head and payload
    "0000000002000200000000000000", // record 2: length 0, kind 2, number 2
    "efbf04ef730b89e6a1c277e63dc351a649e1489484be2d7476f76b7745de4dbd", // BLAKE3 of record 1
    "13248147",                     // CRC32C
    "c74b6748",                     // CRC32C
);

fn open(disk: &Disk) -> Result<Opened, OpenError> {
    disk.restart();
    Journal::open_on(disk.storage(), KIND, ID)
}

fn written(payloads: &[Vec<u8>]) -> Vec<u8> {
    let disk = Disk::default();
    let mut journal = open(&disk).unwrap().journal;
    for (kind, payload) in (1..).zip(payloads) {
        journal.append(kind, payload).unwrap();
    }
    disk.bytes()
}

fn reopened(bytes: Vec<u8>) -> Result<Opened, OpenError> {
    let disk = Disk::default();
    disk.replace(bytes);
    open(&disk)
}

fn records(payloads: &[Vec<u8>]) -> Vec<Record> {
    (1_u16..)
        .zip(payloads)
        .map(|(n, payload)| Record { number: n.into(), kind: n, payload: payload.clone() })
        .collect()
}

/// Where each record starts, and where the last one ends.
fn starts(payloads: &[Vec<u8>]) -> Vec<usize> {
    let mut at = journal::HEADER_LEN;
    let mut starts = vec![at];
    for payload in payloads {
        at += payload.len() + 54;
        starts.push(at);
    }
    starts
}

#[test]
fn v1_is_written_and_read_as_released() {
    let bytes = written(&[b"fence".to_vec(), vec![]]);
    assert_eq!(hex::encode(&bytes), V1);
    let opened = reopened(hex::decode(V1).unwrap()).unwrap();
    assert_eq!(opened.records, records(&[b"fence".to_vec(), vec![]]));
    assert!(!opened.created && opened.torn.is_none());
}

#[test]
fn a_later_version_is_refused_by_name() {
    let mut bytes = written(&[]);
    bytes[8] = 2;
    let sum = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&sum.to_le_bytes());
    assert!(matches!(reopened(bytes), Err(OpenError::Version { found: 2 })));
}

#[test]
fn another_kind_or_another_file_is_refused() {
    let disk = Disk::default();
    drop(open(&disk).unwrap());
    disk.restart();
    let other = Journal::open_on(disk.storage(), 8, ID);
    assert!(matches!(other, Err(OpenError::WrongKind { expected: 8, found: KIND })));
    for text in [&b"CWJ is how this note starts"[..], b"#!/bin/sh\n", &[b'x'; 400]] {
        assert!(matches!(reopened(text.to_vec()), Err(OpenError::NotAJournal)));
    }
}

#[test]
fn a_flipped_length_does_not_make_later_records_vanish() {
    let payloads = [vec![1; 10], vec![2; 10], vec![3; 10]];
    let mut bytes = written(&payloads);
    let at = starts(&payloads)[1];
    bytes[at + 2] ^= 0x80;
    let error = reopened(bytes).err().unwrap();
    assert!(
        matches!(error, OpenError::Damaged { record: 2, offset, what: Damage::Head }
            if offset == u64::try_from(at).unwrap()),
        "{error}"
    );
}

#[test]
fn records_that_were_exchanged_or_come_from_another_journal_are_refused() {
    let payloads = [vec![1; 10], vec![2; 10], vec![3; 10]];
    let bytes = written(&payloads);
    let at = starts(&payloads);
    let mut exchanged = bytes[..at[0]].to_vec();
    exchanged.extend(&bytes[at[1]..at[2]]);
    exchanged.extend(&bytes[at[0]..at[1]]);
    assert!(matches!(
        reopened(exchanged),
        Err(OpenError::Damaged { record: 1, what: Damage::Number { found: 2 }, .. })
    ));

    // The same id and numbers, another history: only the chain tells.
    let other = written(&[vec![9; 10], vec![8; 10], vec![7; 10]]);
    let mut spliced = bytes[..at[1]].to_vec();
    spliced.extend(&other[at[1]..]);
    assert!(matches!(
        reopened(spliced),
        Err(OpenError::Damaged { record: 2, what: Damage::Chain, .. })
    ));
}

#[test]
fn more_garbage_than_one_record_leaves_is_damage() {
    let mut bytes = written(&[vec![1; 10]]);
    bytes.resize(bytes.len() + journal::MAX_PAYLOAD + 100, 0xee);
    assert!(matches!(
        reopened(bytes),
        Err(OpenError::Damaged { record: 2, what: Damage::LongTail, .. })
    ));
}

fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6)
}

proptest! {
    #[test]
    fn cut_anywhere_the_file_reads_back_a_prefix(payloads in payloads(), cut in any::<prop::sample::Index>()) {
        let mut bytes = written(&payloads);
        let cut = cut.index(bytes.len() + 1);
        bytes.truncate(cut);
        let whole = starts(&payloads).iter().filter(|end| **end <= cut).count().saturating_sub(1);
        let opened = reopened(bytes).unwrap();
        prop_assert_eq!(&opened.records, &records(&payloads)[..whole]);
        prop_assert_eq!(opened.created, cut < journal::HEADER_LEN);
        prop_assert_eq!(opened.torn.is_some(), !opened.created && !starts(&payloads).contains(&cut));
    }

    #[test]
    fn after_a_cut_the_journal_goes_on(payloads in payloads(), cut in 0_usize..60) {
        let mut bytes = written(&payloads);
        bytes.truncate(bytes.len() - cut.min(bytes.len() - journal::HEADER_LEN));
        let disk = Disk::default();
        disk.replace(bytes);
        let mut opened = open(&disk).unwrap();
        opened.journal.append(99, b"after").unwrap();
        let again = open(&disk).unwrap();
        prop_assert!(again.torn.is_none());
        prop_assert_eq!(again.records.len(), opened.records.len() + 1);
        prop_assert_eq!(&again.records[..opened.records.len()], &opened.records[..]);
    }

    #[test]
    fn a_flipped_bit_is_an_error_or_costs_the_last_record_alone(payloads in payloads(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = written(&payloads);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let starts = starts(&payloads);
        let last_start = starts[starts.len().saturating_sub(2)];
        match reopened(bytes) {
            Ok(opened) => {
                prop_assert!(at >= last_start && !payloads.is_empty(), "byte {} of {:?}", at, starts);
                prop_assert!(opened.torn.is_some());
                prop_assert_eq!(&opened.records, &records(&payloads)[..payloads.len() - 1]);
            }
            Err(OpenError::Damaged { record, offset, .. }) => {
                let index = usize::try_from(record - 1).unwrap();
                prop_assert_eq!(usize::try_from(offset).unwrap(), starts[index]);
                prop_assert!((starts[index]..starts[index + 1]).contains(&at));
            }
            Err(OpenError::NotAJournal | OpenError::HeaderDamaged) => prop_assert!(at < journal::HEADER_LEN),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), keep in 0_usize..120) {
        let good = written(&[vec![1; 30]]);
        bytes.splice(..0, good[..keep.min(good.len())].iter().copied());
        drop(reopened(bytes));
    }
}
