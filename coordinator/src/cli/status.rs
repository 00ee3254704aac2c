//! `causeway status`: where each VM lives, how sure that is, on what evidence.
//!
//! Both sites' ledgers and platforms are asked; the coordinator's own journal only says how far it
//! came. With `--from` one site is asked and the other is taken for gone.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::custody::CustodyError;
use engine::custody::read_ledger;
use engine::evidence::{self, About, Asked, Gathered};
use engine::{Phase, State};
use handover::{Next, Platform, Record, Side, Strength, Verdict, VerdictKind, verdict};
use model::{SiteName, VmId};
use plan::Plan;
use serde_json::json;
use units::MigrationId;

use super::exit;
use super::find::{by_id, lookup, not_known, state_of};
use super::migrate::{ledgers, vm_key};
use super::native::{self, Told};
use super::recover::has_spoken;
use super::site::registered;
use crate::context::Context;
use crate::failure::{Failure, Kind, never_ran, vouch_for_it};
use crate::keys;
use crate::show::{self, line};

pub async fn status(
    context: &Context,
    id: Option<&str>,
    from: Option<&str>,
) -> Result<u8, Failure> {
    let from = from.map(|name| registered(context, name)).transpose()?;
    let asked_for_one = id.is_some();
    let ids = match id {
        Some(which) => {
            let stored = lookup(context, which)?;
            stored.map(|stored| stored.plan.id.to_string()).into_iter().collect()
        }
        None => context.store.migration_ids()?,
    };
    // By its id one is asked for alone.
    let told = if ids.first().map(String::as_str) == id && asked_for_one {
        Told::default()
    } else {
        native::tell(context, id, from.as_ref(), &[]).await?
    };
    let mut code = told.code;
    if let Some(which) = id
        && ids.is_empty()
        && told.count == 0
    {
        return Err(not_known(which));
    }
    if ids.is_empty() && told.count == 0 && !context.json {
        line("no migrations are known here; `causeway recover` asks the sites for theirs");
    }
    let acting = context.store.is_acted_with();
    let latest = Latest::read(context, ids.first())?;
    for id in ids {
        let read = by_id(context, &id).and_then(|stored| Ok((state_of(&stored)?, stored)));
        let (state, stored) = match read {
            Err(failure) if !asked_for_one => {
                failure.show(context.json);
                code = code.max(failure.exit_code());
                continue;
            }
            read => read?,
        };
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
        if let Some(later) = latest.after(&id, plan) {
            superseded(context, plan, &state, later);
            continue;
        }
        match gather(context, plan, &state, from.as_ref(), &told.silent).await {
            Ok(gathered) => {
                let verdict = verdict(&gathered.evidence);
                // Not in the journal here: by the sites' own workflow, or another coordinator's.
                let is_followed = gathered.is_followed && state.phase.is_final();
                if is_followed && verdict.verdict != VerdictKind::AlarmSplit {
                    superseded(context, plan, &state, "a later migration");
                } else {
                    code = code.max(say(context, plan, &state, &verdict, acting));
                }
            }
            // One that cannot be told does not hide the others.
            Err(failure) if !asked_for_one => {
                failure.show(context.json);
                code = code.max(failure.exit_code());
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(code)
}

fn superseded(context: &Context, plan: &Plan, state: &State, later: &str) {
    if context.json {
        return line(&superseded_value(plan, state, later).to_string());
    }
    let id = &plan.id;
    line(&format!("{id}   {}   superseded by {later}", plan.vm.name));
    line(&format!("  {} → {}, {}", plan.from, plan.to, state.phase.word()));
    for left in &state.left {
        line(&format!("  may be left  {left}"));
    }
    if !state.phase.is_final() || !state.left.is_empty() {
        line(&format!("  next      take back what it left: causeway abort {id}"));
    }
}

/// Both sites asked, but for those that are known not to answer.
pub async fn verdict_of(
    context: &Context,
    plan: &Plan,
    state: &State,
    silent: &[SiteName],
) -> Result<Verdict, Failure> {
    Ok(verdict(&gather(context, plan, state, None, silent).await?.evidence))
}

/// What it comes to, and the exit code for it.
/// `acting`: another causeway does something with this state directory right now.
pub fn say(context: &Context, plan: &Plan, state: &State, verdict: &Verdict, acting: bool) -> u8 {
    let next = next(plan, state, verdict, acting);
    let mut words = text(plan, state, verdict);
    if acting && !state.phase.is_final() {
        words.push_str("\n  now       another causeway acts with this state directory, which may be this migration");
    }
    match &next {
        Some((next, Some(command))) => words.push_str(&format!("\n  next      {next}: {command}")),
        Some((next, None)) => words.push_str(&format!("\n  next      {next}")),
        None => {}
    }
    let mut value = value(plan, state, verdict);
    value["next"] = json!(next.and_then(|(_, command)| command));
    context.say(&words, &value);
    exit_code(verdict, state.phase.is_final())
}

/// For a migration that `has_ended`, or not.
pub fn exit_code(verdict: &Verdict, has_ended: bool) -> u8 {
    let is_sure = match verdict.verdict {
        VerdictKind::AlarmSplit | VerdictKind::NeedsOperator | VerdictKind::InHandover => false,
        VerdictKind::Completed => verdict.started == Some(true),
        _ => true,
    };
    let runs_nowhere = !has_ended && (verdict.lives_at.is_none() || outage(verdict).is_some());
    if !is_sure || is_for_people(verdict) || runs_nowhere { exit::UNDECIDED } else { exit::DONE }
}

/// What no command does.
pub const fn is_for_people(verdict: &Verdict) -> bool {
    matches!(verdict.next, Next::FenceAgain(_) | Next::Quarantine(_) | Next::CallForHelp)
}

/// It belongs to a site whose platform shows that it does not run. What became of it after the end of the
/// migration is its owner's business.
fn outage(verdict: &Verdict) -> Option<Platform> {
    let stands = [Platform::Suspended, Platform::Off, Platform::Absent];
    verdict.shown.filter(|shown| stands.contains(shown))
}

/// The first line: whose it is, what it comes to, and how sure that is.
pub fn head(
    (id, vm): (&MigrationId, &str),
    verdict: &Verdict,
    (from, to): (&SiteName, &SiteName),
) -> String {
    let site = |side| if side == Side::Source { from } else { to };
    // What became of it since its end is nobody's alarm, but no more than is true is said.
    let is_down = outage(verdict).is_some()
        || (verdict.verdict == VerdictKind::Completed && verdict.started != Some(true));
    let lives = match verdict.lives_at.map(site) {
        None if verdict.verdict == VerdictKind::AlarmSplit => format!("runs at {from} and {to}"),
        None => match verdict.seen.map(site) {
            None => "runs nowhere that is known".to_owned(),
            Some(site) => format!("runs at {site}, and whose it is is not known"),
        },
        Some(site) if is_down => format!("belongs to {site}"),
        Some(site) => format!("lives at {site}"),
    };
    format!("{id}   {vm} {lives}   {} ({})", word(verdict), strength(verdict.strength))
}

/// Which migration came after which.
struct Latest {
    /// Of each VM the last one that began and was not taken back.
    of: BTreeMap<VmId, String>,
    /// All of them in their order.
    places: BTreeMap<String, usize>,
}

impl Latest {
    /// From this one on. Read once for all that are asked about, however many they are.
    fn read(context: &Context, first: Option<&String>) -> Result<Self, Failure> {
        let mut latest = Self { of: BTreeMap::new(), places: BTreeMap::new() };
        let ids = context.store.migration_ids()?.into_iter();
        for (place, id) in ids.skip_while(|id| Some(id) != first).enumerate() {
            latest.places.insert(id.clone(), place);
            // One that cannot be read is told of where it is its turn.
            let Ok(stored) = by_id(context, &id) else { continue };
            let Ok(state) = state_of(&stored) else { continue };
            if state.epoch.is_some() && state.phase != Phase::RolledBack {
                latest.of.insert(stored.plan.vm.id, id);
            }
        }
        Ok(latest)
    }

    /// That of the same VM which came after this one.
    fn after(&self, id: &str, plan: &Plan) -> Option<&String> {
        let later = self.of.get(&plan.vm.id)?;
        (self.places.get(later) > self.places.get(id)).then_some(later)
    }
}

fn superseded_value(plan: &Plan, state: &State, later: &str) -> serde_json::Value {
    json!({
        "id": plan.id, "vm": plan.vm.name, "from": plan.from, "to": plan.to,
        "phase": state.phase, "rounds": state.next_round, "wire": state.wire,
        "left": state.left, "superseded_by": later,
    })
}

async fn gather(
    context: &Context,
    plan: &Plan,
    state: &State,
    only: Option<&SiteName>,
    silent: &[SiteName],
) -> Result<Gathered, Failure> {
    let (source_me, destination_me) = keys::identities(&context.store, &plan.from, &plan.to)?;
    let undecided = |what: &str, error: &dyn std::error::Error| {
        Failure::new(Kind::Undecided, what).caused_by(error)
    };
    let about = About {
        id: plan.vm.id,
        digest: plan.digest().map_err(|error| undecided("the plan has no digest", &error))?,
        vm: vm_key(plan)?,
        epoch: state.epoch,
        destination_key: keys::public_key(&context.store, &plan.to)?,
    };
    let asked = |name: &SiteName, identity| -> Result<Option<Asked>, Failure> {
        if only.is_some_and(|only| only != name) {
            return Ok(None);
        }
        let site = context.site(name)?;
        let site = (!silent.contains(name)).then_some(site);
        let ledger = ledger(context, plan, name)?;
        Ok(Some(Asked { identity, ledger, site, keeps_another: false }))
    };
    let both = |to_is_other: bool| -> Result<_, Failure> {
        let source = asked(&plan.from, source_me.clone())?;
        let destination = asked(&plan.to, destination_me.clone())?;
        let destination = destination.map(|asked| Asked { keeps_another: to_is_other, ..asked });
        Ok((source, destination))
    };
    let (source, destination) = both(false)?;
    let gathering = evidence::gather(&about, source, destination);
    let mut gathered = patiently(&format!("asking the sites about {}", plan.id), gathering).await;
    // One that was vouched for as gone for good, and came back: what it keeps is no more believed, and
    // whether it runs the VM is looked at all the same.
    if matches!(&gathered, Err(CustodyError::TwoStories { site }) if *site == plan.to.as_str())
        && has_spoken(context, plan)
    {
        let (source, destination) = both(true)?;
        gathered = evidence::gather(&about, source, destination).await;
    }
    gathered.map_err(|error| {
        let what = format!("what the ledgers say of {} cannot be told", plan.id);
        let failure = undecided(&what, &error);
        match error {
            CustodyError::TwoStories { site } => failure.hint(format!(
                "see that the URI of {site} leads to {site} (causeway site list); one that was vouched for as gone and came back is registered under a name of its own"
            )),
            _ => failure,
        }
    })
}

/// Whoever waits is told for what.
pub async fn patiently<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    match tokio::time::timeout(SILENCE, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            show::error(&format!(
                "{what}: one takes its time, and is given up in two minutes at most"
            ));
            work.await
        }
    }
}

/// With nothing to be read.
const SILENCE: Duration = Duration::from_secs(4);

fn ledger(context: &Context, plan: &Plan, site: &SiteName) -> Result<Option<Vec<Record>>, Failure> {
    read_ledger(&ledgers(context, plan)?, site).map_err(|error| {
        Failure::new(Kind::Undecided, format!("the ledger of {site} cannot be read"))
            .caused_by(&error)
    })
}

fn lives_at<'p>(plan: &'p Plan, verdict: &Verdict) -> Option<&'p SiteName> {
    verdict.lives_at.map(|side| match side {
        Side::Source => &plan.from,
        Side::Destination => &plan.to,
    })
}

/// What is next, in words, and the command that does it where there is one: the rest is for people
/// and their platform.
fn next(
    plan: &Plan,
    state: &State,
    verdict: &Verdict,
    acting: bool,
) -> Option<(String, Option<String>)> {
    if acting && state.phase == Phase::Holding && verdict.next == Next::Resume {
        let words = "switch over, if it is held".to_owned();
        return Some((words, Some(format!("causeway switchover {}", plan.id))));
    }
    let (next, verb) = match verdict.next {
        // Nothing that decides anything: tidying up.
        Next::Nothing | Next::Resume => (Next::Resume.to_string(), "resume"),
        Next::ReleaseSource | Next::HealDestination => (verdict.next.to_string(), "resume"),
        Next::Abort => (verdict.next.to_string(), "abort"),
        // With the source's word it may turn out that it can go on.
        Next::Revoke => ("ask both sites".to_owned(), "status"),
        Next::AskSource => (verdict.next.to_string(), "resume"),
        Next::RestoreDestination => return restore(plan, state, verdict),
        _ if is_for_people(verdict) => return Some((verdict.next.to_string(), None)),
        Next::FenceAgain(_) | Next::Quarantine(_) | Next::CallForHelp => return None,
    };
    if state.phase == Phase::RolledBack && !state.left.is_empty() {
        let when = format!("remove what may be left, when {} is back", plan.to);
        return Some((when, Some(format!("causeway abort {}", plan.id))));
    }
    let goes_on = !state.phase.is_final();
    goes_on.then(|| (next, Some(format!("causeway {verb} {}", plan.id))))
}

/// Its ledger was not read. Where the VM is not known to belong there, a person can answer for it.
fn restore(plan: &Plan, state: &State, verdict: &Verdict) -> Option<(String, Option<String>)> {
    let to = &plan.to;
    if verdict.verdict == VerdictKind::Completed {
        return (!state.phase.is_final())
            .then(|| (format!("reach {to}: the VM belongs there"), None));
    }
    if !state.phase.is_before_decision() {
        return Some((format!("bring {to} back, with its ledger"), None));
    }
    // Nothing to be typed as what comes next: it is somebody's word.
    let words = format!(
        "bring {to} back; or if it is gone for good, and the VM never runs there: {}; {}",
        vouch_for_it(plan),
        never_ran(plan)
    );
    Some((words, None))
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
    let vouched = state.vouched.as_ref().map(|(by, reason)| json!({ "by": by, "reason": reason }));
    json!({
        "id": plan.id, "vm": plan.vm.name, "from": plan.from, "to": plan.to,
        "phase": state.phase, "rounds": state.next_round, "wire": state.wire,
        "verdict": verdict, "lives_at": lives_at(plan, verdict),
        "next": null,
        "why": state.why, "left": state.left, "vouched": vouched,
    })
}

fn text(plan: &Plan, state: &State, verdict: &Verdict) -> String {
    let has_ended = state.phase.is_final();
    let outage = outage(verdict).filter(|_| !has_ended);
    let lives_at = lives_at(plan, verdict);
    let mut lines = vec![head((&plan.id, &plan.vm.name), verdict, (&plan.from, &plan.to))];
    lines.push(format!("  {} → {}, {}", plan.from, plan.to, state.phase.word()));
    let is_let_go = verdict.verdict == VerdictKind::RolledBack;
    if let (Some(platform), Some(site)) = (outage, lives_at) {
        lines.push(format!(
            "  outage    at {site} {platform}{}",
            goes_on_by(platform, state, is_let_go)
        ));
    }
    if let Some(why) = &state.why {
        lines.push(format!("  because   {why}"));
    }
    if let Some((by, reason)) = &state.vouched {
        lines.push(format!("  by word   of {by}: {reason}"));
    }
    for left in &state.left {
        lines.push(format!("  may be left  {left}"));
    }
    for evidence in &verdict.evidence {
        lines.push(format!("  evidence  {evidence}"));
    }
    lines.join("\n")
}

/// Whose doing that is, as far as it is known, and what ends it.
fn goes_on_by(platform: Platform, state: &State, is_let_go: bool) -> &'static str {
    use {Phase as F, Platform as P};
    match (state.phase, platform) {
        (F::Draining | F::Fencing | F::Deciding | F::RollingBack, P::Suspended) => {
            ": the next command lets it go on"
        }
        (F::Starting, P::Suspended | P::Off) => ": the next command starts it",
        (F::RollingBack, P::Off) if is_let_go => {
            ": it may run there, start it (libvirt: virsh start)"
        }
        // A journal that was made anew does not know of a drain.
        (F::Planned | F::Preparing | F::Copying | F::Holding, _) if state.rebuilt => "",
        (F::Planned | F::Preparing | F::Copying | F::Holding, P::Suspended) => {
            ", not by this migration: let it go on there (libvirt: virsh resume)"
        }
        (F::Planned | F::Preparing | F::Copying | F::Holding, P::Off) => {
            ", not by this migration: start it there (libvirt: virsh start)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use handover::Evidence;
    use serde::Serialize;
    use units::Epoch;

    use super::*;

    const DOCUMENTED: &str = include_str!("../../../JSON.md");

    fn is_documented(name: &serde_json::Value) {
        let name = format!("`{}`", name.as_str().unwrap());
        assert!(DOCUMENTED.contains(&name), "JSON.md does not say what {name} is");
    }

    fn word(word: impl Serialize) {
        is_documented(&serde_json::to_value(word).unwrap());
    }

    #[test]
    fn json_md_names_what_status_prints() {
        let of_nothing = verdict(&Evidence::nothing(Epoch(1)));
        for (field, _) in serde_json::to_value(&of_nothing).unwrap().as_object().unwrap() {
            is_documented(&field.as_str().into());
        }
        use {Platform as P, Strength as S, VerdictKind as V};
        let verdicts = [V::NotStarted, V::Resumable, V::NotMigrated, V::InHandover, V::RolledBack];
        verdicts.into_iter().for_each(word);
        [V::Completed, V::NeedsOperator, V::AlarmSplit].into_iter().for_each(word);
        [S::Proven, S::Observed, S::Attested, S::Unknown].into_iter().for_each(word);
        let shown = [P::Running, P::Suspended, P::Held, P::Off, P::Absent, P::Unreachable];
        shown.into_iter().for_each(word);
        use Phase as F;
        let there = [F::Planned, F::Preparing, F::Copying, F::Holding, F::Draining, F::Fencing];
        let back = [F::Deciding, F::Starting, F::Confirmed, F::Retired, F::RollingBack];
        there.into_iter().chain(back).chain([F::RolledBack]).for_each(word);
    }
}
