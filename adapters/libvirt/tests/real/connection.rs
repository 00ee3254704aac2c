//! What becomes of calls when libvirtd goes away, hangs or says no.

use std::time::Duration;

use model::{Capability, Firmware, NetworkRef, Power};
use site::{Remedy, Site, SiteErrorKind};
use site_libvirt::{LibvirtConfig, LibvirtSite, Limits};

use crate::daemon::{Daemon, Network};
use crate::guest::{Format, Guest};

#[tokio::test]
async fn a_probe_tells_what_is_there() {
    let daemon = Daemon::start(Network::Private);
    let report = daemon.site().probe().await.unwrap();
    assert!(report.platform.starts_with("libvirt ") && report.platform.contains("QEMU "));
    assert_eq!(report.arch, "x86_64");
    assert!(report.machines.contains(&"q35".to_owned()), "{:?}", report.machines);
    assert!(report.firmwares.contains(&Firmware::Bios) && report.vcpus_max > 1);
    assert!(report.cpu_models.contains(&"qemu64".to_owned()), "{:?}", report.cpu_models);
    let pool = &report.pools[0];
    assert_eq!((pool.name.as_str(), pool.kind.as_str(), pool.active), ("images", "dir", true));
    assert!(pool.available.0 > 0 && report.memory_free.is_some_and(|free| free.0 > 0));
    assert_eq!(report.networks[0].network, NetworkRef::Network("default".to_owned()));
    assert!(report.capabilities.contains(&Capability::ManagementChannel));
    assert!(report.capabilities.contains(&Capability::Records), "{report:?}");
    assert!(!report.capabilities.contains(&Capability::HostAccess));
    assert!(report.warnings.iter().any(|warning| warning.contains("KVM")), "{report:?}");
}

#[tokio::test]
async fn after_libvirtd_began_again_the_next_call_gets_through() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    site.power_on(guest.id).await.unwrap();
    daemon.restart();
    assert_eq!(site.power(guest.id).await.unwrap(), Power::Running);
    daemon.restart();
    // A change too: the dead connection is found out before anything is asked of it.
    site.power_off(guest.id).await.unwrap();
    assert_eq!(site.power(guest.id).await.unwrap(), Power::Off);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirtd_that_hangs_is_unreachable_and_a_change_is_left_open() {
    let daemon = Daemon::start(Network::Private);
    let limits = Limits {
        look: Duration::from_secs(3),
        change: Duration::from_secs(3),
        transfer: Duration::from_secs(3),
    };
    let patient = daemon.site();
    let site = LibvirtSite::new(LibvirtConfig { limits, ..daemon.config() });
    let guest = Guest::define(&daemon, "web1", Format::Raw);
    patient.power_on(guest.id).await.unwrap();
    patient.probe().await.unwrap();

    daemon.signal("STOP");
    let looked = site.power(guest.id).await.unwrap_err();
    assert_eq!(looked.kind, SiteErrorKind::Unreachable);
    assert!(matches!(looked.remedy, Remedy::RetryAfter(_)), "{looked:?}");
    let changed = site.power_off(guest.id).await.unwrap_err();
    assert_eq!((changed.kind, changed.remedy), (SiteErrorKind::Unreachable, Remedy::Reconcile));
    daemon.signal("CONT");
    // Whether it happened, only a look can tell: both are right answers, an error is not.
    patient.power(guest.id).await.unwrap();
}

#[tokio::test]
async fn a_uri_that_leads_nowhere_is_unreachable_and_may_be_tried_again() {
    let daemon = Daemon::start(Network::Private);
    for uri in [
        "qemu+unix:///system?socket=/nonexistent/socket".to_owned(),
        "qemu+tcp://127.0.0.1:1/system".to_owned(),
    ] {
        let site = LibvirtSite::new(LibvirtConfig { uri, ..daemon.config() });
        let error = site.probe().await.unwrap_err();
        assert_eq!(error.kind, SiteErrorKind::Unreachable, "{error:?}");
        assert!(matches!(error.remedy, Remedy::RetryAfter(_)) && error.hint.is_some(), "{error:?}");
    }
}

#[tokio::test]
async fn what_is_missing_is_named_with_what_is_there() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    Guest::define(&daemon, "web1", Format::Raw);
    let error = site.vm("web2").await.unwrap_err();
    assert_eq!((error.kind, error.remedy), (SiteErrorKind::NotFound, Remedy::GiveUp));
    assert!(error.hint.unwrap().contains("web1"));
    let spec = crate::helper::spec("web2");
    let disk = site::NewDisk { pool: "fast".to_owned(), ..spec.disks[0].clone() };
    let error = site.create_disk(&spec.migration, &disk).await.unwrap_err();
    assert_eq!(error.kind, SiteErrorKind::NotFound);
    assert!(error.hint.unwrap().contains("images"));
    daemon.virsh(&["pool-destroy", "images"]).unwrap();
    let error = site.create_disk(&spec.migration, &spec.disks[0]).await.unwrap_err();
    assert_eq!(error.kind, SiteErrorKind::WrongState);
}
