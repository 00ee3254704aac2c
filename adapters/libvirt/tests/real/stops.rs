//! Ways in which a VM comes to a stop, and back.

use model::Power;
use site::{Site, StoppedBy};

use crate::daemon::{Daemon, Network};
use crate::guest::{Format, Guest};

#[tokio::test]
async fn it_is_known_how_a_vm_came_to_a_stop_until_libvirtd_begins_anew() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    let stopped = async || site.stopped_by(guest.id).await.unwrap();
    assert_eq!(stopped().await, None, "it never ran");

    site.power_on(guest.id).await.unwrap();
    assert_eq!(stopped().await, None, "it runs");
    site.power_off(guest.id).await.unwrap();
    assert_eq!(stopped().await, Some(StoppedBy::PoweredOff));

    // As when its system powers off: QEMU ends by itself.
    site.power_on(guest.id).await.unwrap();
    let _ = daemon.virsh(&["qemu-monitor-command", "--hmp", "web1", "quit"]);
    while site.power(guest.id).await.unwrap() != Power::Off {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(stopped().await, Some(StoppedBy::Shutdown));
    // Switching it off afterwards does not make it one that was powered off.
    site.power_off(guest.id).await.unwrap();
    assert_eq!(stopped().await, Some(StoppedBy::Shutdown));

    std::fs::rename(&guest.image, daemon.other().join("away")).unwrap();
    site.power_on(guest.id).await.unwrap_err();
    assert_eq!(stopped().await, Some(StoppedBy::Other), "a start that failed");
    daemon.restart();
    assert_eq!(stopped().await, None, "libvirtd began anew");
}

#[tokio::test]
async fn a_vm_that_was_paused_when_its_memory_was_saved_runs_when_it_is_powered_on() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    assert!(daemon.virsh(&["start", "web1"]).is_ok() && guest.came_up(&daemon));
    site.suspend(guest.id).await.unwrap();
    daemon.virsh(&["managedsave", "web1"]).unwrap();
    site.power_on(guest.id).await.unwrap();
    assert_eq!(site.power(guest.id).await.unwrap(), Power::Running);
}
