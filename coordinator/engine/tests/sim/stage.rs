//! Two sites, a VM that moves, and what its operator keeps; one life of a coordinator after another.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use engine::custody::{Custody, CustodyError, CustodyOf, Papers, Shelf, decode_copy, papers};
use engine::evidence::{About, Asked, gather};
use engine::rebuild::{Remembered, Unmade, behind};
use engine::{
    Halt, Journal, Links, Operator, Phase, Run, State, Vouched, Watcher, Wish, abort,
    guest_devices, migrate,
};
use handover::{DestinationRole, Next, Side, SigningKey, Verdict, VerdictKind, verdict};
use journal::StoreId;
use model::{Power, SiteName, Vm, VmId};
use plan::{Facts, GuestFacts, Options, Plan, PlannedDisk, Request, draw_up};
use site::{ApplianceFiles, GuestAccess, PlaceholderState, Site};
use site_memory::{MemorySite, Seed, World};
use tokio::sync::watch;
use tokio::time::timeout;
use transfer::secure::Identity;
use units::{Digest, Epoch};

use crate::agents::{Access, Guest, Mutexed, Target, device, serve_helper};
use crate::points::{Fate, Point, Points};
use crate::shelf::{Book, Kept, Pages};
use crate::sited::Sited;

const DISK: usize = 4 << 10;

/// What the coordinator is to do with its migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Migrate,
    Abort,
}

/// Which sites can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Both,
    Source,
    Destination,
    /// Neither platform answers.
    Ledgers,
    /// Both are asked, and one does not answer.
    SourceAnswers,
    DestinationAnswers,
}

/// How often it ended how, for the figures that a test prints.
#[derive(Debug, Default)]
pub struct Ends {
    pub moved: usize,
    pub taken_back: usize,
    /// Stopped, with nothing false and nothing lost, until a person does something.
    pub told: usize,
}

impl Ends {
    pub fn count(&mut self, end: &End) {
        *match end {
            End::Final(Phase::Retired) => &mut self.moved,
            End::Final(_) => &mut self.taken_back,
            _ => &mut self.told,
        } += 1;
    }
}

/// How one life of it ended.
#[derive(Debug)]
pub enum End {
    Killed,
    Final(Phase),
    Halted(Halt),
    /// It could not even begin, or not call it off.
    Refused(String),
}

pub struct Stage {
    pub world: World,
    pub east: SiteName,
    pub west: SiteName,
    pub vm: Vm,
    pub guest: Guest,
    pub kept: Kept,
    pub plan: Plan,
    pub target: Target,
    /// Do the sites compare and replace records in one step?
    pub compares_and_replaces: bool,
    identity: Identity,
    /// Of the coordinator that lives now.
    living: Mutexed<Points>,
}

impl Stage {
    pub async fn new() -> Self {
        Self::of("web1", Options { streams: 1, ..Options::default() }, 0).await
    }

    /// A VM of this name; each data stream of its copy carries as many bytes.
    pub async fn of(name: &str, options: Options, carried: usize) -> Self {
        let streams = options.streams;
        let world = World::new();
        let (east, west): (SiteName, SiteName) = ("east".parse().unwrap(), "west".parse().unwrap());
        let (at_east, at_west) = (world.site(&east), world.site(&west));
        let id = world.seed(&east, Seed::with_disks(name, &[DISK]));
        let vm = at_east.vm(name).await.unwrap();
        let plan = plan_of(&vm, &at_east, &at_west, options).await;
        let PlannedDisk { pool, volume, .. } = plan.disks[0].clone();
        let target = Target {
            site: west.clone(),
            pool,
            volume,
            carried,
            table: Mutexed::default(),
            generation: Mutexed::default(),
        };
        let guest = Guest::new(&world, &vm, east.clone(), target.clone());
        let living = Mutexed::default();
        serve_helper(&world, id, &target, streams, &living);
        let (kept, identity) = (Kept::default(), Identity::generate());
        let compares_and_replaces = true;
        Self {
            world,
            east,
            west,
            vm,
            guest,
            kept,
            plan,
            target,
            compares_and_replaces,
            identity,
            living,
        }
    }

    /// The same, as another machine sees it that has nothing.
    pub fn elsewhere(&self) -> Self {
        Self {
            world: self.world.clone(),
            east: self.east.clone(),
            west: self.west.clone(),
            vm: self.vm.clone(),
            guest: self.guest.clone(),
            kept: Kept::default(),
            plan: self.plan.clone(),
            target: self.target.clone(),
            compares_and_replaces: self.compares_and_replaces,
            identity: self.identity.clone(),
            living: Arc::clone(&self.living),
        }
    }

    pub fn id(&self) -> VmId {
        self.vm.id
    }

    /// A site, as somebody who is no coordinator sees it.
    pub fn site(&self, name: &SiteName) -> MemorySite {
        self.world.site(name)
    }

    /// A life that ends so.
    pub async fn dies(&self, point: &Point, fate: Fate, at: &str) {
        let end = self.live(Doing::Migrate, &Points::with(point.clone(), fate)).await;
        assert!(matches!(end, End::Killed), "{at}: {end:?}");
    }

    /// One life of a coordinator, until it is killed or has nothing more to do.
    pub async fn live(&self, doing: Doing, points: &Points) -> End {
        self.live_by(doing, points, Vouched::Nothing).await
    }

    /// The same by an operator's word.
    pub async fn live_by(&self, doing: Doing, points: &Points, vouched: Vouched) -> End {
        *self.living.lock().unwrap() = points.clone();
        let life = async {
            let mut run = match self.process(points) {
                Ok(run) => run,
                Err(error) => return End::Refused(units::chain(&error)),
            };
            run.vouched = vouched;
            if doing == Doing::Abort
                && let Err(error) = abort(&mut run, "the test says so").await
            {
                return End::Refused(units::chain(&error));
            }
            match migrate(&mut run).await {
                Ok(phase) => End::Final(phase),
                Err(halt) => End::Halted(halt),
            }
        };
        let end = tokio::select! {
            biased;
            () = points.death() => End::Killed,
            end = timeout(Duration::from_secs(3600), life) => end.expect("it hangs"),
        };
        let end = if points.is_dead() { End::Killed } else { end };
        self.kept.restart();
        end
    }

    fn process(&self, points: &Points) -> Result<Run, CustodyError> {
        let (source, destination): (Arc<dyn Site>, Arc<dyn Site>) =
            (Arc::new(self.sited(&self.east, points)), Arc::new(self.sited(&self.west, points)));
        Ok(run_of(Means {
            plan: self.plan.clone(),
            state: State::replay(&self.kept.records()).unwrap(),
            custody: self.custody(points, &source, &destination)?,
            source,
            destination,
            guest: Arc::new(self.access(points)),
            papers: Papers { source: b"east's".to_vec(), destination: b"west's".to_vec() },
            journal: Box::new(Book(self.kept.clone(), points.clone())),
            operator: Arc::new(Silent),
            identity: self.identity.clone(),
        }))
    }

    /// A site, as a coordinator sees it; the guest goes on meanwhile.
    pub fn sited(&self, name: &SiteName, points: &Points) -> Sited {
        let guest = self.guest.clone();
        let meanwhile = Box::new(move || {
            guest.write();
        });
        Sited {
            inner: self.site(name),
            points: points.clone(),
            meanwhile,
            compares_and_replaces: self.compares_and_replaces,
        }
    }

    /// The guest, as a coordinator sees it.
    pub fn access(&self, points: &Points) -> Access {
        Access { guest: self.guest.clone(), points: points.clone() }
    }

    fn custody(
        &self,
        points: &Points,
        at_source: &Arc<dyn Site>,
        at_destination: &Arc<dyn Site>,
    ) -> Result<Custody, CustodyError> {
        let shelf = Box::new(Pages(self.kept.clone(), points.clone()));
        open_custody(shelf, &self.plan, at_source, at_destination)
    }

    /// As `recover` does: the journal is made again from what the sites keep. `false`: they know of nothing
    /// that has not ended.
    pub async fn recover(&self) -> bool {
        let at = |name: &SiteName| -> Arc<dyn Site> { Arc::new(self.site(name)) };
        let (east, west) = (at(&self.east), at(&self.west));
        let mut custody = self.custody(&Points::default(), &east, &west).unwrap();
        custody.look().await.unwrap();
        let Some(remembered) = Remembered::of(&custody) else { return false };
        let mut found = false;
        for (site, bytes) in [(east, b"east's"), (west, b"west's")] {
            for (vm, kept) in papers(&*site).await.unwrap_or_default() {
                let of = (vm.as_str(), &kept.unwrap()[..]) == (&*self.id().to_string(), &bytes[..]);
                assert!(of, "the papers of another");
                found = true;
            }
        }
        if !found {
            return false;
        }
        let records = self.kept.records();
        let there = (!records.is_empty()).then(|| State::replay(&records).unwrap());
        match behind(&custody, there.as_ref(), 0) {
            Ok(None) => {}
            Ok(Some(records)) => self.kept.replace_journal(records),
            Err(Unmade::SourceUnseen) => return false,
            Err(Unmade::Contradiction | Unmade::SourceLost) => panic!("{remembered:?}"),
        }
        true
    }

    /// Takes every fence off the source by hand, and starts it.
    pub fn starter(&self) -> impl Fn() + Send + 'static {
        let (world, guest, east, vm) =
            (self.world.clone(), self.guest.clone(), self.east.clone(), self.vm.clone());
        move || {
            guest.stopped();
            let disk = world.disk(&east, &vm.disks[0].location).unwrap();
            disk.lock().unwrap().copy_from_slice(&guest.truth());
            assert!(world.admin_defines_again_and_starts(&east, vm.id));
        }
    }

    /// It was killed before the first of them was there.
    pub fn has_no_ledgers(&self) -> bool {
        let ledgers = self.ledgers();
        let sites = [&self.east, &self.west];
        sites.into_iter().all(|site| ledgers.of(site).or_else(|| ledgers.at(site)).is_none())
    }

    /// Has the destination's ledger decided for it, or against it for good?
    pub fn decided(&self) -> (bool, bool) {
        self.ledgers().decided()
    }

    pub fn ledgers(&self) -> Ledgers {
        let (kept, vm) = (self.kept.clone(), self.id());
        let world = self.world.clone();
        Ledgers { world, kept, east: self.east.clone(), west: self.west.clone(), vm }
    }

    /// What its operator does on being told, and which command that is: the VM is started where it lives
    /// and is off, let go on where it was not fenced, and a copy that is not the VM any more is stopped.
    pub async fn operator_obeys(&self) -> Doing {
        let verdict = self.verdict(Ask::Both, true).await;
        let untouched = matches!(verdict.verdict, VerdictKind::Resumable | VerdictKind::NotStarted);
        if untouched && self.world.power(&self.east, self.id()) == Power::Paused {
            self.site(&self.east).resume(self.id()).await.unwrap();
        }
        if !self.decided().0 && self.world.power(&self.east, self.id()) == Power::Off {
            // It refuses where it is fenced.
            let _started = self.site(&self.east).power_on(self.id()).await;
        }
        match verdict.next {
            Next::Abort | Next::Revoke => return Doing::Abort,
            Next::FenceAgain(Side::Source) => {
                self.site(&self.east).power_off(self.id()).await.unwrap();
            }
            _ => {}
        }
        Doing::Migrate
    }

    /// What `status` says.
    pub async fn verdict(&self, ask: Ask, with_journal: bool) -> Verdict {
        let [source, destination] = identities(&self.east, &self.west);
        let epoch = State::replay(&self.kept.records()).unwrap().epoch;
        let about = about(&self.plan, epoch.filter(|_| with_journal));
        let asked = |name: &SiteName, identity| Asked {
            identity,
            ledger: self.ledgers().of(name),
            site: Some(Arc::new(self.site(name))),
            keeps_another: false,
        };
        let source = (ask != Ask::Destination).then(|| asked(&self.east, source));
        let destination = (ask != Ask::Source).then(|| asked(&self.west, destination));
        let reachable = |east, west| {
            self.world.set_reachable(&self.east, east);
            self.world.set_reachable(&self.west, west);
        };
        reachable(
            !matches!(ask, Ask::Ledgers | Ask::DestinationAnswers),
            !matches!(ask, Ask::Ledgers | Ask::SourceAnswers),
        );
        let gathered = gather(&about, source, destination).await;
        reachable(true, true);
        verdict(&gathered.unwrap().evidence)
    }

    // --- what must be true --------------------------------------------------------------------

    /// It ended, and well.
    pub async fn assert_ended(&self, end: &End, at: &str) {
        match end {
            End::Final(Phase::Retired) => self.assert_moved().await,
            End::Final(_) => self.assert_stayed().await,
            other => panic!("{at}: {other:?}"),
        }
    }

    /// It lives at the destination with all that it ever wrote, and cannot be started at the source.
    pub async fn assert_moved(&self) {
        assert_eq!(self.world.loaded_at(self.id()), Some(self.west.clone()), "it does not run");
        self.assert_whole(&self.west).await;
        assert!(self.site(&self.east).power_on(self.id()).await.is_err(), "the source starts");
        assert!(self.guest.write(), "it does not write");
    }

    /// It lives at the source as if nothing had been, and nothing is left at the destination.
    pub async fn assert_stayed(&self) {
        let east = self.site(&self.east);
        assert_eq!(self.world.power(&self.east, self.id()), Power::Running, "it does not run");
        self.assert_whole(&self.east).await;
        let now = east.vm(&self.vm.name).await.unwrap();
        assert_eq!(now, self.vm, "its definition changed");
        let west = self.site(&self.west);
        assert_eq!(west.leftovers(&self.plan.id).await.unwrap(), [], "left at the destination");
        assert_eq!(west.placeholder(self.id()).await.unwrap(), PlaceholderState::Absent);
        assert!(self.guest.write(), "it does not write");
    }

    /// Where it runs, or where it does not at one of the two, its disk holds what it wrote.
    pub async fn assert_whole_where_it_is(&self, at: &str) {
        if let Some(site) = self.world.loaded_at(self.id()) {
            return self.assert_whole(&site).await;
        }
        let Target { site, pool, volume, .. } = &self.target;
        let copy = self.world.volume(site, pool, volume);
        let source = self.world.disk(&self.east, &self.vm.disks[0].location);
        let holds = [copy, source].into_iter().flatten();
        let truth = self.guest.truth();
        let whole = holds.into_iter().any(|disk| *disk.lock().unwrap() == truth);
        assert!(whole, "{at}: it runs nowhere, and what it wrote is nowhere");
    }

    /// Its disk there holds what it wrote.
    pub async fn assert_whole(&self, at: &SiteName) {
        let vm = self.site(at).vm(&self.id().to_string()).await.unwrap();
        let disk = self.world.disk(at, &vm.disks[0].location).unwrap();
        assert!(*disk.lock().unwrap() == self.guest.truth(), "what it wrote is not all at {at}");
    }
}

/// What is in both ledgers, here and at their sites, for whoever reads them without owning them.
pub struct Ledgers {
    world: World,
    kept: Kept,
    east: SiteName,
    west: SiteName,
    vm: VmId,
}

impl Ledgers {
    /// As `status` reads it.
    pub fn of(&self, site: &SiteName) -> Option<Vec<handover::Record>> {
        let bytes = self.kept.disk(site.as_str()).bytes();
        let contents = journal::parse(&bytes).unwrap()?;
        let decode = |r: &journal::Record| handover::Record::decode(r.kind, &r.payload).unwrap();
        Some(contents.records.iter().map(decode).collect())
    }

    /// As its site has it: what counts, since it is written first.
    fn at(&self, site: &SiteName) -> Option<Vec<handover::Record>> {
        let key = format!("vm/{}/ledger", self.vm).parse().unwrap();
        self.world.records(site).get(&key).map(|bytes| decode_copy(bytes).unwrap())
    }

    pub fn decided(&self) -> (bool, bool) {
        use handover::DestinationState as D;
        let [_, identity] = identities(&self.east, &self.west);
        // Where an operator vouched for it, one knows of it alone.
        [self.of(&self.west), self.at(&self.west)].into_iter().flatten().fold(
            (false, false),
            |(granted, revoked), records| {
                let vm = self.vm.to_string().parse().unwrap();
                let role = DestinationRole::replay(identity.clone(), vm, &records).unwrap();
                let state = role.state(role.last_epoch());
                let grants =
                    matches!(state, D::Granted(_) | D::Marked(_) | D::Started(_) | D::Healthy(_));
                (granted || grants, revoked || matches!(state, D::Revoked(_)))
            },
        )
    }
}

/// Both ledgers of this plan.
pub fn open_custody(
    shelf: Box<dyn Shelf>,
    plan: &Plan,
    at_source: &Arc<dyn Site>,
    at_destination: &Arc<dyn Site>,
) -> Result<Custody, CustodyError> {
    let [source, destination] = identities(&plan.from, &plan.to);
    let of = CustodyOf {
        source,
        destination,
        at_source: Arc::clone(at_source),
        at_destination: Arc::clone(at_destination),
        vm: plan.vm.id.to_string().parse().unwrap(),
        ids: [StoreId([1; 16]), StoreId([2; 16])],
        plan: plan.digest().unwrap(),
    };
    Custody::open(shelf, of)
}

/// What a verdict on this plan is about.
pub fn about(plan: &Plan, epoch: Option<Epoch>) -> About {
    let [_, destination] = identities(&plan.from, &plan.to);
    About {
        id: plan.vm.id,
        digest: plan.digest().unwrap(),
        vm: plan.vm.id.to_string().parse().unwrap(),
        epoch,
        destination_key: destination.key.as_ref().unwrap().verifying_key(),
    }
}

/// What a run is made of, where runs differ.
pub struct Means {
    pub plan: Plan,
    pub state: State,
    pub source: Arc<dyn Site>,
    pub destination: Arc<dyn Site>,
    pub guest: Arc<dyn GuestAccess>,
    pub custody: Custody,
    pub papers: Papers,
    pub journal: Box<dyn Journal>,
    pub operator: Arc<dyn Operator>,
    pub identity: Identity,
}

pub fn run_of(means: Means) -> Run {
    Run {
        plan: means.plan,
        state: means.state,
        source: means.source,
        destination: means.destination,
        guest: means.guest,
        custody: means.custody,
        papers: means.papers,
        journal: means.journal,
        identity: means.identity,
        agent_binary: PathBuf::from("agent"),
        appliance: ApplianceFiles {
            kernel: PathBuf::from("kernel"),
            initrd: PathBuf::from("initrd"),
            digest: Digest([7; 32]),
            pool: "default".to_owned(),
        },
        operator: means.operator,
        wish: watch::channel(Wish::Run).1,
        watcher: Watcher::nobody(),
        patience: Duration::from_secs(60),
        links: Links::default(),
        vouched: Vouched::Nothing,
        voided: 0,
        arrived_at: tokio::time::Instant::now(),
        targets_empty: false,
        fenced_now: false,
    }
}

/// Made once: that of a public half is a good part of what a random history takes.
static KEYS: LazyLock<[SigningKey; 2]> =
    LazyLock::new(|| [1, 2].map(|n| SigningKey::from_bytes(&[n; 32])));

/// Who the two site roles are.
pub fn identities(east: &SiteName, west: &SiteName) -> [handover::Identity; 2] {
    let [east_key, west_key] = &*KEYS;
    let identity = |site: &SiteName, own: &SigningKey, peer: &SiteName, other: &SigningKey| {
        let pinned = BTreeMap::from([(peer.as_str().parse().unwrap(), other.verifying_key())]);
        let (site, key) = (site.as_str().parse().unwrap(), Some(own.clone()));
        let (install, former) = ("sim".parse().unwrap(), BTreeMap::new());
        handover::Identity { install, site, key, pinned, former }
    };
    [identity(east, east_key, west, west_key), identity(west, west_key, east, east_key)]
}

/// An operator who says nothing and lets everything pass.
struct Silent;

#[async_trait]
impl Operator for Silent {
    async fn has_released(&self) -> bool {
        false
    }

    async fn passes(&self, _gate: &str) -> Result<(), String> {
        Ok(())
    }
}

/// As the CLI would have it, of what both sites and the guest say.
async fn plan_of(vm: &Vm, from: &MemorySite, to: &MemorySite, options: Options) -> Plan {
    let request = Request {
        id: format!("{}-1", vm.name).try_into().unwrap(),
        vm: vm.name.clone(),
        from: from.name().clone(),
        to: to.name().clone(),
        pools: BTreeMap::new(),
        networks: BTreeMap::from([("default".to_owned(), "default".to_owned())]),
        options: Options { boot_ms: Some(1_000), ..options },
    };
    let facts = Facts {
        source: Ok(from.probe().await.unwrap()),
        destination: Ok(to.probe().await.unwrap()),
        vm: Ok(vm.clone()),
        fence: Ok(from.fence_offer(vm.id).await.unwrap()),
        guest: Ok(GuestFacts {
            devices: guest_devices(vec![device(vm.disks[0].size)]),
            ..GuestFacts::default()
        }),
        taken: Vec::new(),
        appliance: Ok(()),
        line: None,
    };
    draw_up(&request, &facts).unwrap()
}
