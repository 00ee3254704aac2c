//! The process that is killed: all migrations of a state directory at once, each as `causeway migrate`
//! and `resume` run it, on the product's own store, journal and ledgers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use engine::custody::{Folder, Papers, Shelf, read_ledger};
use engine::evidence::{Asked, gather};
use engine::{Journal, JournalError, Operator, Phase, Record, Run, State, migrate};
use handover::{VerdictKind, verdict};
use journal::{OpenError, Storage};
use model::SiteName;
use plan::Plan;
use site::{GuestAccess, Site};
use store::{GuestLogin, MigrationJournal, Store, Stored};
use tokio::task::{JoinSet, LocalSet};
use transfer::secure::Identity;
use units::MigrationId;

use super::far::{Far, Whom};
use super::figures::Figures;
use crate::stage::{Means, about, identities, open_custody, run_of};

/// What it finds in its directory.
pub const PLANS: &str = "plans.json";
pub const CLOUDS: &str = "clouds.sock";
/// What its first life, and its second, leave there for whoever started it.
pub fn figures_of(life: u8) -> String {
    format!("figures-{life}")
}

const THREADS: usize = 2;

/// How often it is told to go on before somebody has to look.
const TOLD_MAX: usize = 5;

#[derive(Clone)]
struct Life {
    store: Store,
    clouds: PathBuf,
    figures: Figures,
    /// Those that have copied once, and wait until all have.
    held: Arc<AtomicUsize>,
    to_hold: usize,
    began: Instant,
}

/// One life: every migration that has not ended is brought to its end.
pub fn live(dir: &Path) {
    let began = Instant::now();
    let store = Store::open(&dir.join("state")).unwrap();
    let _lock = store.lock().unwrap();
    let is_first = store.migration_ids().unwrap().is_empty();
    let figures = Figures::into(dir.join(figures_of(if is_first { 1 } else { 2 })));
    if is_first {
        let plans: Vec<Plan> =
            serde_json::from_slice(&std::fs::read(dir.join(PLANS)).unwrap()).unwrap();
        for plan in plans {
            store.create_migration(&plan, &GuestLogin::unknown(), 0).unwrap();
        }
    }
    let ids = store.migration_ids().unwrap();
    let life = Life {
        clouds: dir.join(CLOUDS),
        figures: figures.clone(),
        held: Arc::default(),
        // One that comes after another holds nobody.
        to_hold: if is_first { ids.len() } else { 0 },
        began,
        store,
    };
    let ended = Arc::new(AtomicBool::new(false));
    let asks = {
        let (life, ids, ended) = (life.clone(), ids.clone(), Arc::clone(&ended));
        let state = dir.join("state");
        thread::spawn(move || on_this_thread(life.ask_status(&ids, &state, &ended)))
    };
    // As many threads as the program has. A migration stays on one: its journal and ledgers are not
    // made to be looked at from two.
    thread::scope(|scope| {
        for of in 0..THREADS {
            let ids = ids.iter().skip(of).step_by(THREADS).cloned().collect();
            let life = life.clone();
            scope.spawn(|| on_this_thread(life.bring_to_their_ends(ids)));
        }
    });
    ended.store(true, Ordering::Relaxed);
    asks.join().unwrap();
    figures.end();
}

fn on_this_thread(all: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, all);
}

impl Life {
    async fn bring_to_their_ends(self, ids: Vec<String>) {
        let mut all = JoinSet::new();
        for id in ids {
            all.spawn_local(self.clone().one(id));
        }
        while let Some(ended) = all.join_next().await {
            self.figures.count(&format!("{:?}", ended.unwrap()));
        }
    }

    async fn one(self, id: String) -> Phase {
        for _ in 0..TOLD_MAX {
            let stored = self.store.migration(&id).unwrap().unwrap();
            let mut run = self.prepare(stored);
            self.figures.took("read again", self.began);
            if run.state.phase.is_final() {
                return run.state.phase;
            }
            match migrate(&mut run).await {
                Ok(phase) => return phase,
                Err(halt) => {
                    eprintln!("{id} is told to go on: {}", units::chain(&halt));
                    self.figures.count("told to go on");
                }
            }
        }
        panic!("{id} does not come to an end");
    }

    fn prepare(&self, stored: Stored) -> Run {
        let Stored { plan, records, .. } = stored;
        let state = State::replay(records.iter().map(|(_, record)| record)).unwrap();
        let source: Arc<dyn Site> = Arc::new(self.far(&plan, Whom::Source));
        let destination: Arc<dyn Site> = Arc::new(self.far(&plan, Whom::Destination));
        let guest: Arc<dyn GuestAccess> = Arc::new(self.far(&plan, Whom::Guest));
        let shelf = Timed { inner: folder(&self.store, &plan), figures: self.figures.clone() };
        let papers = serde_json::to_vec(&plan).unwrap();
        let journal = MigrationJournal { store: self.store.clone(), id: plan.id.clone() };
        run_of(Means {
            custody: open_custody(Box::new(shelf), &plan, &source, &destination).unwrap(),
            papers: Papers { source: papers.clone(), destination: papers },
            identity: self.key(&plan),
            state,
            source,
            destination,
            guest,
            journal: Box::new(Timed { inner: journal, figures: self.figures.clone() }),
            operator: Arc::new(Releases {
                life: self.clone(),
                id: plan.id.clone(),
                came: AtomicBool::new(false),
            }),
            plan,
        })
    }

    fn far(&self, plan: &Plan, whom: Whom) -> Far {
        let name = if whom == Whom::Destination { &plan.to } else { &plan.from };
        Far { at: self.clouds.clone(), name: name.clone(), vm: plan.vm.id, whom }
    }

    /// The coordinator's key of this migration, which agents know it by.
    fn key(&self, plan: &Plan) -> Identity {
        let name = format!("keys/move-{}.key", plan.id);
        let kept = std::fs::read(self.store.path().join(&name)).unwrap_or_else(|_| {
            let key = Identity::generate_pkcs8();
            self.store.write_private(&name, &key).unwrap();
            key
        });
        Identity::from_pkcs8(&kept).unwrap()
    }

    /// `status` of one after the other until they have ended, on a thread and with a store of its own:
    /// `causeway status` is a process of its own.
    async fn ask_status(self, ids: &[String], state: &Path, ended: &AtomicBool) {
        let store = Store::open(state).unwrap();
        // Not those that were begun one after the other.
        for id in ids.iter().cycle().step_by(7) {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let began = Instant::now();
            let Stored { plan, records, .. } = store.migration(id).unwrap().unwrap();
            let state = State::replay(records.iter().map(|(_, record)| record)).unwrap();
            let folder = folder(&store, &plan);
            let [at_source, at_destination] = identities(&plan.from, &plan.to);
            let asked = |name: &SiteName, whom, identity| Asked {
                identity,
                ledger: read_ledger(&folder, name).unwrap(),
                site: Some(Arc::new(self.far(&plan, whom))),
                keeps_another: false,
            };
            let source = asked(&plan.from, Whom::Source, at_source);
            let destination = asked(&plan.to, Whom::Destination, at_destination);
            let about = about(&plan, state.epoch);
            // Of what moves while it is asked about two stories can be heard.
            if let Ok(gathered) = gather(&about, Some(source), Some(destination)).await {
                let evidence = gathered.evidence;
                assert_ne!(verdict(&evidence).verdict, VerdictKind::AlarmSplit, "{evidence:?}");
            } else {
                self.figures.count("status refused");
            }
            self.figures.took("status", began);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Lets it go on to its switchover when all have copied once: then all links of all are up at once.
struct Releases {
    life: Life,
    id: MigrationId,
    came: AtomicBool,
}

#[async_trait]
impl Operator for Releases {
    async fn has_released(&self) -> bool {
        let Life { store, held, to_hold, .. } = &self.life;
        if !self.came.swap(true, Ordering::Relaxed) {
            held.fetch_add(1, Ordering::Relaxed);
        }
        // As `causeway switchover` would have it.
        store.is_released(&self.id).unwrap() || held.load(Ordering::Relaxed) >= *to_hold
    }

    async fn passes(&self, _gate: &str) -> Result<(), String> {
        Ok(())
    }
}

fn folder(store: &Store, plan: &Plan) -> Folder {
    Folder { path: store.path().join("ledger"), vm: plan.vm.id.to_string().parse().unwrap() }
}

/// What is kept, with how long that took.
struct Timed<T> {
    inner: T,
    figures: Figures,
}

#[async_trait]
impl Journal for Timed<MigrationJournal> {
    async fn record(&mut self, record: &Record) -> Result<(), JournalError> {
        let began = Instant::now();
        let recorded = self.inner.record(record).await;
        self.figures.took("journal", began);
        recorded
    }
}

impl Shelf for Timed<Folder> {
    fn path(&self, site: &str, file: &str) -> PathBuf {
        self.inner.path(site, file)
    }

    fn ledger(&self, site: &str) -> Result<Box<dyn Storage>, OpenError> {
        let (inner, figures) = (self.inner.ledger(site)?, self.figures.clone());
        Ok(Box::new(Page { inner, figures, began: None }))
    }

    fn keep(&self, site: &str, file: &str, body: &[u8]) -> std::io::Result<()> {
        self.inner.keep(site, file, body)
    }

    fn kept(&self, site: &str, file: &str) -> std::io::Result<Vec<u8>> {
        self.inner.kept(site, file)
    }
}

/// A ledger; an append is a write and a sync.
struct Page {
    inner: Box<dyn Storage>,
    figures: Figures,
    began: Option<Instant>,
}

impl Storage for Page {
    fn size(&mut self) -> std::io::Result<u64> {
        self.inner.size()
    }

    fn read(&mut self) -> std::io::Result<Vec<u8>> {
        self.inner.read()
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<usize> {
        self.began.get_or_insert_with(Instant::now);
        self.inner.write_at(offset, bytes)
    }

    fn truncate(&mut self, len: u64) -> std::io::Result<()> {
        self.inner.truncate(len)
    }

    fn sync_data(&mut self) -> std::io::Result<()> {
        let synced = self.inner.sync_data();
        if let Some(began) = self.began.take() {
            self.figures.took("ledger", began);
        }
        synced
    }

    fn sync_all(&mut self) -> std::io::Result<()> {
        // Opening writes as well.
        self.began = None;
        self.inner.sync_all()
    }

    fn sync_folder(&mut self) -> std::io::Result<()> {
        self.inner.sync_folder()
    }
}
