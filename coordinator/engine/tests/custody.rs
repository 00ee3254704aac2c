//! Attempts that stand in the ledgers and not in the journal, because their process died between.

#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use engine::custody::{Custody, CustodyError, CustodyOf, Folder, LEDGER_KIND, Papers, mark_seen};
use engine::evidence::{About, Asked, Gathered, gather};
use handover::{
    Attempt, Attestation, DestinationEntry, DestinationState, Entry, Identity, PlanDigest, Record,
    Refusal, SigningKey, SourceRequest, SourceState, VerdictKind, verdict,
};
use journal::{Journal, StoreId};
use model::{SiteName, VmId};
use site::{FenceStage, Site};
use site_memory::{Seed, World};
use units::{Digest, Epoch};

struct Scene {
    world: World,
    east: SiteName,
    west: SiteName,
    vm: VmId,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let (east, west): (SiteName, SiteName) = ("east".parse().unwrap(), "west".parse().unwrap());
        // A site is there once it was asked for.
        for name in [&east, &west] {
            world.site(name);
        }
        let vm = world.seed(&east, Seed::new("web1").disks(&[4096]));
        Self { world, east, west, vm, folder: tempfile::tempdir().unwrap() }
    }

    fn ledgers(&self) -> &Path {
        self.folder.path()
    }

    /// As a process that has just been started opens them, for the migration of this plan.
    fn custody(&self, plan: u8) -> Custody {
        self.custody_with(plan, 2)
    }

    /// West has this key.
    fn custody_with(&self, plan: u8, west: u8) -> Custody {
        self.custody_of(plan, west, true)
    }

    /// ... or is known by it alone.
    fn custody_of(&self, plan: u8, west: u8, is_had: bool) -> Custody {
        let [source, mut destination] = self.identities(west);
        destination.key = destination.key.filter(|_| is_had);
        let of = CustodyOf {
            source,
            destination,
            at_source: Arc::new(self.world.site(&self.east)),
            at_destination: Arc::new(self.world.site(&self.west)),
            vm: self.vm.to_string().parse().unwrap(),
            ids: [StoreId([1; 16]), StoreId([2; 16])],
            plan: Digest([plan; 32]),
        };
        let folder = Folder { path: self.ledgers().to_owned(), vm: of.vm.clone() };
        Custody::open(Box::new(folder), of).unwrap()
    }

    fn identities(&self, west: u8) -> [Identity; 2] {
        let identity = |site: &SiteName, own: u8, peer: &SiteName, other: u8| Identity {
            install: "test".parse().unwrap(),
            site: site.as_str().parse().unwrap(),
            key: Some(key(own)),
            pinned: BTreeMap::from([(peer.as_str().parse().unwrap(), key(other).verifying_key())]),
            former: BTreeMap::new(),
        };
        [identity(&self.east, 1, &self.west, west), identity(&self.west, west, &self.east, 1)]
    }

    /// What another machine learns from the sites of an attempt of plan 7.
    async fn gathered(&self, epoch: Epoch) -> Gathered {
        let [source, destination] = self.identities(2);
        let asked = |site: &SiteName, identity| {
            let site = Some(Arc::new(self.world.site(site)) as _);
            Some(Asked { identity, ledger: None, site, keeps_another: false })
        };
        gather(&self.about(epoch), asked(&self.east, source), asked(&self.west, destination))
            .await
            .unwrap()
    }

    fn about(&self, epoch: Epoch) -> About {
        About {
            id: self.vm,
            digest: Digest([7; 32]),
            vm: self.vm.to_string().parse().unwrap(),
            epoch: Some(epoch),
            destination_key: key(2).verifying_key(),
        }
    }

    async fn open(&self, custody: &mut Custody) -> Result<Epoch, CustodyError> {
        custody.open_attempt(self.vm, &Papers::default()).await
    }
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

#[tokio::test]
async fn an_attempt_that_only_the_ledgers_know_is_taken_up_by_its_migration() {
    let scene = Scene::new();
    let mut custody = scene.custody(7);
    let epoch = scene.open(&mut custody).await.unwrap();
    // Killed before the journal heard of it.
    drop(custody);
    let mut custody = scene.custody(7);
    assert_eq!(custody.attempt_under_way(), Some(epoch));
    assert_eq!(scene.open(&mut custody).await.unwrap(), epoch);
    assert_eq!(custody.source_state(epoch), SourceState::Known);
}

#[tokio::test]
async fn an_attempt_that_only_the_destinations_ledger_knows_is_completed() {
    let scene = Scene::new();
    let mut custody = scene.custody(7);
    let epoch = scene.open(&mut custody).await.unwrap();
    drop(custody);
    std::fs::remove_dir_all(scene.ledgers().join("east")).unwrap();
    let mut custody = scene.custody(7);
    assert_eq!(custody.source_state(epoch), SourceState::Unknown);
    assert_eq!(scene.open(&mut custody).await.unwrap(), epoch);
    assert_eq!(custody.source_state(epoch), SourceState::Known);
}

#[tokio::test]
async fn another_migration_waits_for_it_and_comes_after_it_was_revoked() {
    let scene = Scene::new();
    let mut custody = scene.custody(7);
    let epoch = scene.open(&mut custody).await.unwrap();
    drop(custody);
    let mut other = scene.custody(8);
    assert_eq!(other.attempt_under_way(), None, "it is another one's");
    match scene.open(&mut other).await {
        Err(CustodyError::Refused(Refusal::Open { epoch: open })) => assert_eq!(open, epoch),
        found => panic!("{found:?}"),
    }
    drop(other);
    let mut custody = scene.custody(7);
    let seen = mark_seen(&scene.world.site(&scene.west), scene.vm).await;
    let open = custody.attempt_under_way().unwrap();
    custody.revoke(open, &seen, None).await.unwrap();
    assert!(matches!(custody.destination_state(epoch), DestinationState::Revoked(_)));
    assert_eq!(custody.attempt_under_way(), None, "there is nothing to begin");
    release(&mut custody, epoch).await;
    assert_eq!(custody.attempt_of_ours(), None, "it has ended");
    drop(custody);
    assert_eq!(scene.open(&mut scene.custody(8)).await.unwrap(), Epoch(epoch.0 + 1));
}

/// The source of a revoked attempt runs on.
async fn release(custody: &mut Custody, epoch: Epoch) {
    let DestinationState::Revoked(receipt) = custody.destination_state(epoch) else { panic!() };
    custody.source(epoch, SourceRequest::Release(receipt)).await.unwrap();
}

/// Two ledgers of one site that cannot both be true: nothing is done on either.
#[tokio::test]
async fn two_stories_are_refused() {
    let scene = Scene::new();
    let mut custody = scene.custody(7);
    scene.open(&mut custody).await.unwrap();
    drop(custody);
    let kept = scene.world.records(&scene.west);
    scene.world.set_records(&scene.west, BTreeMap::new());
    std::fs::remove_dir_all(scene.ledgers().join("west")).unwrap();
    scene.world.set_records(&scene.east, BTreeMap::new());
    std::fs::remove_dir_all(scene.ledgers().join("east")).unwrap();
    let mut other = scene.custody(8);
    scene.open(&mut other).await.unwrap();
    scene.world.set_records(&scene.west, kept);
    drop(other);
    let mut custody = scene.custody(8);
    match custody.look().await {
        Err(CustodyError::TwoStories { site }) => assert_eq!(site, "west"),
        found => panic!("{found:?}"),
    }
}

/// What a site keeps under another's name is no word of the other one.
#[tokio::test]
async fn a_forged_receipt_in_a_copy_is_not_taken_in() {
    let scene = Scene::new();
    let mut custody = scene.custody(7);
    let epoch = scene.open(&mut custody).await.unwrap();
    let seen = mark_seen(&scene.world.site(&scene.west), scene.vm).await;
    custody.revoke(epoch, &seen, None).await.unwrap();
    release(&mut custody, epoch).await;
    drop(custody);
    // Its own ledger is lost, and the other site's key is another: the receipt in the copy is not its.
    std::fs::remove_dir_all(scene.ledgers().join("east")).unwrap();
    let mut custody = scene.custody_with(7, 3);
    match custody.look().await {
        Err(CustodyError::Refused(Refusal::Receipt(_))) => {}
        found => panic!("{found:?}"),
    }
}

/// An attempt of plan 7 that began its fence, and the custody that made it.
async fn fenced(scene: &Scene) -> (Custody, Epoch) {
    let mut custody = scene.custody(7);
    let epoch = scene.open(&mut custody).await.unwrap();
    let east = scene.world.site(&scene.east);
    let record = east.fence_capture(scene.vm, FenceStage::Definition).await.unwrap();
    custody.fence_intent(epoch, record, &[Digest([1; 32])]).await.unwrap();
    (custody, epoch)
}

#[tokio::test]
async fn an_old_journal_does_not_make_a_fence_forgotten() {
    let scene = Scene::new();
    let (custody, epoch) = fenced(&scene).await;
    assert!(custody.went_further());
    drop(custody);
    // The journal was restored from before the attempt; the ledgers were not.
    let custody = scene.custody(7);
    assert_eq!(custody.attempt_under_way(), None, "it is not to be begun once more");
    assert_eq!(custody.attempt_of_ours(), Some(epoch), "what is taken back is this one");
    assert!(custody.went_further());
    drop(custody);
    let other = scene.custody(8);
    assert_eq!(other.attempt_of_ours(), None, "another migration does not take it back");
    assert!(!other.went_further());
}

#[tokio::test]
async fn an_attempt_that_was_begun_or_has_ended_is_given_up_like_none() {
    let scene = Scene::new();
    assert!(!scene.custody(7).went_further());
    let mut custody = scene.custody(7);
    let epoch = scene.open(&mut custody).await.unwrap();
    assert_eq!(custody.attempt_of_ours(), Some(epoch));
    assert!(!custody.went_further(), "only begun");
    let seen = mark_seen(&scene.world.site(&scene.west), scene.vm).await;
    custody.revoke(epoch, &seen, None).await.unwrap();
    assert_eq!(custody.attempt_of_ours(), Some(epoch), "its source has not been let go");
    release(&mut custody, epoch).await;
    assert_eq!(custody.attempt_of_ours(), None, "ended");
    assert!(!custody.went_further());
}

/// A site that was vouched for as gone, and came back with its copy running: its ledger is believed no more,
/// its platform is.
#[tokio::test]
async fn of_a_site_that_keeps_anothers_story_the_platform_is_believed() {
    let scene = Scene::new();
    let epoch = scene.open(&mut scene.custody(7)).await.unwrap();
    let [source, destination] = scene.identities(2);
    let vm = scene.vm;
    // A world of its own: one alone does not let a VM run at both of its sites.
    let back = World::new();
    back.site(&scene.west);
    back.seed(&scene.west, Seed::new("web1").with(|copy| copy.id = vm));
    let about = scene.about(epoch);
    let asked = |site, identity, keeps_another| {
        let site = Some(Arc::new(site) as _);
        Some(Asked { identity, ledger: None, site, keeps_another })
    };
    let at_east = asked(scene.world.site(&scene.east), source, false);
    let at_west = asked(back.site(&scene.west), destination, true);
    let found = verdict(&gather(&about, at_east, at_west).await.unwrap().evidence);
    assert_eq!(found.verdict, VerdictKind::AlarmSplit, "{found:?}");
}

/// What both sites show by now is the later one's doing; but not once that was taken back.
#[tokio::test]
async fn what_came_after_an_attempt_is_told_by_the_ledgers_until_it_was_taken_back() {
    let scene = Scene::new();
    let mut first = scene.custody(7);
    let epoch = scene.open(&mut first).await.unwrap();
    let seen = mark_seen(&scene.world.site(&scene.west), scene.vm).await;
    assert!(!scene.gathered(epoch).await.is_followed, "by itself");
    first.revoke(epoch, &seen, None).await.unwrap();
    release(&mut first, epoch).await;
    drop(first);
    assert!(!scene.gathered(epoch).await.is_followed, "it is the last one");

    let mut later = scene.custody(8);
    let followed_by = scene.open(&mut later).await.unwrap();
    assert!(scene.gathered(epoch).await.is_followed);
    assert!(!scene.gathered(followed_by).await.is_followed);
    later.revoke(followed_by, &seen, None).await.unwrap();
    assert!(!scene.gathered(epoch).await.is_followed, "it was taken back");
}

/// A ledger whose last epoch is the largest number: nobody gets there by counting.
#[tokio::test]
async fn no_attempt_is_begun_after_the_last_epoch_there_is() {
    let scene = Scene::new();
    let (vm, epoch) = (scene.vm.to_string(), Epoch(u64::MAX));
    let attempt = Attempt {
        install: "test".parse().unwrap(),
        vm: vm.parse().unwrap(),
        epoch,
        source: "east".parse().unwrap(),
        destination: "west".parse().unwrap(),
        plan: PlanDigest(Digest([8; 32])),
    };
    let entry = Entry::Destination(DestinationEntry::AttemptKnown(attempt));
    let (kind, payload) = Record { vm: vm.parse().unwrap(), epoch, entry }.encode();
    let folder = scene.ledgers().join("west").join(vm);
    std::fs::create_dir_all(&folder).unwrap();
    let ledger = Journal::open(&folder.join("ledger"), LEDGER_KIND, StoreId([2; 16]));
    ledger.unwrap().journal.append(kind, &payload).unwrap();

    let refused = scene.open(&mut scene.custody(7)).await;
    assert!(matches!(refused, Err(CustodyError::Unfit { .. })), "{refused:?}");
}

/// A site whose key could not be had decides nothing, not by anybody's word either: what it would sign
/// convinces nobody.
#[tokio::test]
async fn without_its_key_nothing_is_recorded_for_a_site() {
    let scene = Scene::new();
    let mut custody = scene.custody(7);
    let epoch = scene.open(&mut custody).await.unwrap();
    drop(custody);
    for answers in [true, false] {
        scene.world.set_reachable(&scene.west, answers);
        for word in [None, Some(Attestation { by: "ann".into(), reason: "gone".into() })] {
            let mut custody = scene.custody_of(7, 2, false);
            let seen = mark_seen(&scene.world.site(&scene.west), scene.vm).await;
            match (custody.revoke(epoch, &seen, word.clone()).await, &word) {
                (Err(CustodyError::NoKey { site }), _) => assert_eq!(site, "west"),
                (Err(CustodyError::Site { .. }), None) if !answers => {}
                (found, _) => panic!("answers: {answers}, {word:?}: {found:?}"),
            }
            assert_eq!(custody.destination_state(epoch), DestinationState::Known);
        }
    }
}
