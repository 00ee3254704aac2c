//! Fences, against everything that an administrator or the host might do by mistake.

use std::os::unix::fs::FileExt as _;
use std::process::Command;

use model::Power;
use site::{FenceStage, Site, SiteErrorKind, StoppedBy, UnfenceRecord};
use site_libvirt::LibvirtSite;

use crate::daemon::{Daemon, Network};
use crate::guest::{Format, Guest};

/// One way of bringing a VM up: `true` if its guest, or a twin's on the same disk, came up. Whatever
/// started is off again afterwards, and the definition as it was.
type Attempt = fn(&Daemon, &Guest) -> bool;

/// ... and what people call it.
type Way = (&'static str, Attempt);

/// Those of every VM.
const ATTEMPTS: &[Way] = &[
    ("virsh start", by_start),
    ("create of a saved definition", by_create),
    ("define again and start", by_defining_again),
    ("autostart after libvirtd began again", by_autostart),
    ("another VM with the same disk", by_another_vm),
];

/// From memory that was saved.
const RESTORE: Way = ("virsh restore", by_restore);
/// Where snapshots lie in the image.
const SNAPSHOT: Way = ("virsh snapshot-revert", by_snapshot_revert);

fn by_start(daemon: &Daemon, guest: &Guest) -> bool {
    started(daemon, guest, |daemon| daemon.virsh(&["start", &guest.name]))
}

fn by_create(daemon: &Daemon, guest: &Guest) -> bool {
    started(daemon, guest, |daemon| daemon.try_define("create", &guest.xml))
}

fn by_defining_again(daemon: &Daemon, guest: &Guest) -> bool {
    let there = daemon.virsh(&["dumpxml", "--inactive", &guest.name]).unwrap();
    daemon.define("define", &guest.xml);
    let up = by_start(daemon, guest);
    daemon.define("define", &there);
    up
}

fn by_autostart(daemon: &Daemon, guest: &Guest) -> bool {
    // Somebody switched it on again: it is the definition that must hold.
    daemon.virsh(&["autostart", &guest.name]).unwrap();
    let up = started(daemon, guest, |daemon| {
        daemon.restart();
        let state = daemon.virsh(&["domstate", &guest.name])?;
        if state.contains("running") { Ok(state) } else { Err(state) }
    });
    daemon.virsh(&["autostart", "--disable", &guest.name]).unwrap();
    up
}

/// From memory that was saved before: it looks for no system, and needs its disk all the same.
fn by_restore(daemon: &Daemon, guest: &Guest) -> bool {
    let saved = daemon.path(&format!("{}.saved", guest.name));
    let path = saved.to_str().unwrap();
    if !saved.exists() {
        assert!(started_and(daemon, guest, &["save", &guest.name, path]), "it does not save");
    }
    started(daemon, guest, |daemon| daemon.virsh(&["restore", "--running", path]))
}

fn by_snapshot_revert(daemon: &Daemon, guest: &Guest) -> bool {
    let name = &guest.name;
    if daemon.virsh(&["snapshot-list", "--name", name]).unwrap().trim().is_empty() {
        assert!(started_and(daemon, guest, &["snapshot-create-as", name, "before"]));
        daemon.virsh(&["destroy", name]).unwrap();
    }
    started(daemon, guest, |daemon| {
        daemon.virsh(&["snapshot-revert", name, "before", "--running", "--force"])
    })
}

fn started_and(daemon: &Daemon, guest: &Guest, then: &[&str]) -> bool {
    guest.listen(daemon);
    daemon.virsh(&["start", &guest.name]).unwrap();
    guest.came_up(daemon) && daemon.virsh(then).is_ok()
}

fn by_another_vm(daemon: &Daemon, guest: &Guest) -> bool {
    let twin = guest.twin(daemon, "twin");
    started(daemon, &twin, |daemon| daemon.try_define("create", &twin.xml))
}

fn started(
    daemon: &Daemon,
    guest: &Guest,
    start: impl FnOnce(&Daemon) -> Result<String, String>,
) -> bool {
    guest.listen(daemon);
    let up = start(daemon).is_ok() && guest.came_up(daemon);
    let _ = daemon.virsh(&["destroy", &guest.name]);
    up
}

/// Fences a running guest in both stages; what was on its disk at the fence is returned too.
pub async fn fence(site: &LibvirtSite, guest: &Guest) -> (UnfenceRecord, UnfenceRecord, Vec<u8>) {
    let definition = site.fence_capture(guest.id, FenceStage::Definition).await.unwrap();
    site.fence_apply(guest.id, &definition).await.unwrap();
    site.power_off(guest.id).await.unwrap();
    let content = std::fs::read(&guest.image).unwrap();
    let disks = site.fence_capture(guest.id, FenceStage::Disks).await.unwrap();
    site.fence_apply(guest.id, &disks).await.unwrap();
    assert!(site.fence_holds(guest.id, &definition).await.unwrap());
    assert!(site.fence_holds(guest.id, &disks).await.unwrap());
    (definition, disks, content)
}

async fn unfence(site: &LibvirtSite, guest: &Guest, records: [&UnfenceRecord; 2]) {
    for record in records {
        site.fence_undo(guest.id, record).await.unwrap();
        assert!(!site.fence_holds(guest.id, record).await.unwrap());
    }
}

/// Every way in fails while fenced; each was seen to work before and works again after.
async fn nothing_gets_past(daemon: &Daemon, site: &LibvirtSite, guest: &Guest, more: &[Way]) {
    let attempts = || ATTEMPTS.iter().chain(more);
    for (way, attempt) in attempts() {
        assert!(attempt(daemon, guest), "the control did not come up: {way}");
    }
    daemon.virsh(&["start", &guest.name]).unwrap();
    let (definition, disks, content) = fence(site, guest).await;
    for (way, attempt) in attempts() {
        assert!(!attempt(daemon, guest), "the fence did not stop: {way}");
    }
    assert!(site.fence_holds(guest.id, &disks).await.unwrap(), "an attempt broke the fence");
    unfence(site, guest, [&disks, &definition]).await;
    assert!(std::fs::read(&guest.image).unwrap() == content, "the disk is not as it was");
    for (way, attempt) in attempts() {
        assert!(attempt(daemon, guest), "without its fence it does not come up: {way}");
    }
}

#[tokio::test]
async fn by_api_alone_a_fenced_raw_disk_does_not_come_up() {
    let daemon = Daemon::start(Network::Private);
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    // Memory that was saved of it gets past, and that is said.
    let offer = daemon.site().fence_offer(guest.id).await.unwrap();
    assert!(offer.does_not_stop.iter().any(|what| what.contains("virsh save")), "{offer:?}");
    nothing_gets_past(&daemon, &daemon.site(), &guest, &[]).await;
}

#[tokio::test]
async fn by_api_alone_a_fenced_qcow2_disk_does_not_come_up() {
    let daemon = Daemon::start(Network::Private);
    let guest = Guest::define_in(&daemon, "web1", Format::Qcow2, &daemon.other());
    nothing_gets_past(&daemon, &daemon.site(), &guest, &[RESTORE, SNAPSHOT]).await;
}

#[tokio::test]
async fn with_host_access_a_fenced_disk_is_not_even_opened() {
    let daemon = Daemon::start(Network::Shared);
    let site = daemon.site_with_host();
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    let offer = site.fence_offer(guest.id).await.unwrap();
    let means: Vec<_> = offer.means.iter().map(|means| means.name.as_str()).collect();
    assert_eq!(means, ["definition", "disk-header", "image-renamed", "image-immutable"]);
    nothing_gets_past(&daemon, &site, &guest, &[RESTORE]).await;

    daemon.virsh(&["start", &guest.name]).unwrap();
    let (_, disks, _) = fence(&site, &guest).await;
    assert!(!guest.image.exists(), "the image has its own name still");
    let refused = daemon.try_define("create", &guest.twin(&daemon, "twin").xml).unwrap_err();
    assert!(refused.contains("No such file"), "{refused}");
    // Whoever finds it under its new name can neither write nor remove it.
    let renamed = guest.image.with_extension("raw.causeway-fenced");
    let write = std::fs::OpenOptions::new().write(true).open(&renamed);
    assert!(write.is_err(), "a fenced image can be written");
    site.fence_undo(guest.id, &disks).await.unwrap();
    assert!(guest.image.exists());
}

#[tokio::test]
async fn a_disk_in_use_is_never_fenced() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    let content = std::fs::read(&guest.image).unwrap();
    let record = site.fence_capture(guest.id, FenceStage::Disks).await.unwrap();

    // By another VM, seen when it is captured and when it is fenced.
    let twin = guest.twin(&daemon, "twin");
    daemon.define("define", &twin.xml);
    daemon.virsh(&["start", "--paused", "twin"]).unwrap();
    let captured = site.fence_capture(guest.id, FenceStage::Disks).await.unwrap_err();
    assert_eq!(captured.kind, SiteErrorKind::WrongState);
    let applied = site.fence_apply(guest.id, &record).await.unwrap_err();
    assert_eq!(applied.kind, SiteErrorKind::WrongState);
    assert!(applied.what.contains("twin"), "{applied}");
    daemon.virsh(&["destroy", "twin"]).unwrap();

    // By itself, paused.
    daemon.virsh(&["start", "--paused", "web1"]).unwrap();
    let applied = site.fence_apply(guest.id, &record).await.unwrap_err();
    assert_eq!(applied.kind, SiteErrorKind::WrongState);
    daemon.virsh(&["destroy", "web1"]).unwrap();
    assert!(std::fs::read(&guest.image).unwrap() == content, "a disk in use was written");
    site.fence_apply(guest.id, &record).await.unwrap();
    assert!(site.fence_holds(guest.id, &record).await.unwrap(), "the control does not hold");
}

#[tokio::test]
async fn a_disk_used_since_it_was_captured_is_not_fenced_with_the_old_record() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    let record = site.fence_capture(guest.id, FenceStage::Disks).await.unwrap();
    assert!(by_start(&daemon, &guest), "the guest has not written");
    let stale = site.fence_apply(guest.id, &record).await.unwrap_err();
    assert_eq!(stale.kind, SiteErrorKind::Conflict);
    // Undoing what was never made leaves the newer bytes alone.
    let content = std::fs::read(&guest.image).unwrap();
    site.fence_undo(guest.id, &record).await.unwrap();
    assert!(std::fs::read(&guest.image).unwrap() == content, "old bytes were put back");
}

#[tokio::test]
async fn a_fence_cut_off_in_the_middle_is_made_whole_or_undone() {
    let daemon = Daemon::start(Network::Shared);
    let site = daemon.site_with_host();
    for ending in ["apply", "undo"] {
        let guest = Guest::define(&daemon, ending, Format::Raw);
        let content = std::fs::read(&guest.image).unwrap();
        let record = site.fence_capture(guest.id, FenceStage::Disks).await.unwrap();
        site.fence_apply(guest.id, &record).await.unwrap();
        // As if the host had died with half of the notice written and the image not yet renamed.
        let renamed = guest.image.with_extension("raw.causeway-fenced");
        let unlocked = Command::new("chattr").arg("-i").arg(&renamed).status().unwrap();
        assert!(unlocked.success());
        std::fs::rename(&renamed, &guest.image).unwrap();
        let image = std::fs::OpenOptions::new().write(true).open(&guest.image).unwrap();
        image.write_all_at(&content[8192..40_960], 8192).unwrap();
        drop(image);
        assert!(!site.fence_holds(guest.id, &record).await.unwrap(), "half a fence holds");
        if ending == "apply" {
            site.fence_apply(guest.id, &record).await.unwrap();
            assert!(site.fence_holds(guest.id, &record).await.unwrap());
        }
        site.fence_undo(guest.id, &record).await.unwrap();
        assert!(std::fs::read(&guest.image).unwrap() == content, "{ending}");
    }
}

#[tokio::test]
async fn a_transient_vm_is_fenced_while_it_runs_and_transient_again_without() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let guest = Guest::describe(&daemon, "web1", Format::Qcow2, &daemon.images());
    daemon.define("create", &guest.xml);
    assert!(guest.came_up(&daemon));

    let record = site.fence_capture(guest.id, FenceStage::Definition).await.unwrap();
    site.fence_apply(guest.id, &record).await.unwrap();
    assert!(site.fence_holds(guest.id, &record).await.unwrap());
    assert_eq!(site.power(guest.id).await.unwrap(), Power::Running);
    site.fence_undo(guest.id, &record).await.unwrap();
    assert!(!site.vm("web1").await.unwrap().persistent, "it stays defined");

    let (definition, disks, content) = fence(&site, &guest).await;
    assert!(!by_start(&daemon, &guest) && !by_create(&daemon, &guest), "it comes up");
    // It was off when the fence was taken off: it has to be defined to be started.
    unfence(&site, &guest, [&disks, &definition]).await;
    assert!(std::fs::read(&guest.image).unwrap() == content);
    site.power_on(guest.id).await.unwrap();
    assert!(guest.came_up(&daemon));
}

/// Its definition names nothing that there is, and yet it may be the only good copy.
#[tokio::test]
async fn a_volume_of_a_fenced_vm_is_not_removed_as_an_earlier_migrations() {
    let daemon = Daemon::start(Network::Private);
    let (site, guest) = (daemon.site(), Guest::define(&daemon, "web1", Format::Raw));
    // Left of a migration that had a volume of that name.
    std::fs::write(daemon.images().join("causeway.earlier.web1.raw.owner"), []).unwrap();
    daemon.virsh(&["pool-refresh", "images"]).unwrap();
    daemon.virsh(&["start", &guest.name]).unwrap();
    let (definition, disks, content) = fence(&site, &guest).await;
    let left = site.leftovers(&"earlier".parse().unwrap()).await.unwrap();
    let [volume] = &left[..] else { panic!("{left:?}") };
    let refused = site.remove(volume).await.unwrap_err();
    assert_eq!(refused.kind, SiteErrorKind::WrongState, "{refused}");
    assert!(std::fs::read(&guest.image).is_ok(), "the disk of a fenced VM was removed");
    unfence(&site, &guest, [&disks, &definition]).await;
    assert!(std::fs::read(&guest.image).unwrap() == content, "the disk is not as it was");
}

#[tokio::test]
async fn a_fence_is_not_put_over_another_ones_or_over_saved_memory() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    let first = site.fence_capture(guest.id, FenceStage::Definition).await.unwrap();
    let second = site.fence_capture(guest.id, FenceStage::Definition).await.unwrap();
    site.fence_apply(guest.id, &first).await.unwrap();
    // A capture of the fenced definition would be taken for the VM's own.
    let captured = site.fence_capture(guest.id, FenceStage::Definition).await.unwrap_err();
    assert_eq!(captured.kind, SiteErrorKind::WrongState);
    for refused in [
        site.fence_apply(guest.id, &second).await,
        site.fence_undo(guest.id, &second).await,
        site.retire(guest.id, &second).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind, SiteErrorKind::Conflict);
    }
    assert!(!site.fence_holds(guest.id, &second).await.unwrap());
    site.fence_undo(guest.id, &first).await.unwrap();

    assert!(daemon.virsh(&["start", "web1"]).is_ok() && guest.came_up(&daemon));
    daemon.virsh(&["managedsave", "web1"]).unwrap();
    let record = site.fence_capture(guest.id, FenceStage::Definition).await.unwrap();
    let saved = site.fence_apply(guest.id, &record).await.unwrap_err();
    assert_eq!(saved.kind, SiteErrorKind::WrongState);
    assert!(saved.what.contains("saved memory"), "{saved}");

    daemon.virsh(&["managedsave-remove", "web1"]).unwrap();
    // Saved once the fence was there, by somebody or by the host as it goes down.
    assert!(daemon.virsh(&["start", "web1"]).is_ok() && guest.came_up(&daemon));
    site.fence_apply(guest.id, &record).await.unwrap();
    site.suspend(guest.id).await.unwrap();
    daemon.virsh(&["managedsave", "web1"]).unwrap();
    assert_eq!(site.stopped_by(guest.id).await.unwrap(), Some(StoppedBy::Saved));
    assert!(!site.fence_holds(guest.id, &record).await.unwrap(), "it holds over saved memory");
    let saved = site.fence_apply(guest.id, &record).await.unwrap_err();
    assert_eq!(saved.kind, SiteErrorKind::WrongState);
    assert!(saved.hint.unwrap().contains("`virsh managedsave-remove web1`"));
    // What the refusal is for: the start takes no notice of the fence.
    daemon.virsh(&["start", "web1"]).unwrap();
    assert_eq!(site.power(guest.id).await.unwrap(), Power::Paused);
    daemon.virsh(&["managedsave", "web1"]).unwrap();
    daemon.virsh(&["managedsave-remove", "web1"]).unwrap();
    assert!(site.fence_holds(guest.id, &record).await.unwrap());
    site.fence_undo(guest.id, &record).await.unwrap();

    daemon.define("define", &guest.xml.replace(">32<", ">48<"));
    let changed = site.fence_apply(guest.id, &record).await.unwrap_err();
    assert_eq!(changed.kind, SiteErrorKind::Conflict);
    let strange = record.body.replace("\"version\":1", "\"version\":9");
    let strange = UnfenceRecord { body: strange, ..record };
    let refused = site.fence_undo(guest.id, &strange).await.unwrap_err();
    assert_eq!(refused.kind, SiteErrorKind::Unsupported);
}
