//! What is true of the one VM, whoever believes what. Its writes are numbered: each time that a copy begins
//! to run, it has written something that no other has.

use std::collections::BTreeMap;
use std::time::Duration;

use model::Power;
use site::{Mark, RecordKey, StoppedBy};
use tokio::time::Instant;
use units::{Epoch, MigrationId};

use crate::world::Place;

/// A host with its libvirtd.
#[derive(Default)]
pub struct Host {
    pub domain: Option<Domain>,
    /// The last write that its disks hold whole; `None`: there are none, or not all of it has come.
    pub disks: Option<u64>,
    /// Volumes made for a migration.
    pub volumes: BTreeMap<String, MigrationId>,
    pub records: BTreeMap<RecordKey, Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Domain {
    pub power: Power,
    /// The last write that its memory knows of; `None`: it has none, or not all of it has come.
    pub memory: Option<u64>,
    /// There is a definition that outlives it.
    pub persistent: bool,
    /// That definition does not start.
    pub fenced: bool,
    /// It starts by itself, as far as it starts.
    pub autostart: bool,
    pub stopped_by: Option<StoppedBy>,
    pub ours: Option<(MigrationId, Epoch)>,
    pub mark: Option<Mark>,
    /// Of this host's libvirtd, as it outlives it.
    pub job: Job,
    /// libvirtd keeps it from being changed.
    pub held: bool,
    /// libvirtd paused it to move it, and nobody has resumed it since.
    pub moves: bool,
    /// Its QEMU has ended, and libvirtd does not know yet.
    pub gone: bool,
    /// libvirtd has ended its QEMU, and looks whether it has gone.
    pub awaited: bool,
    /// It runs, and its libvirtd says that it stands still.
    pub poses: bool,
    /// How long its QEMU may have it stand still to move it.
    pub downtime_ms: u64,
    /// How often its memory has gone round.
    pub passes: u64,
}

/// How far libvirt's own migration is with a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    None,
    Begun,
    Performs,
    Performed,
    Confirms {
        cancelled: bool,
    },
    /// At the destination: on its way in.
    Incoming,
}

impl Domain {
    pub const fn running(memory: u64, persistent: bool) -> Self {
        Self {
            power: Power::Running,
            memory: Some(memory),
            persistent,
            fenced: false,
            autostart: persistent,
            stopped_by: None,
            ours: None,
            mark: None,
            job: Job::None,
            held: false,
            moves: false,
            gone: false,
            awaited: false,
            poses: false,
            downtime_ms: 300,
            passes: 1,
        }
    }
}

/// Whose doing it is that a copy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// An agent's, or what libvirt does by its rules.
    Program,
    /// A fault's, or an operator's.
    Accident,
}

/// Both hosts.
#[derive(Default)]
pub struct Guest {
    hosts: [Host; 2],
    /// The last write that anybody has made.
    latest: u64,
    /// An accident has taken a copy: memory may be lost with it, by nobody's fault.
    pub had_accident: bool,
    /// One at the destination: what had arrived there is lost.
    pub destination_had: bool,
    /// Somebody has started the source's VM that was off.
    pub was_started: bool,
    /// The VM stands still since then, and has at most so long.
    stands_since: Option<Instant>,
    pub stood: Duration,
    pub violations: Vec<String>,
}

impl Guest {
    pub fn of(persistent: bool) -> Self {
        let mut guest = Self { latest: 1, ..Self::default() };
        let source = guest.host(Place::East);
        source.domain = Some(Domain::running(1, persistent));
        source.disks = Some(1);
        guest
    }

    pub fn host(&mut self, place: Place) -> &mut Host {
        &mut self.hosts[place as usize]
    }

    pub fn domain(&mut self, place: Place) -> Option<&mut Domain> {
        self.host(place).domain.as_mut()
    }

    pub fn power(&self, place: Place) -> Power {
        self.hosts[place as usize].domain.as_ref().map_or(Power::Absent, |domain| domain.power)
    }

    /// As its libvirtd has it.
    pub fn shown(&self, place: Place) -> Power {
        let poses = self.hosts[place as usize].domain.as_ref().is_some_and(|domain| domain.poses);
        if poses { Power::Paused } else { self.power(place) }
    }

    /// From now on its libvirtd says how it is.
    pub fn is_seen(&mut self, place: Place) {
        if let Some(domain) = self.domain(place) {
            domain.poses = false;
        }
    }

    pub const fn latest(&self) -> u64 {
        self.latest
    }

    pub fn has_all_memory(&self, place: Place) -> bool {
        let domain = self.hosts[place as usize].domain.as_ref();
        domain.is_some_and(|domain| domain.power.is_loaded() && domain.memory == Some(self.latest))
    }

    fn has_all_disks(&self, place: Place) -> bool {
        self.hosts[place as usize].disks == Some(self.latest)
    }

    pub fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    /// It goes on from its memory.
    pub fn resumes(&mut self, place: Place) {
        if self.power(place) != Power::Paused || self.domain(place).is_some_and(|it| it.gone) {
            return;
        }
        if !self.has_all_memory(place) {
            self.violated(format!("{place:?} goes on from memory that is not the last"));
        }
        self.runs(place);
    }

    /// It starts from its disks.
    pub fn starts(&mut self, place: Place) {
        let Some(domain) = self.domain(place).filter(|it| it.power == Power::Off && !it.fenced)
        else {
            return;
        };
        domain.job = Job::None;
        self.was_started |= place == Place::East;
        self.runs(place);
    }

    /// An operator defines it anew, where it has a definition. A job that moves it is not in the way of that.
    pub fn defines(&mut self, place: Place) {
        if let Some(domain) = self.domain(place).filter(|it| it.persistent) {
            domain.fenced = false;
        }
    }

    /// An operator has it start from its disks, whatever is left of its definition.
    pub fn creates(&mut self, place: Place) {
        if self.power(place).is_loaded() {
            return;
        }
        let host = self.host(place);
        let fresh = Domain { power: Power::Off, memory: None, ..Domain::running(0, false) };
        let domain = host.domain.get_or_insert(fresh);
        domain.fenced = false;
        self.starts(place);
    }

    fn runs(&mut self, place: Place) {
        if self.power(place.other()) == Power::Running {
            self.violated(format!("two run: {place:?} begins to, while the other does"));
        }
        if !self.has_all_disks(place) {
            self.violated(format!("{place:?} runs from disks that are not the last"));
        }
        if let Some(since) = self.stands_since.take() {
            self.stood = self.stood.max(since.elapsed());
        }
        self.latest += 1;
        let latest = self.latest;
        let host = self.host(place);
        host.disks = Some(latest);
        if let Some(domain) = &mut host.domain {
            domain.power = Power::Running;
            domain.memory = Some(latest);
            domain.stopped_by = None;
            domain.moves = false;
        }
    }

    /// `moves`: libvirt does it, to move it.
    pub fn pauses(&mut self, place: Place, moves: bool) {
        if let Some(domain) = self.domain(place).filter(|it| it.power == Power::Running) {
            domain.power = Power::Paused;
            domain.moves = moves;
            self.stands_since = Some(Instant::now());
        }
    }

    /// Its QEMU is no more.
    pub fn ends(&mut self, place: Place, how: StoppedBy, by: By) {
        let last_memory = self.has_all_memory(place) && !self.has_all_memory(place.other());
        let Some(domain) = self.domain(place).filter(|it| it.power.is_loaded()) else { return };
        domain.power = Power::Off;
        domain.poses = false;
        domain.memory = None;
        domain.stopped_by = Some(how);
        domain.job = Job::None;
        domain.held = false;
        (domain.gone, domain.awaited) = (false, false);
        let persistent = domain.persistent;
        if !persistent {
            self.host(place).domain = None;
        }
        match by {
            By::Accident => {
                self.had_accident = true;
                self.destination_had |= place == Place::West;
            }
            By::Program if last_memory && !self.had_accident => {
                self.violated(format!("the last copy of memory is ended at {place:?}"));
            }
            By::Program => {}
        }
        self.some_disks_are_whole();
    }

    /// An operator ends it there, with its definition and its volumes.
    pub fn cleared(&mut self, place: Place) {
        self.ends(place, StoppedBy::PoweredOff, By::Accident);
        self.undefined(place);
        for volume in self.host(place).volumes.keys().cloned().collect::<Vec<_>>() {
            self.removes(place, &volume);
        }
    }

    pub fn undefined(&mut self, place: Place) {
        match self.domain(place) {
            Some(domain) if domain.power.is_loaded() => domain.persistent = false,
            _ => self.host(place).domain = None,
        }
    }

    /// Disks of the destination are removed with their volumes.
    pub fn removes(&mut self, place: Place, volume: &str) {
        let host = self.host(place);
        if host.volumes.remove(volume).is_some() {
            host.disks = None;
            let uses = host.domain.as_ref().is_some_and(|domain| domain.power.is_loaded());
            if uses {
                self.violated(format!("disks of a VM are removed under it at {place:?}"));
            }
        }
        self.some_disks_are_whole();
    }

    fn some_disks_are_whole(&mut self) {
        if ![Place::East, Place::West].into_iter().any(|place| self.has_all_disks(place)) {
            self.violated("no disks hold the last write any more");
        }
    }
}
