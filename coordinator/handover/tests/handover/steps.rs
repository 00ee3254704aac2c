//! What each side refuses, and what a repetition does.

use handover::*;
use units::Epoch;

use crate::common::*;

#[test]
fn what_undoes_the_fence_is_recorded_before_the_fence_is_made() {
    let source = Source::opened();
    let request = SourceRequest::Fence { unfence: unfence("definition"), content: None };
    let actions = source.role.step(Epoch(1), request).unwrap();
    assert!(
        matches!(
            &actions[..],
            [
                Action::Record(Record {
                    entry: Entry::Source(SourceEntry::FenceIntent { .. }),
                    ..
                }),
                Action::Effect(SourceEffect::MakeStartProof(_)),
                Action::Effect(SourceEffect::PowerOff),
            ]
        ),
        "{actions:?}"
    );
}

#[test]
fn a_fence_in_two_parts_is_undone_last_part_first() {
    let mut source = Source::fencing(Some(content(1)));
    let further = SourceRequest::FenceFurther { unfence: unfence("disks") };
    let effects = source.ask(further.clone()).unwrap();
    assert_eq!(effects, [SourceEffect::MakeStartProof(unfence("disks"))]);
    let records = source.records.len();
    source.ask(further).unwrap();
    assert_eq!(source.records.len(), records, "asked twice, recorded once");

    let revoke = Destination::revoked().revoke_receipt();
    let effects = source.ask(SourceRequest::Release(revoke)).unwrap();
    let parts = vec![unfence("disks"), unfence("definition")];
    assert_eq!(effects, [SourceEffect::Unfence(parts)]);
}

#[test]
fn an_interrupted_fence_is_surfaced_and_not_believed() {
    let mut source = Source::fencing(Some(content(1))).restarted();
    assert_eq!(
        source.role.unfinished(),
        [SourceEffect::MakeStartProof(unfence("definition")), SourceEffect::PowerOff]
    );
    let drained = SourceRequest::FenceHolds(fence(content(1)));
    assert_eq!(source.ask(drained), Err(Refusal::FenceInterrupted));
    // Whoever can show more is believed: the stopped disks, or what ran until the power was off.
    let shown_by = "the domain stood suspended".into();
    let mut before = fence(content(1));
    before.basis = ContentBasis::DrainedBefore { shown_by };
    let mut other = before.clone();
    other.content = content(5);
    assert_eq!(source.ask(SourceRequest::FenceHolds(other)), Err(Refusal::ContentChanged));
    source.ask(SourceRequest::FenceHolds(before)).unwrap();
    assert!(source.role.unfinished().is_empty());
}

#[test]
fn a_fence_that_the_platform_would_open_again_is_too_weak() {
    for level in [FenceLevel::Guest, FenceLevel::Off] {
        let mut source = Source::fencing(Some(content(1)));
        let weak = Fence { level, ..fence(content(1)) };
        let refusal = source.ask(SourceRequest::FenceHolds(weak)).unwrap_err();
        assert_eq!(refusal, Refusal::FenceTooWeak { level });
    }
}

#[test]
fn a_source_is_released_by_a_revoke_receipt_and_by_nothing_else() {
    let mut source = Source::fenced(content(1));
    let again = SourceRequest::Fence { unfence: unfence("definition"), content: None };
    assert_eq!(source.ask(again), Err(Refusal::AlreadyFenced));
    assert_eq!(source.ask(SourceRequest::Settled), Err(Refusal::NotEnded));
    assert_eq!(source.ask(SourceRequest::Destroy), Err(Refusal::NotRetired));
    let revoke = Destination::revoked().revoke_receipt();
    let release = SourceRequest::Release(revoke);
    assert!(matches!(source.ask(release.clone()).unwrap()[..], [SourceEffect::Unfence(_)]));
    assert!(matches!(source.ask(release.clone()).unwrap()[..], [SourceEffect::Unfence(_)]));
    source.ask(SourceRequest::Settled).unwrap();
    assert!(source.ask(release).unwrap().is_empty(), "settled: not powered on again");
}

#[test]
fn a_source_that_was_never_fenced_is_not_powered_on_by_its_release() {
    let release = SourceRequest::Release(Destination::revoked().revoke_receipt());
    let mut source = Source::opened();
    assert_eq!(source.ask(release.clone()).unwrap(), []);
    assert_eq!(source.role.state(Epoch(1)), SourceState::Released { settled: true });
    // The process died between the two records.
    source.records.pop();
    let mut source = source.restarted();
    assert_eq!(source.role.unfinished(), []);
    assert_eq!(source.ask(release).unwrap(), []);
    assert_eq!(source.role.state(Epoch(1)), SourceState::Released { settled: true });
}

#[test]
fn a_grant_needs_this_attempts_placeholder() {
    let grant = DestinationRequest::Grant(Source::fenced(content(1)).receipt());
    let mut destination = Destination::synced(content(1));
    let refused = [
        (MarkSeen::NoPlaceholder, Refusal::PlaceholderGone),
        (MarkSeen::Absent { placeholder_of: Epoch(0) }, Refusal::PlaceholderGone),
        (MarkSeen::Absent { placeholder_of: Epoch(2) }, Refusal::LedgerBehind { epoch: Epoch(2) }),
        (MarkSeen::Unknown, Refusal::MarkUnknown),
    ];
    for (mark, refusal) in refused {
        assert_eq!(destination.ask(grant.clone(), &mark), Err(refusal));
    }
    destination.ask(grant, &absent()).unwrap();
}

#[test]
fn a_grant_needs_the_very_content_that_the_source_had() {
    let mut destination = Destination::synced(content(1));
    let grant = |byte| DestinationRequest::Grant(Source::fenced(content(byte)).receipt());
    let refusal = destination.ask(grant(2), &absent()).unwrap_err();
    assert!(matches!(refusal, Refusal::ContentDiffers(_)), "{refusal}");
    let mut unsynced = Destination::opened();
    assert_eq!(unsynced.ask(grant(1), &absent()), Err(Refusal::NotSynced));
    destination.ask(grant(1), &absent()).unwrap();
}

#[test]
fn a_weak_fence_gives_no_right_even_when_the_source_signed_it() {
    let mut records = Source::fencing(Some(content(1))).records;
    let weak = Fence { level: FenceLevel::Off, ..fence(content(1)) };
    let entry = Entry::Source(SourceEntry::Fenced(weak));
    records.push(Record { entry, ..records[0].clone() });
    let grant = DestinationRequest::Grant(Source::replayed(records).receipt());
    let mut destination = Destination::synced(content(1));
    let refusal = destination.ask(grant, &absent()).unwrap_err();
    assert_eq!(refusal, Refusal::FenceTooWeak { level: FenceLevel::Off });
}

#[test]
fn nothing_starts_and_no_receipt_leaves_before_the_mark_is_seen() {
    let mut destination = Destination::synced(content(1));
    let grant = DestinationRequest::Grant(Source::fenced(content(1)).receipt());
    let effects = destination.ask(grant, &absent()).unwrap();
    assert!(matches!(effects[..], [DestinationEffect::WriteMark(_)]), "{effects:?}");
    assert!(matches!(destination.role.state(Epoch(1)), DestinationState::Granted(_)));
    let early = [
        (DestinationRequest::Start, Refusal::NotMarked),
        (DestinationRequest::Started, Refusal::NotMarked),
        (DestinationRequest::MarkWritten, Refusal::MarkMissing),
    ];
    for (request, refusal) in early {
        assert_eq!(destination.ask(request, &absent()), Err(refusal));
    }
    let mark = destination.mark();
    destination.ask(DestinationRequest::MarkWritten, &mark).unwrap();
    // The mark is looked at again at every start.
    assert_eq!(destination.ask(DestinationRequest::Start, &absent()), Err(Refusal::MarkMissing));
    let effects = destination.ask(DestinationRequest::Start, &mark).unwrap();
    assert_eq!(effects.last(), Some(&DestinationEffect::Start));
}

#[test]
fn the_decision_is_written_once() {
    let mut granted = Destination::marked(content(1));
    let mark = granted.mark();
    let revoke = DestinationRequest::Revoke { attested: None };
    assert_eq!(granted.ask(revoke, &mark), Err(Refusal::AlreadyGranted));

    let mut revoked = Destination::revoked();
    let grant = DestinationRequest::Grant(Source::fenced(content(1)).receipt());
    assert_eq!(revoked.ask(grant, &absent()), Err(Refusal::AlreadyRevoked));
}

#[test]
fn a_ledger_that_contradicts_itself_is_refused() {
    let mut records = Destination::revoked().records;
    let fence = Source::fenced(content(1)).receipt();
    let entry = Entry::Destination(DestinationEntry::Granted { fence });
    records.push(Record { entry, ..records[0].clone() });
    let error = DestinationRole::replay(identity("west"), attempt(1).vm, &records).unwrap_err();
    assert_eq!(error.epoch, Epoch(1));

    let known = |epoch| {
        let entry = Entry::Destination(DestinationEntry::AttemptKnown(attempt(epoch)));
        Record { vm: attempt(epoch).vm, epoch: Epoch(epoch), entry }
    };
    for epochs in [[2, 1], [2, 2]] {
        let records = epochs.map(known);
        assert!(DestinationRole::replay(identity("west"), attempt(1).vm, &records).is_err());
    }
}

#[test]
fn a_revocation_needs_a_look_at_the_placeholder_or_an_operator() {
    let mut destination = Destination::synced(content(1));
    let revoke = |attested| DestinationRequest::Revoke { attested };
    assert_eq!(destination.ask(revoke(None), &MarkSeen::Unknown), Err(Refusal::MarkUnknown));
    assert_eq!(
        destination.ask(revoke(None), &MarkSeen::NoPlaceholder),
        Err(Refusal::PlaceholderGone)
    );
    let attested = Attestation { by: "ops".into(), reason: "host was scrapped".into() };
    destination.ask(revoke(Some(attested.clone())), &MarkSeen::Unknown).unwrap();
    assert_eq!(destination.revoke_receipt().claim().attested, Some(attested));
}

#[test]
fn a_ledger_restored_from_before_the_grant_does_nothing_until_it_is_healed() {
    let granted = Destination::marked(content(1));
    let mark = granted.mark();
    let MarkSeen::Present(receipt) = &mark else { panic!("no mark") };
    for kept in 0..granted.records.len() {
        let mut old = Destination::replayed(granted.records[..kept].to_vec());
        let known = old.role.state(Epoch(1));
        if !matches!(known, DestinationState::Granted(_)) {
            let refusal = old.role.open(&attempt(1), &mark).unwrap_err();
            assert_eq!(refusal, Refusal::LedgerLost { epoch: Epoch(1) });
            let revoke = DestinationRequest::Revoke { attested: None };
            assert!(old.ask(revoke, &mark).is_err());
        }
        let healing = old.role.heal(receipt).unwrap();
        old.carry_out(healing);
        if !matches!(known, DestinationState::Granted(_)) {
            assert_eq!(old.grant_receipt(), *receipt);
        }
    }
}

#[test]
fn somebody_elses_mark_heals_nothing() {
    let mut foreign = identity("west");
    foreign.key = Some(key("east"));
    let records = Destination::marked(content(1)).records;
    let role = DestinationRole::replay(foreign, attempt(1).vm, &records).unwrap();
    let DestinationState::Marked(forged) = role.state(Epoch(1)) else { panic!("not marked") };
    let destination = Destination::opened();
    let refusal = destination.role.heal(&forged).unwrap_err();
    assert!(matches!(refusal, Refusal::Receipt(_)), "{refusal}");
}

#[test]
fn an_epoch_never_returns() {
    let mut destination = Destination::revoked();
    let actions = destination.role.open(&attempt(3), &MarkSeen::NoPlaceholder).unwrap();
    destination.carry_out(actions);
    assert_eq!(
        destination.role.open(&attempt(2), &MarkSeen::NoPlaceholder),
        Err(Refusal::StaleEpoch { asked: Epoch(2), last: Epoch(3) })
    );
    // Its source can be released all the same, and one that missed the first receipt too.
    for epoch in [1, 2] {
        let actions = if epoch == 2 {
            destination.role.decline(&attempt(2), &MarkSeen::NoPlaceholder)
        } else {
            let request = DestinationRequest::Revoke { attested: None };
            destination.role.step(Epoch(1), request, &MarkSeen::NoPlaceholder)
        };
        let effects = destination.carry_out(actions.unwrap());
        let [DestinationEffect::SendRevoked(receipt)] = &effects[..] else { panic!("{effects:?}") };
        assert!(receipt.verify(&attempt(epoch), &key("west").verifying_key()).is_ok());
    }
}

#[test]
fn an_attempt_of_another_plan_is_not_the_one_that_was_opened() {
    let mut other = attempt(1);
    other.plan = PlanDigest(units::Digest([9; 32]));
    let refusal = Source::opened().role.open(&other, &MarkSeen::NoPlaceholder).unwrap_err();
    assert!(
        matches!(&refusal, Refusal::OtherAttempt(mismatch) if mismatch.field == Field::Plan),
        "{refusal}"
    );
}

#[test]
fn a_site_refuses_an_attempt_that_is_not_its_own() {
    let mut other = attempt(1);
    other.source = "north".parse().unwrap();
    assert!(matches!(
        Source::replayed(vec![]).role.open(&other, &MarkSeen::NoPlaceholder),
        Err(Refusal::NotOurs(_))
    ));
    let mut same = attempt(1);
    same.destination = same.source.clone();
    assert_eq!(
        Source::replayed(vec![]).role.open(&same, &MarkSeen::NoPlaceholder),
        Err(Refusal::SameSite)
    );
}

#[test]
fn a_restored_source_is_retired_by_the_receipt_that_its_own_fence_is_in() {
    let grant = Destination::marked(content(1)).grant_receipt();
    let mut old = Source::opened();
    old.ask(SourceRequest::Retire(grant)).unwrap();
    assert_eq!(old.role.state(Epoch(1)), SourceState::Retired { settled: false });
}
