//! Sites and guests in another process, which outlives a coordinator that is killed. One connection
//! for each call; a stream goes on over the connection that asked for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use model::{FenceOffer, Power, SiteName, SiteReport, Vm, VmId, WriteCount};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use site::{
    ApplianceFiles, ApplianceRef, ByteStream, CreatedDisk, Discarded, FenceStage, GuestAccess,
    GuestProbe, Leftover, Mark, NewDisk, PlaceholderSpec, PlaceholderState, RecordKey, Remedy,
    Site, SiteError, SiteErrorKind, StoppedBy, Takeover, UnfenceRecord,
};
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use transfer::control::{self, ControlReader};
use units::MigrationId;

use crate::agents::Access;
use crate::points::Points;
use crate::sited::{Sited, unreachable};
use crate::stage::Stage;

/// One call, about one VM.
#[derive(Serialize, Deserialize)]
struct Ask {
    vm: VmId,
    whom: Whom,
    call: String,
    arguments: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whom {
    Source,
    Destination,
    Guest,
}

/// [`SiteError`] as it is carried.
#[derive(Serialize, Deserialize)]
struct Wrong {
    kind: SiteErrorKind,
    attempt: String,
    what: String,
    remedy: Remedy,
}

impl From<SiteError> for Wrong {
    fn from(error: SiteError) -> Self {
        let SiteError { kind, attempt, what, remedy, .. } = error;
        Self { kind, attempt, what, remedy }
    }
}

type Answer = Result<Value, Wrong>;

/// Whom a coordinator asks about its VM.
#[derive(Clone)]
pub struct Far {
    pub at: PathBuf,
    pub name: SiteName,
    pub vm: VmId,
    pub whom: Whom,
}

impl Far {
    /// Asks and keeps the connection.
    async fn ask_on<T: DeserializeOwned>(
        &self,
        call: &str,
        arguments: Value,
    ) -> Result<(T, UnixStream), SiteError> {
        let broke = |_| unreachable(&self.name, call, "it broke", Remedy::Reconcile);
        let mut stream = self.connect(call).await?;
        let ask = Ask { vm: self.vm, whom: self.whom, call: call.to_owned(), arguments };
        control::write(&mut stream, &ask).await.map_err(broke)?;
        // Nothing follows the answer before this end speaks again.
        let answer = ControlReader::new(&mut stream).next::<Answer>().await.map_err(broke)?;
        let none = || unreachable(&self.name, call, "no answer", Remedy::Reconcile);
        match answer.ok_or_else(none)? {
            Ok(value) => Ok((serde_json::from_value(value).unwrap(), stream)),
            Err(Wrong { kind, attempt, what, remedy }) => {
                let site = self.name.clone();
                Err(SiteError { site, kind, attempt, what, hint: None, remedy, source: None })
            }
        }
    }

    async fn ask<T: DeserializeOwned>(&self, call: &str, arguments: Value) -> Result<T, SiteError> {
        self.ask_on(call, arguments).await.map(|(answer, _)| answer)
    }

    async fn connect(&self, call: &str) -> Result<UnixStream, SiteError> {
        loop {
            match UnixStream::connect(&self.at).await {
                Ok(stream) => return Ok(stream),
                // More are waiting to be accepted than the kernel lets.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => {
                    let remedy = Remedy::RetryAfter(Duration::from_secs(1));
                    return Err(unreachable(&self.name, call, &error.to_string(), remedy));
                }
            }
        }
    }
}

fn value(of: impl Serialize) -> Value {
    serde_json::to_value(of).unwrap()
}

fn given<T: DeserializeOwned>(arguments: Value) -> T {
    serde_json::from_value(arguments).unwrap()
}

/// Each method of [`Site`] that takes values, and then references, at both ends.
macro_rules! calls {
    ($($name:ident(
        $($argument:ident: $type:ty),*; $($lent:ident: $borrowed:ty),*
    ) -> $answer:ty;)*) => {
        #[async_trait]
        impl Site for Far {
            fn name(&self) -> &SiteName {
                &self.name
            }

            async fn keep(
                &self,
                key: &RecordKey,
                expected: Option<&[u8]>,
                body: &[u8],
            ) -> Result<(), SiteError> {
                let arguments = value((key, expected.map(hex::encode), hex::encode(body)));
                self.ask("keep", arguments).await
            }

            async fn kept(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, SiteError> {
                let kept: Option<String> = self.ask("kept", value(key)).await?;
                Ok(kept.map(|text| hex::decode(text).unwrap()))
            }

            async fn open_channel(
                &self,
                vm: VmId,
                port: u16,
                takeover: Takeover,
            ) -> Result<ByteStream, SiteError> {
                let arguments = value((vm, port, takeover));
                let ((), stream) = self.ask_on("open_channel", arguments).await?;
                Ok(Box::new(stream))
            }

            $(async fn $name(
                &self,
                $($argument: $type,)*
                $($lent: &$borrowed),*
            ) -> Result<$answer, SiteError> {
                self.ask(stringify!($name), value(($($argument,)* $($lent,)*))).await
            })*
        }

        /// The answer, and the stream that goes with it.
        async fn answer(
            site: &dyn Site,
            call: &str,
            arguments: Value,
        ) -> Result<(Value, Option<ByteStream>), SiteError> {
            let answer = match call {
                "keep" => {
                    let (key, expected, body): (_, Option<String>, String) = given(arguments);
                    let expected = expected.map(|text| hex::decode(text).unwrap());
                    let body = hex::decode(body).unwrap();
                    value(site.keep(&key, expected.as_deref(), &body).await?)
                }
                "kept" => value(site.kept(&given(arguments)).await?.map(hex::encode)),
                "open_channel" => {
                    let (vm, port, takeover) = given(arguments);
                    let stream = site.open_channel(vm, port, takeover).await?;
                    return Ok((Value::Null, Some(stream)));
                }
                $(stringify!($name) => {
                    let ($($argument,)* $($lent,)*): (
                        $($type,)*
                        $(<$borrowed as ToOwned>::Owned,)*
                    ) = given(arguments);
                    value(site.$name($($argument,)* $(&$lent),*).await?)
                })*
                other => panic!("nobody answers {other}"),
            };
            Ok((answer, None))
        }
    };
}

calls! {
    probe(;) -> SiteReport;
    vms(;) -> Vec<(VmId, String)>;
    vm(; name_or_id: str) -> Vm;
    power(vm: VmId;) -> Power;
    stopped_by(vm: VmId;) -> Option<StoppedBy>;
    suspend(vm: VmId;) -> ();
    resume(vm: VmId;) -> ();
    power_off(vm: VmId;) -> ();
    power_on(vm: VmId;) -> ();
    write_counts(vm: VmId;) -> Vec<WriteCount>;
    fence_offer(vm: VmId;) -> FenceOffer;
    fence_capture(vm: VmId, stage: FenceStage;) -> UnfenceRecord;
    fence_apply(vm: VmId; record: UnfenceRecord) -> ();
    fence_holds(vm: VmId; record: UnfenceRecord) -> bool;
    fence_undo(vm: VmId; record: UnfenceRecord) -> ();
    retire(vm: VmId; record: UnfenceRecord) -> String;
    discard(vm: VmId; records: [UnfenceRecord], moved: [String]) -> Discarded;
    put_appliance(; files: ApplianceFiles) -> ApplianceRef;
    create_disk(; migration: MigrationId, disk: NewDisk) -> CreatedDisk;
    define_placeholder(; spec: PlaceholderSpec) -> ();
    placeholder(vm: VmId;) -> PlaceholderState;
    start_helper(vm: VmId;) -> ();
    write_mark(vm: VmId; mark: Mark) -> ();
    read_mark(vm: VmId;) -> Option<Mark>;
    start_from_own_disk(; spec: PlaceholderSpec) -> ();
    leftovers(; migration: MigrationId) -> Vec<Leftover>;
    remove(; leftover: Leftover) -> ();
    kept_keys(;) -> Vec<RecordKey>;
    forget(; key: RecordKey) -> ();
}

#[async_trait]
impl GuestAccess for Far {
    fn describe(&self) -> String {
        "root@guest".to_owned()
    }

    async fn probe(&self) -> Result<GuestProbe, SiteError> {
        self.ask("probe", Value::Null).await
    }

    async fn install(&self, migration: &MigrationId, _agent: &Path) -> Result<(), SiteError> {
        self.ask("install", value(migration)).await
    }

    async fn open(&self, migration: &MigrationId) -> Result<ByteStream, SiteError> {
        let ((), stream) = self.ask_on("open", value(migration)).await?;
        Ok(Box::new(stream))
    }

    async fn remove(&self, migration: &MigrationId) -> Result<Vec<String>, SiteError> {
        self.ask("remove", value(migration)).await
    }
}

async fn guest_answers(
    guest: &Access,
    call: &str,
    arguments: Value,
) -> Result<(Value, Option<ByteStream>), SiteError> {
    let answer = match call {
        "probe" => value(guest.probe().await?),
        "install" => value(guest.install(&given(arguments), Path::new("agent")).await?),
        "open" => return Ok((Value::Null, Some(guest.open(&given(arguments)).await?))),
        "remove" => value(guest.remove(&given(arguments)).await?),
        other => panic!("nobody answers {other}"),
    };
    Ok((answer, None))
}

/// All VMs, with the sites of each: what coordinators ask is what is measured, not a site.
pub struct Clouds {
    of: HashMap<VmId, Cloud>,
    /// Sources that were asked to power off.
    pub powered_off: AtomicUsize,
}

struct Cloud {
    source: Sited,
    destination: Sited,
    guest: Access,
}

impl Clouds {
    pub fn new(stages: &[Stage]) -> Arc<Self> {
        let cloud = |stage: &Stage| {
            let points = Points::default();
            let (source, destination) =
                (stage.sited(&stage.east, &points), stage.sited(&stage.west, &points));
            (stage.id(), Cloud { source, destination, guest: stage.access(&points) })
        };
        Arc::new(Self { of: stages.iter().map(cloud).collect(), powered_off: AtomicUsize::new(0) })
    }

    /// Until somebody in it panics.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let mut served = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.unwrap();
                    served.spawn(Arc::clone(&self).answer(stream));
                }
                Some(ended) = served.join_next() => ended.unwrap(),
            }
        }
    }

    async fn answer(self: Arc<Self>, mut stream: UnixStream) {
        // Whoever asks may be killed at any moment.
        let Ok(Some(ask)) = ControlReader::new(&mut stream).next::<Ask>().await else { return };
        let Ask { vm, whom, call, arguments } = ask;
        let cloud = &self.of[&vm];
        let answered = match whom {
            Whom::Source => answer(&cloud.source, &call, arguments).await,
            Whom::Destination => answer(&cloud.destination, &call, arguments).await,
            Whom::Guest => guest_answers(&cloud.guest, &call, arguments).await,
        };
        if call == "power_off" {
            self.powered_off.fetch_add(1, Ordering::Relaxed);
        }
        let (reply, behind) = match answered {
            Ok((value, behind)) => (Ok(value), behind),
            Err(error) => (Err(Wrong::from(error)), None),
        };
        let reply: Answer = reply;
        let told = control::write(&mut stream, &reply).await;
        if let (Ok(()), Some(mut behind)) = (told, behind) {
            let _ended = copy_bidirectional(&mut stream, &mut behind).await;
        }
    }
}
