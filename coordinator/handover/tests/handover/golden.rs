//! The bytes of ledgers and receipts as the first release wrote them. Never edited: a new layout
//! is a new version with its own file.

use handover::*;

use crate::common::*;

const GOLDEN: &str = include_str!("golden.v1.txt");

/// One line for each kind of record and receipt, with a name.
fn written() -> String {
    let mut lines = vec![];
    let mut record = |name: &str, record: &Record| {
        let (kind, payload) = record.encode();
        lines.push(format!("record {kind} {name}: {}", hex::encode(payload)));
    };
    let mut source = Source::fencing(Some(content(1)));
    source.ask(SourceRequest::FenceFurther { unfence: unfence("disks") }).unwrap();
    source.ask(SourceRequest::FenceHolds(fence(content(1)))).unwrap();
    let fence_receipt = source.receipt();
    let mut destination = Destination::marked(content(1));
    let mark = destination.mark();
    destination.ask(DestinationRequest::Started, &mark).unwrap();
    destination.ask(DestinationRequest::Healthy, &mark).unwrap();
    let grant = destination.grant_receipt();
    source.ask(SourceRequest::Retire(grant.clone())).unwrap();
    source.ask(SourceRequest::Settled).unwrap();
    source.ask(SourceRequest::Destroyed).unwrap();
    let mut released = Source::fencing(None);
    let revoke = Destination::revoked().revoke_receipt();
    released.ask(SourceRequest::Release(revoke.clone())).unwrap();
    let mut attested = Destination::opened();
    let attestation = Attestation { by: "ops".into(), reason: "scrapped".into() };
    let request = DestinationRequest::Revoke { attested: Some(attestation) };
    attested.ask(request, &MarkSeen::Unknown).unwrap();

    for each in &source.records {
        record("source", each);
    }
    record("source, content unknown", &released.records[1]);
    record("source", &released.records[2]);
    for each in &destination.records {
        record("destination", each);
    }
    record("destination", &Destination::revoked().records[1]);
    record("destination, attested", &attested.records[1]);
    lines.push(format!("fence receipt: {fence_receipt}"));
    lines.push(format!("grant receipt: {grant}"));
    lines.push(format!("revoke receipt: {revoke}"));
    lines.push(format!("attested revoke receipt: {}", attested.revoke_receipt()));
    lines.push(format!("content: {}", content(1)));
    lines.join("\n") + "\n"
}

#[test]
fn v1_is_written_as_released() {
    let written = written();
    for (line, golden) in written.lines().zip(GOLDEN.lines()) {
        assert_eq!(line, golden);
    }
    assert_eq!(written, GOLDEN);
}

#[test]
fn v1_is_read_as_released() {
    let mut kinds = vec![];
    for line in GOLDEN.lines() {
        let (name, hex) = line.split_once(": ").unwrap();
        let Some(name) = name.strip_prefix("record ") else { continue };
        let kind = name.split(' ').next().unwrap().parse().unwrap();
        let payload = hex::decode(hex).unwrap();
        let record = Record::decode(kind, &payload).unwrap();
        assert_eq!(record.encode(), (kind, payload.clone()));
        let mut newer = payload;
        newer[0] = 2;
        assert_eq!(Record::decode(kind, &newer), Err(DecodeError::Version { found: 2 }));
        kinds.push(kind);
    }
    kinds.sort_unstable();
    kinds.dedup();
    let all: Vec<u16> = (1..=8).chain(33..=40).collect();
    assert_eq!(kinds, all, "every kind has its bytes here");
}
