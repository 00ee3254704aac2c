//! Fences, against everything that an administrator or the host might do by mistake.

use site::{FenceStage, Site, UnfenceRecord};
use site_libvirt::LibvirtSite;

use crate::daemon::{Daemon, Network};
use crate::guest::{Format, Guest};

/// One way of bringing a VM up: `true` if its guest, or a twin's on the same disk, came up. Whatever
/// started is off again afterwards, and the definition as it was.
type Attempt = fn(&Daemon, &Guest) -> bool;

/// The ways of the acceptance list.
const ATTEMPTS: &[(&str, Attempt)] = &[
    ("virsh start", by_start),
    ("create of a saved definition", by_create),
    ("define again and start", by_defining_again),
    ("autostart after libvirtd began again", by_autostart),
    ("another VM with the same disk", by_another_vm),
];

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
async fn fence(site: &LibvirtSite, guest: &Guest) -> (UnfenceRecord, UnfenceRecord, Vec<u8>) {
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
async fn nothing_gets_past(daemon: &Daemon, site: &LibvirtSite, guest: &Guest) {
    for (way, attempt) in ATTEMPTS {
        assert!(attempt(daemon, guest), "the control did not come up: {way}");
    }
    daemon.virsh(&["start", &guest.name]).unwrap();
    let (definition, disks, content) = fence(site, guest).await;
    for (way, attempt) in ATTEMPTS {
        assert!(!attempt(daemon, guest), "the fence did not stop: {way}");
    }
    assert!(site.fence_holds(guest.id, &disks).await.unwrap(), "an attempt broke the fence");
    unfence(site, guest, [&disks, &definition]).await;
    assert!(std::fs::read(&guest.image).unwrap() == content, "the disk is not as it was");
    for (way, attempt) in ATTEMPTS {
        assert!(attempt(daemon, guest), "without its fence it does not come up: {way}");
    }
}

#[tokio::test]
async fn by_api_alone_a_fenced_raw_disk_does_not_come_up() {
    let daemon = Daemon::start(Network::Private);
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    nothing_gets_past(&daemon, &daemon.site(), &guest).await;
}

#[tokio::test]
async fn by_api_alone_a_fenced_qcow2_disk_does_not_come_up() {
    let daemon = Daemon::start(Network::Private);
    let guest = Guest::define_in(&daemon, "web1", Format::Qcow2, &daemon.other());
    nothing_gets_past(&daemon, &daemon.site(), &guest).await;
}

#[tokio::test]
async fn with_host_access_a_fenced_disk_is_not_even_opened() {
    let daemon = Daemon::start(Network::Shared);
    let site = daemon.site_with_host();
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    let offer = site.fence_offer(guest.id).await.unwrap();
    let means: Vec<_> = offer.means.iter().map(|means| means.name.as_str()).collect();
    assert_eq!(means, ["definition", "disk-header", "image-renamed", "image-immutable"]);
    nothing_gets_past(&daemon, &site, &guest).await;

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
