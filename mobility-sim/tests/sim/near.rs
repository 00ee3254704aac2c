//! An agent on the source's machine sees its VM's process end: what that does show, and what it does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::Power;
use tokio::time::sleep;

use crate::fault::Fault;
use crate::judge::{Help, Operator, Outcome};
use crate::matrix::{NEAR, places};
use crate::run::{self, Case, Done, log, run_all};
use crate::stage::Stage;
use crate::world::{Deed, Driven, Kind, Place, Who};

fn play(kind: Kind, plan: &[(&str, Fault)]) -> Done {
    log();
    let plan: Vec<_> = plan.iter().map(|(at, fault)| ((*at).to_owned(), *fault)).collect();
    let faults = plan.len();
    let done = Case { kind, plan, operator: Operator::GoesOn }.run();
    assert_eq!(done.violations, [""; 0], "{:?}", done.struck);
    assert_eq!(done.struck.len(), faults, "{:?}", done.struck);
    done
}

/// The connection is virsh's, and stands while its libvirtd has let go of the VM: somebody resumed it, and it crashed.
#[test]
fn where_virsh_leads_it_an_end_shows_nothing() {
    let by_virsh = Kind { driven: Driven::ByVirsh, ..NEAR };
    let heard = "K: has heard of finish #1";
    let back = "libvirtd E is back #1";
    let done = play(
        by_virsh,
        &[
            (heard, Fault::StopClient),
            (heard, Fault::RestartLibvirtd(Place::East)),
            (back, Fault::Operator(Deed::Resume)),
            (back, Fault::KillQemu(Place::East)),
        ],
    );
    assert_eq!(done.outcome, Outcome { moved: false, deeds: vec![Help::Started] });
}

/// Nor does it where virsh takes leave then as if all were well: that it crashed is no word of libvirt's.
#[test]
fn nor_does_it_where_virsh_takes_leave_after_that() {
    let heard = "K: has heard of finish #1";
    let back = "libvirtd E is back #1";
    for near in [true, false] {
        let by_virsh = Kind { driven: Driven::ByVirsh, near, ..NEAR };
        let done = play(
            by_virsh,
            &[
                (heard, Fault::SlowClient),
                (heard, Fault::RestartLibvirtd(Place::East)),
                (back, Fault::Operator(Deed::Resume)),
                (back, Fault::KillQemu(Place::East)),
            ],
        );
        assert_eq!(done.outcome, Outcome { moved: false, deeds: vec![Help::Started] });
    }
}

/// In the moment between the last look at its definition and its end: it is found, and fenced again.
#[test]
fn a_definition_that_was_made_anew_just_before_the_end_does_not_start() {
    let done = play(NEAR, &[("K: confirms #1", Fault::Operator(Deed::Define))]);
    assert_eq!(done.outcome, Outcome { moved: true, deeds: Vec::new() });
}

#[test]
fn success_is_not_said_while_a_definition_of_it_starts() {
    let done = play(NEAR, &[("E has done: fence apply #1", Fault::Operator(Deed::Define))]);
    assert_eq!(done.outcome, Outcome { moved: false, deeds: Vec::new() });
}

/// A libvirtd that comes back has a VM for paused until it has found that its process is no more; or does not know why
/// it is off.
#[test]
fn agent_and_libvirtd_that_come_back_go_on_by_what_was_signed() {
    log();
    let places = places(NEAR);
    let at = |place: &str| places.iter().position(|passed| passed == place).unwrap();
    let (ended, signed) = (at("K: has ended its QEMU #1"), at("E has done: keep #6"));
    // Its libvirtd goes at once, with the agent before it has looked, and after.
    let confirmed = at("K: has confirmed #1");
    let goes: [(usize, &dyn Fn(usize) -> usize); 3] =
        [(ended, &|_| ended), (signed, &|agent| agent), (signed, &|_| confirmed)];
    let cases = goes.map(|(since, goes)| {
        let case = |agent: usize| {
            let plan = [
                (places[goes(agent)].clone(), Fault::KillLibvirtd(Place::East)),
                (places[agent].clone(), Fault::KillAgent(Place::East)),
            ];
            let case = Case { kind: NEAR, plan: plan.to_vec(), operator: Operator::GoesOn };
            (places[agent].clone(), case)
        };
        (since..places.len()).map(case).collect::<Vec<_>>()
    });
    let cases = cases.concat();
    let done = run_all(&cases);
    let moved = Outcome { moved: true, deeds: Vec::new() };
    for ((place, _), done) in cases.iter().zip(&done) {
        assert_eq!(done.outcome, moved, "{place}: {:?}", done.struck);
    }
    let both = done.iter().filter(|done| done.struck.len() == 2).count();
    assert!(both > 100, "{both} of {}", cases.len());
}

/// Its libvirt hears of no success, has it run again, and then its process ends: by that alone nothing is handed over.
#[test]
fn an_end_after_the_connection_broke_is_not_taken_for_a_handover() {
    log();
    let places = places(NEAR);
    let at = |place: &str| places.iter().position(|passed| passed == place).unwrap();
    let finish = at("K: has performed #1")..at("K: has heard of finish #1");
    let cases: Vec<_> = places[finish]
        .iter()
        .map(|place| {
            let ends = ("K: has confirmed #1".to_owned(), Fault::KillQemu(Place::East));
            let plan = vec![(place.clone(), Fault::BreakCalls), ends];
            (place.clone(), Case { kind: NEAR, plan, operator: Operator::Ends })
        })
        .collect();
    let done = run_all(&cases);
    let both = done.iter().filter(|done| done.struck.len() == 2).count();
    assert!(both > 20, "{both} of {}", cases.len());
}

/// Nothing could be granted by what it had said: it does not wait for the other agent with that.
#[test]
fn a_source_that_runs_on_may_be_started_again_before_the_destination_answers() {
    log();
    let at = || "E has done: fence apply #1".to_owned();
    let (east, west) = (Fault::KillAgent(Place::East), Fault::KillAgentForLong(Place::West));
    run::virtually(async {
        let mut stage = Stage::set(NEAR, vec![(at(), east), (at(), west)]).await;
        let world = Arc::clone(&stage.world);
        tokio::select! {
            () = stage.play() => panic!("it was over before the other agent was back"),
            () = sleep(Duration::from_secs(60)) => {}
        }
        assert_eq!(world.struck().len(), 2);
        assert!(world.alive(|no| Who::Agent(Place::West, no)).is_none(), "it is not away");
        assert_eq!(world.guest().power(Place::East), Power::Running);
        let domain = world.guest().domain(Place::East).cloned().unwrap();
        assert!(!domain.fenced, "it does not start any more");
    });
}

/// Also by a libvirt that does not do it itself.
#[test]
fn the_downtime_that_was_allowed_is_put_back_where_it_stays() {
    is_lowered_raised_and_put_back(false);
}

/// A guest that changes much would never fit into what is allowed at first.
#[test]
fn one_that_was_lowered_without_an_answer_is_raised_and_put_back_too() {
    is_lowered_raised_and_put_back(true);
}

fn is_lowered_raised_and_put_back(vague: bool) {
    log();
    run::virtually(async {
        let silent = ("wan 3, E's write 2 #1".to_owned(), Fault::SilenceWan);
        let mut stage = Stage::set(NEAR, vec![silent]).await;
        let world = Arc::clone(&stage.world);
        world.vague.store(vague, Ordering::Relaxed);
        let allowed = || world.guest().domain(Place::East).unwrap().downtime_ms;
        let while_it_goes_on = async {
            sleep(Duration::from_secs(10)).await;
            let first = allowed();
            world.guest().domain(Place::East).unwrap().passes = 5;
            sleep(Duration::from_secs(2)).await;
            (first, allowed())
        };
        let lowered = tokio::select! {
            () = stage.play() => panic!("it was over while the line was silent"),
            lowered = while_it_goes_on => lowered,
        };
        assert_eq!(lowered, (30, 180));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.guest().power(Place::East), Power::Running);
        assert_eq!(allowed(), 300);
    });
}

#[test]
fn it_runs_there_before_the_sources_libvirt_has_looked_whether_it_ended() {
    let places = places(NEAR);
    let at = |place: &str| places.iter().position(|passed| passed == place).unwrap();
    let order = [
        "E has done: fence apply #1",
        "K: has heard of finish #1",
        "K: has ended its QEMU #1",
        "W has done: resume #1",
        "K: looks whether it has gone #1",
    ];
    assert!(order.is_sorted_by_key(|place| at(place)), "{places:#?}");
}
