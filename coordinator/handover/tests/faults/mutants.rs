//! One rule broken at a time, around the product's own functions. Each must be caught: a rule
//! whose loss nobody notices is not tested.

use crate::exhaustive::violation;
use crate::pure::Move;
use crate::world::{Mutant, Restorable, Rules};

fn caught(mutant: Mutant, rules: Rules) {
    let found = violation(Rules { mutant: Some(mutant), ..rules });
    println!("{mutant:?}: {}", found.as_deref().unwrap_or("not caught"));
    assert!(found.is_some(), "{mutant:?} was not caught");
}

fn one_move() -> Rules {
    Rules { writes: 1, moves: vec![Move::First], ..Rules::default() }
}

fn restored(restorable: Restorable) -> Rules {
    Rules { restores: 1, restorable, ..one_move() }
}

#[test]
fn a_receipt_sent_before_its_record_is_durable() {
    caught(Mutant::ReceiptBeforeRecord, one_move());
}

#[test]
fn a_source_that_unfences_on_a_timeout() {
    caught(Mutant::UnfenceOnTimeout, one_move());
}

#[test]
fn a_grant_without_a_fence_receipt_of_the_source() {
    caught(Mutant::GrantWithoutReceipt, one_move());
}

#[test]
fn a_fence_in_the_guest_only() {
    caught(Mutant::FenceInGuestOnly, one_move());
}

#[test]
fn a_release_without_a_revoke_receipt_of_the_destination() {
    caught(Mutant::ReleaseWithoutRevoke, one_move());
}

#[test]
fn a_source_deleted_before_the_grant() {
    caught(Mutant::DeleteEarly, one_move());
}

#[test]
fn a_revocation_that_is_not_written_once() {
    caught(Mutant::RevokeTwice, one_move());
}

#[test]
fn a_sync_that_is_not_read_back_from_the_targets() {
    caught(Mutant::SyncUnseen, one_move());
}

#[test]
fn a_second_mark_in_the_same_place_as_the_ledger() {
    caught(Mutant::MarkInLedgerOnly, restored(Restorable::Granted));
}

#[test]
fn a_revocation_that_does_not_look_at_the_mark() {
    caught(Mutant::RevokeWithoutLooking, restored(Restorable::Granted));
}

#[test]
fn a_start_before_the_second_mark() {
    caught(Mutant::StartBeforeMark, restored(Restorable::Granted));
}

#[test]
fn a_digest_from_before_a_crash_that_is_still_believed() {
    caught(Mutant::DrainBeforeCrashBelieved, one_move());
}

#[test]
fn a_source_that_powers_on_because_its_ledger_says_it_is_home() {
    caught(Mutant::PowerOnByBelief, restored(Restorable::Source));
}

#[test]
fn a_fence_made_before_its_undoing_is_recorded() {
    caught(Mutant::IntentAfterFence, one_move());
}

#[test]
fn blocks_of_an_earlier_round_that_arrive_after_the_sync() {
    caught(Mutant::LateBlocks, one_move());
}

#[test]
fn a_source_retired_without_a_grant_receipt_of_the_destination() {
    caught(Mutant::RetireWithoutGrant, one_move());
}
