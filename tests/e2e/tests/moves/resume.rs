//! kill -9 of the coordinator at chosen moments, then `resume`. At some of them its state directory is
//! lost as well, and `recover` makes it anew from what the sites keep.
//!
//! One migration is killed at each moment in turn; that each of them alone is survived as well is
//! tried by `make more`.

use e2e::killing::{AFTER_THE_GATE, BEFORE_THE_SWITCHOVER, IN_THE_SWITCHOVER, Killing};

fn killed_in_turn(moments: &[&str]) {
    let mut killing = Killing::begin(moments[0]);
    for pair in moments.windows(2) {
        killing = killing.kill_and_resume_until(pair[0], pair[1]);
    }
    killing.end(moments[moments.len() - 1]);
}

#[test]
fn a_migration_that_is_killed_six_times_before_its_switchover_is_resumed() {
    killed_in_turn(&BEFORE_THE_SWITCHOVER);
}

#[test]
fn a_migration_that_is_killed_five_times_in_its_switchover_is_resumed() {
    killed_in_turn(&IN_THE_SWITCHOVER);
}

macro_rules! killed_once {
    ($($name:ident $words:expr;)*) => {
        $(
            #[test]
            #[ignore = "11 moments take half an hour one by one; killed in two chains in `make test`, each alone in `make more`"]
            fn $name() {
                killed_in_turn(&[$words]);
            }
        )*
    };
}

killed_once! {
    a_kill_while_installing_the_agent_is_resumed "installing the agent";
    a_kill_while_creating_volumes_is_resumed "creating";
    a_kill_while_the_helper_starts_is_resumed "starting the helper";
    a_kill_before_the_first_round_is_resumed "phase: copying";
    a_kill_in_the_first_round_is_resumed "round 0:";
    a_kill_when_converged_is_resumed "phase: holding";
    a_kill_while_the_guest_is_frozen_is_resumed "stands still";
    a_kill_while_fencing_is_resumed "phase: fencing";
    a_kill_at_power_off_is_resumed "powering off";
    a_kill_at_the_decision_is_resumed "phase: deciding";
    a_kill_while_the_destination_boots_is_resumed AFTER_THE_GATE;
}
