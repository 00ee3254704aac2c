//! `abort`: a migration is called off, and what was made for it is removed.

use engine::{Journal, Phase, Record, State, StepError, Vouched};
use model::{Power, SiteName};
use plan::Plan;
use site::{PlaceholderState, SiteErrorKind};

use super::args::AbortArgs;
use super::exit;
use super::find::{find, state_of};
use super::migrate::prepare;
use super::recover::{show_if_taken_in, to_its_end};
use crate::context::Context;
use crate::failure::{Failure, Kind};
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
        if context.json {
            show::line(&ending(context, &stored.plan, &state, &[], &[]).await.to_string());
        } else {
            show::line(&format!("{id} was rolled back already"));
        }
        return Ok(exit::DONE);
    }
    if !state.phase.is_before_decision() {
        let has_moved = if state.phase.is_final() { "has moved" } else { "is decided to move" };
        let what = format!("{vm} {has_moved} to {}: there is nothing to call off", stored.plan.to);
        let failure = Failure::new(Kind::Refused, what);
        return Err(match state.phase.is_final() {
            true => failure.hint("back is a new migration"),
            false => failure
                .hint("back is a new migration, once this one has ended")
                .next(format!("causeway resume {id}")),
        });
    }
    if args.attest.is_some() {
        may_vouch(context, &stored).await?;
    }
    show_if_taken_in(context, &stored, &state);
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
    to_its_end(context, run, listening, &stored).await
}

/// For a copy that nobody can look at: where the placeholder is there, it is asked.
async fn may_vouch(context: &Context, stored: &Stored) -> Result<(), Failure> {
    let plan = &stored.plan;
    match context.site(&plan.to)?.placeholder(plan.vm.id).await {
        Ok(PlaceholderState::Held { .. }) => {
            let what = format!(
                "{} answers, and what was made there is held: nobody has to vouch for it",
                plan.to
            );
            Err(Failure::new(Kind::Refused, what).hint(format!("causeway abort {}", plan.id)))
        }
        _ => Ok(()),
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
    let (mut removed, destination) = (Vec::new(), context.site(&plan.to)?);
    let cleared = engine::clear_up(&*destination, plan, state.epoch, &mut removed).await;
    let left = match &cleared {
        Ok(cleared) => cleared.left.clone(),
        Err(_) => state.left.iter().filter(|left| !removed.contains(left)).cloned().collect(),
    };
    if !removed.is_empty() || left != state.left {
        let record = Record::Cleared { removed: removed.clone(), left: left.clone() };
        let mut journal = MigrationJournal { store: context.store.clone(), id: id.clone() };
        journal.record(&record).await.map_err(|error| {
            Failure::new(Kind::Interrupted, "what was removed cannot be recorded").caused_by(&error)
        })?;
    }
    let stays = cleared.as_ref().map(|cleared| cleared.stays.clone()).unwrap_or_default();
    if context.json {
        if cleared.is_ok() {
            let mut value = ending(context, plan, state, &removed, &left).await;
            value["stays"] = serde_json::json!(stays);
            show::line(&value.to_string());
        }
    } else {
        for (word, what) in [("removed", &removed), ("stays", &stays), ("may be left", &left)] {
            for what in what {
                show::line(&format!("  {word:<8}  {what}"));
            }
        }
        if cleared.is_ok() && removed.is_empty() && stays.is_empty() && left.is_empty() {
            show::line(&format!("nothing of {id} was left at {}", plan.to));
        }
    }
    cleared.map_err(|error| not_cleared(plan, &error))?;
    Ok(exit::DONE)
}

/// As a migration's own end tells it; its source is looked at once more.
async fn ending(
    context: &Context,
    plan: &Plan,
    state: &State,
    removed: &[String],
    left: &[String],
) -> serde_json::Value {
    serde_json::json!({
        "rolled_back": plan.id, "vm": plan.vm.name, "runs_at": runs_at(context, plan).await,
        "why": state.why.clone().unwrap_or_default(), "removed": removed, "left": left,
    })
}

fn not_cleared(plan: &Plan, error: &StepError) -> Failure {
    let (id, to) = (&plan.id, &plan.to);
    let is_marked =
        matches!(error, StepError::Site(error) if error.kind == SiteErrorKind::WrongState);
    let failure = if is_marked {
        // What is there was decided to be the VM, and the word that let the source go on was wrong.
        let what = format!("{to} has a VM of {id} that was given the right to run");
        Failure::new(Kind::Undecided, what).next(format!("causeway status {id}"))
    } else {
        let what = format!("{to} is not cleared");
        Failure::new(Kind::Interrupted, what).next(format!("causeway abort {id}"))
    };
    error.hints().into_iter().fold(failure.caused_by(error), Failure::hint)
}

/// Where its platform shows it running.
async fn runs_at<'p>(context: &Context, plan: &'p Plan) -> Option<&'p SiteName> {
    let power = context.site(&plan.from).ok()?.power(plan.vm.id).await;
    matches!(power, Ok(Power::Running)).then_some(&plan.from)
}

pub fn not_agreed() -> Failure {
    Failure::new(Kind::Refused, "not agreed to, nothing was touched")
}

/// The operator's word.
pub fn attestation(reason: &str) -> handover::Attestation {
    handover::Attestation { by: site_ledger::operator().into(), reason: reason.into() }
}
