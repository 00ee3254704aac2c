//! Ledgers: single records and receipts as bytes, a site's copy of one, and any sequence of records
//! replayed into the roles that decide who may run ([`handover`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use engine::custody::{CopyError, decode_copy};
use handover::{
    Action, Attempt, Attestation, Claim, Content, ContentBasis, DestinationAction,
    DestinationEffect, DestinationEntry, DestinationRequest, DestinationRole, DestinationState,
    Entry, Established, Fence, FenceLevel, FenceReceipt, GrantReceipt, Identity, LedgerError,
    MarkSeen, PlanDigest, Receipt, Record, RevokeReceipt, SigningKey, SourceAction, SourceEffect,
    SourceEntry, SourceRequest, SourceRole, SourceState, Unfence, VmKey,
};
use units::{Digest, Epoch};

use crate::memory::bounded;
use crate::script::Script;

/// A record of each kind and receipts, as the first release wrote them.
const GOLDEN: &str = include_str!("../../../coordinator/handover/tests/handover/golden.v1.txt");

/// More records than any history needs to contradict itself.
const RECORDS_MAX: usize = 24;

pub fn check(bytes: &[u8]) {
    let Some((what, rest)) = bytes.split_first() else { return };
    match what {
        0 => record(rest),
        1 => copy(Script(rest)),
        2 => history(Script(rest)),
        3 => copy_as_it_is(rest),
        _ => {}
    }
}

fn record(bytes: &[u8]) {
    let mut script = Script(bytes);
    let kind = script.short();
    let payload = script.0;
    match bounded(memory(payload), || Record::decode(kind, payload)) {
        Ok(record) => assert_eq!(record.encode(), (kind, payload.to_vec()), "{record:?}"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    receipt::<Fence>(payload);
    receipt::<handover::Synced>(payload);
    receipt::<handover::Grant>(payload);
    receipt::<handover::Revoke>(payload);
}

fn receipt<C: Claim>(bytes: &[u8]) {
    let Ok(receipt) = bounded(memory(bytes), || Receipt::<C>::decode(bytes)) else { return };
    assert_eq!(receipt.encode(), bytes);
    assert_eq!(receipt.to_string().parse().as_ref(), Ok(&receipt));
    // Only what it is about and the right key let it count; this key signed nothing.
    let stranger = SigningKey::from_bytes(&[9; 32]).verifying_key();
    assert!(receipt.verify(receipt.attempt(), &stranger).is_err());
}

/// A digest of 32 bytes costs as much; a record of 20 bytes is some hundred in memory, and lists
/// grow by doubling.
const fn memory(bytes: &[u8]) -> usize {
    128 * bytes.len() + (16 << 10)
}

fn copy_as_it_is(bytes: &[u8]) {
    if let Err(error) = bounded(memory(bytes), || decode_copy(bytes)) {
        assert!(!error.to_string().is_empty());
    }
}

/// A copy with a hash that is right, then with one byte that is not.
fn copy(mut script: Script<'_>) {
    let (at, with) = (usize::from(script.short()), script.byte());
    let mut body = Vec::new();
    while let Some(act) = script.next() {
        let (kind, payload) = match act {
            0..=0xbf => {
                let (kind, payload) = &RECORDS[usize::from(act) % RECORDS.len()];
                (*kind, payload.clone())
            }
            0xc0..=0xef => (script.short(), script.bytes().to_vec()),
            _ => {
                body.extend(script.bytes());
                continue;
            }
        };
        let len = u32::try_from(payload.len()).expect("small");
        body.extend(kind.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(payload);
        if body.len() > 1 << 16 {
            break;
        }
    }
    let hash = blake3::derive_key("causeway ledger copy v1", &body);
    let mut bytes = [&b"CWLEDG\0\x01"[..], &body, &hash].concat();
    match bounded(memory(&bytes), || decode_copy(&bytes)) {
        Ok(records) => assert_eq!(body_of(&records), body, "another way to write a copy"),
        Err(CopyError::Foreign) => panic!("it is one of ours"),
        Err(error @ (CopyError::Damaged | CopyError::Decode(_))) => {
            assert!(!error.to_string().is_empty());
        }
    }
    let at = at % bytes.len();
    bytes[at] ^= with | 1;
    assert!(matches!(decode_copy(&bytes), Err(CopyError::Foreign | CopyError::Damaged)));
}

fn body_of(records: &[Record]) -> Vec<u8> {
    let mut body = Vec::new();
    for record in records {
        let (kind, payload) = record.encode();
        body.extend(kind.to_le_bytes());
        body.extend(u32::try_from(payload.len()).expect("small").to_le_bytes());
        body.extend(payload);
    }
    body
}

/// Kinds and payloads of the golden file.
static RECORDS: LazyLock<Vec<(u16, Vec<u8>)>> = LazyLock::new(|| {
    let record = |line: &str| {
        let (name, payload) = line.strip_prefix("record ")?.split_once(": ")?;
        let kind = name.split(' ').next()?.parse().ok()?;
        Some((kind, hex::decode(payload).ok()?))
    };
    GOLDEN.lines().filter_map(record).collect()
});

fn receipt_named<C: Claim>(name: &str) -> Receipt<C> {
    let of_name = |line: &'static str| line.strip_prefix(name)?.strip_prefix(": ");
    let text = GOLDEN.lines().find_map(of_name).expect("it is in the golden file");
    text.parse().expect("a receipt")
}

static FENCE: LazyLock<FenceReceipt> = LazyLock::new(|| receipt_named("fence receipt"));
static GRANT: LazyLock<GrantReceipt> = LazyLock::new(|| receipt_named("grant receipt"));
static REVOKE: LazyLock<RevokeReceipt> = LazyLock::new(|| receipt_named("revoke receipt"));

/// Records of the golden file in any order and of any of a few epochs.
fn history(mut script: Script<'_>) {
    let records = (0..script.below(RECORDS_MAX + 1)).map(|_| {
        let (kind, payload) = &RECORDS[script.below(RECORDS.len())];
        let record = Record::decode(*kind, payload).expect("golden");
        of_epoch(record, script.byte())
    });
    let records: Vec<_> = records.collect();
    for site in ["east", "west"] {
        let me = identity(site);
        // Whether it stands is another matter; that it is said.
        let _told = me.check(&records).map_err(|refusal| refusal.to_string());
        let replay_source = |records: &[Record]| SourceRole::replay(me.clone(), vm(), records);
        match replay_source(&records) {
            Ok(role) => {
                is_decided_once(&records);
                source(&role, &replay_source(&[]).expect("an empty one"), &records);
            }
            Err(error) => is_at_fault(&error, &records, |some| replay_source(some).is_ok()),
        }
        let replay = |records: &[Record]| DestinationRole::replay(me.clone(), vm(), records);
        match replay(&records) {
            Ok(role) => destination(&role, &replay(&[]).expect("an empty one"), &records),
            Err(error) => is_at_fault(&error, &records, |some| replay(some).is_ok()),
        }
    }
}

/// Mostly of the first; and sometimes an attempt of one epoch in a record of another.
fn of_epoch(mut record: Record, byte: u8) -> Record {
    let epoch = match byte >> 4 {
        0..=7 => Epoch(1 + u64::from(byte & 3)),
        8..=0xe => Epoch(u64::from(byte & 0xf)),
        _ => Epoch(u64::MAX),
    };
    record.epoch = epoch;
    if let Entry::Source(SourceEntry::AttemptKnown(attempt))
    | Entry::Destination(DestinationEntry::AttemptKnown(attempt)) = &mut record.entry
        && byte & 0x84 != 0x84
    {
        attempt.epoch = epoch;
    }
    record
}

/// The error names a record that is there, and without it and what follows all would be well.
fn is_at_fault(error: &LedgerError, records: &[Record], replays: impl Fn(&[Record]) -> bool) {
    let good = (0..records.len()).rev().find(|good| replays(&records[..*good]));
    let wrong = &records[good.expect("no records are no contradiction")];
    assert_eq!((&error.vm, error.epoch), (&wrong.vm, wrong.epoch));
}

/// Of each attempt: one fence at most, one end, one decision.
fn is_decided_once(records: &[Record]) {
    let mut seen = BTreeSet::new();
    for record in records {
        let what = match &record.entry {
            Entry::Source(SourceEntry::FenceIntent { .. }) => "a fence",
            Entry::Source(SourceEntry::Released(_) | SourceEntry::Retired(_)) => "an end",
            Entry::Destination(
                DestinationEntry::Granted { .. } | DestinationEntry::Revoked { .. },
            ) => "a decision",
            Entry::Source(_) | Entry::Destination(_) => continue,
        };
        assert!(seen.insert((record.epoch, what)), "{what} of epoch {} twice", record.epoch);
    }
}

fn source(role: &SourceRole, fresh: &SourceRole, records: &[Record]) {
    let mut applied = fresh.clone();
    for record in records {
        applied.apply(record).expect("it was replayed");
    }
    assert_eq!(applied.last_epoch(), role.last_epoch());
    assert_eq!(applied.unfinished(), role.unfinished());
    for epoch in epochs() {
        let state = role.state(epoch);
        assert_eq!(applied.state(epoch), state);
        let mut allowed: Vec<_> = source_requests()
            .into_iter()
            .filter_map(|request| role.step(epoch, request).ok())
            .collect();
        allowed.extend(
            [MarkSeen::NoPlaceholder, MarkSeen::Present(GRANT.clone())]
                .iter()
                .filter_map(|mark| role.open(&attempt(epoch), mark).ok()),
        );
        for actions in allowed {
            source_may(role, &state, &actions);
        }
    }
}

/// What a role records can be replayed, and an end stays the end that it was.
fn source_may(role: &SourceRole, state: &SourceState, actions: &[SourceAction]) {
    let mut after = role.clone();
    for action in actions {
        match (action, state) {
            (Action::Record(record), _) => {
                is_written_and_read(record);
                after.apply(record).expect("it wrote that itself");
            }
            (Action::Effect(SourceEffect::Unfence(_)), SourceState::Retired { .. })
            | (Action::Effect(SourceEffect::Unfence(_)), SourceState::Destroyed) => {
                panic!("it runs at the destination, and the source is let go")
            }
            (Action::Effect(SourceEffect::Destroy), SourceState::Released { .. })
            | (Action::Effect(SourceEffect::Retire(_)), SourceState::Released { .. }) => {
                panic!("it lives here, and is taken away")
            }
            (Action::Effect(_), _) => {}
        }
    }
}

fn destination(role: &DestinationRole, fresh: &DestinationRole, records: &[Record]) {
    let mut applied = fresh.clone();
    for record in records {
        applied.apply(record).expect("it was replayed");
    }
    assert_eq!(applied.last_epoch(), role.last_epoch());
    assert_eq!(applied.unfinished(), role.unfinished());
    for epoch in epochs() {
        let state = role.state(epoch);
        assert_eq!(applied.state(epoch), state);
        for mark in marks(epoch) {
            let mut allowed: Vec<_> = destination_requests()
                .into_iter()
                .filter_map(|request| role.step(epoch, request, &mark).ok())
                .collect();
            allowed.extend(role.open(&attempt(epoch), &mark));
            allowed.extend(role.decline(&attempt(epoch), &mark));
            for actions in allowed {
                destination_may(role, &state, &actions);
            }
        }
        if let Ok(actions) = role.vouch(&attempt(epoch), attestation()) {
            destination_may(role, &state, &actions);
        }
    }
    if let Ok(actions) = role.heal(&GRANT) {
        destination_may(role, &role.state(GRANT.attempt().epoch), &actions);
    }
}

/// What a role records can be replayed, and it decides once.
fn destination_may(
    role: &DestinationRole,
    state: &DestinationState,
    actions: &[DestinationAction],
) {
    use DestinationState as State;
    let mut after = role.clone();
    for action in actions {
        match action {
            Action::Record(record) => {
                is_written_and_read(record);
                after.apply(record).expect("it wrote that itself");
            }
            Action::Effect(DestinationEffect::Start | DestinationEffect::SendGranted(_)) => {
                assert!(!matches!(state, State::Revoked(_)), "it is revoked, and is started");
            }
            Action::Effect(DestinationEffect::SendRevoked(_)) => {
                let granted =
                    matches!(state, State::Granted(_) | State::Marked(_) | State::Started(_));
                assert!(!granted && !matches!(state, State::Healthy(_)), "granted, and revoked");
            }
            Action::Effect(DestinationEffect::WriteMark(_) | DestinationEffect::SendSynced(_)) => {}
        }
    }
}

fn is_written_and_read(record: &Record) {
    let (kind, payload) = record.encode();
    assert_eq!(Record::decode(kind, &payload).as_ref(), Ok(record));
}

fn epochs() -> impl Iterator<Item = Epoch> {
    (0..=5).chain([u64::MAX]).map(Epoch)
}

fn source_requests() -> [SourceRequest; 8] {
    let unfence = || Unfence::new(b"another".to_vec()).expect("short");
    [
        SourceRequest::Fence { unfence: unfence(), content: Some(content()) },
        SourceRequest::FenceFurther { unfence: unfence() },
        SourceRequest::FenceHolds(fence()),
        SourceRequest::Release(REVOKE.clone()),
        SourceRequest::Retire(GRANT.clone()),
        SourceRequest::Settled,
        SourceRequest::Destroy,
        SourceRequest::Destroyed,
    ]
}

fn destination_requests() -> [DestinationRequest; 9] {
    [
        DestinationRequest::Placeholder { id: "another".into() },
        DestinationRequest::Synced(content()),
        DestinationRequest::Grant(FENCE.clone()),
        DestinationRequest::MarkWritten,
        DestinationRequest::Revoke { attested: None },
        DestinationRequest::Revoke { attested: Some(attestation()) },
        DestinationRequest::Start,
        DestinationRequest::Started,
        DestinationRequest::Healthy,
    ]
}

fn marks(epoch: Epoch) -> [MarkSeen; 4] {
    [
        MarkSeen::Absent { placeholder_of: epoch },
        MarkSeen::NoPlaceholder,
        MarkSeen::Present(GRANT.clone()),
        MarkSeen::Unknown,
    ]
}

// As in the golden file: the sites, their keys, the content.

fn vm() -> VmKey {
    "web1".parse().expect("a key")
}

fn attempt(epoch: Epoch) -> Attempt {
    Attempt {
        install: "lab".parse().expect("a key"),
        vm: vm(),
        epoch,
        source: "east".parse().expect("a key"),
        destination: "west".parse().expect("a key"),
        plan: PlanDigest(Digest([7; 32])),
    }
}

fn identity(site: &str) -> Identity {
    let key = |site| SigningKey::from_bytes(&[if site == "east" { 1 } else { 2 }; 32]);
    let other = if site == "east" { "west" } else { "east" };
    Identity {
        install: "lab".parse().expect("a key"),
        site: site.parse().expect("a key"),
        key: Some(key(site)),
        pinned: BTreeMap::from([(other.parse().expect("a key"), key(other).verifying_key())]),
        former: BTreeMap::new(),
    }
}

fn content() -> Content {
    Content::new(vec![Digest([1; 32]), Digest([2; 32])]).expect("two disks")
}

fn fence() -> Fence {
    Fence {
        level: FenceLevel::StartProof,
        established: Established::ByPlatform { means: "undefined and off".into() },
        content: content(),
        basis: ContentBasis::Drained,
    }
}

fn attestation() -> Attestation {
    Attestation { by: "ops".into(), reason: "scrapped".into() }
}
