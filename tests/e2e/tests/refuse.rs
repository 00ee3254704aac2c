//! Every reason to refuse is found before anything is touched.

use e2e::{Ran, Scene, SceneOptions, VM};
use lab::{Boot, Scenario, VmSpec};

#[test]
fn each_obstacle_is_named_with_its_remedy_and_nothing_is_touched() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let plan = |change: &dyn Fn(&mut Vec<String>)| -> Ran {
        let mut words = scene.ask("plan", &[]).unwrap();
        change(&mut words);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        scene.causeway(&words).unwrap()
    };
    let replace = |words: &mut Vec<String>, flag: &str, value: &str| {
        let at = words.iter().position(|word| word == flag).expect("it is asked for");
        words[at + 1] = value.to_owned();
    };
    let refused = |ran: Ran, code: &str| {
        let ran = ran.must_exit(3);
        assert!(ran.stderr.contains(code), "{code} is not named:\n{}", ran.stderr);
        assert!(ran.stderr.contains("hint: "), "{code} has no remedy:\n{}", ran.stderr);
    };

    plan(&|_| ()).must_exit(0);
    refused(plan(&|words| replace(words, "--network", "other=default")), "network-unmapped");
    refused(plan(&|words| replace(words, "--network", "br0=nowhere")), "network-missing");
    refused(plan(&|words| replace(words, "--pool", "nowhere")), "pool-missing");
    refused(plan(&|words| words[1] = "nobody".to_owned()), "not-found");
    refused(plan(&|words| replace(words, "--to", "mars")), "no site mars");
    refused(plan(&|words| replace(words, "--known-hosts", "/dev/null")), "host key");
    refused(plan(&|words| replace(words, "--guest", "root@10.77.1.9")), "cannot reach");

    let nowhere = ["site", "add", "north", "--uri", "qemu+tcp://10.77.9.9/system"];
    scene.causeway(&nowhere).unwrap().must_exit(0);
    refused(plan(&|words| replace(words, "--to", "north")), "unreachable");

    let mut twin = VmSpec::new(VM, Boot::Disk);
    twin.nics.clear();
    scene.west().define(&twin).unwrap();
    refused(plan(&|_| ()), "name-taken");

    assert!(scene.causeway(&["status"]).unwrap().stdout.contains("no migrations"));
    scene.ledger_is_whole(scene.at_east).unwrap();
}
