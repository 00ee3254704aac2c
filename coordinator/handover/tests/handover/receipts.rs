//! A receipt gives a right for one attempt, by one key, as it stands.

use handover::*;
use proptest::prelude::*;
use units::{Digest, Epoch};

use crate::common::*;

fn east() -> VerifyingKey {
    key("east").verifying_key()
}

/// The attempt with one field changed.
fn others() -> Vec<(Field, Attempt)> {
    let changed = |field, change: fn(&mut Attempt)| {
        let mut other = attempt(1);
        change(&mut other);
        (field, other)
    };
    vec![
        changed(Field::Install, |a| a.install = "prod".parse().unwrap()),
        changed(Field::Vm, |a| a.vm = "web2".parse().unwrap()),
        changed(Field::Epoch, |a| a.epoch = Epoch(2)),
        changed(Field::Source, |a| a.source = "north".parse().unwrap()),
        changed(Field::Destination, |a| a.destination = "north".parse().unwrap()),
        changed(Field::Plan, |a| a.plan = PlanDigest(Digest([8; 32]))),
    ]
}

#[test]
fn a_receipt_of_another_attempt_is_refused_and_the_field_named() {
    let receipt = Source::fenced(content(1)).receipt();
    assert!(receipt.verify(&attempt(1), &east()).is_ok());
    for (field, other) in others() {
        let error = receipt.verify(&other, &east()).unwrap_err();
        assert_eq!(error.field(), Some(field), "{error}");
    }
}

#[test]
fn a_receipt_of_another_key_is_refused() {
    let receipt = Source::fenced(content(1)).receipt();
    let error = receipt.verify(&attempt(1), &key("west").verifying_key()).unwrap_err();
    assert_eq!(error.field(), Some(Field::Signer), "{error}");
}

#[test]
fn a_destination_grants_on_no_receipt_but_its_sources_for_this_attempt() {
    let destination = Destination::synced(content(1));
    let ask =
        |receipt| destination.role.step(Epoch(1), DestinationRequest::Grant(receipt), &absent());
    // The real key, another attempt of everything.
    for (field, other) in others() {
        if matches!(field, Field::Install | Field::Vm | Field::Source) {
            continue; // a source of that name would not sign it: `Identity` refuses
        }
        let records = Source::fenced(content(1)).records;
        let moved: Vec<Record> = records
            .into_iter()
            .map(|mut record| {
                record.epoch = other.epoch;
                if let Entry::Source(SourceEntry::AttemptKnown(known)) = &mut record.entry {
                    *known = other.clone();
                }
                record
            })
            .collect();
        let role = SourceRole::replay(identity("east"), other.vm.clone(), &moved).unwrap();
        let SourceState::Fenced(receipt) = role.state(other.epoch) else { panic!("not fenced") };
        let refusal = ask(receipt).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Receipt(error) if error.field() == Some(field)),
            "{field}: {refusal}"
        );
    }
    // Everything right, and signed by the destination itself.
    let mut forger = identity("west");
    forger.site = "east".parse().unwrap();
    let records = Source::fenced(content(1)).records;
    let role = SourceRole::replay(forger, attempt(1).vm, &records).unwrap();
    let SourceState::Fenced(forged) = role.state(Epoch(1)) else { panic!("not fenced") };
    let refusal = ask(forged).unwrap_err();
    assert!(
        matches!(&refusal, Refusal::Receipt(error) if error.field() == Some(Field::Signer)),
        "{refusal}"
    );
    // And the right one.
    assert!(ask(Source::fenced(content(1)).receipt()).is_ok());
}

#[test]
fn a_receipt_is_not_one_of_another_kind() {
    let fence = Source::fenced(content(1)).receipt().encode();
    assert!(matches!(RevokeReceipt::decode(&fence), Err(DecodeError::Tag { tag: 1, .. })));
    assert!(matches!(GrantReceipt::decode(&fence), Err(DecodeError::Tag { tag: 1, .. })));
}

#[test]
fn a_receipt_survives_its_text() {
    let receipt = Destination::marked(content(1)).grant_receipt();
    assert_eq!(receipt.to_string().parse(), Ok(receipt));
}

proptest! {
    #[test]
    fn a_receipt_changed_in_one_bit_is_refused(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = Source::fenced(content(1)).receipt().encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(changed) = FenceReceipt::decode(&bytes) {
            prop_assert!(changed.verify(&attempt(1), &east()).is_err(), "byte {}", at);
        }
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(kind in 0_u16..50, bytes in prop::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()) {
        let _ = Record::decode(kind, &bytes);
        let _ = GrantReceipt::decode(&bytes);
        let mut real = Destination::marked(content(1)).grant_receipt().encode();
        let cut = cut.index(real.len());
        real.splice(cut.., bytes);
        let _ = GrantReceipt::decode(&real);
    }
}

/// Records that somebody else kept: the receipts in them are those of the sites that they name, whatever
/// else is put beside them.
#[test]
fn kept_records_are_checked_by_their_receipts() {
    let honest = Destination::granted(content(1)).records;
    let me = identity("west");
    assert_eq!(me.check(&honest), Ok(()));
    let forger = SigningKey::from_bytes(&[9; 32]).verifying_key();
    let deceived =
        Identity { pinned: [("east".parse().unwrap(), forger)].into(), ..identity("west") };
    assert!(matches!(deceived.check(&honest), Err(Refusal::Receipt(_))));
    // Of a site that was lost and has a new key it is what it signed then.
    let former = [("east".parse().unwrap(), key("east").verifying_key())].into();
    let bereaved = Identity { former, ..deceived.clone() };
    assert_eq!(bereaved.check(&honest), Ok(()));
    // An attempt of another VM, or once more with sites that nobody knows, hides the one that counts.
    let hiding = |vm: &str| {
        let vm: VmKey = vm.parse().unwrap();
        let (source, destination) = ("far".parse().unwrap(), "away".parse().unwrap());
        let attempt = Attempt { vm: vm.clone(), source, destination, ..attempt(1) };
        let entry = Entry::Destination(DestinationEntry::AttemptKnown(attempt));
        Record { vm, epoch: Epoch(1), entry }
    };
    for vm in ["web2", "web1"] {
        let mut records = honest.clone();
        records.insert(1, hiding(vm));
        assert!(deceived.check(&records).is_err(), "{vm}");
        assert!(me.check(&records).is_err(), "{vm}");
    }
}
