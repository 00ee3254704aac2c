//! The guest with its agent, and the helper with its own.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use model::{DiskLocation, Power, SiteName, Vm, VmId};
use site::{ByteStream, GuestAccess, GuestProbe, Privilege, Remedy, SiteError};
use site_memory::World;
use tokio::time::Instant;
use units::{Bytes, Digest, DiskNo, MigrationId};
use wire::control::{
    AgentRole, AgentStatus, BlockDevice, BlockKind, DiskProgress, ErrorCode, Event, Failure,
    GuestReport, Reply, Request, RoundEnd, RoundProgress, Sealed, TrackerChoice, TrackerReport,
};

use crate::points::{Lost, Points};
use crate::sited::unreachable;
use crate::talk::{self, Agent};

/// Where the copy is to go.
#[derive(Clone)]
pub struct Target {
    pub site: SiteName,
    pub pool: String,
    pub volume: String,
    /// Bytes that each data stream carries, as a real copy's would.
    pub carried: usize,
    /// What the helper takes the volume to hold, for as long as it runs: what it read when it got it, or
    /// zeros where it was told so, and what it was sent since.
    pub table: Mutexed<Option<Vec<u8>>>,
    /// Of the streams that it was told of last.
    pub generation: Mutexed<u64>,
}

impl Target {
    /// The helper is gone, and what it knew with it.
    pub fn powers_off(&self, world: &World, vm: VmId) {
        *self.table.lock().unwrap() = None;
        *self.generation.lock().unwrap() = 0;
        world.guest_powers_off(&self.site, vm);
    }
}

/// The VM as its users see it: it writes whenever it can, and remembers what it wrote.
#[derive(Clone)]
pub struct Guest(Arc<Inside>);

struct Inside {
    world: World,
    vm: VmId,
    home: SiteName,
    disk: DiskLocation,
    target: Target,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where it ran when it last wrote, and how often it was booted.
    seen_at: Option<SiteName>,
    boots: u32,
    agent: Option<Arc<Agent>>,
    tracking: bool,
    /// Of the streams that its agent was told of last, by whoever speaks with it.
    generation: u64,
    is_connected: bool,
    frozen_until: Option<Instant>,
    /// All that its disk must hold.
    truth: Vec<u8>,
    writes: u64,
    /// As many writes as there had been when everything was last copied.
    copied: Option<u64>,
    /// Something inside writes past every file system, and no freeze holds it.
    writes_raw: bool,
}

/// The guest writes to its own place in turn, over the whole disk.
const RECORD: usize = 512;

impl Guest {
    pub fn new(world: &World, vm: &Vm, home: SiteName, target: Target) -> Self {
        let disk = vm.disks[0].location.clone();
        let truth = world.disk(&home, &disk).unwrap().lock().unwrap().clone();
        let state = Mutex::new(State { truth, ..State::default() });
        let world = world.clone();
        Self(Arc::new(Inside { world, vm: vm.id, home, disk, target, state }))
    }

    /// One write past every file system, frozen or not.
    pub fn write_past_the_freeze(&self) {
        self.write_raw(true);
        self.write();
        self.write_raw(false);
    }

    /// Something inside writes past every file system from now on, or does not any more.
    pub fn write_raw(&self, raw: bool) {
        self.0.state.lock().unwrap().writes_raw = raw;
    }

    /// What it has written, as its disk must hold it.
    pub fn truth(&self) -> Vec<u8> {
        self.0.state.lock().unwrap().truth.clone()
    }

    /// Writes once, if it runs, is not frozen, and is let.
    pub fn write(&self) -> bool {
        let Inside { world, vm, state, .. } = &*self.0;
        let Some(at) = world.loaded_at(*vm) else {
            self.stopped();
            return false;
        };
        let mut state = state.lock().unwrap();
        if state.seen_at.as_ref() != Some(&at) {
            state.boot(at.clone());
        }
        let frozen = state.frozen_until.is_some_and(|until| Instant::now() < until);
        if frozen && !state.writes_raw {
            return false;
        }
        if !frozen {
            state.frozen_until = None;
        }
        let number = state.writes + 1;
        let places = state.truth.len() / RECORD;
        let offset = usize::try_from(number).unwrap() % places * RECORD;
        // Now and then something is deleted, and its place trimmed.
        let trims = number.is_multiple_of(3);
        let bytes =
            if trims { vec![0; RECORD] } else { [number.to_le_bytes(), [0xA5; 8]].concat() };
        if !world.guest_write(&at, *vm, "vda", offset, &bytes) {
            return false;
        }
        state.truth[offset..offset + bytes.len()].copy_from_slice(&bytes);
        state.writes = number;
        true
    }

    /// Power is off: memory is gone, the agent with it.
    pub fn stopped(&self) {
        let mut state = self.0.state.lock().unwrap();
        state.seen_at = None;
        state.agent = None;
    }

    fn runs_at_home(&self) -> bool {
        let running = self.0.world.loaded_at(self.0.vm).as_ref() == Some(&self.0.home);
        if !running {
            self.stopped();
        }
        running
    }

    /// What is really on its disk at home.
    fn disk(&self) -> Vec<u8> {
        let Inside { world, home, disk, .. } = &*self.0;
        let disk = world.disk(home, disk).unwrap();
        disk.lock().unwrap().clone()
    }

    fn answer(&self, request: &Request) -> (Result<Reply, Failure>, Vec<Event>) {
        let mut events = Vec::new();
        if !self.runs_at_home() {
            return (Err(talk::failure(ErrorCode::Io, "it is off")), events);
        }
        let disk = self.disk();
        let size = Bytes(u64::try_from(disk.len()).unwrap());
        let mut state = self.0.state.lock().unwrap();
        let reply = match request {
            Request::Inspect => Ok(Reply::Guest(Box::new(GuestReport {
                devices: vec![device(size)],
                boot_id: state.boots.to_string(),
                ..GuestReport::default()
            }))),
            Request::Track { .. } => {
                if !state.tracking {
                    state.tracking = true;
                    state.copied = None;
                }
                let reason = "it is a simulation".to_owned();
                Ok(Reply::Tracking(TrackerReport { choice: TrackerChoice::Bpf, reason }))
            }
            Request::Round { number, .. } => {
                events.push(Event::RoundEnded(self.copy(*number, &disk, &mut state)));
                Ok(Reply::Done)
            }
            Request::Quiesce { thaw_after_ms, .. } => {
                state.frozen_until = Some(Instant::now() + Duration::from_millis(*thaw_after_ms));
                Ok(Reply::Done)
            }
            Request::Seal { thaw_after_ms } => {
                let frozen = state.frozen_until.is_some_and(|until| Instant::now() < until);
                if !frozen {
                    Err(talk::failure(ErrorCode::WrongState, "it is not frozen"))
                } else if state.copied != Some(state.writes) {
                    Err(talk::failure(ErrorCode::NotClean, "written since"))
                } else {
                    state.frozen_until =
                        Some(Instant::now() + Duration::from_millis(*thaw_after_ms));
                    Ok(Reply::Sealed(Sealed {
                        digests: vec![digest(&disk)],
                        tracker: TrackerChoice::Bpf,
                        audit: "counted".to_owned(),
                    }))
                }
            }
            Request::Thaw { .. } => {
                state.frozen_until = None;
                Ok(Reply::Done)
            }
            Request::Status => Ok(status(AgentRole::Source, state.generation)),
            Request::Connect { generation, .. } => {
                let is_open = std::mem::replace(&mut state.is_connected, true);
                grows(&mut state.generation, *generation, is_open).map(|()| Reply::Done)
            }
            Request::Disconnect | Request::Shutdown => Ok(Reply::Done),
            other => Err(talk::failure(ErrorCode::Unknown, &format!("{other:?}"))),
        };
        (reply, events)
    }

    /// A round: what is on the disk now is on the target. The guest goes on meanwhile, so that
    /// something is left to do.
    fn copy(&self, number: u32, disk: &[u8], state: &mut State) -> RoundEnd {
        let target = &self.0.target;
        let volume = self.0.world.volume(&target.site, &target.pool, &target.volume);
        let mut table = target.table.lock().unwrap();
        let (Some(volume), Some(table)) = (volume, table.as_mut()) else {
            return RoundEnd {
                progress: RoundProgress::default(),
                failure: Some(talk::failure(ErrorCode::Streams, "no helper has the target")),
                remaining: Bytes::ZERO,
                doubts: Vec::new(),
            };
        };
        // What is there already, by all that is known, is not sent.
        let mut volume = volume.lock().unwrap();
        let differs = |at: &usize| disk[*at..*at + RECORD] != table[*at..*at + RECORD];
        let places: Vec<_> = (0..disk.len()).step_by(RECORD).filter(differs).collect();
        for at in places {
            volume[at..at + RECORD].copy_from_slice(&disk[at..at + RECORD]);
            table[at..at + RECORD].copy_from_slice(&disk[at..at + RECORD]);
        }
        let dirty = state.writes - state.copied.unwrap_or_default();
        state.copied = Some(state.writes);
        let moved = Bytes(dirty * 512);
        let disk = DiskProgress { disk: Some(DiskNo(0)), sent: moved, ..DiskProgress::default() };
        RoundEnd {
            progress: RoundProgress {
                number,
                disks: vec![disk],
                elapsed_ms: 1000,
                ..RoundProgress::default()
            },
            failure: None,
            remaining: Bytes::ZERO,
            doubts: vec![],
        }
    }
}

impl State {
    fn boot(&mut self, at: SiteName) {
        self.seen_at = Some(at);
        self.boots += 1;
        self.agent = None;
        self.tracking = false;
        self.generation = 0;
        self.frozen_until = None;
        self.copied = None;
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// The guest's only disk, as it sees it.
pub fn device(size: Bytes) -> BlockDevice {
    BlockDevice {
        name: "vda".to_owned(),
        size,
        kind: BlockKind::Virtio,
        serial: String::new(),
        pci: None,
        scsi: None,
        read_only: false,
        removable: false,
        logical_block: 512,
        layout: Vec::new(),
    }
}

/// How a coordinator reaches the guest.
pub struct Access {
    pub guest: Guest,
    pub points: Points,
}

impl Access {
    fn error(&self, what: &str) -> SiteError {
        let remedy = Remedy::RetryAfter(Duration::from_secs(1));
        unreachable(&self.guest.0.home, "reach the guest", what, remedy)
    }

    /// Its SSH server, so to say.
    fn answers(&self) -> Result<MutexGuard<'_, State>, SiteError> {
        let Inside { world, vm, home, state, .. } = &*self.guest.0;
        if !self.guest.runs_at_home() || world.power(home, *vm) != Power::Running {
            return Err(self.error("it does not answer"));
        }
        Ok(state.lock().unwrap())
    }
}

#[async_trait]
impl GuestAccess for Access {
    fn describe(&self) -> String {
        "root@guest".to_owned()
    }

    async fn probe(&self) -> Result<GuestProbe, SiteError> {
        Ok(GuestProbe {
            kernel: "6.1".to_owned(),
            arch: "x86_64".to_owned(),
            os: "sim".to_owned(),
            boot_id: self.guest.0.state.lock().unwrap().boots.to_string(),
            privilege: Some(Privilege::Root),
            missing_tools: Vec::new(),
        })
    }

    async fn install(&self, _migration: &MigrationId, _agent: &Path) -> Result<(), SiteError> {
        self.points
            .pass("guest: install", || async {
                self.guest.write();
                let mut state = self.answers()?;
                let (boot_id, carried) = (state.boots.to_string(), self.guest.0.target.carried);
                state.agent.get_or_insert_with(|| Agent::new(AgentRole::Source, boot_id, carried));
                Ok(())
            })
            .await
            .unwrap_or_else(|Lost| Err(self.error("the connection broke")))
    }

    async fn open(&self, _migration: &MigrationId) -> Result<ByteStream, SiteError> {
        self.points
            .pass("guest: open", || async {
                let agent = {
                    let mut state = self.answers()?;
                    state.is_connected = false;
                    state.agent.clone()
                };
                let agent = agent.ok_or_else(|| self.error("no agent there"))?;
                let (near, far) = tokio::io::duplex(64 << 10);
                let (guest, points) = (self.guest.clone(), self.points.clone());
                tokio::spawn(agent.serve(far, move |request| {
                    let (guest, points) = (guest.clone(), points.clone());
                    async move {
                        guest.write();
                        let name = format!("agent: {}", word(&request));
                        points.pass(name, || async { guest.answer(&request) }).await
                    }
                }));
                Ok(Box::new(near) as ByteStream)
            })
            .await
            .unwrap_or_else(|Lost| Err(self.error("the connection broke")))
    }

    async fn remove(&self, _migration: &MigrationId) -> Result<Vec<String>, SiteError> {
        self.points
            .pass("guest: remove", || async {
                let mut state = self.answers()?;
                state.agent = None;
                state.tracking = false;
                state.generation = 0;
                state.frozen_until = None;
                Ok(vec!["/run/causeway".to_owned()])
            })
            .await
            .unwrap_or_else(|Lost| Err(self.error("the connection broke")))
    }
}

/// What of a request names its point.
fn word(request: &Request) -> String {
    let text = format!("{request:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// The helper's agent on each of its ports, for as long as the world lasts.
pub fn serve_helper(
    world: &World,
    vm: VmId,
    target: &Target,
    streams: u16,
    points: &Mutexed<Points>,
) {
    let agent = Agent::new(AgentRole::Destination, "helper".to_owned(), target.carried);
    for port in 0..=streams {
        let mut listener = world.listen(&target.site, vm, port).unwrap();
        let (agent, target) = (Arc::clone(&agent), target.clone());
        let (world, points) = (world.clone(), Arc::clone(points));
        tokio::spawn(async move {
            while let Some(stream) = listener.accept().await {
                let (world, target, points) = (world.clone(), target.clone(), Arc::clone(&points));
                tokio::spawn(Arc::clone(&agent).serve(stream, move |request| {
                    let (world, target) = (world.clone(), target.clone());
                    let points = points.lock().unwrap().clone();
                    async move {
                        let name = format!("helper: {}", word(&request));
                        let answer = || async { helper_answers(&world, vm, &target, &request) };
                        points.pass(name, answer).await
                    }
                }));
            }
        });
    }
}

fn status(role: AgentRole, generation: u64) -> Reply {
    Reply::Status(AgentStatus {
        role,
        boot_id: String::new(),
        tracking: None,
        generation: Some(generation),
        frozen: false,
        round: None,
        memory: Bytes::ZERO,
    })
}

/// An agent takes no streams of a generation that has passed.
fn grows(known: &mut u64, asked: u64, is_open: bool) -> Result<(), Failure> {
    if asked < *known || (asked == *known && !is_open) {
        return Err(talk::failure(ErrorCode::WrongState, "an old generation"));
    }
    *known = asked;
    Ok(())
}

/// Whose turn it is to be killed: the coordinator that lives now.
pub type Mutexed<T> = Arc<Mutex<T>>;

fn helper_answers(
    world: &World,
    vm: VmId,
    target: &Target,
    request: &Request,
) -> (Result<Reply, Failure>, Vec<Event>) {
    let volume = world.volume(&target.site, &target.pool, &target.volume);
    let Some(volume) = volume else {
        return (Err(talk::failure(ErrorCode::Disk, "no target")), Vec::new());
    };
    let reply = match request {
        Request::Attach { disks } => {
            let mut table = target.table.lock().unwrap();
            let held = volume.lock().unwrap();
            let fresh = disks[0].fresh;
            table.get_or_insert_with(|| if fresh { vec![0; held.len()] } else { held.clone() });
            Ok(Reply::Done)
        }
        Request::Status => Ok(status(AgentRole::Destination, *target.generation.lock().unwrap())),
        Request::Expect { generation, .. } => {
            grows(&mut target.generation.lock().unwrap(), *generation, true)
                .map(|()| Reply::Listening { addresses: Vec::new() })
        }
        Request::Digests => match &*target.table.lock().unwrap() {
            Some(table) => Ok(Reply::Digests { disks: vec![digest(table)] }),
            None => Err(talk::failure(ErrorCode::WrongState, "it has no target")),
        },
        Request::Reread => Ok(Reply::Digests { disks: vec![digest(&volume.lock().unwrap())] }),
        Request::InspectBoot => Ok(Reply::Boot { findings: Vec::new() }),
        Request::Shutdown => {
            target.powers_off(world, vm);
            Ok(Reply::Done)
        }
        other => Err(talk::failure(ErrorCode::Unknown, &format!("{other:?}"))),
    };
    (reply, Vec::new())
}
