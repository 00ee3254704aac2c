//! What libvirt keeps for a coordinator, through restarts, crashes and other people's hands.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use site::{RecordKey, Remedy, Site, SiteErrorKind};
use site_libvirt::{LibvirtConfig, LibvirtSite};
use virt::connect::Connect;

use crate::daemon::{Daemon, Network};

fn key(text: &str) -> RecordKey {
    text.parse().unwrap()
}

/// Bytes that no compression makes fewer.
fn incompressible(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let step = |state: &mut u32| {
        *state ^= *state << 13;
        *state ^= *state >> 17;
        *state ^= *state << 5;
        state.wrapping_mul(0x9e37_79b1).to_be_bytes()
    };
    (0..length.div_ceil(4)).flat_map(|_| step(&mut state)).take(length).collect()
}

async fn keys(site: &LibvirtSite) -> Vec<String> {
    site.kept_keys().await.unwrap().into_iter().map(String::from).collect()
}

/// Every secret of the daemon by its description.
fn secrets(daemon: &Daemon) -> BTreeMap<String, String> {
    let listed = daemon.virsh(&["secret-list"]).unwrap();
    let uuids = listed.lines().filter_map(|line| line.split_whitespace().next());
    let described = uuids.map(|uuid| {
        let xml = daemon.virsh(&["secret-dumpxml", uuid]).unwrap();
        let text = xml.split_once("<description>").and_then(|(_, rest)| rest.split_once('<'));
        (text.map_or_else(String::new, |(text, _)| text.to_owned()), uuid.to_owned())
    });
    described.collect()
}

/// Defines a secret as an administrator would.
fn define(daemon: &Daemon, uuid: &str, inside: &str) {
    let xml = format!("<secret ephemeral='no' private='no'><uuid>{uuid}</uuid>{inside}</secret>");
    daemon.define("secret-define", &xml);
}

/// virsh takes shorter values than libvirt does.
fn set_value(daemon: &Daemon, uuid: &str, value: &[u8]) -> Result<(), virt::error::Error> {
    let connection = Connect::open(Some(&daemon.uri()))?;
    connection.lookup_secret_by_uuid_string(uuid)?.set_value(value, 0)
}

fn value(daemon: &Daemon, uuid: &str) -> String {
    daemon.virsh(&["secret-get-value", uuid]).unwrap()
}

/// Where libvirtd keeps secrets.
fn folder(daemon: &Daemon) -> PathBuf {
    daemon.path("root/etc/libvirt/secrets")
}

fn files(daemon: &Daemon) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(folder(daemon)).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn records_outlive_libvirtd_and_are_for_root_alone() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let (small, large) = (key("vm/web1/ledger"), key("vm/web1/papers"));
    let body = incompressible(300_000, 1);
    site.keep(&small, None, b"fenced").await.unwrap();
    site.keep(&large, None, &body).await.unwrap();
    daemon.restart();
    assert_eq!(site.kept(&small).await.unwrap().as_deref(), Some(b"fenced".as_slice()));
    assert!(site.kept(&large).await.unwrap().unwrap() == body);
    assert_eq!(keys(&site).await, ["vm/web1/ledger", "vm/web1/papers"]);
    assert!(secrets(&daemon).len() > 2, "the control has no parts");
    for path in files(&daemon).keys() {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn records_that_were_begun_and_have_no_value_count_as_none() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let one = key("vm/web1/ledger");
    site.keep(&one, None, b"granted").await.unwrap();
    let uuid = secrets(&daemon).remove("causeway record vm/web1/ledger").unwrap();
    daemon.virsh(&["secret-undefine", &uuid]).unwrap();
    for again in 0..2 {
        define(&daemon, &uuid, "<description>causeway record vm/web1/ledger</description>");
        if again > 0 {
            daemon.restart();
        }
        assert_eq!(secrets(&daemon).len(), 1);
        assert_eq!(site.kept(&one).await.unwrap(), None);
        assert!(keys(&site).await.is_empty());
        let replaced = site.keep(&one, Some(b"granted"), b"started").await.unwrap_err();
        assert_eq!(replaced.kind, SiteErrorKind::Conflict);
        site.keep(&one, None, b"started").await.unwrap();
        assert_eq!(site.kept(&one).await.unwrap().as_deref(), Some(b"started".as_slice()));
        site.forget(&one).await.unwrap();
    }
    define(&daemon, &uuid, "<description>causeway record vm/web1/ledger</description>");
    site.forget(&one).await.unwrap();
    assert!(secrets(&daemon).is_empty());
}

#[tokio::test]
async fn records_leave_other_peoples_secrets_alone() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let (ours, other) = (key("vm/web1/ledger"), key("vm/web2/ledger"));
    site.keep(&ours, None, b"ours").await.unwrap();
    let uuid = secrets(&daemon).remove("causeway record vm/web1/ledger").unwrap();
    site.forget(&ours).await.unwrap();

    let theirs = [
        // Words of ours in a place that is not: nobody but us makes UUIDs of them.
        ("5a0c6f3e-0001-4000-8000-000000000001", "causeway record vm/web2/ledger"),
        ("5a0c6f3e-0001-4000-8000-000000000002", "causeway record  vm/web1/ledger"),
        ("5a0c6f3e-0001-4000-8000-000000000003", "causeway record Not A Key"),
        ("5a0c6f3e-0001-4000-8000-000000000004", "causeway part vm/web1/ledger 00 0"),
        ("5a0c6f3e-0001-4000-8000-000000000005", "causeway records"),
        // A place of ours with words that are not.
        (uuid.as_str(), "LUKS passphrase of web1"),
    ];
    for (uuid, description) in theirs {
        define(&daemon, uuid, &format!("<description>{description}</description>"));
        set_value(&daemon, uuid, b"theirs").unwrap();
    }
    let plain = "5a0c6f3e-0001-4000-8000-000000000006";
    define(&daemon, plain, "<usage type='ceph'><name>client.admin secret</name></usage>");

    assert!(keys(&site).await.is_empty());
    assert_eq!(site.kept(&other).await.unwrap(), None);
    site.keep(&other, None, b"ours").await.unwrap();
    assert_eq!(keys(&site).await, ["vm/web2/ledger"]);
    site.forget(&other).await.unwrap();

    let refused = [
        site.keep(&ours, None, b"ours").await.unwrap_err(),
        site.kept(&ours).await.unwrap_err(),
        site.forget(&ours).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!((error.kind, error.remedy), (SiteErrorKind::Conflict, Remedy::GiveUp));
        assert!(error.what.contains(&uuid), "{error}");
    }
    for (uuid, _) in theirs {
        assert_eq!(value(&daemon, uuid).trim(), "dGhlaXJz", "{uuid} is not as it was");
    }
    assert_eq!(daemon.virsh(&["secret-list"]).unwrap().lines().count(), theirs.len() + 1);
}

/// What somebody does to the secret of that UUID.
type Damage<'a> = &'a dyn Fn(&str);

#[tokio::test]
async fn records_that_somebody_damaged_are_errors_and_can_be_forgotten() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let one = key("vm/web1/papers");
    let (body, other) = (incompressible(200_000, 1), incompressible(65_536, 2));
    let damage: [(&str, Damage<'_>); 5] = [
        ("record", &|uuid| set_value(&daemon, uuid, b"nothing of ours").unwrap()),
        ("record", &|uuid| set_value(&daemon, uuid, b"{\"version\":1}\n").unwrap()),
        ("part", &|uuid| set_value(&daemon, uuid, &other).unwrap()),
        ("part", &|uuid| set_value(&daemon, uuid, b"short").unwrap()),
        ("part", &|uuid| drop(daemon.virsh(&["secret-undefine", uuid]).unwrap())),
    ];
    for (nth, (kind, damage)) in damage.iter().enumerate() {
        site.keep(&one, None, &body).await.unwrap();
        let begins = format!("causeway {kind} vm/web1/papers");
        let secrets_now = secrets(&daemon);
        let hit = secrets_now.iter().find(|(description, _)| description.starts_with(&begins));
        damage(hit.unwrap().1);
        let wrong = [
            site.kept(&one).await.unwrap_err(),
            site.keep(&one, Some(&body), b"next").await.unwrap_err(),
            site.keep(&one, None, &body).await.unwrap_err(),
        ];
        for error in wrong {
            assert_eq!((error.kind, error.remedy), (SiteErrorKind::Platform, Remedy::GiveUp));
            assert!(error.what.contains("damaged") && error.hint.is_some(), "{nth}: {error}");
        }
        assert_eq!(keys(&site).await, ["vm/web1/papers"], "it is hidden");
        site.forget(&one).await.unwrap();
        assert!(secrets(&daemon).is_empty(), "{nth}: {:?}", secrets(&daemon));
    }
    let uuid = {
        site.keep(&one, None, b"").await.unwrap();
        secrets(&daemon).remove("causeway record vm/web1/papers").unwrap()
    };
    set_value(&daemon, &uuid, b"{\"version\":2}\n").unwrap();
    let later = site.kept(&one).await.unwrap_err();
    assert_eq!(later.kind, SiteErrorKind::Unsupported, "{later}");
    assert!(later.what.contains("version 2") && later.hint.is_some(), "{later}");
}

/// Both states that a crash in the middle of a replacement leaves, made by hand.
#[tokio::test]
async fn records_whose_replacement_was_cut_off_are_the_old_or_the_new_one() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let one = key("vm/web1/papers");
    let (old, new) = (incompressible(150_000, 1), incompressible(250_000, 2));
    site.keep(&one, None, &old).await.unwrap();
    let before = files(&daemon);
    site.keep(&one, Some(&old), &new).await.unwrap();
    let after = files(&daemon);
    assert!(before.keys().any(|path| !after.contains_key(path)), "the old parts are still there");

    // Old parts and new ones, and the head of one of them.
    for (head, body) in [(&before, &old), (&after, &new)] {
        daemon.signal("KILL");
        for (path, content) in before.iter().chain(&after).chain(head) {
            fs::write(path, content).unwrap();
        }
        daemon.restart();
        let parts = secrets(&daemon).len() - 1;
        assert_eq!(parts, 3 + 4);
        assert_eq!(keys(&site).await, ["vm/web1/papers"]);
        assert!(site.kept(&one).await.unwrap().unwrap() == *body);
        // What was cut off is done again.
        site.keep(&one, Some(&old), &new).await.unwrap();
        assert!(site.kept(&one).await.unwrap().unwrap() == new);
    }
    site.forget(&one).await.unwrap();
    assert!(secrets(&daemon).is_empty() && files(&daemon).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_whole_when_libvirtd_is_killed_while_it_writes() {
    let daemon = Daemon::start(Network::Private);
    let site = Arc::new(daemon.site());
    let one = key("vm/web1/papers");
    let mut there = incompressible(4 << 20, 1);
    site.keep(&one, None, &there).await.unwrap();
    for seed in 2..6 {
        let next = incompressible(4 << 20, seed);
        let keeping = {
            let (site, one) = (Arc::clone(&site), one.clone());
            let (there, next) = (there.clone(), next.clone());
            tokio::spawn(async move { site.keep(&one, Some(&there), &next).await })
        };
        tokio::time::sleep(Duration::from_millis(u64::from(seed) * 50)).await;
        daemon.signal("KILL");
        let answer = keeping.await.unwrap();
        daemon.restart();
        let found = site.kept(&one).await.unwrap().unwrap();
        assert!(found == there || found == next, "neither the old record nor the new one");
        match answer {
            Ok(()) => assert!(found == next, "what was kept is lost"),
            Err(error) => assert_ne!(error.remedy, Remedy::GiveUp, "{error}"),
        }
        there = found;
    }
    site.forget(&one).await.unwrap();
    assert!(secrets(&daemon).is_empty(), "{:?}", secrets(&daemon));
}

#[tokio::test]
async fn records_are_split_where_libvirt_takes_no_more() {
    let daemon = Daemon::start(Network::Private);
    let uuid = "5a0c6f3e-0001-4000-8000-000000000001";
    define(&daemon, uuid, "");
    let most = incompressible(65_536, 1);
    set_value(&daemon, uuid, &most).unwrap();
    let connection = Connect::open(Some(&daemon.uri())).unwrap();
    let secret = connection.lookup_secret_by_uuid_string(uuid).unwrap();
    assert!(secret.value(0).unwrap() == most);
    let refused = set_value(&daemon, uuid, &incompressible(65_537, 1)).unwrap_err();
    assert!(refused.message().contains("65537 > 65536"), "{refused}");
    assert!(secret.value(0).unwrap() == most);
}

#[tokio::test]
async fn records_that_a_libvirt_does_not_keep_are_refused_with_a_hint() {
    let daemon = Daemon::start(Network::Private);
    let one = key("vm/web1/ledger");
    let read_only = format!(
        "qemu+unix:///system?socket={}",
        daemon.path("root/run/libvirt/libvirt-sock-ro").display()
    );
    for (uri, kind) in [
        (read_only, SiteErrorKind::Denied),
        // A driver without secrets.
        ("test:///default".to_owned(), SiteErrorKind::Unsupported),
    ] {
        let site = LibvirtSite::new(LibvirtConfig { uri, ..daemon.config() });
        let error = site.keep(&one, None, b"fenced").await.unwrap_err();
        assert_eq!((error.kind, error.remedy), (kind, Remedy::GiveUp), "{error:?}");
        assert!(error.hint.is_some(), "{error:?}");
    }
}

#[tokio::test]
async fn records_that_find_no_room_leave_the_old_one() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let one = key("vm/web1/papers");
    // The folder is there once there was a secret.
    site.keep(&one, None, b"old").await.unwrap();
    site.forget(&one).await.unwrap();
    daemon.give_little_room("/etc/libvirt/secrets", 256 << 10);
    site.keep(&one, None, b"old").await.unwrap();
    let large = incompressible(1 << 20, 1);
    let error = site.keep(&one, Some(b"old"), &large).await.unwrap_err();
    assert_eq!((error.kind, error.remedy), (SiteErrorKind::Exhausted, Remedy::GiveUp), "{error:?}");
    assert!(error.what.contains("secrets") && error.hint.is_some(), "{error:?}");
    assert_eq!(site.kept(&one).await.unwrap().as_deref(), Some(b"old".as_slice()));
    let other = key("vm/web2/papers");
    site.keep(&other, None, &large).await.unwrap_err();
    assert_eq!(site.kept(&other).await.unwrap(), None);
    assert_eq!(keys(&site).await, ["vm/web1/papers"]);
}
