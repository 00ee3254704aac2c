//! The decision rule, row by row, and the order of steps, state by state.

use handover::*;
use units::Epoch;

use crate::common::*;

fn fenced() -> SourceState {
    SourceState::Fenced(Source::fenced(content(1)).receipt())
}

fn granted() -> DestinationState {
    Destination::granted(content(1)).role.state(Epoch(1))
}

fn marked() -> DestinationState {
    Destination::marked(content(1)).role.state(Epoch(1))
}

fn mark() -> MarkSeen {
    Destination::marked(content(1)).mark()
}

fn healthy() -> DestinationState {
    let mut destination = Destination::marked(content(1));
    let mark = destination.mark();
    destination.ask(DestinationRequest::Started, &mark).unwrap();
    destination.ask(DestinationRequest::Healthy, &mark).unwrap();
    destination.role.state(Epoch(1))
}

fn revoked() -> DestinationState {
    Destination::revoked().role.state(Epoch(1))
}

fn attested_grant() -> DestinationState {
    let mut source = Source::fencing(Some(content(1)));
    let by = Attestation { by: "ops".into(), reason: "saw it unplugged".into() };
    let fence = Fence { established: Established::Attested(by), ..fence(content(1)) };
    source.ask(SourceRequest::FenceHolds(fence)).unwrap();
    let mut destination = Destination::synced(content(1));
    destination.ask(DestinationRequest::Grant(source.receipt()), &absent()).unwrap();
    destination.role.state(Epoch(1))
}

const RELEASED: SourceState = SourceState::Released { settled: true };
const RETIRED: SourceState = SourceState::Retired { settled: true };

const EAST: Side = Side::Source;
const WEST: Side = Side::Destination;

/// Neither side answers; each row says what does.
fn nothing() -> Evidence {
    Evidence::nothing(Epoch(1))
}

/// Name, evidence, and the verdict expected.
type Row = (&'static str, Evidence, VerdictKind, Strength, Option<Side>, Next);

fn rows() -> Vec<Row> {
    use {Next as N, Strength as St, VerdictKind as V};
    let revoke_held = Held::Revoke(Destination::revoked().revoke_receipt());
    let grant_held = Held::Grant(Destination::marked(content(1)).grant_receipt());
    let synced = DestinationState::Synced(content(1));
    let with = |source: Option<SourceState>, destination: Option<DestinationState>| Evidence {
        source,
        destination,
        mark: absent(),
        ..nothing()
    };
    let both_run = |evidence| Evidence {
        source_platform: Platform::Running,
        destination_platform: Platform::Running,
        ..evidence
    };
    let may_be_released = |destination, platform| Evidence {
        destination: Some(destination),
        mark: mark(),
        destination_platform: platform,
        may_be_released: true,
        ..nothing()
    };
    vec![
        // 0: granted, and somebody began to call it off
        (
            "granted, perhaps released as well",
            may_be_released(marked(), Platform::Held),
            V::NeedsOperator,
            St::Unknown,
            None,
            N::AskSource,
        ),
        (
            "the same, and the source's ledger is an old one",
            Evidence { source: Some(fenced()), ..may_be_released(marked(), Platform::Held) },
            V::NeedsOperator,
            St::Unknown,
            None,
            N::AskSource,
        ),
        (
            "granted, and it runs, perhaps not there alone",
            may_be_released(marked(), Platform::Running),
            V::Completed,
            St::Observed,
            Some(WEST),
            N::Resume,
        ),
        (
            "granted and started, and nobody answers",
            may_be_released(healthy(), Platform::Unreachable),
            V::Completed,
            St::Unknown,
            Some(WEST),
            N::Resume,
        ),
        (
            "granted and released, and both run",
            both_run(with(Some(RELEASED), Some(marked()))),
            V::AlarmSplit,
            St::Observed,
            None,
            N::CallForHelp,
        ),
        // 1: granted
        (
            "granted, source unreachable",
            Evidence { destination: Some(healthy()), mark: mark(), ..nothing() },
            V::Completed,
            St::Proven,
            Some(WEST),
            N::Resume,
        ),
        (
            "granted and retired",
            Evidence { mark: mark(), ..with(Some(RETIRED), Some(healthy())) },
            V::Completed,
            St::Proven,
            Some(WEST),
            N::Nothing,
        ),
        (
            "granted, mark not written yet",
            with(Some(fenced()), Some(granted())),
            V::Completed,
            St::Proven,
            Some(WEST),
            N::Resume,
        ),
        (
            "granted on an operator's word",
            with(None, Some(attested_grant())),
            V::Completed,
            St::Attested,
            Some(WEST),
            N::Resume,
        ),
        (
            "granted by the mark, ledger restored old",
            Evidence { mark: mark(), ..with(Some(fenced()), Some(synced.clone())) },
            V::Completed,
            St::Proven,
            Some(WEST),
            N::HealDestination,
        ),
        (
            "granted by the mark, ledger gone",
            Evidence { mark: mark(), ..nothing() },
            V::Completed,
            St::Proven,
            Some(WEST),
            N::RestoreDestination,
        ),
        (
            "granted by a receipt that was kept, destination gone",
            Evidence { held: Some(grant_held), source: Some(fenced()), ..nothing() },
            V::Completed,
            St::Proven,
            Some(WEST),
            N::RestoreDestination,
        ),
        (
            "granted, and the fenced source was started by hand",
            Evidence { source_platform: Platform::Running, ..with(None, Some(marked())) },
            V::Completed,
            St::Proven,
            Some(WEST),
            N::FenceAgain(EAST),
        ),
        (
            "no ledger at all, nothing at the destination, source runs",
            Evidence {
                epoch: Epoch(0),
                mark: MarkSeen::NoPlaceholder,
                source_platform: Platform::Running,
                ..nothing()
            },
            V::NotMigrated,
            St::Observed,
            Some(EAST),
            N::Resume,
        ),
        (
            "the same, but an attempt is known",
            Evidence {
                mark: MarkSeen::NoPlaceholder,
                source_platform: Platform::Running,
                ..nothing()
            },
            V::NeedsOperator,
            St::Unknown,
            Some(EAST),
            N::RestoreDestination,
        ),
        (
            "fence begun, and the source was let go on by hand",
            Evidence {
                source_platform: Platform::Running,
                ..with(Some(SourceState::Fencing), Some(synced.clone()))
            },
            V::NotMigrated,
            St::Proven,
            Some(EAST),
            N::Abort,
        ),
        // 2: revoked, source runs
        (
            "revoked and released",
            with(Some(RELEASED), Some(revoked())),
            V::RolledBack,
            St::Proven,
            Some(EAST),
            N::Nothing,
        ),
        (
            "revoked, never fenced",
            with(Some(SourceState::Known), Some(revoked())),
            V::RolledBack,
            St::Proven,
            Some(EAST),
            N::Nothing,
        ),
        (
            "revoked, un-fencing under way",
            with(Some(SourceState::Released { settled: false }), Some(revoked())),
            V::RolledBack,
            St::Proven,
            Some(EAST),
            N::Resume,
        ),
        (
            "revoked, source fenced still",
            with(Some(fenced()), Some(revoked())),
            V::RolledBack,
            St::Proven,
            Some(EAST),
            N::ReleaseSource,
        ),
        // 3: revoked, source unreachable
        (
            "revoked, source unreachable",
            with(None, Some(revoked())),
            V::NotMigrated,
            St::Proven,
            None,
            N::ReleaseSource,
        ),
        (
            "revoked, source's platform shows it running",
            Evidence { source_platform: Platform::Running, ..with(None, Some(revoked())) },
            V::NotMigrated,
            St::Proven,
            Some(EAST),
            N::ReleaseSource,
        ),
        // 4: undecided, fenced
        (
            "undecided, fenced",
            with(Some(fenced()), Some(synced.clone())),
            V::InHandover,
            St::Proven,
            None,
            N::Resume,
        ),
        (
            "undecided, fenced, and started by hand",
            Evidence {
                source_platform: Platform::Running,
                ..with(Some(fenced()), Some(synced.clone()))
            },
            V::NeedsOperator,
            St::Observed,
            Some(EAST),
            N::Abort,
        ),
        (
            "undecided, a later attempt has it, wherever that went",
            with(Some(SourceState::Superseded), Some(synced.clone())),
            V::NotMigrated,
            St::Proven,
            None,
            N::Abort,
        ),
        (
            "revoked, and a later attempt has it",
            with(Some(SourceState::Superseded), Some(revoked())),
            V::RolledBack,
            St::Proven,
            None,
            N::Nothing,
        ),
        (
            "killed between the two records that it began",
            with(Some(SourceState::Unknown), Some(DestinationState::Known)),
            V::NotStarted,
            St::Proven,
            Some(EAST),
            N::Resume,
        ),
        (
            "destination gone, a later attempt has it",
            with(Some(SourceState::Superseded), None),
            V::NotMigrated,
            St::Proven,
            None,
            N::Abort,
        ),
        (
            "a later attempt has it, both run",
            both_run(with(Some(SourceState::Superseded), Some(synced.clone()))),
            V::AlarmSplit,
            St::Observed,
            None,
            N::CallForHelp,
        ),
        (
            "undecided, fencing",
            with(Some(SourceState::Fencing), Some(synced.clone())),
            V::InHandover,
            St::Proven,
            None,
            N::Resume,
        ),
        // 5: undecided, not fenced
        (
            "undecided, copying",
            with(Some(SourceState::Known), Some(DestinationState::Placed)),
            V::Resumable,
            St::Proven,
            Some(EAST),
            N::Resume,
        ),
        (
            "opened only",
            with(Some(SourceState::Known), Some(DestinationState::Known)),
            V::NotStarted,
            St::Proven,
            Some(EAST),
            N::Resume,
        ),
        (
            "never heard of",
            with(Some(SourceState::Unknown), Some(DestinationState::Unknown)),
            V::NotStarted,
            St::Proven,
            Some(EAST),
            N::Resume,
        ),
        // 6: undecided, source unreachable
        (
            "undecided, source unreachable",
            with(None, Some(synced.clone())),
            V::NotMigrated,
            St::Proven,
            None,
            N::Revoke,
        ),
        // 7: destination unreachable, source never fenced
        (
            "destination unreachable, not fenced",
            Evidence { source: Some(SourceState::Known), ..nothing() },
            V::NotMigrated,
            St::Proven,
            Some(EAST),
            N::Resume,
        ),
        (
            "destination unreachable, fencing, no receipt given",
            Evidence { source: Some(SourceState::Fencing), ..nothing() },
            V::NotMigrated,
            St::Proven,
            None,
            N::RestoreDestination,
        ),
        // 8: destination unreachable, source fenced
        (
            "destination unreachable, fenced, no receipt held",
            Evidence { source: Some(fenced()), ..nothing() },
            V::NeedsOperator,
            St::Unknown,
            None,
            N::RestoreDestination,
        ),
        (
            "destination's ledger and placeholder gone, fenced",
            Evidence { source: Some(fenced()), mark: MarkSeen::NoPlaceholder, ..nothing() },
            V::NeedsOperator,
            St::Unknown,
            None,
            N::RestoreDestination,
        ),
        (
            "destination's ledger gone, placeholder bears no mark, fenced",
            Evidence { source: Some(fenced()), mark: absent(), ..nothing() },
            V::InHandover,
            St::Observed,
            None,
            N::Abort,
        ),
        (
            "destination unreachable, fenced, revoke receipt held",
            Evidence { source: Some(fenced()), held: Some(revoke_held.clone()), ..nothing() },
            V::RolledBack,
            St::Proven,
            Some(EAST),
            N::ReleaseSource,
        ),
        (
            "destination unreachable, source retired",
            Evidence { source: Some(RETIRED), ..nothing() },
            V::Completed,
            St::Proven,
            Some(WEST),
            N::RestoreDestination,
        ),
        ("nobody answers", nothing(), V::NeedsOperator, St::Unknown, None, N::RestoreDestination),
        // 9: both run
        (
            "both run, granted",
            both_run(with(None, Some(marked()))),
            V::AlarmSplit,
            St::Observed,
            Some(WEST),
            N::FenceAgain(EAST),
        ),
        (
            "both run, revoked",
            both_run(with(Some(RELEASED), Some(revoked()))),
            V::AlarmSplit,
            St::Observed,
            Some(EAST),
            N::FenceAgain(WEST),
        ),
        (
            "both run, undecided",
            both_run(with(Some(fenced()), Some(synced.clone()))),
            V::AlarmSplit,
            St::Observed,
            None,
            N::FenceAgain(WEST),
        ),
        (
            "both run, nobody knows why",
            both_run(nothing()),
            V::AlarmSplit,
            St::Observed,
            None,
            N::CallForHelp,
        ),
        // 10: an old copy of a ledger
        (
            "destination's ledger is an old copy",
            Evidence { behind: Some(WEST), ..with(Some(fenced()), Some(DestinationState::Known)) },
            V::NeedsOperator,
            St::Observed,
            None,
            N::Quarantine(WEST),
        ),
        (
            "source's ledger is an old copy",
            Evidence { behind: Some(EAST), ..with(Some(SourceState::Known), Some(synced)) },
            V::NeedsOperator,
            St::Observed,
            None,
            N::Quarantine(EAST),
        ),
        (
            "an old copy that grants all the same",
            Evidence { behind: Some(EAST), ..with(Some(SourceState::Known), Some(marked())) },
            V::Completed,
            St::Proven,
            Some(WEST),
            N::Resume,
        ),
        // Beyond the table: what cannot be true.
        (
            "released and granted",
            with(Some(RELEASED), Some(marked())),
            V::NeedsOperator,
            St::Unknown,
            None,
            N::CallForHelp,
        ),
        (
            "revoke receipt held and granted",
            Evidence { held: Some(revoke_held), ..with(None, Some(marked())) },
            V::NeedsOperator,
            St::Unknown,
            None,
            N::CallForHelp,
        ),
    ]
}

#[test]
fn every_row_of_the_decision_rule() {
    for (name, evidence, kind, strength, lives_at, next) in rows() {
        let found = verdict(&evidence);
        assert_eq!(
            (found.verdict, found.strength, found.lives_at, found.next),
            (kind, strength, lives_at, next),
            "{name}: {found:#?}"
        );
        assert!(found.safe.contains(&found.next), "{name}");
        assert!(found.evidence.len() >= 5, "{name}: both sites are always spoken of");
    }
}

#[test]
fn nothing_but_a_decision_or_its_receipt_says_that_it_lives_at_the_destination() {
    for (name, evidence, ..) in rows() {
        let found = verdict(&evidence);
        let decided = matches!(
            evidence.destination,
            Some(
                DestinationState::Granted(_)
                    | DestinationState::Marked(_)
                    | DestinationState::Started(_)
                    | DestinationState::Healthy(_)
            )
        ) || matches!(evidence.mark, MarkSeen::Present(_))
            || matches!(evidence.held, Some(Held::Grant(_)))
            || matches!(evidence.source, Some(SourceState::Retired { .. }));
        assert!(decided || found.lives_at != Some(Side::Destination), "{name}");
    }
}

#[test]
fn taking_back_is_not_called_safe_while_the_mark_cannot_be_looked_at() {
    let mut evidence = nothing();
    evidence.source = Some(fenced());
    evidence.destination = Some(DestinationState::Synced(content(1)));
    assert_eq!(verdict(&evidence).safe, [Next::Resume]);
    evidence.mark = absent();
    assert_eq!(verdict(&evidence).safe, [Next::Resume, Next::Abort]);
}

/// The order of the guest method, from nothing to the end, and what each intent does.
#[test]
fn the_order_of_steps() {
    use {DestinationState as D, Intent::*, SourceState as S};
    let synced = D::Synced(content(1));
    let grant = Destination::marked(content(1)).grant_receipt();
    let revoke = Destination::revoked().revoke_receipt();
    let unsettled = S::Released { settled: false };
    let fence = Source::fenced(content(1)).receipt();
    let cases = [
        (Some(S::Unknown), Some(D::Unknown), Commit, Step::OpenSource),
        (Some(S::Known), Some(D::Unknown), Commit, Step::OpenDestination),
        (Some(S::Known), Some(D::Known), Commit, Step::Place),
        (Some(S::Known), Some(D::Placed), Commit, Step::CopyAndSync),
        (Some(S::Known), Some(synced.clone()), Commit, Step::Fence),
        (Some(S::Fencing), Some(synced.clone()), Commit, Step::Fence),
        (Some(fenced()), Some(synced.clone()), Commit, Step::Grant(fence)),
        (Some(fenced()), Some(granted()), Commit, Step::WriteMark),
        (Some(fenced()), Some(marked()), Commit, Step::Start),
        (Some(fenced()), Some(D::Started(grant.clone())), Commit, Step::AwaitHealth),
        (Some(fenced()), Some(healthy()), Commit, Step::Retire(grant)),
        (Some(S::Retired { settled: false }), Some(healthy()), Commit, Step::Settle),
        (Some(RETIRED), Some(healthy()), Commit, Step::Done(Outcome::Completed)),
        // What the fence holds is not what the targets hold: nobody can drain again.
        (Some(fenced()), Some(D::Synced(content(9))), Commit, Step::Revoke),
        (Some(S::Fencing), Some(D::Placed), Commit, Step::Revoke),
        // Taking back.
        (Some(S::Known), Some(D::Unknown), Abort, Step::Done(Outcome::RolledBack)),
        (Some(S::Known), Some(D::Placed), Abort, Step::Revoke),
        (Some(S::Fencing), Some(D::Unknown), Abort, Step::OpenDestination),
        (Some(fenced()), Some(synced.clone()), Abort, Step::Revoke),
        (None, Some(synced.clone()), Abort, Step::Revoke),
        (Some(fenced()), Some(revoked()), Abort, Step::Release(revoke)),
        (Some(unsettled), Some(revoked()), Abort, Step::Settle),
        (Some(RELEASED), Some(revoked()), Abort, Step::Done(Outcome::RolledBack)),
        // Too late to take back.
        (Some(fenced()), Some(granted()), Abort, Step::WriteMark),
        // One side does not answer.
        (None, Some(synced), Commit, Step::WaitFor(Side::Source)),
        (None, Some(marked()), Commit, Step::Start),
        (None, Some(healthy()), Commit, Step::WaitFor(Side::Source)),
        (Some(fenced()), None, Commit, Step::WaitFor(Side::Destination)),
        (Some(fenced()), None, Abort, Step::WaitFor(Side::Destination)),
        // What cannot be.
        (Some(RELEASED), Some(granted()), Commit, Step::Stop(Contradiction::ReleasedYetGranted)),
        (Some(RETIRED), Some(revoked()), Commit, Step::Stop(Contradiction::RetiredYetRevoked)),
        (Some(RETIRED), Some(D::Placed), Commit, Step::Stop(Contradiction::DecisionLost)),
    ];
    for (source, destination, intent, step) in cases {
        let found = next_step(source.as_ref(), destination.as_ref(), intent);
        assert_eq!(found, step, "{source:?} / {destination:?} / {intent:?}");
    }
}

/// That it was started is recorded afterwards: from the ledger alone nobody knows.
#[test]
fn what_was_marked_may_have_been_started() {
    let of = |destination_platform| {
        let destination = Some(marked());
        verdict(&Evidence { destination, destination_platform, ..nothing() }).started
    };
    for unseen in [Platform::Unreachable, Platform::Off, Platform::Absent] {
        assert_eq!(of(unseen), None);
    }
    assert_eq!(of(Platform::Held), Some(false));
    assert_eq!(of(Platform::Running), Some(true));
}
