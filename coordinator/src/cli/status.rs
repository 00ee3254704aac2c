//! `causeway status`: where each VM lives, how sure that is, on what evidence.
//!
//! Both sites' ledgers and platforms are asked; the coordinator's own journal only says how far it
//! came. With `--from` one site is asked and the other is taken for gone.

use engine::custody::{mark_seen, read_ledger};
use engine::{Phase, State};
use handover::{
    Attempt, DestinationRole, Evidence, MarkSeen, Next, PlanDigest, Platform, Record, Side,
    SourceRole, Strength, Verdict, VerdictKind, verdict,
};
use model::{Power, SiteName, VmId};
use plan::Plan;
use serde_json::json;
use site::{PlaceholderState, Site};
use units::Epoch;

use super::act::{find, state_of};
use super::exit;
use super::site::site_name;
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::keys;
use crate::show::line;

pub async fn status(
    context: &Context,
    id: Option<&str>,
    from: Option<&str>,
) -> Result<u8, Failure> {
    let from = from.map(site_name).transpose()?;
    let asked_for_one = id.is_some();
    let ids = match id {
        Some(id) => vec![id.to_owned()],
        None => context.store.migration_ids()?,
    };
    if ids.is_empty() && !context.json {
        line("no migrations");
    }
    let mut code = exit::DONE;
    for id in ids {
        let stored = find(context, &id)?;
        let state = state_of(&stored)?;
        let plan = &stored.plan;
        if let Some(from) = &from
            && *from != plan.from
            && *from != plan.to
        {
            if asked_for_one {
                return Err(Failure::new(Kind::Usage, format!("{from} is no site of {id}"))
                    .hint(format!("its sites are {} and {}", plan.from, plan.to)));
            }
            continue;
        }
        // What both sites show by now is the later migration's doing, and says nothing of this one.
        if let Some(later) = superseded_by(context, &id, plan)? {
            if context.json {
                line(&superseded_value(plan, &state, &later).to_string());
            } else {
                line(&format!("{id}   {}   superseded by {later}", plan.vm.name));
                line(&format!("  {} → {}, {}", plan.from, plan.to, state.phase.word()));
                if !state.phase.is_final() {
                    line(&format!("  next      take back what it left: causeway abort {id}"));
                }
            }
            continue;
        }
        let evidence = gather(context, plan, &state, from.as_ref()).await?;
        let verdict = verdict(&evidence);
        if matches!(verdict.verdict, VerdictKind::AlarmSplit | VerdictKind::NeedsOperator) {
            code = exit::UNDECIDED;
        }
        if context.json {
            line(&value(plan, &state, &verdict).to_string());
        } else {
            line(&text(plan, &state, &verdict));
        }
    }
    Ok(code)
}

/// The latest migration of the same VM after this one that was not taken back.
fn superseded_by(context: &Context, id: &str, plan: &Plan) -> Result<Option<String>, Failure> {
    let ids = context.store.migration_ids()?;
    let later = ids.iter().rev().take_while(|other| *other != id);
    for other in later {
        let stored = find(context, other)?;
        let state = state_of(&stored)?;
        let began = state.epoch.is_some() && state.phase != Phase::RolledBack;
        if stored.plan.vm.id == plan.vm.id && began {
            return Ok(Some(other.clone()));
        }
    }
    Ok(None)
}

fn superseded_value(plan: &Plan, state: &State, later: &str) -> serde_json::Value {
    json!({
        "id": plan.id, "vm": plan.vm.name, "from": plan.from, "to": plan.to,
        "phase": state.phase, "rounds": state.next_round, "wire": state.wire,
        "superseded_by": later,
    })
}

async fn gather(
    context: &Context,
    plan: &Plan,
    state: &State,
    only: Option<&SiteName>,
) -> Result<Evidence, Failure> {
    let asks = |site: &SiteName| only.is_none_or(|only| only == site);
    let (source_me, destination_me) = keys::identities(&context.store, &plan.from, &plan.to)?;
    let vm: handover::VmKey =
        plan.vm.id.to_string().parse().map_err(|error: handover::KeyError| {
            Failure::new(Kind::Undecided, "the plan's VM has no ledger key").caused_by(&error)
        })?;
    let unreadable = |error: &dyn std::error::Error| {
        Failure::new(Kind::Undecided, "a ledger contradicts itself").caused_by(error)
    };
    let of = |site: &SiteName| if asks(site) { ledger(context, site) } else { Ok(None) };
    let destination_key = destination_me.key.verifying_key();
    let replayed = |records: Vec<Record>| SourceRole::replay(source_me, vm.clone(), &records);
    let source = of(&plan.from)?.map(replayed).transpose();
    let source = source.map_err(|error| unreadable(&error))?;
    let replayed =
        |records: Vec<Record>| DestinationRole::replay(destination_me, vm.clone(), &records);
    let destination = of(&plan.to)?.map(replayed).transpose();
    let destination = destination.map_err(|error| unreadable(&error))?;
    // Killed between the ledgers and the journal, or with a journal from a backup, only they know of
    // the attempt.
    let digest = plan.digest().map_err(|error| unreadable(&error))?;
    let ours = |attempt: &&Attempt| attempt.plan == PlanDigest(digest);
    let at_destination = destination.as_ref().and_then(|role| role.attempt(role.last_epoch()));
    let at_source = source.as_ref().and_then(|role| role.attempt(role.last_epoch()));
    let known = [at_destination, at_source].into_iter().flatten().find(ours);
    let epoch = state.epoch.or_else(|| known.map(|attempt| attempt.epoch)).unwrap_or_default();

    // Between its two records of the beginning an attempt is in one of them alone; what the journal
    // knows of is in both.
    let behind =
        |last: Option<Epoch>| state.epoch.zip(last).is_some_and(|(ours, last)| last < ours);
    let mut evidence = Evidence {
        epoch,
        source: source.as_ref().map(|role| role.state(epoch)),
        destination: destination.as_ref().map(|role| role.state(epoch)),
        mark: MarkSeen::Unknown,
        source_platform: Platform::Unreachable,
        destination_platform: Platform::Unreachable,
        held: None,
        behind: if behind(destination.as_ref().map(DestinationRole::last_epoch)) {
            Some(Side::Destination)
        } else {
            behind(source.as_ref().map(SourceRole::last_epoch)).then_some(Side::Source)
        },
    };
    if asks(&plan.from) {
        let site = context.site(&plan.from)?;
        evidence.source_platform = source_platform(&*site, plan.vm.id).await;
    }
    if asks(&plan.to) {
        let site = context.site(&plan.to)?;
        evidence.mark = match mark_seen(&*site, plan.vm.id).await {
            MarkSeen::Present(mark) if mark.verify(mark.attempt(), &destination_key).is_err() => {
                MarkSeen::Unknown
            }
            seen => seen,
        };
        evidence.destination_platform = destination_platform(&*site, plan.vm.id).await;
    }
    Ok(evidence)
}

fn ledger(context: &Context, site: &SiteName) -> Result<Option<Vec<Record>>, Failure> {
    read_ledger(&context.store.path().join("ledger"), site).map_err(|error| {
        Failure::new(Kind::Undecided, format!("the ledger of {site} cannot be read"))
            .caused_by(&error)
    })
}

async fn source_platform(site: &dyn Site, vm: VmId) -> Platform {
    match site.power(vm).await {
        Ok(Power::Running) => Platform::Running,
        Ok(Power::Paused | Power::Off) => Platform::Held,
        Ok(Power::Absent) => Platform::Absent,
        Err(_) => Platform::Unreachable,
    }
}

async fn destination_platform(site: &dyn Site, vm: VmId) -> Platform {
    match site.placeholder(vm).await {
        Ok(PlaceholderState::Released { power: Power::Running, .. }) => Platform::Running,
        // A VM there that we did not make runs its own system, whatever it is.
        Ok(PlaceholderState::Foreign { power: Power::Running, .. }) => Platform::Running,
        Ok(PlaceholderState::Absent) => Platform::Absent,
        Ok(_) => Platform::Held,
        Err(_) => Platform::Unreachable,
    }
}

fn lives_at<'p>(plan: &'p Plan, verdict: &Verdict) -> Option<&'p SiteName> {
    verdict.lives_at.map(|side| match side {
        Side::Source => &plan.from,
        Side::Destination => &plan.to,
    })
}

/// What is next, in words, and the command that does it where there is one: the rest is for people
/// and their platform.
fn next(plan: &Plan, state: &State, verdict: &Verdict) -> Option<(String, Option<String>)> {
    let (next, verb) = match verdict.next {
        // Nothing that decides anything: tidying up.
        Next::Nothing | Next::Resume => (Next::Resume.to_string(), "resume"),
        Next::ReleaseSource => (verdict.next.to_string(), "resume"),
        Next::Abort => (verdict.next.to_string(), "abort"),
        // With the source's word it may turn out that it can go on.
        Next::Revoke => ("ask both sites".to_owned(), "status"),
        Next::HealDestination
        | Next::RestoreDestination
        | Next::FenceAgain(_)
        | Next::Quarantine(_)
        | Next::CallForHelp => return Some((verdict.next.to_string(), None)),
    };
    let goes_on = !state.phase.is_final();
    goes_on.then(|| (next, Some(format!("causeway {verb} {}", plan.id))))
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict.verdict {
        VerdictKind::NotStarted => "not started",
        VerdictKind::Resumable => "resumable",
        VerdictKind::NotMigrated => "not migrated",
        VerdictKind::InHandover => "in handover: nobody may start either copy by hand",
        VerdictKind::RolledBack => "rolled back",
        VerdictKind::Completed => match verdict.started {
            Some(true) => "fully migrated",
            Some(false) => "decided for its destination, not started there yet",
            None => "decided for its destination, not known whether it was started there",
        },
        VerdictKind::NeedsOperator => "needs an operator",
        VerdictKind::AlarmSplit => "ALARM: both copies run",
    }
}

const fn strength(strength: Strength) -> &'static str {
    match strength {
        Strength::Proven => "proven",
        Strength::Observed => "observed",
        Strength::Attested => "attested",
        Strength::Unknown => "unknown",
    }
}

fn value(plan: &Plan, state: &State, verdict: &Verdict) -> serde_json::Value {
    json!({
        "id": plan.id, "vm": plan.vm.name, "from": plan.from, "to": plan.to,
        "phase": state.phase, "rounds": state.next_round, "wire": state.wire,
        "verdict": verdict, "lives_at": lives_at(plan, verdict),
        "next": next(plan, state, verdict).and_then(|(_, command)| command),
        "why": state.why,
    })
}

fn text(plan: &Plan, state: &State, verdict: &Verdict) -> String {
    let lives = match (lives_at(plan, verdict), verdict.verdict, verdict.started) {
        (None, ..) => "runs nowhere that is known".to_owned(),
        (Some(site), VerdictKind::Completed, None | Some(false)) => format!("belongs to {site}"),
        (Some(site), ..) => format!("lives at {site}"),
    };
    let mut lines = vec![format!(
        "{}   {} {lives}   {} ({})",
        plan.id,
        plan.vm.name,
        word(verdict),
        strength(verdict.strength)
    )];
    lines.push(format!("  {} → {}, {}", plan.from, plan.to, state.phase.word()));
    if let Some(why) = &state.why {
        lines.push(format!("  because   {why}"));
    }
    for evidence in &verdict.evidence {
        lines.push(format!("  evidence  {evidence}"));
    }
    match next(plan, state, verdict) {
        Some((next, Some(command))) => lines.push(format!("  next      {next}: {command}")),
        Some((next, None)) => lines.push(format!("  next      {next}")),
        None => {}
    }
    lines.join("\n")
}
