//! [`Site`] over libvirt.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::{FenceOffer, PoolOffer, Power, SiteName, SiteReport, Vm, VmId, WriteCount};
use site::{
    ApplianceFiles, ApplianceRef, Belongings, ByteStream, CreatedDisk, Discarded, FenceStage,
    Leftover, LiveJob, LiveWish, Mark, NewDisk, PlaceholderSpec, PlaceholderState, RecordKey,
    Remedy, Site, SiteError, SiteErrorKind, StoppedBy, Takeover, UnfenceRecord, VmProcess,
};
use units::{Epoch, MigrationId};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::stream::Stream;

use crate::channel::Channel;
use crate::fault::{Fault, Op};
use crate::link::Link;
use crate::{
    LibvirtConfig, appliance, belongings, fence, inventory, live, look, placeholder, power, probe,
    process, records, volumes,
};

/// A site that speaks libvirt. Makes no connection until it is asked something.
pub struct LibvirtSite {
    config: Arc<LibvirtConfig>,
    link: Link,
}

impl LibvirtSite {
    pub fn new(config: LibvirtConfig) -> Self {
        let config = Arc::new(config);
        Self { link: Link::new(Arc::clone(&config)), config }
    }

    async fn look<T: Send + 'static>(
        &self,
        attempt: String,
        work: impl Fn(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, SiteError> {
        self.link.call(Op::Look, attempt, self.config.limits.look, work).await
    }

    /// As [`Self::look`], for what is hundreds of questions.
    async fn look_long<T: Send + 'static>(
        &self,
        attempt: String,
        work: impl Fn(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, SiteError> {
        self.link.call(Op::Look, attempt, self.config.limits.change, work).await
    }

    async fn change<T: Send + 'static>(
        &self,
        attempt: String,
        work: impl Fn(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, SiteError> {
        self.link.call(Op::Change, attempt, self.config.limits.change, work).await
    }

    /// As [`Self::change`], for what moves many bytes.
    async fn transfer<T: Send + 'static>(
        &self,
        attempt: String,
        work: impl Fn(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, SiteError> {
        self.link.call(Op::Change, attempt, self.config.limits.transfer, work).await
    }
}

#[async_trait]
impl Site for LibvirtSite {
    fn name(&self) -> &SiteName {
        &self.config.name
    }

    async fn probe(&self) -> Result<SiteReport, SiteError> {
        let config = Arc::clone(&self.config);
        self.look("probe the site".to_owned(), move |connection| probe::probe(connection, &config))
            .await
    }

    async fn pool(&self, name: &str) -> Result<Option<PoolOffer>, SiteError> {
        let name = name.to_owned();
        self.look(format!("look at pool {name}"), move |connection| {
            probe::pool(connection, &name).map(Some)
        })
        .await
    }

    async fn vms(&self) -> Result<Vec<(VmId, String)>, SiteError> {
        self.look("list VMs".to_owned(), inventory::vms).await
    }

    async fn vm(&self, name_or_id: &str) -> Result<Vm, SiteError> {
        let name = name_or_id.to_owned();
        self.look(format!("look at VM {name}"), move |connection| inventory::vm(connection, &name))
            .await
    }

    async fn power(&self, vm: VmId) -> Result<Power, SiteError> {
        self.look(format!("see whether VM {vm} runs"), move |connection| {
            look::power_of(connection, vm)
        })
        .await
    }

    async fn stopped_by(&self, vm: VmId) -> Result<Option<StoppedBy>, SiteError> {
        self.look(format!("see how VM {vm} came to a stop"), move |connection| {
            look::stopped_by(connection, vm)
        })
        .await
    }

    async fn process(&self, vm: VmId) -> Result<Option<Box<dyn VmProcess>>, SiteError> {
        let config = Arc::clone(&self.config);
        let attempt = format!("see the process of VM {vm}");
        let found =
            self.look(attempt.clone(), move |connection| process::find(connection, &config, vm));
        let Some(found) = found.await? else { return Ok(None) };
        match found.watched() {
            Ok(process) => Ok(Some(Box::new(process))),
            Err(cause) => {
                let error =
                    self.link.error(SiteErrorKind::Exhausted, attempt, "its end cannot be watched");
                Err(SiteError { source: Some(Box::new(cause)), ..error })
            }
        }
    }

    async fn suspend(&self, vm: VmId) -> Result<(), SiteError> {
        self.change(format!("suspend VM {vm}"), move |connection| power::suspend(connection, vm))
            .await
    }

    async fn resume(&self, vm: VmId) -> Result<(), SiteError> {
        self.change(format!("resume VM {vm}"), move |connection| power::resume(connection, vm))
            .await
    }

    async fn power_off(&self, vm: VmId) -> Result<(), SiteError> {
        self.change(format!("power off VM {vm}"), move |connection| {
            power::power_off(connection, vm)
        })
        .await
    }

    async fn power_on(&self, vm: VmId) -> Result<(), SiteError> {
        self.change(format!("power on VM {vm}"), move |connection| power::power_on(connection, vm))
            .await
    }

    async fn write_counts(&self, vm: VmId) -> Result<Vec<WriteCount>, SiteError> {
        self.look(format!("count writes of VM {vm}"), move |connection| {
            inventory::write_counts(connection, vm)
        })
        .await
    }

    async fn keep(
        &self,
        key: &RecordKey,
        expected: Option<&[u8]>,
        body: &[u8],
    ) -> Result<(), SiteError> {
        let (key, body) = (key.clone(), body.to_vec());
        let expected = expected.map(<[u8]>::to_vec);
        self.change(format!("keep record {key}"), move |connection| {
            records::keep(connection, &key, expected.as_deref(), &body)
        })
        .await
    }

    async fn kept(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, SiteError> {
        let key = key.clone();
        self.look_long(format!("read record {key}"), move |connection| {
            records::kept(connection, &key)
        })
        .await
    }

    async fn kept_keys(&self) -> Result<Vec<RecordKey>, SiteError> {
        self.look_long("list records".to_owned(), records::keys).await
    }

    async fn forget(&self, key: &RecordKey) -> Result<(), SiteError> {
        let key = key.clone();
        self.change(format!("forget record {key}"), move |connection| {
            records::forget(connection, &key)
        })
        .await
    }

    async fn fence_offer(&self, vm: VmId) -> Result<FenceOffer, SiteError> {
        let config = Arc::clone(&self.config);
        self.look(format!("plan a fence for VM {vm}"), move |connection| {
            fence::offer(connection, &config, vm)
        })
        .await
    }

    async fn fence_capture(&self, vm: VmId, stage: FenceStage) -> Result<UnfenceRecord, SiteError> {
        let config = Arc::clone(&self.config);
        self.look(format!("save what a fence of VM {vm} replaces"), move |connection| {
            fence::capture(connection, &config, vm, stage)
        })
        .await
    }

    async fn fence_apply(&self, vm: VmId, record: &UnfenceRecord) -> Result<(), SiteError> {
        let (config, record) = (Arc::clone(&self.config), record.clone());
        self.change(format!("fence VM {vm}"), move |connection| {
            fence::apply(connection, &config, vm, &record)
        })
        .await
    }

    async fn fence_holds(&self, vm: VmId, record: &UnfenceRecord) -> Result<bool, SiteError> {
        let (config, record) = (Arc::clone(&self.config), record.clone());
        self.look(format!("look at the fence of VM {vm}"), move |connection| {
            fence::holds(connection, &config, vm, &record)
        })
        .await
    }

    async fn fence_undo(&self, vm: VmId, record: &UnfenceRecord) -> Result<(), SiteError> {
        let (config, record) = (Arc::clone(&self.config), record.clone());
        self.change(format!("take the fence off VM {vm}"), move |connection| {
            fence::undo(connection, &config, vm, &record)
        })
        .await
    }

    async fn retire(&self, vm: VmId, record: &UnfenceRecord) -> Result<String, SiteError> {
        let record = record.clone();
        self.change(format!("retire VM {vm}"), move |connection| {
            fence::retire(connection, vm, &record)
        })
        .await
    }

    async fn discard(
        &self,
        vm: VmId,
        records: &[UnfenceRecord],
        moved: &[String],
    ) -> Result<Discarded, SiteError> {
        let (config, records) = (Arc::clone(&self.config), records.to_vec());
        let moved = moved.to_vec();
        self.transfer(format!("delete the retired VM {vm}"), move |connection| {
            fence::discard(connection, &config, vm, &records, &moved)
        })
        .await
    }

    async fn put_appliance(&self, files: &ApplianceFiles) -> Result<ApplianceRef, SiteError> {
        let files = files.clone();
        self.transfer(format!("store the appliance in pool {}", files.pool), move |connection| {
            appliance::put(connection, &files)
        })
        .await
    }

    async fn create_disk(
        &self,
        migration: &MigrationId,
        disk: &NewDisk,
    ) -> Result<CreatedDisk, SiteError> {
        let (migration, disk) = (migration.clone(), disk.clone());
        let attempt = format!("create volume {} in pool {}", disk.volume, disk.pool);
        self.transfer(attempt, move |connection| volumes::create(connection, &migration, &disk))
            .await
    }

    async fn define_placeholder(&self, spec: &PlaceholderSpec) -> Result<(), SiteError> {
        let (config, spec) = (Arc::clone(&self.config), spec.clone());
        self.change(format!("define placeholder {}", spec.name), move |connection| {
            placeholder::define(connection, &config, &spec)
        })
        .await
    }

    async fn placeholder(&self, vm: VmId) -> Result<PlaceholderState, SiteError> {
        self.look(format!("look at placeholder {vm}"), move |connection| {
            placeholder::state(connection, vm)
        })
        .await
    }

    async fn start_helper(&self, vm: VmId) -> Result<(), SiteError> {
        self.change(format!("start the helper in {vm}"), move |connection| {
            placeholder::start_helper(connection, vm)
        })
        .await
    }

    async fn open_channel(
        &self,
        vm: VmId,
        port: u16,
        takeover: Takeover,
    ) -> Result<ByteStream, SiteError> {
        let attempt = format!("open channel {port} into {vm}");
        let link = self.link.clone();
        let limit = self.config.limits.look;
        // Opening again is harmless, so an answer that got lost leaves nothing open.
        let opened = self.link.on_thread(Op::Look, attempt.clone(), limit, move || {
            open(link.open()?, vm, port, takeover)
        });
        let (connection, stream) = opened.await?;
        match Channel::new(connection, stream) {
            Ok(channel) => Ok(Box::new(channel)),
            Err(cause) => Err(SiteError {
                source: Some(Box::new(cause)),
                ..self.link.error(SiteErrorKind::Exhausted, attempt, "no thread for the channel")
            }),
        }
    }

    async fn write_mark(&self, vm: VmId, mark: &Mark) -> Result<(), SiteError> {
        let mark = mark.clone();
        self.change(format!("write the decision onto {vm}"), move |connection| {
            placeholder::write_mark(connection, vm, &mark)
        })
        .await
    }

    async fn read_mark(&self, vm: VmId) -> Result<Option<Mark>, SiteError> {
        self.look(format!("read the decision on {vm}"), move |connection| {
            placeholder::read_mark(connection, vm)
        })
        .await
    }

    async fn start_from_own_disk(&self, spec: &PlaceholderSpec) -> Result<(), SiteError> {
        let (config, spec) = (Arc::clone(&self.config), spec.clone());
        self.change(format!("start {} from its own disk", spec.name), move |connection| {
            placeholder::release(connection, &config, &spec)
        })
        .await
    }

    async fn leftovers(&self, migration: &MigrationId) -> Result<Vec<Leftover>, SiteError> {
        let migration = migration.clone();
        self.look(format!("list what {migration} made"), move |connection| {
            placeholder::leftovers(connection, &migration)
        })
        .await
    }

    async fn remove(&self, leftover: &Leftover) -> Result<(), SiteError> {
        let leftover = leftover.clone();
        let name = match &leftover {
            Leftover::Placeholder { name, .. } => format!("placeholder {name}"),
            Leftover::Volume { pool, volume, .. } => format!("volume {volume} of pool {pool}"),
        };
        self.change(format!("remove {name}"), move |connection| {
            placeholder::remove(connection, &leftover)
        })
        .await
    }

    async fn remove_belongings(
        &self,
        migration: &MigrationId,
        epoch: Epoch,
        vm: VmId,
        belongings: &Belongings,
    ) -> Result<(), SiteError> {
        let (migration, belongings) = (migration.clone(), belongings.clone());
        self.change(format!("remove what is kept beside VM {vm}"), move |connection| {
            belongings::remove(connection, (&migration, epoch), vm, &belongings)
        })
        .await
    }

    async fn migrate_live(&self, vm: VmId, wish: &LiveWish) -> Result<(), SiteError> {
        let (link, wish) = (self.link.clone(), wish.clone());
        let attempt = format!("migrate VM {vm} to {}", wish.neighbour);
        // For as long as it takes: whoever waits looks at it over another connection.
        self.link
            .on_thread(Op::Change, attempt, Duration::MAX, move || {
                live::migrate(&link.open()?, vm, &wish)
            })
            .await
    }

    async fn max_downtime_ms(&self, vm: VmId) -> Result<u64, SiteError> {
        self.look(format!("see how long VM {vm} may stand still"), move |connection| {
            live::downtime_allowed(connection, vm)
        })
        .await
    }

    async fn allow_downtime_ms(&self, vm: VmId, most: u64) -> Result<(), SiteError> {
        self.change(format!("say how long VM {vm} may stand still"), move |connection| {
            live::allow_downtime(connection, vm, most)
        })
        .await
    }

    async fn live_job(&self, vm: VmId) -> Result<Option<LiveJob>, SiteError> {
        self.look(format!("see how VM {vm} migrates"), move |connection| live::job(connection, vm))
            .await
    }

    async fn last_live_job(&self, vm: VmId) -> Result<Option<LiveJob>, SiteError> {
        self.look(format!("see how VM {vm} migrated"), move |connection| {
            live::last_job(connection, vm)
        })
        .await
    }

    async fn cancel_live(&self, vm: VmId) -> Result<(), SiteError> {
        self.change(format!("call off the migration of VM {vm}"), move |connection| {
            live::cancel(connection, vm)
        })
        .await
    }
}

/// A stream on a channel, with the connection that carries nothing else.
fn open(
    connection: Connect,
    vm: VmId,
    port: u16,
    takeover: Takeover,
) -> Result<(Connect, Stream), Fault> {
    let domain = look::require(&connection, vm)?;
    helper_runs(&domain)?;
    let stream = Stream::new(&connection, 0)?;
    let flags = match takeover {
        Takeover::Refuse => 0,
        Takeover::Force => virt_sys::VIR_DOMAIN_CHANNEL_FORCE,
    };
    if let Err(said) = domain.open_channel(Some(&format!("org.causeway.{port}")), &stream, flags) {
        // One that died a moment ago may have looked alive until now.
        helper_runs(&domain)?;
        return Err(said.into());
    }
    Ok((connection, stream))
}

/// One that was started and does not run has died: starting it again helps.
fn helper_runs(domain: &Domain) -> Result<(), Fault> {
    match look::power(domain)? {
        Power::Running => Ok(()),
        power => Err(Fault::wrong_state(format!("the VM is {power}"))
            .hint("start the helper")
            .remedy(Remedy::RetryAfter(RESTART))),
    }
}

/// What a VM's end takes until libvirt knows of it.
const RESTART: Duration = Duration::from_secs(1);
