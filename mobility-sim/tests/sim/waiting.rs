//! A copy that waits, and that somebody resumes while its agent cannot have libvirtd hold it, or is not there: it stands
//! still again, and is nobody's to end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Power;
use tokio::time::sleep;

use crate::fault::Fault;
use crate::guest::{Domain, Job};
use crate::matrix::{BY_LIBVIRTD, NEAR};
use crate::run::{log, virtually};
use crate::stage::Stage;
use crate::world::{Deed, Driven, Kind, Place};

/// `taken`: what keeps libvirtd from holding it. `sluggish`: it is quicker to refuse that than to say how it is.
fn is_calmed(sluggish: bool, taken: impl FnOnce(&mut Domain)) {
    log();
    virtually(async {
        // Its source's client says nothing more: nothing is decided.
        let stopped = ("K: has heard of finish #1".to_owned(), Fault::StopClient);
        let mut stage = Stage::set(NEAR, vec![stopped]).await;
        let world = Arc::clone(&stage.world);
        let history = async {
            sleep(Duration::from_secs(20)).await;
            world.sluggish.store(sluggish, Ordering::Relaxed);
            world.kill_libvirtd(Place::West, Duration::from_millis(500));
            sleep(Duration::from_millis(600)).await;
            {
                let mut guest = world.guest();
                assert_eq!(guest.power(Place::West), Power::Paused, "it waits");
                let domain = guest.domain(Place::West).unwrap();
                assert!(!domain.held, "it is held again already");
                taken(domain);
                guest.resumes(Place::West);
            }
            sleep(Duration::from_secs(4)).await;
            assert_eq!(world.guest().power(Place::West), Power::Paused, "it runs on");
        };
        tokio::select! {
            () = stage.play() => panic!("it was over before somebody resumed it"),
            () = history => {}
        }
    });
}

/// Whoever asks waits for its end.
#[test]
fn while_another_job_has_it() {
    is_calmed(false, |domain| domain.job = Job::Begun);
}

#[test]
fn where_libvirtd_refuses_to_hold_it() {
    is_calmed(false, |domain| domain.held = true);
}

#[test]
fn where_libvirtd_refuses_to_hold_it_before_it_has_said_that_it_runs() {
    is_calmed(true, |domain| domain.held = true);
}

/// What it wrote is nowhere else, and the source's own is older: both stay, and one runs.
#[test]
fn one_that_ran_while_its_agent_was_away_is_neither_taken_for_the_vm_nor_ended() {
    ran_meanwhile(Fault::KillAgent(Place::West), false);
}

/// By then it stands still again: nobody knows that it ran.
#[test]
fn nor_is_it_where_the_agent_has_lost_its_state() {
    ran_meanwhile(Fault::LoseState(Place::West), true);
}

fn ran_meanwhile(away: Fault, suspended: bool) {
    log();
    virtually(async {
        let heard = || "K: has heard of finish #1".to_owned();
        let plan = vec![(heard(), Fault::KillClient), (heard(), away)];
        let mut stage = Stage::set(Kind { driven: Driven::ByVirsh, ..BY_LIBVIRTD }, plan).await;
        let world = Arc::clone(&stage.world);
        let history = async {
            world.until_struck(2).await;
            // The source is left paused, and looked at for ten seconds before anything is done about it.
            world.operator(Place::West, Deed::Resume);
            assert_eq!(world.guest().power(Place::West), Power::Running, "the control");
            if suspended {
                world.guest().pauses(Place::West, false);
            }
            sleep(Duration::from_secs(6)).await;
            assert_eq!(world.guest().power(Place::West), Power::Paused, "it runs on");
            sleep(Duration::from_secs(100)).await;
            let mut guest = world.guest();
            assert_eq!(guest.power(Place::East), Power::Running, "nobody runs it");
            assert_eq!(guest.power(Place::West), Power::Paused);
            assert!(guest.host(Place::West).disks.is_some(), "its disks are gone");
        };
        tokio::select! {
            () = stage.play() => panic!("it was over before anybody looked"),
            () = history => {}
        }
    });
}

/// Its agent has lost its state, and finds that an attempt of long ago was revoked: that has nothing to do with it.
#[test]
fn one_that_came_in_another_way_since_runs_on() {
    log();
    virtually(async {
        // It is whole there, and the source does not hear of it.
        let lost = ("wan 1, W's write 6 #1".to_owned(), Fault::BreakCalls);
        let mut stage = Stage::set(BY_LIBVIRTD, vec![lost]).await;
        let world = Arc::clone(&stage.world);
        stage.play().await;
        assert_eq!(world.struck().len(), 1);
        assert_eq!(world.guest().power(Place::West), Power::Absent, "it stays");
        assert!(world.passed().iter().any(|place| place == "W asks: power off #1"), "it was whole");
        world.guest().host(Place::West).domain = Some(Domain::running(1, true));
        world.loses_state(Place::West);
        // Whose it is is not known at once.
        world.strikes_next("W asks: placeholder", Fault::RestartLibvirtd(Place::West));
        world.kill_agent(Place::West, Duration::from_secs(1));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.guest().power(Place::West), Power::Running, "it was suspended");
        assert!(!world.guest().domain(Place::West).unwrap().held, "it is held");
    });
}
