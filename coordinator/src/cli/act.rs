//! `resume`, `discard`, `switchover`, `verify`: what can be done with a migration that exists.

use engine::{Phase, Run, State, StepError, Vouched};
use plan::Plan;
use site::SiteErrorKind;
use units::{Bytes, MigrationId};

use super::abort::{attestation, not_agreed};
use super::args::{DiscardArgs, ResumeArgs};
use super::find::{by_id, find, state_of};
use super::migrate::{follow, prepare};
use super::plan::login;
use super::recover::agree_to_go_on;
use super::{exit, receipt};
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::interrupts::Interrupts;
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
    if let Some(rate) = args.limit_read {
        stored.plan.options.limit_read = Some(Bytes(rate)).filter(|rate| rate.0 > 0);
    }
    if args.login.guest.is_some() {
        stored.login = login(context, &vm, &args.login)?.unwrap_or(stored.login);
    }
    let state = state_of(&stored)?;
    if state.phase.is_final() {
        return ended(context, &stored, &state).await;
    }
    let (mut run, listening) = prepare(context, &stored).await?;
    if stored.plan != before && run.state.phase.is_past_copying() {
        return Err(Failure::new(
            Kind::Refused,
            format!("options of {id} cannot change while {}", run.state.phase.word()),
        )
        .hint(format!("causeway resume {id}")));
    }
    if state.from_sites {
        agree_to_go_on(context, &stored, &run.state, args.yes)?;
    }
    if let Some(reason) = &args.attest {
        may_vouch(&run, args.yes)?;
        run.vouched = Vouched::NotReleased(attestation(reason));
    }
    context.store.update_plan(&stored.plan, &stored.login)?;
    follow(context, run, listening, stored.created_ms, Interrupts::listen()).await
}

/// For a source that may have been released over a decision: no sooner is there anything to vouch for.
fn may_vouch(run: &Run, yes: bool) -> Result<(), Failure> {
    let Plan { id, vm, from, to, .. } = &run.plan;
    if run.state.phase != Phase::Starting {
        return Err(Failure::new(
            Kind::Refused,
            format!("nobody has to vouch for {from} while {id} is {}", run.state.phase.word()),
        )
        .hint(format!("causeway resume {id} says when it needs your word")));
    }
    let vm = &vm.name;
    let question =
        format!("On your word that {vm} does not run at {from} and never will: start it at {to}?");
    if yes || show::ask(&question) { Ok(()) } else { Err(not_agreed()) }
}

/// Nothing is left to be done, but for a receipt that a crash may have left unwritten.
async fn ended(context: &Context, stored: &Stored, state: &State) -> Result<u8, Failure> {
    let id = &stored.plan.id;
    if state.phase == Phase::Retired && !receipt::exists(context, id) {
        let (run, _listening) = prepare(context, stored).await?;
        receipt::write(context, &run, stored.created_ms)?;
        return Ok(exit::DONE);
    }
    let word = state.phase.word();
    let value = serde_json::json!({ "id": id, "ended": word });
    context.say(&format!("{id} has ended: {word}"), &value);
    Ok(exit::DONE)
}

/// The retired source, for good.
pub async fn discard(context: &Context, args: DiscardArgs) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let stored = by_id(context, &args.id)?;
    let state = state_of(&stored)?;
    let (id, vm, plan) = (&stored.plan.id, &stored.plan.vm.name, &stored.plan);
    if state.discarded {
        context.say(
            &format!("the source of {id} was deleted already"),
            &serde_json::json!({ "discarded": id, "site": plan.from, "removed": [], "left": [] }),
        );
        return Ok(exit::DONE);
    }
    let Some(name) = &state.retired_as else {
        return Err(Failure::new(
            Kind::Refused,
            match state.phase {
                Phase::Retired => format!(
                    "{id} keeps no source: its definition was deleted, and which disks are left at {} is not known",
                    plan.from
                ),
                phase => format!("{id} keeps no source: it is {}", phase.word()),
            },
        )
        .hint(format!("causeway status {id} says where {vm} lives")));
    };
    if !args.yes
        && !show::ask(&format!(
            "Delete {name} at {} with its disks? {vm} must run at {}; that is looked at first.",
            plan.from, plan.to
        ))
    {
        return Err(not_agreed());
    }
    let (mut run, _listening) = prepare(context, &stored).await?;
    let discarded =
        engine::discard(&mut run).await.map_err(|error| not_discarded(id, plan, name, &error))?;
    if context.json {
        show::line(&serde_json::json!({ "discarded": id, "site": plan.from, "removed": discarded.removed, "left": discarded.left }).to_string());
        return Ok(exit::DONE);
    }
    if discarded.removed.is_empty() {
        show::line(&format!("nothing of {name} was left at {}", plan.from));
    }
    for (word, what) in [("removed", &discarded.removed), ("left", &discarded.left)] {
        for what in what {
            show::line(&format!("  {word:<8}  {}: {what}", plan.from));
        }
    }
    Ok(exit::DONE)
}

/// Whether all of it is still there is known only where it was refused before anything was done.
fn not_discarded(id: &MigrationId, plan: &Plan, name: &str, error: &StepError) -> Failure {
    let untouched = match error {
        StepError::MaybeLastCopy { .. } | StepError::Custody(_) => true,
        StepError::Site(error) => {
            matches!(error.kind, SiteErrorKind::WrongState | SiteErrorKind::Conflict)
        }
        _ => false,
    };
    let failure = if untouched {
        Failure::new(Kind::Refused, format!("{name} at {} is kept", plan.from))
    } else {
        let what = format!("{name} at {} may be deleted in part", plan.from);
        Failure::new(Kind::Undecided, what).next(format!("causeway discard {id}"))
    };
    error.hints().into_iter().fold(failure.caused_by(error), Failure::hint)
}

/// Works while another causeway runs the migration.
pub fn switchover(context: &Context, which: &str) -> Result<u8, Failure> {
    let stored = find(context, which)?;
    let (id, state) = (&stored.plan.id, state_of(&stored)?);
    if state.phase.is_final() || state.phase.is_downtime() || state.phase == Phase::RollingBack {
        return Err(Failure::new(
            Kind::Refused,
            format!("{id} does not hold: it is {}", state.phase.word()),
        ));
    }
    context.store.release(id, crate::now_ms())?;
    let words = match context.store.is_acted_with() {
        true => format!("{id} is released; it switches over when the rest fits the budget"),
        false => format!("{id} is released; nobody carries it on right now: causeway resume {id}"),
    };
    context.say(&words, &serde_json::json!({ "released": id }));
    Ok(exit::DONE)
}

/// Reads every target again and compares it with what the helper acknowledged.
pub async fn verify(context: &Context, which: &str) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let stored = find(context, which)?;
    let (id, state) = (&stored.plan.id, state_of(&stored)?);
    if !matches!(state.phase, Phase::Copying | Phase::Holding) {
        let what =
            format!("the targets of {id} cannot be read again while it is {}", state.phase.word());
        let failure = Failure::new(Kind::Refused, what);
        return Err(match receipt::exists(context, id) {
            true => failure.hint(format!(
                "it has a receipt: causeway receipt verify {}/receipts/{id}.json",
                context.store.path().display()
            )),
            false => failure.hint(format!("causeway status {id} says how it stands")),
        });
    }
    let (mut run, _listening) = prepare(context, &stored).await?;
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
