//! `causeway migrate` and `causeway run`: plan, show, ask, run; and the run that `resume` and
//! `abort` share.

use std::path::PathBuf;
use std::sync::Arc;

use engine::custody::{Custody, CustodyOf, Folder};
use engine::rebuild::behind;
use engine::{Links, Progress, Run, State, StepError, Vouched, Watcher, Wish};
use model::Power;
use plan::{PLAN_VERSION, Plan};
use site::{ApplianceFiles, Site};
use tokio::sync::watch;

use super::args::{MigrateArgs, RunArgs};
use super::find::state_of;
use super::live;
use super::plan::{Drawn, draw_up, login, still_holds};
use super::{exit, receipt};
use crate::context::Context;
use crate::failure::{Failure, Kind, halted};
use crate::guest::SshGuest;
use crate::interrupts::Interrupts;
use crate::operator::Person;
use crate::show::{self, plan_text};
use crate::store::{MigrationJournal, Stored};
use crate::{keys, papers};

pub async fn migrate(context: &Context, args: MigrateArgs) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let mut interrupts = Interrupts::listen();
    if let Some(live) = live::chosen(context, &args.ask).await? {
        return live::migrate(context, live, args.yes, interrupts).await;
    }
    let drawn = draw_up(context, args.ask, &mut interrupts).await?;
    agree(context, &drawn, args.yes, &mut interrupts).await?;
    start(context, drawn, interrupts).await
}

pub async fn run_saved(context: &Context, args: RunArgs) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let path = args.plan.display();
    let text = std::fs::read_to_string(&args.plan).map_err(|error| {
        Failure::new(Kind::Refused, format!("cannot read {path}")).caused_by(&error)
    })?;
    let plan: Plan = toml::from_str(&text).map_err(|error| {
        Failure::new(Kind::Refused, format!("{path} is not a plan")).caused_by(&error)
    })?;
    if plan.version != PLAN_VERSION {
        return Err(Failure::new(
            Kind::Refused,
            format!("{path} is a plan of version {}", plan.version),
        )
        .hint("draw it up again with this causeway"));
    }
    if let Some(stored) = context.store.migration(plan.id.as_str())? {
        let hint = match state_of(&stored)?.phase {
            phase if phase.is_final() => "it has ended; draw up a new plan".to_owned(),
            _ => format!("causeway resume {}", plan.id),
        };
        let what = format!("{} was begun already", plan.id);
        return Err(Failure::new(Kind::Refused, what).hint(hint));
    }
    let login = login(context, &plan.vm.name, &args.login)?.ok_or_else(|| {
        Failure::new(Kind::Refused, format!("no way into {} is known", plan.vm.name))
            .hint("name one with --guest root@ADDRESS")
    })?;
    let mut interrupts = Interrupts::listen();
    let visit = still_holds(context, &plan, &login, &mut interrupts).await?;
    let drawn = Drawn { plan, login, visit };
    agree(context, &drawn, args.yes, &mut interrupts).await?;
    start(context, drawn, interrupts).await
}

/// Shows the plan and asks. If it does not come to a migration, the agent's visit is over.
async fn agree(
    context: &Context,
    Drawn { plan, visit, .. }: &Drawn,
    yes: bool,
    interrupts: &mut Interrupts,
) -> Result<(), Failure> {
    if context.json {
        show::line(&serde_json::json!({ "plan": plan }).to_string());
    } else {
        show::error(&plan_text(plan));
    }
    if yes || visit.unless_interrupted(interrupts, show::asked("\nGo ahead?")).await? {
        return Ok(());
    }
    visit.end(interrupts).await;
    Err(Failure::new(Kind::Refused, "not agreed to, nothing was touched"))
}

async fn start(context: &Context, drawn: Drawn, mut interrupts: Interrupts) -> Result<u8, Failure> {
    let Drawn { plan, login, visit } = drawn;
    let created_ms = crate::now_ms();
    let stored = Stored { plan, login, created_ms, records: Vec::new() };
    let create = || context.store.create_migration(&stored.plan, &stored.login, created_ms);
    // What cannot run is not begun.
    let prepared = prepare_with(context, &stored, Arc::clone(visit.guest()), true).await;
    match prepared.and_then(|prepared| create().map(|()| prepared).map_err(Failure::from)) {
        Ok((run, listening)) => follow(context, run, listening, created_ms, interrupts).await,
        Err(failure) => {
            visit.end(&mut interrupts).await;
            Err(failure)
        }
    }
}

/// What the engine says while it runs, and the operator's wish, kept alive with it.
pub struct Listening {
    progress: tokio::sync::mpsc::UnboundedReceiver<Progress>,
    wish: watch::Sender<Wish>,
}

/// Everything a migration runs with that is taken up again.
pub async fn prepare(context: &Context, stored: &Stored) -> Result<(Run, Listening), Failure> {
    let (site, login) = (stored.plan.from.clone(), stored.login.clone());
    prepare_with(context, stored, SshGuest::new(site, login, context.agent_binary())?, false).await
}

async fn prepare_with(
    context: &Context,
    stored: &Stored,
    guest: Arc<SshGuest>,
    is_new: bool,
) -> Result<(Run, Listening), Failure> {
    let plan = &stored.plan;
    let mut state = state_of(stored)?;
    let store = &context.store;
    let (source, destination) = (context.site(&plan.from)?, context.site(&plan.to)?);
    let mut custody = open_custody(context, plan, &source, &destination).await?;
    // One that is only about to begin opens an attempt of its own.
    if !is_new && !state.phase.is_final() {
        state = as_the_ledgers_have_it(context, stored, state, &mut custody).await?;
    }
    let identity = keys::of_coordinator(store, &plan.id)?;
    let pool = plan.disks.first().map(|disk| disk.pool.clone()).unwrap_or_default();
    let (watcher, progress) = Watcher::new();
    let (wish_sender, wish) = watch::channel(Wish::Run);
    let appliance = appliance(context, &state, pool)?;
    let run = Run {
        state,
        source,
        destination,
        guest,
        custody,
        papers: papers::draw_up(store, stored)?,
        journal: Box::new(MigrationJournal { store: store.clone(), id: plan.id.clone() }),
        identity,
        agent_binary: context.agent_binary(),
        appliance,
        operator: Arc::new(Person {
            store: store.clone(),
            id: plan.id.clone(),
            vm: plan.vm.name.clone(),
            from: plan.from.clone(),
            to: plan.to.clone(),
        }),
        wish,
        watcher,
        patience: context.patience(),
        links: Links::default(),
        vouched: Vouched::Nothing,
        voided: 0,
        arrived_at: tokio::time::Instant::now(),
        targets_empty: false,
        fenced_now: false,
        plan: plan.clone(),
    };
    Ok((run, Listening { progress, wish: wish_sender }))
}

/// A journal that is behind what the ledgers know, since another coordinator took this one's place or it
/// came from a backup, is taken to where they are.
async fn as_the_ledgers_have_it(
    context: &Context,
    stored: &Stored,
    state: State,
    custody: &mut Custody,
) -> Result<State, Failure> {
    let id = &stored.plan.id;
    let undecided = |error| {
        let what = format!("what the ledgers say of {id} cannot be told");
        let error = StepError::from(error);
        let failure = Failure::new(Kind::Undecided, what).caused_by(&error);
        error.hints().into_iter().fold(failure, Failure::hint)
    };
    custody.look().await.map_err(undecided)?;
    // A decision may stand on the mark alone.
    custody.heal(stored.plan.vm.id).await.map_err(undecided)?;
    let now_ms = crate::now_ms();
    let records = match behind(custody, Some(&state), now_ms) {
        Ok(Some(records)) => records,
        Ok(None) => return Ok(state),
        // The engine refuses what cannot be, and says what it is.
        Err(why) => {
            tracing::warn!(%id, %why, "the journal is behind the ledgers, and stays so");
            return Ok(state);
        }
    };
    tracing::info!(%id, "the ledgers know more than the journal");
    let records = records.into_iter().map(|record| (now_ms, record)).collect();
    let mended = Stored { records, ..stored.clone() };
    context.store.rebuild_migration(&mended)?;
    state_of(&mended)
}

/// The helper, unless nothing is copied any more: then a machine that has none can do the rest.
fn appliance(context: &Context, state: &State, pool: String) -> Result<ApplianceFiles, Failure> {
    if !state.phase.is_past_copying() || state.phase == engine::Phase::Draining {
        return context.appliance(pool);
    }
    let (kernel, initrd) = (PathBuf::new(), PathBuf::new());
    Ok(ApplianceFiles { kernel, initrd, digest: units::Digest([0; 32]), pool })
}

/// The ledgers of both sites, with keys that the sites and this machine agree on.
pub async fn open_custody(
    context: &Context,
    plan: &Plan,
    source: &Arc<dyn Site>,
    destination: &Arc<dyn Site>,
) -> Result<Custody, Failure> {
    let refuse = |what: &str, error: &dyn std::error::Error| {
        Failure::new(Kind::Refused, what).caused_by(error)
    };
    let store = &context.store;
    keys::settle(store, &plan.from, &**source).await?;
    keys::settle(store, &plan.to, &**destination).await?;
    let (source_me, destination_me) = keys::identities(store, &plan.from, &plan.to)?;
    let of = CustodyOf {
        source: source_me,
        destination: destination_me,
        at_source: Arc::clone(source),
        at_destination: Arc::clone(destination),
        vm: vm_key(plan)?,
        ids: [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()]
            .map(|id| journal::StoreId(id.into_bytes())),
        plan: plan.digest().map_err(|error| refuse("the plan has no digest", &error))?,
    };
    Custody::open(Box::new(ledgers(context, plan)?), of).map_err(|error| {
        refuse("the ledgers cannot be opened", &error).hint(
            "nothing was done; a damaged ledger is never repaired by hand: `causeway recover` with an empty --state-dir asks the sites for it",
        )
    })
}

/// Where this machine keeps the ledgers of the plan's VM.
pub fn ledgers(context: &Context, plan: &Plan) -> Result<Folder, Failure> {
    Ok(Folder { path: context.store.path().join("ledger"), vm: vm_key(plan)? })
}

/// The VM as ledgers name it.
pub fn vm_key(plan: &Plan) -> Result<handover::VmKey, Failure> {
    plan.vm.id.to_string().parse().map_err(|error: handover::KeyError| {
        Failure::new(Kind::Refused, "the plan's VM has no name that ledgers can hold")
            .caused_by(&error)
    })
}

/// Runs it, showing progress, until it ends or halts.
pub async fn follow(
    context: &Context,
    mut run: Run,
    listening: Listening,
    created_ms: i64,
    interrupts: Interrupts,
) -> Result<u8, Failure> {
    let Listening { progress, wish } = listening;
    let disks = run.plan.disks.iter().map(|disk| disk.target.clone()).collect();
    let shown = tokio::task::spawn(show::watch(progress, disks, context.json));
    let interrupts = tokio::task::spawn(pass_on(interrupts, wish));
    let ended = engine::migrate(&mut run).await;
    interrupts.abort();
    // The bars end when the last watcher is gone.
    run.watcher = Watcher::nobody();
    if let Err(error) = shown.await {
        tracing::debug!(%error, "progress was not shown to the end");
    }
    let phase = ended.map_err(|halt| halted(&run.plan, &halt))?;
    if phase == engine::Phase::RolledBack {
        return Ok(rolled_back(context, &run).await);
    }
    receipt::write(context, &run, created_ms)?;
    Ok(exit::DONE)
}

/// The source was let go on; what became of it since its platform says.
async fn rolled_back(context: &Context, run: &Run) -> u8 {
    let plan = &run.plan;
    let power = run.source.power(plan.vm.id).await;
    let runs = matches!(power, Ok(Power::Running));
    let stands = match power {
        Ok(Power::Running) => format!("runs at {} as before", plan.from),
        Ok(power) => format!("was let go on at {}, where it is {power} now", plan.from),
        Err(error) => {
            format!("was let go on at {}, which does not say how it is: {error}", plan.from)
        }
    };
    let why = run.state.why.clone().unwrap_or_default();
    if context.json {
        let value = serde_json::json!({
            "rolled_back": plan.id, "vm": plan.vm.name, "runs_at": runs.then_some(&plan.from), "why": why,
            "removed": run.state.removed, "left": run.state.left,
        });
        show::line(&value.to_string());
        return exit::ROLLED_BACK;
    }
    show::line(&format!("{} {stands}: {why}", plan.vm.name));
    for (word, what) in [("removed", &run.state.removed), ("may be left", &run.state.left)] {
        for what in what {
            show::line(&format!("  {word:<8}  {what}"));
        }
    }
    if !run.state.left.is_empty() {
        let (to, id) = (&plan.to, &plan.id);
        show::line(&format!("            should {to} come back: causeway abort {id} removes it"));
    }
    exit::ROLLED_BACK
}

/// The first interrupt asks the engine to stop where nothing is at stake.
async fn pass_on(mut interrupts: Interrupts, wish: watch::Sender<Wish>) {
    loop {
        interrupts.next().await;
        show::error("stopping; a switchover that has begun is finished first");
        if wish.send(Wish::Interrupt).is_err() {
            return;
        }
    }
}
