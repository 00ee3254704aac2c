//! An agent of the destination that is back, and does not know all that came to pass: what it does not know, it asks its
//! site.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Power;
use site::StoppedBy;
use site_ledger::native_key;
use tokio::time::sleep;
use units::Epoch;

use crate::fault::Fault;
use crate::guest::{By, Job};
use crate::judge::open;
use crate::matrix::NEAR;
use crate::run::{log, virtually};
use crate::stage::Stage;
use crate::world::{Deed, Place, World};

/// It waits, whole, as its agent loses its state.
const WAITS: &str = "K: has heard of finish #1";

/// Its agent has it run, and is killed before that is on record.
async fn ends_meanwhile(how: StoppedBy) -> Power {
    let killed = ("W has done: resume #1".to_owned(), Fault::KillAgent(Place::West));
    let mut stage = Stage::set(NEAR, vec![killed]).await;
    let world = Arc::clone(&stage.world);
    let ends = async {
        world.until_struck(1).await;
        sleep(Duration::from_millis(200)).await;
        assert_eq!(world.guest().power(Place::West), Power::Running, "the control");
        world.ends(Place::West, how, By::Accident);
        assert_eq!(
            world.guest().power(Place::West),
            Power::Off,
            "it is defined as long as it waits"
        );
    };
    tokio::join!(stage.play(), ends);
    assert!(open(&world, Place::West).is_empty(), "{:?}", open(&world, Place::West));
    assert_eq!(world.guest().violations, [""; 0]);
    world.guest().power(Place::West)
}

/// Its operator does not want it to run, or it runs elsewhere: that it was granted is no reason to start it again.
#[test]
fn one_that_ran_and_was_ended_on_purpose_is_not_started_again() {
    log();
    for how in [StoppedBy::Shutdown, StoppedBy::Saved, StoppedBy::Migrated] {
        assert_ne!(virtually(ends_meanwhile(how)), Power::Running, "{how:?}");
    }
}

/// The control.
#[test]
fn one_that_crashed_is_started_from_its_disks() {
    log();
    assert_eq!(virtually(ends_meanwhile(StoppedBy::Crashed)), Power::Running);
}

/// Its agent has lost its state as it waits; `and` is done while that is away.
fn is_taken_back(and: impl FnOnce(&World)) {
    log();
    virtually(async {
        let lost = (WAITS.to_owned(), Fault::LoseState(Place::West));
        let mut stage = Stage::set(NEAR, vec![lost]).await;
        let world = Arc::clone(&stage.world);
        let meanwhile = async {
            world.until_struck(1).await;
            and(&world);
        };
        tokio::join!(stage.play(), meanwhile);
        assert_eq!(world.guest().power(Place::West), Power::Running, "it waits for ever");
        assert!(open(&world, Place::West).is_empty(), "{:?}", open(&world, Place::West));
        assert_eq!(world.guest().violations, [""; 0]);
    });
}

/// Of another VM.
#[test]
fn papers_that_are_damaged_do_not_hide_the_others() {
    is_taken_back(|world| {
        // In the order of their keys: before and after.
        for vm in ["00000000-0000-4000-8000-000000000000", "ffffffff-ffff-4fff-bfff-ffffffffffff"] {
            let key = native_key(&vm.parse().unwrap(), Epoch(1)).unwrap();
            world.guest().host(Place::West).records.insert(key, b"{".to_vec());
        }
    });
}

#[test]
fn papers_that_were_not_read_are_asked_for_again() {
    let restart = Fault::RestartLibvirtd(Place::West);
    is_taken_back(|world| world.strikes_next("W asks: kept", restart));
    is_taken_back(|world| world.strikes_next("W has done: kept keys", restart));
}

/// Its source's word comes while it is being suspended: it does not stay so. Also where that takes longer than anybody
/// waits.
#[test]
fn one_that_somebody_resumed_runs_also_where_it_is_granted_while_it_is_suspended() {
    for seconds in [10, 60] {
        is_taken_back(|world| {
            world.late.store(seconds, Ordering::Relaxed);
            world.operator(Place::West, Deed::Resume);
            assert_eq!(world.guest().power(Place::West), Power::Running, "the control");
            // It cannot be held meanwhile.
            world.guest().domain(Place::West).unwrap().job = Job::Begun;
        });
    }
}
