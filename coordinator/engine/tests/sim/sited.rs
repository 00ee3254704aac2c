//! A site whose every call is a point.

use async_trait::async_trait;
use model::{FenceOffer, Power, SiteName, SiteReport, Vm, VmId, WriteCount};
use site::{
    ApplianceFiles, ApplianceRef, ByteStream, CreatedDisk, Discarded, FenceStage, Leftover, Mark,
    NewDisk, PlaceholderSpec, PlaceholderState, RecordKey, Remedy, Site, SiteError, SiteErrorKind,
    StoppedBy, Takeover, UnfenceRecord,
};
use site_memory::MemorySite;
use units::MigrationId;

use crate::points::{Lost, Points};

pub struct Sited {
    pub inner: MemorySite,
    pub points: Points,
    /// Whatever goes on beside each call: the guest writes.
    pub meanwhile: Box<dyn Fn() + Send + Sync>,
    /// In one step, as libvirt does not.
    pub compares_and_replaces: bool,
}

impl Sited {
    async fn pass<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T, SiteError>
    where
        F: Future<Output = Result<T, SiteError>>,
    {
        (self.meanwhile)();
        let done = self.points.pass(format!("{}: {what}", self.inner.name()), call).await;
        (self.meanwhile)();
        let broke = || unreachable(self.inner.name(), what, "it broke", Remedy::Reconcile);
        done.unwrap_or_else(|Lost| Err(broke()))
    }
}

/// The connection broke, or there is none.
pub fn unreachable(site: &SiteName, attempt: &str, what: &str, remedy: Remedy) -> SiteError {
    SiteError {
        site: site.clone(),
        kind: SiteErrorKind::Unreachable,
        attempt: attempt.to_owned(),
        what: what.to_owned(),
        hint: None,
        remedy,
        source: None,
    }
}

/// Each method of [`Site`] as a point of its own name.
macro_rules! points {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Site for Sited {
            fn name(&self) -> &SiteName {
                self.inner.name()
            }

            async fn keep(
                &self,
                key: &RecordKey,
                expected: Option<&[u8]>,
                body: &[u8],
            ) -> Result<(), SiteError> {
                let at_once = || self.inner.keep(key, expected, body);
                if self.compares_and_replaces {
                    return self.pass("keep", at_once).await;
                }
                let there = self.inner.kept(key).await?;
                if there.as_deref() != expected && there.as_deref() != Some(body) {
                    return at_once().await;
                }
                // Whatever happens between the two is overwritten.
                let replace = || async {
                    let there = self.inner.kept(key).await?;
                    self.inner.keep(key, there.as_deref(), body).await
                };
                self.pass("keep", replace).await
            }

            $(async fn $name(&self, $($argument: $type),*) -> Result<$answer, SiteError> {
                self.pass(stringify!($name), || self.inner.$name($($argument),*)).await
            })*
        }
    };
}

points! {
    probe() -> SiteReport;
    vms() -> Vec<(VmId, String)>;
    vm(name_or_id: &str) -> Vm;
    power(vm: VmId) -> Power;
    stopped_by(vm: VmId) -> Option<StoppedBy>;
    suspend(vm: VmId) -> ();
    resume(vm: VmId) -> ();
    power_off(vm: VmId) -> ();
    power_on(vm: VmId) -> ();
    write_counts(vm: VmId) -> Vec<WriteCount>;
    fence_offer(vm: VmId) -> FenceOffer;
    fence_capture(vm: VmId, stage: FenceStage) -> UnfenceRecord;
    fence_apply(vm: VmId, record: &UnfenceRecord) -> ();
    fence_holds(vm: VmId, record: &UnfenceRecord) -> bool;
    fence_undo(vm: VmId, record: &UnfenceRecord) -> ();
    retire(vm: VmId, record: &UnfenceRecord) -> String;
    discard(vm: VmId, records: &[UnfenceRecord], moved: &[String]) -> Discarded;
    put_appliance(files: &ApplianceFiles) -> ApplianceRef;
    create_disk(migration: &MigrationId, disk: &NewDisk) -> CreatedDisk;
    define_placeholder(spec: &PlaceholderSpec) -> ();
    placeholder(vm: VmId) -> PlaceholderState;
    start_helper(vm: VmId) -> ();
    open_channel(vm: VmId, port: u16, takeover: Takeover) -> ByteStream;
    write_mark(vm: VmId, mark: &Mark) -> ();
    read_mark(vm: VmId) -> Option<Mark>;
    start_from_own_disk(spec: &PlaceholderSpec) -> ();
    leftovers(migration: &MigrationId) -> Vec<Leftover>;
    remove(leftover: &Leftover) -> ();
    kept(key: &RecordKey) -> Option<Vec<u8>>;
    kept_keys() -> Vec<RecordKey>;
    forget(key: &RecordKey) -> ();
}
