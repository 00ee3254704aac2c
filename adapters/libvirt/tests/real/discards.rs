//! Retired sources that are deleted: all of it or nothing, and never the only copy.

use std::os::unix::fs::FileExt as _;

use site::{Site, SiteErrorKind};

use crate::daemon::{Daemon, Network};
use crate::fences::fence;
use crate::guest::{Format, Guest};

fn targets(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn snapshots_and_checkpoints_do_not_keep_a_definition_whose_disks_are_deleted() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    for made in ["snapshot-create-as", "checkpoint-create-as"] {
        let guest = Guest::define(&daemon, "web1", Format::Qcow2);
        daemon.virsh(&["start", "web1"]).unwrap();
        assert!(guest.came_up(&daemon));
        daemon.virsh(&[made, "web1", "before"]).unwrap();
        let (definition, disks, _) = fence(&site, &guest).await;
        let name = site.retire(guest.id, &definition).await.unwrap();
        let refused = daemon.virsh(&["undefine", &name]).unwrap_err();
        assert!(refused.contains("cannot delete inactive domain"), "{refused}");
        let discarded =
            site.discard(guest.id, &[definition, disks], &targets(&["vda"])).await.unwrap();
        assert_eq!(discarded.removed.len(), 2, "{made}: {discarded:?}");
        assert!(!guest.image.exists() && daemon.virsh(&["dominfo", &name]).is_err(), "{made}");
    }
}

#[tokio::test]
async fn saved_memory_and_a_disk_that_never_moved_are_refused_before_anything_is_deleted() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let guest = Guest::describe(&daemon, "web1", Format::Raw, &daemon.images());
    let second = daemon.images().join("second.raw");
    std::fs::copy(&guest.image, &second).unwrap();
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vdb' bus='virtio'/></disk><serial type=",
        second.display()
    );
    daemon.define("define", &guest.xml.replace("<serial type=", &disk));
    daemon.virsh(&["start", "web1"]).unwrap();
    let (definition, disks, _) = fence(&site, &guest).await;
    let records = [definition, disks];
    let fenced = (std::fs::read(&guest.image).unwrap(), std::fs::read(&second).unwrap());
    let both = targets(&["vda", "vdb"]);

    let refused = site.discard(guest.id, &records, &targets(&["vda"])).await.unwrap_err();
    assert_eq!(refused.kind, SiteErrorKind::Conflict);
    assert!(refused.what.contains("vdb") && refused.what.contains("only copy"), "{refused}");

    site.fence_undo(guest.id, &records[0]).await.unwrap();
    daemon.virsh(&["start", "web1"]).unwrap();
    site.fence_apply(guest.id, &records[0]).await.unwrap();
    daemon.virsh(&["managedsave", "web1"]).unwrap();
    let refused = site.discard(guest.id, &records, &both).await.unwrap_err();
    assert_eq!(refused.kind, SiteErrorKind::WrongState);
    assert!(refused.what.contains("saved memory"), "{refused}");
    let now = (std::fs::read(&guest.image).unwrap(), std::fs::read(&second).unwrap());
    assert!(now == fenced, "a refusal touched a disk");
    daemon.virsh(&["managedsave-remove", "web1"]).unwrap();

    // As if the first had been deleted by a call that was interrupted, and the second used since.
    std::fs::remove_file(&guest.image).unwrap();
    let image = std::fs::OpenOptions::new().write(true).open(&second).unwrap();
    image.write_all_at(&[1; 512], 0).unwrap();
    let refused = site.discard(guest.id, &records, &both).await.unwrap_err();
    assert_eq!(refused.kind, SiteErrorKind::Platform, "it reads as if nothing was deleted");
    assert!(refused.what.contains("web1.raw is not found any more"), "{refused}");
    image.write_all_at(&fenced.1[..512], 0).unwrap();
    let discarded = site.discard(guest.id, &records, &both).await.unwrap();
    assert_eq!((discarded.removed.len(), discarded.left.len()), (2, 1), "{discarded:?}");
}
