//! A copy that waits, and that somebody resumes while its agent cannot have libvirtd hold it: it stands still again.

use std::sync::Arc;
use std::time::Duration;

use model::Power;
use tokio::time::sleep;

use crate::fault::Fault;
use crate::guest::{Domain, Job};
use crate::matrix::NEAR;
use crate::run::{log, virtually};
use crate::stage::Stage;
use crate::world::Place;

/// `taken`: what keeps libvirtd from holding it.
fn is_calmed(taken: impl FnOnce(&mut Domain)) {
    log();
    virtually(async {
        // Its source's client says nothing more: nothing is decided.
        let stopped = ("K: has heard of finish #1".to_owned(), Fault::StopClient);
        let mut stage = Stage::set(NEAR, vec![stopped]).await;
        let world = Arc::clone(&stage.world);
        let history = async {
            sleep(Duration::from_secs(20)).await;
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
    is_calmed(|domain| domain.job = Job::Begun);
}

#[test]
fn where_libvirtd_refuses_to_hold_it() {
    is_calmed(|domain| domain.held = true);
}
