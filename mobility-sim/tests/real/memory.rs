//! A VM with memory and disk arrives as it was.

use std::fs;
use std::time::Duration;

use crate::line::Via;
use crate::moving::{How, go};
use crate::vm::{Spec, Vm};

/// Bytes a second: slow enough for packing to pay.
const LINE: Option<u64> = Some(25_000_000);

#[test]
fn a_vm_arrives_with_memory_and_disk_of_which_much_was_only_named() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec::new(dir.path(), 192, 0);
    // What programs consist of, no page of it twice.
    let disk = dir.path().join("first.raw");
    let mut content = fs::read("/usr/bin/qemu-system-x86_64").unwrap();
    content.resize(32 << 20, 0);
    fs::write(&disk, content).unwrap();
    let vm = Vm::start(dir.path(), "first", &spec, &disk, false);
    vm.wait_for("tick 5", Duration::from_secs(120));
    let (mut at, mut without_names) = ((vm, disk), 0);
    for (name, multifd, via) in [
        ("second", None, Via::Blocks),
        ("third", None, Via::Names),
        ("fourth", Some("none"), Via::Names),
    ] {
        let counted = at.0.ticks();
        let took;
        let how = How { multifd, xbzrle: false, via };
        (at, took) = go(dir.path(), name, &spec, at, how, LINE);
        println!("{name}: {took:?}");
        at.0.wait_until("tick", Duration::from_secs(60), |vm| !vm.ticks().is_empty());
        let arrived = at.0.ticks();
        assert!(arrived[0] > *counted.last().unwrap(), "it begins anew: {arrived:?}");
        let sent = took.bytes.memory + took.bytes.disk;
        if via == Via::Blocks {
            without_names = sent;
        } else {
            assert!(sent * 10 < without_names * 9, "{sent} after {without_names}");
        }
    }
}
