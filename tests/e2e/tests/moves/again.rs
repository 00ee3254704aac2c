//! There and back, again and again, under a guest that writes hard: every time all bytes are
//! compared before the destination starts.

use e2e::{Gate, Scene, SceneOptions, Way};
use lab::Scenario;

#[test]
fn there_and_back_a_guest_that_writes_hard_loses_no_byte() {
    moves_without_loss(2);
}

#[test]
#[ignore = "20 emulated moves take half an hour; two of them run in `make test`, all in `make more`"]
fn twenty_moves_of_a_guest_that_writes_hard_lose_no_byte() {
    moves_without_loss(20);
}

fn moves_without_loss(moves: usize) {
    let options = SceneOptions { write_rate: 1 << 20, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    let mut disks: Vec<_> = scene.disks.iter().map(|disk| disk.path.clone()).collect();
    for nth in 0..moves {
        let (way, back, site, address) = if nth % 2 == 0 {
            (Way::EastToWest, Way::WestToEast, scene.west(), scene.at_west)
        } else {
            (Way::WestToEast, Way::EastToWest, scene.east(), scene.at_east)
        };
        let gate = Gate::new(scene.dir()).unwrap();
        let words = scene.ask_for(way, "migrate", &["--yes", "--gate", &gate.command()]).unwrap();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut moving = scene.command(&words).spawn().unwrap();
        assert!(gate.is_reached(&mut moving).unwrap(), "{:?}", Scene::finish(moving));
        scene.are_equal(&disks, site).unwrap();
        gate.open().unwrap();
        Scene::finish(moving).unwrap().must_exit(0);
        scene.ledger_is_whole(address).unwrap();

        let id = scene.ids().unwrap().pop().expect("it is listed");
        // What is kept of it stands in the way of a migration back, and the refusal says how it goes.
        let words = scene.ask_for(back, "plan", &[]).unwrap();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let refused = scene.causeway(&words).unwrap().must_exit(3).stderr;
        assert!(refused.contains(&format!("causeway discard {id}")), "{refused}");
        scene.causeway(&["discard", &id, "--yes"]).unwrap().must_exit(0);
        for disk in &disks {
            assert!(!disk.exists(), "{} was not deleted", disk.display());
        }
        disks = scene.volumes(site).unwrap();

        // Of all its migrations the last one says where it lives.
        let status = scene.causeway(&["status", "--json"]).unwrap().must_exit(0).json();
        let (last, earlier) = status.split_last().unwrap();
        assert_eq!(last["verdict"]["verdict"], "completed", "{last}");
        assert!(earlier.iter().all(|one| one["superseded_by"] == last["id"]), "{earlier:?}");
    }
}
