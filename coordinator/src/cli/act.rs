//! `resume`, `abort`, `switchover`, `verify`: what can be done with a migration that exists.

use engine::{Phase, State};
use units::Bytes;

use super::args::{AbortArgs, ResumeArgs};
use super::exit;
use super::migrate::{follow, prepare};
use super::plan::login;
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::show;
use crate::store::Stored;

pub async fn resume(context: &Context, args: ResumeArgs) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let mut stored = find(context, &args.id)?;
    let (id, vm) = (stored.plan.id.clone(), stored.plan.vm.name.clone());
    let before = stored.plan.clone();
    if let Some(ms) = args.max_downtime {
        stored.plan.options.max_downtime_ms = ms;
    }
    if let Some(rate) = args.limit_rate {
        stored.plan.options.limit_rate = Some(Bytes(rate)).filter(|rate| rate.0 > 0);
    }
    if args.login.guest.is_some() {
        stored.login = login(context, &vm, &args.login)?.unwrap_or(stored.login);
    }
    let state = state_of(&stored)?;
    if state.phase.is_final() {
        show::line(&format!("{id} has ended: {}", state.phase.word()));
        return Ok(exit::DONE);
    }
    if stored.plan != before
        && !matches!(
            state.phase,
            Phase::Planned | Phase::Preparing | Phase::Copying | Phase::Holding
        )
    {
        return Err(Failure::new(
            Kind::Refused,
            format!("options of {id} cannot change while {}", state.phase.word()),
        )
        .hint(format!("causeway resume {id}")));
    }
    context.store.update_plan(&stored.plan, &stored.login)?;
    let (run, listening) = prepare(context, &stored)?;
    follow(context, run, listening, stored.created_ms).await
}

pub async fn abort(context: &Context, args: AbortArgs) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let stored = find(context, &args.id)?;
    let state = state_of(&stored)?;
    let (id, vm) = (&stored.plan.id, &stored.plan.vm.name);
    if state.phase == Phase::RolledBack {
        show::line(&format!("{id} was rolled back already"));
        return Ok(exit::DONE);
    }
    if !state.phase.is_before_decision() {
        return Err(Failure::new(
            Kind::Refused,
            format!("{vm} has moved to {}: there is nothing to call off", stored.plan.to),
        )
        .hint(format!("go on with: causeway resume {id}; back is a new migration")));
    }
    if !args.yes
        && !show::ask(&format!(
            "Take back {id}? {vm} goes on at {}, what was copied is deleted.",
            stored.plan.from
        ))
    {
        return Err(Failure::new(Kind::Refused, "not agreed to, nothing was touched"));
    }
    let (mut run, listening) = prepare(context, &stored)?;
    engine::abort(&mut run, "called off by the operator").await.map_err(|error| {
        Failure::new(Kind::Undecided, format!("{id} cannot be called off"))
            .caused_by(&error)
            .next(format!("causeway resume {id}"))
    })?;
    match follow(context, run, listening, stored.created_ms).await {
        // What was asked for is what was done.
        Ok(exit::ROLLED_BACK) => Ok(exit::DONE),
        other => other,
    }
}

/// Works while another causeway runs the migration.
pub fn switchover(context: &Context, id: &str) -> Result<u8, Failure> {
    let stored = find(context, id)?;
    let state = state_of(&stored)?;
    if state.phase.is_final() || state.phase.is_downtime() || state.phase == Phase::RollingBack {
        return Err(Failure::new(
            Kind::Refused,
            format!("{id} does not hold: it is {}", state.phase.word()),
        ));
    }
    context.store.release(&stored.plan.id, crate::now_ms())?;
    show::line(&format!("{id} is released; it switches over when the rest fits the budget"));
    Ok(exit::DONE)
}

/// Reads every target again and compares it with what the helper acknowledged.
pub async fn verify(context: &Context, id: &str) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let stored = find(context, id)?;
    let state = state_of(&stored)?;
    if !matches!(state.phase, Phase::Copying | Phase::Holding) {
        return Err(Failure::new(
            Kind::Refused,
            format!("the targets of {id} cannot be read again while it is {}", state.phase.word()),
        )
        .hint(format!(
            "a finished migration has a receipt: causeway receipt verify {}/receipts/{id}.json",
            context.store.path().display()
        )));
    }
    let (mut run, _listening) = prepare(context, &stored)?;
    let disks = engine::verify(&mut run).await.map_err(|error| {
        Failure::new(Kind::Interrupted, format!("{id} could not be verified"))
            .caused_by(&error)
            .next(format!("causeway resume {id}"))
    })?;
    let mut good = true;
    for disk in &disks {
        good &= disk.acknowledged == disk.reread;
        let word = if disk.acknowledged == disk.reread { "as acknowledged" } else { "DIFFERS" };
        if context.json {
            show::line(&serde_json::json!({ "disk": disk.target, "acknowledged": disk.acknowledged, "read": disk.reread }).to_string());
        } else {
            show::line(&format!("{}   {word}   {}", disk.target, disk.reread));
        }
    }
    if good {
        return Ok(exit::DONE);
    }
    Err(Failure::new(Kind::Interrupted, "a target does not hold what was written to it")
        .hint("look at the destination's storage; `resume` compares every block and sends again what differs")
        .next(format!("causeway resume {id}")))
}

pub fn find(context: &Context, id: &str) -> Result<Stored, Failure> {
    context.store.migration(id)?.ok_or_else(|| {
        Failure::new(Kind::Refused, format!("no migration {id}")).hint("causeway status lists them")
    })
}

pub fn state_of(stored: &Stored) -> Result<State, Failure> {
    State::replay(stored.records.iter().map(|(_, record)| record)).map_err(|error| {
        Failure::new(Kind::Undecided, "the journal contradicts itself").caused_by(&error)
    })
}
