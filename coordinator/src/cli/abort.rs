//! `abort`: a migration is called off, and what was made for it is removed.

use engine::{Journal, Phase, Record, State, Vouched};

use super::args::AbortArgs;
use super::exit;
use super::find::{find, state_of};
use super::migrate::{follow, prepare};
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::interrupts::Interrupts;
use crate::show;
use crate::store::{MigrationJournal, Stored};

pub async fn abort(context: &Context, args: AbortArgs) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let stored = find(context, &args.id)?;
    let state = state_of(&stored)?;
    let (id, vm) = (&stored.plan.id, &stored.plan.vm.name);
    if state.phase == Phase::RolledBack && !state.left.is_empty() {
        return clear_up(context, &stored, &state, args.yes).await;
    }
    if state.phase == Phase::RolledBack {
        context.say(
            &format!("{id} was rolled back already"),
            &serde_json::json!({ "rolled_back": id, "vm": vm, "runs_at": stored.plan.from, "removed": [] }),
        );
        return Ok(exit::DONE);
    }
    if !state.phase.is_before_decision() {
        let what = format!("{vm} has moved to {}: there is nothing to call off", stored.plan.to);
        let failure = Failure::new(Kind::Refused, what).hint("back is a new migration");
        return Err(match state.phase.is_final() {
            true => failure,
            false => failure.next(format!("causeway resume {id}")),
        });
    }
    let mut question = format!(
        "Take back {id}? {vm} goes on at {}, what was copied is deleted.",
        stored.plan.from
    );
    if args.attest.is_some() {
        let word = format!(
            " On your word that its copy at {} never ran and never will, whoever reaches it?",
            stored.plan.to
        );
        question.push_str(&word);
    }
    if !args.yes && !show::ask(&question) {
        return Err(not_agreed());
    }
    let (mut run, listening) = prepare(context, &stored).await?;
    if let Some(reason) = &args.attest {
        run.vouched = Vouched::NeverRan(attestation(reason));
    }
    engine::abort(&mut run, "called off by the operator").await.map_err(|error| {
        Failure::new(Kind::Undecided, format!("{id} cannot be called off"))
            .caused_by(&error)
            .next(format!("causeway resume {id}"))
    })?;
    match follow(context, run, listening, stored.created_ms, Interrupts::listen()).await {
        // What was asked for is what was done.
        Ok(exit::ROLLED_BACK) => Ok(exit::DONE),
        other => other,
    }
}

/// What was made at a destination that was away when all was taken back.
async fn clear_up(
    context: &Context,
    stored: &Stored,
    state: &State,
    yes: bool,
) -> Result<u8, Failure> {
    let (plan, id) = (&stored.plan, &stored.plan.id);
    if !context.json {
        for left in &state.left {
            show::error(&format!("  may be left  {left}"));
        }
    }
    let question = format!("{id} was rolled back. Remove what it left at {}?", plan.to);
    if !yes && !show::ask(&question) {
        return Err(not_agreed());
    }
    let removed = engine::clear_up(&*context.site(&plan.to)?, plan).await.map_err(|error| {
        let failure = Failure::new(Kind::Interrupted, format!("{} is not cleared", plan.to));
        let failure = error.hints().into_iter().fold(failure.caused_by(&error), Failure::hint);
        failure.next(format!("causeway abort {id}"))
    })?;
    let mut journal = MigrationJournal { store: context.store.clone(), id: id.clone() };
    journal.record(&Record::Cleared { removed: removed.clone() }).await.map_err(|error| {
        Failure::new(Kind::Interrupted, "what was removed cannot be recorded").caused_by(&error)
    })?;
    if context.json {
        let value = serde_json::json!({ "rolled_back": id, "vm": plan.vm.name, "runs_at": plan.from, "removed": removed });
        show::line(&value.to_string());
        return Ok(exit::DONE);
    }
    if removed.is_empty() {
        show::line(&format!("nothing of {id} was left at {}", plan.to));
    }
    for what in removed {
        show::line(&format!("  removed   {what}"));
    }
    Ok(exit::DONE)
}

pub fn not_agreed() -> Failure {
    Failure::new(Kind::Refused, "not agreed to, nothing was touched")
}

/// The operator's word.
pub fn attestation(reason: &str) -> handover::Attestation {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    handover::Attestation {
        by: user.unwrap_or_else(|_| "operator".to_owned()).into(),
        reason: reason.into(),
    }
}
