//! Files of a [`journal`]: as anybody may have left them, and as it wrote them, with damage.

use journal::faulty::Disk;
use journal::{Contents, Damage, HEADER_LEN, Journal, OpenError, Record, StoreId, parse};

use crate::memory::bounded;
use crate::script::Script;

const KIND: u16 = 7;
const ID: StoreId = StoreId([0xa5; 16]);

/// Of a record before its payload, and behind it, in bytes.
const HEAD_LEN: usize = 50;
const SUM_LEN: usize = 4;

pub fn check(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, file)) => drop(read(file)),
        Some((1, script)) => damaged(Script(script)),
        _ => {}
    }
}

/// Reads a file in every way there is; all of them find the same.
fn read(bytes: &[u8]) -> Result<Option<Contents>, OpenError> {
    // Each record is copied once, and the list of them grows by doubling.
    let parsed = bounded(4 * bytes.len() + (64 << 10), || parse(bytes));
    match &parsed {
        Ok(Some(contents)) => opens(bytes, contents),
        Ok(None) => {
            assert!(bytes.len() <= HEADER_LEN, "all of it is thrown away");
            let disk = holding(bytes);
            let opened = Journal::open_on(disk.storage(), KIND, ID).expect("as if it were new");
            assert!(opened.created && opened.records.is_empty() && opened.torn.is_none());
            assert_eq!(disk.bytes().len(), HEADER_LEN);
        }
        Err(error) => {
            let disk = holding(bytes);
            let refused = Journal::open_on(disk.storage(), KIND, ID).err().expect("as above");
            assert_eq!(refused.to_string(), error.to_string());
            assert_eq!(disk.bytes(), bytes, "refused, and changed all the same");
            if let OpenError::Damaged { record, offset, .. } = error {
                names_its_place(bytes, *record, *offset);
            }
        }
    }
    parsed
}

/// Opened it holds what was read, takes another record, and is written as we write it.
fn opens(bytes: &[u8], contents: &Contents) {
    let Contents { kind, id, records, torn } = contents;
    let disk = holding(bytes);
    let mut opened = Journal::open_on(disk.storage(), *kind, *id).expect("it was read");
    assert!(!opened.created && opened.records == *records && opened.torn == *torn);
    let end = torn.map_or(bytes.len(), |torn| index(torn.offset));
    if let Some(torn) = torn {
        assert_eq!(index(torn.offset + torn.len), bytes.len());
        assert_eq!(torn.record, records.len() as u64 + 1);
    }
    assert_eq!(disk.bytes(), bytes[..end], "more than the torn tail was cut off");

    let number = opened.journal.append(9, b"another").expect("there is room");
    assert_eq!(number, records.len() as u64 + 1);
    let again = parse(&disk.bytes()).expect("ours").expect("not empty");
    assert!(again.torn.is_none());
    let another = Record { number, kind: 9, payload: b"another".to_vec() };
    assert_eq!(again.records, [&records[..], &[another]].concat());

    let anew = write(*kind, *id, records);
    assert_eq!(anew, bytes[..end], "another way to write the same records");
}

/// What is before the place of the damage is good, and as many records as it says.
fn names_its_place(bytes: &[u8], record: u64, offset: u64) {
    assert!(index(offset) >= HEADER_LEN && index(offset) < bytes.len());
    let before = parse(&bytes[..index(offset)]).expect("good up to there").expect("a header");
    assert!(before.torn.is_none());
    assert_eq!(before.records.len() as u64 + 1, record);
}

/// A journal of some records, and what happened to its bytes.
fn damaged(mut script: Script<'_>) {
    let count = script.below(6) as u64;
    let records = (1..=count).map(|number| {
        let kind = 1 + u16::from(script.byte());
        Record { number, kind, payload: script.bytes().to_vec() }
    });
    let records: Vec<_> = records.collect();
    let written = write(KIND, ID, &records);
    let mut bytes = written.clone();
    while let Some(act) = script.next() {
        let at = usize::from(script.short()) % (bytes.len() + 1);
        match act % 5 {
            0 => {
                let with = script.bytes();
                bytes.iter_mut().skip(at).zip(with).for_each(|(byte, with)| *byte = *with);
            }
            1 => bytes.truncate(at),
            2 => bytes.extend(script.bytes()),
            // Sectors that never got to the disk.
            3 => bytes.iter_mut().skip(at).take(script.byte().into()).for_each(|byte| *byte = 0),
            _ => {
                let piece = bytes[at..].to_vec();
                let to = usize::from(script.short()) % (bytes.len() + 1);
                bytes.truncate(to);
                bytes.extend(piece);
            }
        }
        bytes.truncate(1 << 16);
    }
    let found = read(&bytes);
    if written.starts_with(&bytes) {
        a_torn_tail_is_normal(&bytes, &records, found);
    } else if bytes.len() == written.len() {
        damage_is_an_error(&bytes, &written, &records, found);
    }
}

/// Of what was cut off anywhere, everything before the cut is there.
fn a_torn_tail_is_normal(
    bytes: &[u8],
    records: &[Record],
    found: Result<Option<Contents>, OpenError>,
) {
    let found = found.expect("a file that was cut off");
    if bytes.len() < HEADER_LEN {
        assert!(found.is_none());
        return;
    }
    let found = found.expect("a header");
    let starts = starts(records);
    let whole = starts.iter().filter(|start| **start <= bytes.len()).count() - 1;
    assert_eq!(found.records, records[..whole]);
    assert_eq!(found.torn.is_some(), starts[whole] != bytes.len());
}

/// Damage within one record, of which others follow, is told, and where it is.
fn damage_is_an_error(
    bytes: &[u8],
    written: &[u8],
    records: &[Record],
    found: Result<Option<Contents>, OpenError>,
) {
    let differs = |at: &usize| bytes[*at] != written[*at];
    let (Some(first), Some(last)) =
        ((0..bytes.len()).find(differs), (0..bytes.len()).rev().find(differs))
    else {
        return;
    };
    if first < HEADER_LEN {
        // But for another id with a checksum that fits: that is another journal.
        let header = HEADER_LEN - SUM_LEN;
        assert!(found.is_err() || (first < header && last >= header), "{found:?}");
        return;
    }
    let starts = starts(records);
    let hit = starts.iter().filter(|start| **start <= first).count() - 1;
    if last >= starts[hit + 1] {
        return;
    }
    let is_last = hit + 1 == records.len();
    let head_sum = starts[hit] + HEAD_LEN - SUM_LEN;
    match found {
        Ok(Some(found)) if is_last => {
            // As if it had never been finished.
            assert_eq!(found.records[..hit], records[..hit]);
        }
        Err(OpenError::Damaged { record, offset, what }) => {
            // Content with a checksum that was made to fit shows in the chain of the next one.
            let next = usize::from(what == Damage::Chain && last >= starts[hit + 1] - SUM_LEN);
            let named = (index(record), index(offset));
            let here = (hit + 1, starts[hit]);
            assert!(named == here || named == (hit + 1 + next, starts[hit + next]), "{named:?}");
        }
        // A length that points past the end, with a checksum that was made to fit.
        Ok(Some(found)) if first < head_sum && last >= head_sum => {
            assert_eq!(found.records, records[..hit]);
        }
        other => panic!("record {} of {} is damaged: {other:?}", hit + 1, records.len()),
    }
}

/// Where each record starts, and where the last one ends.
fn starts(records: &[Record]) -> Vec<usize> {
    let mut starts = vec![HEADER_LEN];
    for record in records {
        starts.push(starts[starts.len() - 1] + HEAD_LEN + record.payload.len() + SUM_LEN);
    }
    starts
}

fn write(kind: u16, id: StoreId, records: &[Record]) -> Vec<u8> {
    let disk = Disk::default();
    let mut journal = Journal::open_on(disk.storage(), kind, id).expect("a new one").journal;
    for record in records {
        journal.append(record.kind, &record.payload).expect("a record of a journal");
    }
    disk.bytes()
}

fn holding(bytes: &[u8]) -> Disk {
    let disk = Disk::default();
    disk.replace(bytes.to_vec());
    disk
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("64 bits fit")
}
