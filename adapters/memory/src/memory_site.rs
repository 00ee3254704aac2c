//! [`Site`] over a world in RAM.

use std::future::pending;
use std::time::Duration;

use async_trait::async_trait;
use model::{
    Capability, FenceOffer, Firmware, NetworkOffer, PoolOffer, Power, SiteName, SiteReport, Vm,
    VmId, WriteCount,
};
use site::{
    ApplianceFiles, ApplianceRef, ByteStream, CreatedDisk, Discarded, FenceStage, Leftover, Mark,
    NewDisk, PlaceholderSpec, PlaceholderState, RecordKey, Remedy, Site, SiteError, SiteErrorKind,
    StoppedBy, Takeover, UnfenceRecord,
};
use tokio::time::sleep;
use units::{Bytes, MigrationId};

use crate::machine::{Machine, Trouble, lock, wrong_state};
use crate::world::{Estate, World};
use crate::{Fault, Method, fence, placeholder, records};

/// One site of a [`World`].
#[derive(Clone)]
pub struct MemorySite {
    name: SiteName,
    world: World,
}

impl MemorySite {
    pub(crate) const fn new(name: SiteName, world: World) -> Self {
        Self { name, world }
    }

    /// One call to the cloud: noted, struck by the fault that awaits it, done, and answered.
    async fn call<T>(
        &self,
        method: Method,
        attempt: String,
        effect: impl FnOnce(&mut Estate) -> Result<T, Trouble>,
    ) -> Result<T, SiteError> {
        let fault = self.world.edit(|state| state.script.enter(&self.name, method));
        let lost = || self.lost(method, &attempt);
        match fault {
            Some(Fault::Refuse { kind, remedy }) => {
                return Err(self.error(kind, &attempt, "refused by the test's script", remedy));
            }
            Some(Fault::LoseRequest) => return Err(lost()),
            Some(Fault::HangBefore) => return pending().await,
            Some(Fault::Slow(delay)) => sleep(delay).await,
            None | Some(Fault::LoseReply | Fault::HangAfter) => {}
        }
        let done = self.world.edit(|state| {
            let estate = state.sites.get_mut(&self.name).filter(|estate| estate.reachable);
            estate.map(effect)
        });
        let Some(done) = done else {
            // Nobody answered the door: nothing was asked, so nothing happened.
            let remedy = Remedy::RetryAfter(Duration::from_secs(1));
            return Err(self.error(SiteErrorKind::Unreachable, &attempt, "no connection", remedy));
        };
        match fault {
            Some(Fault::LoseReply) => return Err(lost()),
            Some(Fault::HangAfter) => return pending().await,
            _ => {}
        }
        done.map_err(|trouble| {
            let remedy = trouble.remedy();
            let error = self.error(trouble.kind, &attempt, &trouble.what, remedy);
            SiteError { hint: trouble.hint, ..error }
        })
    }

    fn lost(&self, method: Method, attempt: &str) -> SiteError {
        let remedy = if method.changes() {
            Remedy::Reconcile
        } else {
            Remedy::RetryAfter(Duration::from_secs(1))
        };
        self.error(SiteErrorKind::Unreachable, attempt, "the connection broke", remedy)
    }

    fn error(&self, kind: SiteErrorKind, attempt: &str, what: &str, remedy: Remedy) -> SiteError {
        SiteError {
            site: self.name.clone(),
            kind,
            attempt: attempt.to_owned(),
            what: what.to_owned(),
            hint: None,
            remedy,
            source: None,
        }
    }

    /// A call about one VM that has to be there.
    async fn on_vm<T>(
        &self,
        method: Method,
        verb: &str,
        vm: VmId,
        effect: impl FnOnce(&mut Machine) -> Result<T, Trouble>,
    ) -> Result<T, SiteError> {
        self.call(method, format!("{verb} {vm}"), |estate| effect(machine(estate, vm)?)).await
    }
}

#[async_trait]
impl Site for MemorySite {
    fn name(&self) -> &SiteName {
        &self.name
    }

    async fn probe(&self) -> Result<SiteReport, SiteError> {
        self.call(Method::Probe, "probe the site".to_owned(), |estate| Ok(report(estate))).await
    }

    async fn vms(&self) -> Result<Vec<(VmId, String)>, SiteError> {
        self.call(Method::Vms, "list VMs".to_owned(), |estate| {
            Ok(estate.machines.iter().map(|(id, machine)| (*id, machine.vm.name.clone())).collect())
        })
        .await
    }

    async fn vm(&self, name_or_id: &str) -> Result<Vm, SiteError> {
        self.call(Method::Vm, format!("look at VM {name_or_id}"), |estate| {
            let called = |machine: &&Machine| {
                machine.vm.name == name_or_id || machine.vm.id.to_string() == name_or_id
            };
            let found = estate.machines.values().find(called);
            found.map(|machine| machine.vm.clone()).ok_or_else(|| {
                let names: Vec<_> =
                    estate.machines.values().map(|machine| machine.vm.name.as_str()).collect();
                Trouble::new(SiteErrorKind::NotFound, format!("there is no VM {name_or_id}"))
                    .hint(format!("the VMs are: {}", names.join(", ")))
            })
        })
        .await
    }

    async fn power(&self, vm: VmId) -> Result<Power, SiteError> {
        self.call(Method::Power, format!("see whether {vm} runs"), |estate| {
            Ok(estate.machines.get(&vm).map_or(Power::Absent, |machine| machine.vm.power))
        })
        .await
    }

    async fn stopped_by(&self, vm: VmId) -> Result<Option<StoppedBy>, SiteError> {
        self.call(Method::StoppedBy, format!("see how {vm} came to a stop"), |estate| {
            Ok(estate.machines.get(&vm).and_then(|machine| machine.stopped_by))
        })
        .await
    }

    async fn suspend(&self, vm: VmId) -> Result<(), SiteError> {
        self.on_vm(Method::Suspend, "suspend", vm, |machine| match machine.vm.power {
            Power::Running | Power::Paused => {
                machine.vm.power = Power::Paused;
                Ok(())
            }
            power => Err(wrong_state(format!("it is {power}"))),
        })
        .await
    }

    async fn resume(&self, vm: VmId) -> Result<(), SiteError> {
        self.on_vm(Method::Resume, "resume", vm, |machine| match machine.vm.power {
            Power::Running | Power::Paused => {
                machine.vm.power = Power::Running;
                Ok(())
            }
            power => Err(wrong_state(format!("it is {power}"))),
        })
        .await
    }

    async fn power_off(&self, vm: VmId) -> Result<(), SiteError> {
        self.call(Method::PowerOff, format!("power off {vm}"), |estate| {
            machine(estate, vm)?.stop(StoppedBy::PoweredOff);
            estate.cut_channels(vm);
            Ok(())
        })
        .await
    }

    async fn power_on(&self, vm: VmId) -> Result<(), SiteError> {
        self.call(Method::PowerOn, format!("power on {vm}"), |estate| {
            let Estate { machines, volumes, .. } = estate;
            machines.get_mut(&vm).ok_or_else(|| absent(vm))?.start(volumes)
        })
        .await
    }

    async fn write_counts(&self, vm: VmId) -> Result<Vec<WriteCount>, SiteError> {
        self.on_vm(Method::WriteCounts, "count writes of", vm, |machine| {
            if !machine.vm.power.is_loaded() {
                return Err(wrong_state(format!("it is {}", machine.vm.power)));
            }
            let counts = machine.writes.iter().map(|(target, (requests, bytes))| WriteCount {
                target: target.clone(),
                requests: *requests,
                bytes: Bytes(*bytes),
            });
            Ok(counts.collect())
        })
        .await
    }

    async fn keep(
        &self,
        key: &RecordKey,
        expected: Option<&[u8]>,
        body: &[u8],
    ) -> Result<(), SiteError> {
        self.call(Method::Keep, format!("keep record {key}"), |estate| {
            records::keep(&mut estate.records, key, expected, body)
        })
        .await
    }

    async fn kept(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, SiteError> {
        self.call(Method::Kept, format!("read record {key}"), |estate| {
            Ok(estate.records.get(key).cloned())
        })
        .await
    }

    async fn kept_keys(&self) -> Result<Vec<RecordKey>, SiteError> {
        self.call(Method::KeptKeys, "list records".to_owned(), |estate| {
            Ok(estate.records.keys().cloned().collect())
        })
        .await
    }

    async fn forget(&self, key: &RecordKey) -> Result<(), SiteError> {
        self.call(Method::Forget, format!("forget record {key}"), |estate| {
            estate.records.remove(key);
            Ok(())
        })
        .await
    }

    async fn fence_offer(&self, vm: VmId) -> Result<FenceOffer, SiteError> {
        self.on_vm(Method::FenceOffer, "plan a fence for", vm, |machine| Ok(fence::offer(machine)))
            .await
    }

    async fn fence_capture(&self, vm: VmId, stage: FenceStage) -> Result<UnfenceRecord, SiteError> {
        self.call(Method::FenceCapture, format!("save what a fence of {vm} replaces"), |estate| {
            let machine = estate.machines.get(&vm).ok_or_else(|| absent(vm))?;
            fence::capture(estate, machine, stage)
        })
        .await
    }

    async fn fence_apply(&self, vm: VmId, record: &UnfenceRecord) -> Result<(), SiteError> {
        self.call(Method::FenceApply, format!("fence {vm}"), |estate| {
            fence::apply(estate, vm, record)
        })
        .await
    }

    async fn fence_holds(&self, vm: VmId, record: &UnfenceRecord) -> Result<bool, SiteError> {
        self.call(Method::FenceHolds, format!("look at the fence of {vm}"), |estate| {
            fence::holds(estate, vm, record)
        })
        .await
    }

    async fn fence_undo(&self, vm: VmId, record: &UnfenceRecord) -> Result<(), SiteError> {
        self.call(Method::FenceUndo, format!("take the fence off {vm}"), |estate| {
            fence::undo(estate, vm, record)
        })
        .await
    }

    async fn retire(&self, vm: VmId, record: &UnfenceRecord) -> Result<String, SiteError> {
        self.call(Method::Retire, format!("retire {vm}"), |estate| {
            fence::retire(estate, vm, record)
        })
        .await
    }

    async fn discard(
        &self,
        vm: VmId,
        records: &[UnfenceRecord],
        moved: &[String],
    ) -> Result<Discarded, SiteError> {
        self.call(Method::Discard, format!("delete the retired {vm}"), |estate| {
            fence::discard(estate, vm, records, moved)
        })
        .await
    }

    async fn put_appliance(&self, files: &ApplianceFiles) -> Result<ApplianceRef, SiteError> {
        self.call(Method::PutAppliance, "store the appliance".to_owned(), |estate| {
            if !estate.pools.contains_key(&files.pool) {
                let what = format!("there is no pool {}", files.pool);
                return Err(Trouble::new(SiteErrorKind::NotFound, what));
            }
            let appliance = ApplianceRef {
                kernel: format!("{}/appliance-{}.kernel", files.pool, files.digest),
                initrd: format!("{}/appliance-{}.initrd", files.pool, files.digest),
            };
            estate.appliances.insert(appliance.kernel.clone());
            Ok(appliance)
        })
        .await
    }

    async fn create_disk(
        &self,
        migration: &MigrationId,
        disk: &NewDisk,
    ) -> Result<CreatedDisk, SiteError> {
        self.call(Method::CreateDisk, format!("create volume {}", disk.volume), |estate| {
            placeholder::create_disk(estate, migration, disk)
        })
        .await
    }

    async fn define_placeholder(&self, spec: &PlaceholderSpec) -> Result<(), SiteError> {
        self.call(Method::DefinePlaceholder, format!("define {}", spec.name), |estate| {
            placeholder::define(estate, spec)
        })
        .await
    }

    async fn placeholder(&self, vm: VmId) -> Result<PlaceholderState, SiteError> {
        self.call(Method::Placeholder, format!("look at placeholder {vm}"), |estate| {
            Ok(placeholder::state(estate, vm))
        })
        .await
    }

    async fn start_helper(&self, vm: VmId) -> Result<(), SiteError> {
        self.call(Method::StartHelper, format!("start the helper in {vm}"), |estate| {
            placeholder::start_helper(estate, vm)
        })
        .await
    }

    async fn open_channel(
        &self,
        vm: VmId,
        port: u16,
        takeover: Takeover,
    ) -> Result<ByteStream, SiteError> {
        self.call(Method::OpenChannel, format!("open channel {port} into {vm}"), |estate| {
            placeholder::open_channel(estate, vm, port, takeover)
        })
        .await
    }

    async fn write_mark(&self, vm: VmId, mark: &Mark) -> Result<(), SiteError> {
        self.call(Method::WriteMark, format!("write the decision onto {vm}"), |estate| {
            placeholder::write_mark(estate, vm, mark)
        })
        .await
    }

    async fn read_mark(&self, vm: VmId) -> Result<Option<Mark>, SiteError> {
        self.call(Method::ReadMark, format!("read the decision on {vm}"), |estate| {
            Ok(estate.machines.get(&vm).and_then(|machine| machine.mark.clone()))
        })
        .await
    }

    async fn start_from_own_disk(&self, spec: &PlaceholderSpec) -> Result<(), SiteError> {
        self.call(Method::StartFromOwnDisk, format!("start {}", spec.name), |estate| {
            placeholder::release(estate, spec)
        })
        .await
    }

    async fn leftovers(&self, migration: &MigrationId) -> Result<Vec<Leftover>, SiteError> {
        self.call(Method::Leftovers, format!("list what {migration} made"), |estate| {
            Ok(placeholder::leftovers(estate, migration))
        })
        .await
    }

    async fn remove(&self, leftover: &Leftover) -> Result<(), SiteError> {
        self.call(Method::Remove, format!("remove {}", name_of(leftover)), |estate| {
            placeholder::remove(estate, leftover)
        })
        .await
    }
}

fn name_of(leftover: &Leftover) -> &str {
    match leftover {
        Leftover::Placeholder { name, .. } => name,
        Leftover::Volume { volume, .. } => volume,
    }
}

fn machine(estate: &mut Estate, vm: VmId) -> Result<&mut Machine, Trouble> {
    estate.machines.get_mut(&vm).ok_or_else(|| absent(vm))
}

fn absent(vm: VmId) -> Trouble {
    Trouble::new(SiteErrorKind::NotFound, format!("there is no VM {vm}"))
}

fn report(estate: &Estate) -> SiteReport {
    let used = |pool: &str| -> u64 {
        let volumes = estate.volumes.iter().filter(|((of, _), _)| of == pool);
        volumes.map(|(_, volume)| u64::try_from(lock(&volume.data).len()).unwrap_or(0)).sum()
    };
    SiteReport {
        platform: "memory 1".to_owned(),
        host: "memory".to_owned(),
        arch: "x86_64".to_owned(),
        machines: vec!["pc".to_owned(), "q35".to_owned()],
        firmwares: vec![Firmware::Bios, Firmware::Uefi { secure_boot: false }],
        cpu_models: Vec::new(),
        vcpus_max: 64,
        memory_free: Some(Bytes(1 << 40)),
        pools: estate
            .pools
            .iter()
            .map(|(name, capacity)| PoolOffer {
                name: name.clone(),
                capacity: *capacity,
                available: capacity.saturating_sub(Bytes(used(name))),
                active: true,
                kind: "memory".to_owned(),
            })
            .collect(),
        networks: estate
            .networks
            .iter()
            .map(|network| NetworkOffer { network: network.clone(), active: true })
            .collect(),
        capabilities: vec![
            Capability::HelperByKernel,
            Capability::ManagementChannel,
            Capability::WriteCounters,
            Capability::Suspend,
            Capability::Records,
        ],
        outdated: Vec::new(),
        warnings: Vec::new(),
    }
}
