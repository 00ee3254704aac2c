//! All that is around the two agents, and what strikes it where.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::Power;
use site::StoppedBy;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::fault::Fault;
use crate::guest::{By, Domain, Guest, Job};
use crate::net::{Wan, Way, Wires};
use crate::stage::Agents;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    East = 0,
    West = 1,
}

impl Place {
    pub const fn other(self) -> Self {
        match self {
            Self::East => Self::West,
            Self::West => Self::East,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::East => "east",
            Self::West => "west",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who acts; the number is that of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    Agent(Place, u32),
    Libvirtd(Place, u32),
    Qemu(Place, u32),
    /// Whoever drives the source's migration: its libvirtd, or virsh.
    Client(u32),
}

impl Who {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent(Place::East, _) => "E",
            Self::Agent(Place::West, _) => "W",
            Self::Libvirtd(Place::East, _) => "libvirtd E",
            Self::Libvirtd(Place::West, _) => "libvirtd W",
            Self::Qemu(Place::East, _) => "QEMU E",
            Self::Qemu(Place::West, _) => "QEMU W",
            Self::Client(_) => "K",
        }
    }
}

/// How the source's migration is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// By its libvirtd: `--p2p`.
    ByLibvirtd,
    /// By virsh, which may die alone.
    ByVirsh,
}

/// What is migrated how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub driven: Driven,
    /// The source has a definition besides.
    pub persistent: bool,
    /// `--persistent --undefinesource`
    pub moves_definition: bool,
    /// `--suspend`
    pub suspended: bool,
    /// The source's agent is on the source's machine.
    pub near: bool,
    /// The control: in libvirt's own order the destination has it run from Finish on, and nobody sees that.
    pub unheld: bool,
}

pub struct World {
    pub kind: Kind,
    pub wires: Wires,
    pub guest: Mutex<Guest>,
    pub agents: Agents,
    lives: Mutex<BTreeMap<&'static str, Life>>,
    plan: Mutex<Plan>,
    /// What whoever drives the source's migration was refused with.
    pub told: Mutex<Vec<String>>,
    /// The destination's disk never says that anything is written.
    pub forgetful: AtomicBool,
    /// How VMs are takes libvirtd a while to say.
    pub sluggish: AtomicBool,
    /// A VM stands still so many seconds after that was asked for, whether or not whoever asked waits for it.
    pub late: AtomicU64,
    /// The next downtime that is allowed is so, and its libvirtd's answer is lost.
    pub vague: AtomicBool,
    /// Tasks of the source's client and of libvirtds, by who they are.
    tasks: Mutex<BTreeMap<Who, Vec<AbortHandle>>>,
}

#[derive(Clone, Copy)]
struct Life {
    no: u32,
    is_up: bool,
}

/// What strikes where.
#[derive(Default)]
struct Plan {
    waiting: Vec<(String, Fault)>,
    /// The source's client was killed: nobody waits for an answer.
    killed: bool,
    /// It does nothing before then.
    stopped_until: Option<Instant>,
    /// Agents whose state is gone.
    lost: BTreeSet<Place>,
    /// Every place that was passed, in order.
    passed: Vec<String>,
    counts: BTreeMap<String, u32>,
    struck: Vec<String>,
}

impl World {
    pub fn new(kind: Kind, agents: Agents, plan: Vec<(String, Fault)>) -> Arc<Self> {
        let plan = Plan { waiting: plan, ..Plan::default() };
        Arc::new(Self {
            kind,
            wires: Wires::default(),
            guest: Mutex::new(Guest::of(kind.persistent)),
            agents,
            lives: Mutex::default(),
            plan: Mutex::new(plan),
            told: Mutex::default(),
            forgetful: AtomicBool::new(false),
            sluggish: AtomicBool::new(false),
            late: AtomicU64::new(0),
            vague: AtomicBool::new(false),
            tasks: Mutex::default(),
        })
    }

    pub fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lives(&self) -> MutexGuard<'_, BTreeMap<&'static str, Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place that something may strike at. It is passed at once.
    pub fn hit(self: &Arc<Self>, place: &str) {
        let faults = {
            let mut plan = self.plan();
            let count = plan.counts.entry(place.to_owned()).or_default();
            *count += 1;
            let passed = format!("{place} #{count}");
            let strikes = |(at, _): &mut (String, Fault)| *at == passed;
            let faults: Vec<_> = plan.waiting.extract_if(.., strikes).collect();
            plan.struck.extend(faults.iter().map(|(at, fault)| format!("{fault:?} at {at}")));
            plan.passed.push(passed);
            faults
        };
        for (_, fault) in faults {
            fault.strike(self);
        }
    }

    /// The same, for somebody who may be dead afterwards.
    pub async fn at(self: &Arc<Self>, who: Who, place: &str) {
        self.hit(place);
        self.unless_dead(who).await;
    }

    pub async fn unless_dead(&self, who: Who) {
        if self.is_dead(who) {
            std::future::pending::<()>().await;
        }
    }

    pub fn is_forgetful(&self) -> bool {
        self.forgetful.load(Ordering::Relaxed)
    }

    pub fn passed(&self) -> Vec<String> {
        self.plan().passed.clone()
    }

    pub fn struck(&self) -> Vec<String> {
        self.plan().struck.clone()
    }

    pub async fn until_struck(&self, times: usize) {
        while self.struck().len() < times {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// One more fault, at that place as it is passed next.
    pub fn strikes_next(&self, place: &str, fault: Fault) {
        let mut plan = self.plan();
        let next = plan.counts.get(place).copied().unwrap_or_default() + 1;
        plan.waiting.push((format!("{place} #{next}"), fault));
    }

    /// What still waits to strike, does not any more.
    pub fn calm(&self) {
        self.plan().waiting.clear();
    }

    // --- lives ---------------------------------------------------------------------------------

    const fn number(who: Who) -> u32 {
        match who {
            Who::Agent(_, no) | Who::Libvirtd(_, no) | Who::Qemu(_, no) | Who::Client(no) => no,
        }
    }

    /// The next life of whoever is called so.
    pub fn begins(&self, who: impl Fn(u32) -> Who) -> Who {
        let mut lives = self.lives();
        let life = lives.entry(who(0).name()).or_insert(Life { no: 0, is_up: false });
        *life = Life { no: life.no + 1, is_up: true };
        who(life.no)
    }

    pub fn is_dead(&self, who: Who) -> bool {
        let life = self.lives().get(who.name()).copied();
        !life.is_some_and(|life| life.is_up && life.no == Self::number(who))
    }

    /// Who lives under that name now.
    pub fn alive(&self, who: impl Fn(u32) -> Who) -> Option<Who> {
        let life = self.lives().get(who(0).name()).copied()?;
        life.is_up.then(|| who(life.no))
    }

    pub fn libvirtd(&self, place: Place) -> Option<Who> {
        self.alive(|no| Who::Libvirtd(place, no))
    }

    /// It is dead at once, with all that it held. Answers whether it lived.
    fn dies(&self, who: Who) -> bool {
        if self.is_dead(who) {
            return false;
        }
        if let Some(life) = self.lives().get_mut(who.name()) {
            life.is_up = false;
        }
        if let Who::Agent(place, _) = who {
            self.agents.end(place);
        }
        self.wires.dies(who);
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(&who);
        tasks.into_iter().flatten().for_each(|task| task.abort());
        true
    }

    pub fn has_task(&self, who: Who, task: AbortHandle) {
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(who)
            .or_default()
            .push(task);
    }

    /// Whoever starts it next finds nothing of what it kept.
    pub fn loses_state(&self, place: Place) {
        if self.alive(|no| Who::Agent(place, no)).is_some() {
            self.plan().lost.insert(place);
        }
    }

    pub fn has_lost_state(&self, place: Place) -> bool {
        self.plan().lost.remove(&place)
    }

    pub fn kill_agent(self: &Arc<Self>, place: Place, back: Duration) {
        let Some(who) = self.alive(|no| Who::Agent(place, no)) else { return };
        self.dies(who);
        let world = Arc::clone(self);
        tokio::spawn(async move {
            sleep(back).await;
            crate::stage::start_agent(&world, place).await;
        });
    }

    /// What of a domain does not outlive its libvirtd is forgotten, and gone on with as libvirt does.
    pub fn kill_libvirtd(self: &Arc<Self>, place: Place, back: Duration) {
        if !self.libvirtd_dies(place) {
            return;
        }
        let world = Arc::clone(self);
        tokio::spawn(async move {
            sleep(back).await;
            crate::libvirtd::start(&world, place);
        });
    }

    pub fn blink_libvirtd(self: &Arc<Self>, place: Place) {
        if self.libvirtd_dies(place) {
            crate::libvirtd::start(self, place);
        }
    }

    /// Whether it lived.
    fn libvirtd_dies(&self, place: Place) -> bool {
        let died = self.libvirtd(place).is_some_and(|who| self.dies(who));
        if died && place == Place::East && self.kind.driven == Driven::ByLibvirtd {
            self.client_dies();
        }
        died
    }

    /// Whoever drives the source's migration, alone.
    pub fn client_dies(&self) -> bool {
        let client = self.alive(Who::Client);
        let died = client.is_some_and(|client| self.dies(client));
        self.plan().killed |= died;
        died
    }

    pub fn was_killed(&self) -> bool {
        self.plan().killed
    }

    pub fn stop_client(&self, long: Duration) {
        self.plan().stopped_until = Some(Instant::now() + long);
    }

    /// As long as whoever drives the source's migration is stopped.
    pub async fn unless_stopped(&self) {
        let until = self.plan().stopped_until;
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }

    /// virsh is killed: its libvirtd goes on alone, as far as that is.
    pub fn kill_client(&self) {
        if self.kind.driven != Driven::ByVirsh || !self.client_dies() {
            return;
        }
        let mut guest = self.guest();
        let Some(domain) = guest.domain(Place::East) else { return };
        match std::mem::replace(&mut domain.job, Job::None) {
            // Its data connections are closed by the agent: the migration fails.
            Job::Performs => guest.resumes(Place::East),
            // "third party needs to check what to do next"
            Job::Performed | Job::None | Job::Begun | Job::Incoming => {}
            confirms @ Job::Confirms { .. } => domain.job = confirms,
        }
    }

    pub fn kill_qemu(&self, place: Place) {
        self.ends(place, StoppedBy::Crashed, By::Accident);
    }

    /// libvirt has sent its signal: the QEMU is no more, and libvirt has not looked yet.
    pub fn qemu_goes(&self, place: Place) {
        if let Some(domain) = self.guest().domain(place).filter(|it| it.power.is_loaded()) {
            (domain.gone, domain.awaited) = (true, true);
        }
        if let Some(qemu) = self.alive(|no| Who::Qemu(place, no)) {
            self.dies(qemu);
        }
    }

    /// Until libvirtd has looked whether the QEMU that it ended has gone, it answers nobody. One that was started since
    /// does.
    pub async fn libvirtd_looks(&self, place: Place) {
        let is_awaited = || self.guest().domain(place).is_some_and(|domain| domain.awaited);
        while is_awaited() && self.libvirtd(place).is_some() {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// A VM ends, and its QEMU with all that it has open.
    pub fn ends(&self, place: Place, how: StoppedBy, by: By) {
        self.guest().ends(place, how, by);
        if let Some(qemu) = self.alive(|no| Who::Qemu(place, no)) {
            self.dies(qemu);
        }
    }

    /// The operator's own deeds at the source.
    pub fn operator(&self, place: Place, deed: Deed) {
        if self.libvirtd(place).is_none() {
            return;
        }
        let power = self.guest().power(place);
        let is_busy = |domain: &mut Domain| domain.job != Job::None || domain.held;
        let busy = self.guest().domain(place).is_some_and(is_busy);
        match deed {
            // A migration's job is in the way, or somebody holds it.
            Deed::Resume if busy => {}
            Deed::Resume => self.guest().resumes(place),
            Deed::Destroy if power == Power::Paused => {
                self.ends(place, StoppedBy::PoweredOff, By::Accident);
            }
            Deed::Destroy => {}
            Deed::Start => self.guest().starts(place),
            Deed::Define => self.guest().defines(place),
            Deed::MoveInVain => {
                self.guest().resumes(place);
                self.guest().pauses(place, true);
            }
        }
    }

    pub fn cut_wan(self: &Arc<Self>, wan: Wan, heals: Duration) {
        /// As `TCP_USER_TIMEOUT` is set.
        const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
        self.wires.set_wan(wan);
        let world = Arc::clone(self);
        tokio::spawn(async move {
            if heals > UNACKNOWLEDGED {
                sleep(UNACKNOWLEDGED).await;
                world.wires.gives_up_silent();
                sleep(heals - UNACKNOWLEDGED).await;
            } else {
                sleep(heals).await;
            }
            world.wires.set_wan(Wan::Up);
        });
    }

    pub fn breaks(&self, way: Way) {
        self.wires.break_all(way);
    }
}

/// What an operator does by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deed {
    Resume,
    Destroy,
    Start,
    /// Anew, as it was once: a fence of its definition is gone.
    Define,
    /// Resumes it, and begins another migration, which leaves it paused as well.
    MoveInVain,
}
