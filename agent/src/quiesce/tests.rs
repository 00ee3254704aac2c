//! Orders that cannot be carried out are refused before anything happens. What freezes is tested
//! inside guests only.

use super::*;
use crate::inspect::testing::FakeSystem;

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_unit_that_is_an_option_is_refused_before_the_warden_starts() {
    let order = Order { units: vec!["--force".to_owned()], ..Order::default() };
    let failed = quiesce(&order, &FakeSystem::new().tree(), &AtomicBool::new(false), || {});
    assert!(matches!(failed.unwrap_err().cause, QuiesceError::UnitName { .. }));
}

/// The order in which a tree's file systems would be frozen. Opens none of them.
fn order_of(system: &FakeSystem, tracked: &[&str]) -> Result<Vec<String>, QuiesceError> {
    let order = Order { tracked: names(tracked), ..Order::default() };
    let tree = system.tree();
    let found = writable(&tree, &order.tracked)?;
    Ok(found.into_iter().map(|one| one.mount.path).collect())
}

#[test]
fn the_deepest_mount_and_what_lies_on_files_come_first_and_the_root_last() {
    let system = FakeSystem::new();
    system.disk("vda", "254:0", 8).partition("vda", "vda1", "254:1").disk("vdb", "254:16", 8);
    system.disk("vdc", "254:32", 8).looped("loop0", "7:0", "/srv/db/image");
    system.mountinfo(
        "20 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
         21 20 254:16 / /srv/db rw - xfs /dev/vdb rw\n\
         22 20 7:0 / /mnt rw - ext4 /dev/loop0 rw\n\
         23 20 254:32 / /other rw - ext4 /dev/vdc rw\n",
    );
    assert_eq!(order_of(&system, &["vda", "vdb"]).unwrap(), ["/mnt", "/srv/db", "/"]);
}

#[test]
fn a_read_only_file_system_is_left_alone() {
    let system = FakeSystem::new();
    system.disk("vda", "254:0", 8);
    system.mountinfo("20 1 254:0 / / ro - ext4 /dev/vda ro\n");
    assert_eq!(order_of(&system, &["vda"]).unwrap(), Vec::<String>::new());
}

#[test]
fn a_file_system_that_no_path_leads_to_is_refused() {
    let system = FakeSystem::new();
    system.disk("vda", "254:0", 8).disk("vdb", "254:16", 8);
    system.file("sys/fs/xfs/vdb/stats/stats", "");
    system.mountinfo("20 1 254:0 / / rw - ext4 /dev/vda rw\n");
    assert!(matches!(order_of(&system, &["vda", "vdb"]), Err(QuiesceError::Unreachable { .. })));
    assert!(order_of(&system, &["vda"]).is_ok(), "vdb is not ours to judge");
}
