//! A site as its agent asks it: what its libvirt would answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use model::{FenceOffer, PoolOffer, Power, SiteName, SiteReport, Vm, VmId, WriteCount};
use site::{
    ApplianceFiles, ApplianceRef, ByteStream, CreatedDisk, Discarded, FenceStage, Leftover,
    LiveJob, Mark, NewDisk, PlaceholderSpec, PlaceholderState, RecordKey, Remedy, Site, SiteError,
    SiteErrorKind, StoppedBy, Takeover, UnfenceRecord, VmProcess,
};
use tokio::time::sleep;
use units::{Bytes, MigrationId};

use crate::guest::{By, Domain, Guest};
use crate::world::{Place, Who, World};

pub struct Sited {
    pub world: Arc<World>,
    pub place: Place,
    pub name: SiteName,
    /// `None`: somebody who is nobody's process, and is struck by nothing.
    pub who: Option<Who>,
}

type Done<T> = Result<T, SiteError>;

impl Sited {
    fn error(&self, kind: SiteErrorKind, attempt: &str, remedy: Remedy) -> SiteError {
        SiteError {
            site: self.name.clone(),
            kind,
            attempt: attempt.to_owned(),
            what: format!("{kind:?}"),
            hint: None,
            remedy,
            source: None,
        }
    }

    /// One call, by the libvirtd that lives now, if it lives until it has answered.
    async fn call<T>(
        &self,
        attempt: &str,
        effect: impl FnOnce(&mut Guest) -> Result<T, SiteErrorKind> + Send,
    ) -> Done<T> {
        self.strikes(attempt, "asks").await;
        if !OF_NO_DOMAIN.contains(&attempt) {
            self.world.libvirtd_looks(self.place).await;
        }
        let again = Remedy::RetryAfter(Duration::from_secs(1));
        let asked = self.world.libvirtd(self.place);
        if asked.is_none() {
            return Err(self.error(SiteErrorKind::Unreachable, attempt, again));
        }
        let done = effect(&mut self.world.guest());
        self.strikes(attempt, "has done").await;
        if self.world.libvirtd(self.place) != asked {
            return Err(self.error(SiteErrorKind::Unreachable, attempt, Remedy::Reconcile));
        }
        done.map_err(|kind| self.error(kind, attempt, Remedy::GiveUp))
    }

    async fn strikes(&self, attempt: &str, when: &str) {
        if let Some(who) = self.who {
            self.world.at(who, &format!("{} {when}: {attempt}", who.name())).await;
        }
    }

    async fn on_domain<T>(
        &self,
        attempt: &str,
        effect: impl FnOnce(&mut Domain) -> Result<T, SiteErrorKind> + Send,
    ) -> Done<T> {
        let place = self.place;
        self.call(attempt, move |guest| effect(guest.domain(place).ok_or(SiteErrorKind::NotFound)?))
            .await
    }

    fn unsupported<T>(&self, attempt: &str) -> Done<T> {
        Err(self.error(SiteErrorKind::Unsupported, attempt, Remedy::GiveUp))
    }
}

/// What is asked of libvirtd and has nothing to do with the VM.
const OF_NO_DOMAIN: [&str; 8] =
    ["probe", "keep", "kept", "kept keys", "forget", "create disk", "leftovers", "remove"];

/// A QEMU, for whoever is on its machine.
struct Process {
    world: Arc<World>,
    qemu: Who,
    is_persistent: bool,
}

#[async_trait]
impl VmProcess for Process {
    fn is_persistent(&self) -> bool {
        self.is_persistent
    }

    async fn ended(&self) {
        while !self.world.is_dead(self.qemu) {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[async_trait]
impl Site for Sited {
    fn name(&self) -> &SiteName {
        &self.name
    }

    async fn power(&self, _: VmId) -> Done<Power> {
        let place = self.place;
        if self.world.sluggish.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(100)).await;
        }
        self.call("power", move |guest| Ok(guest.shown(place))).await
    }

    async fn stopped_by(&self, _: VmId) -> Done<Option<StoppedBy>> {
        let place = self.place;
        let how = |guest: &mut Guest| Ok(guest.domain(place).and_then(|domain| domain.stopped_by));
        self.call("stopped by", how).await
    }

    async fn process(&self, _: VmId) -> Done<Option<Box<dyn VmProcess>>> {
        let (place, world) = (self.place, Arc::clone(&self.world));
        let is_persistent = self
            .call("process", move |guest| {
                let domain = guest.domain(place).filter(|domain| domain.power.is_loaded());
                Ok(domain.map(|domain| domain.persistent))
            })
            .await?;
        let qemu = world.alive(|no| Who::Qemu(place, no)).filter(|_| world.kind.near);
        let seen = qemu.zip(is_persistent);
        Ok(seen.map(|(qemu, is_persistent)| {
            Box::new(Process { world, qemu, is_persistent }) as Box<dyn VmProcess>
        }))
    }

    async fn resume(&self, _: VmId) -> Done<()> {
        let place = self.place;
        self.call("resume", move |guest| match guest.power(place) {
            Power::Running => {
                guest.is_seen(place);
                Ok(())
            }
            Power::Paused => {
                guest.resumes(place);
                Ok(())
            }
            Power::Off => Err(SiteErrorKind::WrongState),
            Power::Absent => Err(SiteErrorKind::NotFound),
        })
        .await
    }

    async fn max_downtime_ms(&self, _: VmId) -> Done<u64> {
        self.on_domain("downtime", |domain| Ok(domain.downtime_ms)).await
    }

    async fn allow_downtime_ms(&self, _: VmId, most: u64) -> Done<()> {
        self.on_domain("allow downtime", move |domain| {
            domain.downtime_ms = most;
            Ok(())
        })
        .await?;
        if self.world.vague.swap(false, Ordering::Relaxed) {
            let unknown = Remedy::Reconcile;
            return Err(self.error(SiteErrorKind::Unreachable, "allow downtime", unknown));
        }
        Ok(())
    }

    /// Nothing rests on it: it is no place.
    async fn live_job(&self, _: VmId) -> Done<Option<LiveJob>> {
        let passes = self.world.guest().domain(self.place).map(|domain| domain.passes);
        Ok(passes.map(|passes| LiveJob { passes, ..LiveJob::default() }))
    }

    async fn power_off(&self, _: VmId) -> Done<()> {
        let world = Arc::clone(&self.world);
        let place = self.place;
        self.call("power off", |_| Ok(())).await?;
        world.ends(place, StoppedBy::PoweredOff, By::Program);
        Ok(())
    }

    async fn power_on(&self, _: VmId) -> Done<()> {
        let place = self.place;
        self.call("power on", move |guest| match guest.power(place) {
            Power::Off if guest.domain(place).is_some_and(|domain| domain.fenced) => {
                Err(SiteErrorKind::Platform)
            }
            Power::Off => {
                guest.starts(place);
                Ok(())
            }
            Power::Running => Ok(()),
            Power::Paused => Err(SiteErrorKind::WrongState),
            Power::Absent => Err(SiteErrorKind::NotFound),
        })
        .await
    }

    async fn keep(&self, key: &RecordKey, expected: Option<&[u8]>, body: &[u8]) -> Done<()> {
        let place = self.place;
        self.call("keep", move |guest| {
            let records = &mut guest.host(place).records;
            let there = records.get(key).map(Vec::as_slice);
            if there != Some(body) && there != expected {
                return Err(SiteErrorKind::Conflict);
            }
            records.insert(key.clone(), body.to_vec());
            Ok(())
        })
        .await
    }

    async fn kept(&self, key: &RecordKey) -> Done<Option<Vec<u8>>> {
        let place = self.place;
        self.call("kept", move |guest| Ok(guest.host(place).records.get(key).cloned())).await
    }

    async fn kept_keys(&self) -> Done<Vec<RecordKey>> {
        let place = self.place;
        self.call("kept keys", move |guest| Ok(guest.host(place).records.keys().cloned().collect()))
            .await
    }

    async fn forget(&self, key: &RecordKey) -> Done<()> {
        let place = self.place;
        self.call("forget", move |guest| {
            guest.host(place).records.remove(key);
            Ok(())
        })
        .await
    }

    async fn fence_capture(&self, _: VmId, stage: FenceStage) -> Done<UnfenceRecord> {
        self.on_domain("fence capture", move |_| {
            Ok(UnfenceRecord { stage, body: "{\"version\":1}".to_owned() })
        })
        .await
    }

    async fn fence_apply(&self, _: VmId, _: &UnfenceRecord) -> Done<()> {
        self.on_domain("fence apply", |domain| {
            domain.fenced = true;
            // A job of libvirt's is in the way as long as it moves it.
            domain.autostart &= domain.moves && domain.power.is_loaded();
            Ok(())
        })
        .await
    }

    async fn fence_holds(&self, _: VmId, _: &UnfenceRecord) -> Done<bool> {
        let holds = |domain: &mut Domain| {
            Ok(domain.fenced && (!domain.autostart || domain.power.is_loaded()))
        };
        self.on_domain("fence holds", holds).await
    }

    async fn fence_undo(&self, _: VmId, _: &UnfenceRecord) -> Done<()> {
        let place = self.place;
        // A transient VM that runs has no definition to put back.
        self.call("fence undo", move |guest| {
            if let Some(domain) = guest.domain(place) {
                domain.fenced = false;
                domain.autostart = domain.persistent;
            }
            Ok(())
        })
        .await
    }

    async fn create_disk(&self, migration: &MigrationId, disk: &NewDisk) -> Done<CreatedDisk> {
        let place = self.place;
        self.call("create disk", move |guest| {
            let volumes = &mut guest.host(place).volumes;
            let fresh = volumes.insert(disk.volume.clone(), migration.clone()).is_none();
            Ok(CreatedDisk { no: disk.no, location: format!("/pool/{}", disk.volume), fresh })
        })
        .await
    }

    async fn placeholder(&self, _: VmId) -> Done<PlaceholderState> {
        let place = self.place;
        self.call("placeholder", move |guest| {
            let power = guest.shown(place);
            Ok(match guest.domain(place) {
                None => PlaceholderState::Absent,
                Some(Domain { ours: None, .. }) => {
                    PlaceholderState::Foreign { name: "web1".to_owned(), power }
                }
                Some(Domain { ours: Some((migration, epoch)), .. }) => PlaceholderState::Released {
                    migration: migration.clone(),
                    epoch: *epoch,
                    power,
                },
            })
        })
        .await
    }

    async fn write_mark(&self, _: VmId, mark: &Mark) -> Done<()> {
        self.on_domain("write mark", move |domain| match &domain.mark {
            Some(there) if there != mark => Err(SiteErrorKind::Conflict),
            _ if domain.ours.is_none() => Err(SiteErrorKind::Conflict),
            _ => {
                domain.mark = Some(mark.clone());
                Ok(())
            }
        })
        .await
    }

    async fn read_mark(&self, _: VmId) -> Done<Option<Mark>> {
        let place = self.place;
        self.call("read mark", move |guest| {
            Ok(guest.domain(place).and_then(|domain| domain.mark.clone()))
        })
        .await
    }

    async fn leftovers(&self, migration: &MigrationId) -> Done<Vec<Leftover>> {
        let place = self.place;
        self.call("leftovers", move |guest| {
            let volumes = guest.host(place).volumes.iter().filter(|(_, whose)| *whose == migration);
            Ok(volumes
                .map(|(volume, _)| Leftover::Volume {
                    pool: "default".to_owned(),
                    volume: volume.clone(),
                    location: format!("/pool/{volume}"),
                })
                .collect())
        })
        .await
    }

    async fn remove(&self, leftover: &Leftover) -> Done<()> {
        let place = self.place;
        self.call("remove", move |guest| {
            if let Leftover::Volume { volume, .. } = leftover {
                guest.removes(place, volume);
            }
            Ok(())
        })
        .await
    }

    async fn probe(&self) -> Done<SiteReport> {
        let pool = PoolOffer {
            name: "default".to_owned(),
            capacity: Bytes(1 << 30),
            available: Bytes(1 << 30),
            active: true,
            kind: "dir".to_owned(),
        };
        let report = SiteReport {
            platform: "simulated".to_owned(),
            host: self.name.to_string(),
            arch: "x86_64".to_owned(),
            machines: Vec::new(),
            firmwares: Vec::new(),
            cpu_models: Vec::new(),
            vcpus_max: 1,
            memory_free: None,
            pools: vec![pool],
            networks: Vec::new(),
            capabilities: Vec::new(),
            outdated: Vec::new(),
            warnings: Vec::new(),
        };
        self.call("probe", move |_| Ok(report)).await
    }

    // --- what no agent asks ----------------------------------------------------------------------

    async fn vms(&self) -> Done<Vec<(VmId, String)>> {
        self.unsupported("list VMs")
    }

    async fn vm(&self, _: &str) -> Done<Vm> {
        self.unsupported("look at a VM")
    }

    async fn suspend(&self, _: VmId) -> Done<()> {
        let place = self.place;
        let late = self.world.late.load(Ordering::Relaxed);
        if late > 0 {
            // A thread of its own calls libvirt.
            let world = Arc::clone(&self.world);
            let called = tokio::spawn(async move {
                sleep(Duration::from_secs(late)).await;
                world.guest().pauses(place, false);
            });
            called.await.unwrap();
        }
        self.call("suspend", move |guest| {
            guest.pauses(place, false);
            Ok(())
        })
        .await
    }

    async fn write_counts(&self, _: VmId) -> Done<Vec<WriteCount>> {
        self.unsupported("count writes")
    }

    async fn fence_offer(&self, _: VmId) -> Done<FenceOffer> {
        self.unsupported("plan a fence")
    }

    async fn retire(&self, _: VmId, _: &UnfenceRecord) -> Done<String> {
        self.unsupported("retire")
    }

    async fn discard(&self, _: VmId, _: &[UnfenceRecord], _: &[String]) -> Done<Discarded> {
        self.unsupported("discard")
    }

    async fn put_appliance(&self, _: &ApplianceFiles) -> Done<ApplianceRef> {
        self.unsupported("put the appliance")
    }

    async fn define_placeholder(&self, _: &PlaceholderSpec) -> Done<()> {
        self.unsupported("define")
    }

    async fn start_helper(&self, _: VmId) -> Done<()> {
        self.unsupported("start the helper")
    }

    async fn open_channel(&self, _: VmId, _: u16, _: Takeover) -> Done<ByteStream> {
        self.unsupported("open a channel")
    }

    async fn start_from_own_disk(&self, _: &PlaceholderSpec) -> Done<()> {
        self.unsupported("start from its disk")
    }
}
