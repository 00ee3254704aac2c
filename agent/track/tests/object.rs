//! The objects that are checked in are what their source says.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Another clang makes other bytes that would need testing again: install this one.
const CLANG: &str = "clang version 14.";

#[test]
fn the_checked_in_objects_are_what_clang_14_makes_of_the_source() {
    let version = Command::new("clang").arg("--version").output().expect("clang 14 is installed");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(version.contains(CLANG), "the objects are built by clang 14, this is {version}");

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let out = tempfile::tempdir().unwrap();
    let built = Command::new(folder.join("build.sh")).arg(out.path()).status().unwrap();
    assert!(built.success(), "the program does not build");
    for object in ["track.bpf.o", "track-faults.bpf.o"] {
        let checked_in = fs::read(folder.join(object)).unwrap();
        let rebuilt = fs::read(out.path().join(object)).unwrap();
        assert!(checked_in == rebuilt, "{object} is out of date: run agent/track/bpf/build.sh");
    }
}

#[test]
fn the_shipped_object_has_no_switches() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    // Where constants live that a loader can set: the share of events to drop, in the other one.
    let has_switches = |object: &str| {
        let bytes = fs::read(folder.join(object)).unwrap();
        bytes.windows(8).any(|window| window == b".rodata\0")
    };
    assert!(has_switches("track-faults.bpf.o"));
    assert!(!has_switches("track.bpf.o"));
}
