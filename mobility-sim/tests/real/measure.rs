//! What a migration takes, by QEMU's own compression and through relays, of one guest in turns.
//!
//! `cargo test --locked --profile lab --workspace --test real_memory -- --ignored --nocapture`. `RATES`
//! (MiB a second that the guest changes, `0 40`), `ROUNDS` (1) and `MBIT` (200, 0 is no limit) say what.

use std::env;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::line::Via;
use crate::moving::{How, Took, go};
use crate::vm::{Spec, Vm};

const fn way(multifd: Option<&'static str>, via: Via) -> How {
    How { multifd, xbzrle: false, via }
}

const WAYS: [(&str, How); 7] = [
    ("multifd zstd 1", way(Some("zstd"), Via::Nothing)),
    ("plain", way(None, Via::Nothing)),
    ("xbzrle", How { xbzrle: true, ..way(None, Via::Nothing) }),
    ("relay, blocks", way(None, Via::Blocks)),
    ("relay, names", way(None, Via::Names)),
    ("  of memory only", way(None, Via::NamesOfMemory)),
    ("  in multifd", way(Some("none"), Via::Names)),
];

fn asked(name: &str, usual: u64) -> u64 {
    env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

#[test]
#[ignore = "a benchmark of ten minutes that asserts no figure; `make bench-native` runs it"]
fn bytes_and_seconds_of_one_guest_in_turns() {
    let rates = env::var("RATES").unwrap_or_else(|_| "1 40".to_owned());
    let bytes_per_s = Some(asked("MBIT", 200) * 125_000).filter(|rate| *rate > 0);
    for rate in rates.split(' ') {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec::new(dir.path(), 512, rate.parse().expect("a number"));
        let disk = dir.path().join("first.raw");
        let image = lab::guest::debian::build().expect("Debian's image").root;
        let copied = Command::new("cp").args(["--sparse=always"]).args([&image, &disk]).status();
        assert!(copied.unwrap().success());
        let vm = Vm::start(dir.path(), "first", &spec, &disk, false);
        vm.wait_for("ready", Duration::from_secs(400));
        let mut at = (vm, disk);
        println!("\n{rate} MiB/s, {bytes_per_s:?} bytes/s");
        println!(
            "{:<16}{:>10}{:>8}{:>10}{:>8}{:>8}{:>8}",
            "", "memory MB", "s", "disk MB", "s", "down ms", "rounds"
        );
        for round in 0..asked("ROUNDS", 1) {
            let mut first = None;
            for (number, (name, how)) in WAYS.into_iter().enumerate() {
                let took;
                (at, took) =
                    go(dir.path(), &format!("{round}-{number}"), &spec, at, how, bytes_per_s);
                show(name, &took, first.get_or_insert(took));
                // It goes on for a while where it is.
                std::thread::sleep(Duration::from_secs(3));
            }
        }
        drop(at);
        fs::remove_dir_all(dir.path()).unwrap();
    }
}

fn show(name: &str, took: &Took, first: &Took) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "{name:<16}{:>10.1}{:>8.1}{:>10.1}{:>8.1}{:>8}{:>8}   memory {:.2} of the first's bytes, {:.2} of its time; mirror's end {:?}, rest of memory {:?}; carried {:.1} MB",
        mb(took.bytes.memory),
        took.memory.as_secs_f64(),
        mb(took.bytes.disk),
        took.disk.as_secs_f64(),
        took.downtime_ms,
        took.rounds,
        mb(took.bytes.memory) / mb(first.bytes.memory),
        took.memory.as_secs_f64() / first.memory.as_secs_f64(),
        took.mirror_end,
        took.rest_of_memory,
        mb(took.carried),
    );
}
