//! The world notices what tests must not overlook, and breaks where it is told to.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use model::{Power, SiteName};
use site::{FenceStage, RecordKey, Remedy, Site, SiteErrorKind, StoppedBy, Takeover};
use site_memory::{Fault, Method, Seed, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

fn named(name: &str) -> SiteName {
    name.parse().expect("a site name")
}

#[tokio::test]
async fn two_loaded_copies_of_a_vm_are_a_panic() {
    let world = World::new();
    let (east, west) = (named("east"), named("west"));
    world.site(&east);
    let there = world.site(&west);
    let seed = Seed::new("web1");
    let vm = world.seed(&east, seed.clone());
    let double = AssertUnwindSafe(|| world.seed(&west, seed.clone()));
    assert!(catch_unwind(double).is_err(), "both copies run, and nobody said so");

    // The copy at west is off in this one: only starting it is the split brain.
    let world = World::new();
    let here = world.site(&east);
    let there = {
        drop(there);
        world.site(&west)
    };
    world.seed(&east, seed.clone());
    world.seed(&west, seed.with(|vm| vm.power = Power::Off));
    here.suspend(vm).await.unwrap();
    let start = tokio::spawn(async move { there.power_on(vm).await });
    assert!(start.await.is_err(), "a paused copy is one too");
}

#[tokio::test]
async fn how_a_vm_came_to_a_stop_is_told_until_it_runs_again_or_is_forgotten() {
    let world = World::new();
    let east = named("east");
    let site = world.site(&east);
    let vm = world.seed(&east, Seed::new("web1"));
    let stopped = async || site.stopped_by(vm).await.unwrap();

    world.guest_powers_off(&east, vm);
    assert_eq!(stopped().await, Some(StoppedBy::Shutdown));
    site.power_off(vm).await.unwrap();
    assert_eq!(stopped().await, Some(StoppedBy::Shutdown), "it was off already");
    site.power_on(vm).await.unwrap();
    assert_eq!(stopped().await, None);
    site.power_off(vm).await.unwrap();
    assert_eq!(stopped().await, Some(StoppedBy::PoweredOff));
    world.forget_stops(&east);
    assert_eq!(stopped().await, None);
}

#[tokio::test]
async fn what_a_lost_answer_leaves_open_is_said() {
    let world = World::new();
    let east = named("east");
    let site = world.site(&east);
    let vm = world.seed(&east, Seed::new("web1"));

    world.fault_on(&east, Method::PowerOff, 1, Fault::LoseRequest);
    world.fault_on(&east, Method::PowerOff, 2, Fault::LoseReply);
    for power in [Power::Running, Power::Off] {
        let error = site.power_off(vm).await.unwrap_err();
        assert_eq!((error.kind, error.remedy), (SiteErrorKind::Unreachable, Remedy::Reconcile));
        assert_eq!(site.power(vm).await.unwrap(), power);
    }
    world.fault_on(&east, Method::Power, 3, Fault::LoseReply);
    let error = site.power(vm).await.unwrap_err();
    assert!(matches!(error.remedy, Remedy::RetryAfter(_)), "reading leaves nothing open");
}

#[tokio::test(start_paused = true)]
async fn a_hung_call_never_answers_and_a_slow_one_does() {
    let world = World::new();
    let east = named("east");
    let site = world.site(&east);
    let vm = world.seed(&east, Seed::new("web1"));

    world.fault_at(1, Fault::HangBefore);
    world.fault_at(2, Fault::HangAfter);
    world.fault_at(3, Fault::Slow(Duration::from_secs(90)));
    assert!(timeout(Duration::from_secs(3600), site.power_off(vm)).await.is_err());
    assert_eq!(world.loaded_at(vm), Some(east.clone()));
    assert!(timeout(Duration::from_secs(3600), site.power_off(vm)).await.is_err());
    assert_eq!(world.loaded_at(vm), None);
    let started = Instant::now();
    site.power_on(vm).await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(90));
}

#[tokio::test]
async fn an_unreachable_site_answers_nothing_and_goes_on() {
    let world = World::new();
    let east = named("east");
    let site = world.site(&east);
    let vm = world.seed(&east, Seed::new("web1"));
    world.set_reachable(&east, false);
    assert_eq!(site.power(vm).await.unwrap_err().kind, SiteErrorKind::Unreachable);
    assert!(world.guest_write(&east, vm, "vda", 0, b"still here"));
    world.set_reachable(&east, true);
    assert_eq!(site.power(vm).await.unwrap(), Power::Running);
}

#[tokio::test]
async fn records_are_seen_lost_and_brought_back_by_the_tests_own_hands() {
    let world = World::new();
    let east = named("east");
    let site = world.site(&east);
    let key: RecordKey = "vm/web1/ledger".parse().unwrap();
    site.keep(&key, None, b"one").await.unwrap();
    let older = world.records(&east);
    assert_eq!(older.get(&key).map(Vec::as_slice), Some(b"one".as_slice()));

    world.fault_on(&east, Method::Keep, 2, Fault::LoseReply);
    let error = site.keep(&key, Some(b"one"), b"two").await.unwrap_err();
    assert_eq!(error.remedy, Remedy::Reconcile);
    assert_eq!(site.kept(&key).await.unwrap().as_deref(), Some(b"two".as_slice()));

    world.set_records(&east, older);
    let error = site.keep(&key, Some(b"two"), b"three").await.unwrap_err();
    assert_eq!(error.kind, SiteErrorKind::Conflict);
    world.set_records(&east, BTreeMap::new());
    assert_eq!(site.kept(&key).await.unwrap(), None);
    assert!(site.kept_keys().await.unwrap().is_empty() && world.records(&east).is_empty());
}

#[tokio::test]
async fn writes_are_counted_and_stop_with_the_vm() {
    let world = World::new();
    let east = named("east");
    let site = world.site(&east);
    let vm = world.seed(&east, Seed::new("web1"));
    assert!(world.guest_write(&east, vm, "vda", 4096, &[1; 512]));
    let counts = site.write_counts(vm).await.unwrap();
    assert_eq!((counts[0].requests, counts[0].bytes.0), (1, 512));
    site.suspend(vm).await.unwrap();
    assert!(!world.guest_write(&east, vm, "vda", 0, &[1; 512]), "a suspended guest wrote");
    assert_eq!(site.write_counts(vm).await.unwrap(), counts);
}

#[tokio::test]
async fn a_definition_fence_alone_is_got_round_and_both_stages_are_not() {
    let world = World::new();
    let east = named("east");
    let site = world.site(&east);
    let vm = world.seed(&east, Seed::new("web1"));
    let definition = site.fence_capture(vm, FenceStage::Definition).await.unwrap();
    site.fence_apply(vm, &definition).await.unwrap();
    site.power_off(vm).await.unwrap();
    assert!(world.admin_defines_again_and_starts(&east, vm), "the control did not come up");

    site.power_off(vm).await.unwrap();
    let disks = site.fence_capture(vm, FenceStage::Disks).await.unwrap();
    site.fence_apply(vm, &disks).await.unwrap();
    assert!(!world.admin_defines_again_and_starts(&east, vm));
}

#[tokio::test]
async fn a_channel_carries_bytes_until_it_is_cut_or_taken_over() {
    let world = World::new();
    let west = named("west");
    let site = world.site(&west);
    let vm = world.seed_helper(&west, "web1");
    let mut listener = world.listen(&west, vm, 0).unwrap();

    let mut first = site.open_channel(vm, 0, Takeover::Refuse).await.unwrap();
    let mut far = listener.accept().await.unwrap();
    first.write_all(b"ping").await.unwrap();
    let mut word = [0; 4];
    far.read_exact(&mut word).await.unwrap();
    far.write_all(b"pong").await.unwrap();
    first.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"pong");

    let mut second = site.open_channel(vm, 0, Takeover::Force).await.unwrap();
    assert_eq!(first.read(&mut word).await.unwrap_or(0), 0, "the first stream goes on");
    assert_eq!(far.read(&mut word).await.unwrap_or(0), 0, "the far end was not told");
    let mut far = listener.accept().await.unwrap();
    far.write_all(b"next").await.unwrap();
    second.read_exact(&mut word).await.unwrap();

    world.cut_channels(&west, vm);
    assert_eq!(second.read(&mut word).await.unwrap_or(0), 0, "a cut stream goes on");
}
