//! `causeway recover`: what the sites know of migrations that this machine has lost.
//!
//! ```text
//! ask every site for its papers ─→ take in: keys, ledgers, plan; a journal from what the ledgers say
//!                               ─→ say where each VM lives, on what evidence
//!                               ─→ --settle: what stopped in its switchover is brought to its end
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::State;
use engine::custody::{Custody, papers as papers_at};
use engine::rebuild::{Remembered, mended};
use handover::VerdictKind;
use model::SiteName;
use plan::Plan;
use site::Site;
use units::{MigrationId, chain};

use super::act::{attestation, find, state_of};
use super::args::RecoverArgs;
use super::exit;
use super::migrate::{follow, open_custody, prepare};
use super::site::site_name;
use super::status::{say, verdict_of};
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::interrupts::Interrupts;
use crate::papers::Papers;
use crate::store::Stored;
use crate::{keys, show};

pub async fn recover(context: &Context, args: RecoverArgs) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let vouched_for = args.attest.as_deref().map(destination_of).transpose()?;
    let sites = context.sites()?;
    if sites.is_empty() {
        return Err(Failure::new(Kind::Refused, "no site is registered, so none can be asked")
            .hint("register them under the names they had: causeway site add NAME --uri URI"));
    }
    let found = ask(context, sites.iter().map(|site| &site.name)).await?;
    let mut code = exit::DONE;
    for papers in found.values().filter(|papers| concerns(&papers.plan, args.which.as_deref())) {
        // One that cannot be taken in does not hold up the others.
        if let Err(failure) = take_in(context, papers).await {
            failure.show(context.json);
            code = code.max(failure.exit_code());
        }
    }
    let mut known = false;
    for id in context.store.migration_ids()? {
        let stored = find(context, &id)?;
        let state = state_of(&stored)?;
        if !concerns(&stored.plan, args.which.as_deref()) || state.phase.is_final() {
            continue;
        }
        known = true;
        let vouched = vouched_for.as_ref().filter(|site| **site == stored.plan.to);
        let ended = one(context, &stored, &state, &args, vouched.is_some()).await;
        code = code.max(ended.unwrap_or_else(|failure| {
            failure.show(context.json);
            failure.exit_code()
        }));
    }
    if !known && !context.json {
        show::line("nothing that has not ended is known, here or at the sites that answered");
    }
    Ok(code)
}

/// `fenced=SITE`.
fn destination_of(text: &str) -> Result<SiteName, Failure> {
    let site = text.strip_prefix("fenced=").ok_or_else(|| {
        Failure::new(Kind::Usage, format!("not an attestation: {text}"))
            .hint("write --attest fenced=SITE; only for a destination that cannot be asked")
    })?;
    site_name(site)
}

fn concerns(plan: &Plan, which: Option<&str>) -> bool {
    which.is_none_or(|which| plan.vm.name == which || plan.id.as_str() == which)
}

/// The papers of each migration, the fuller of two.
async fn ask<'s>(
    context: &Context,
    sites: impl Iterator<Item = &'s SiteName>,
) -> Result<BTreeMap<MigrationId, Papers>, Failure> {
    let mut found: BTreeMap<MigrationId, Papers> = BTreeMap::new();
    for name in sites {
        let kept = match papers_at(&*context.site(name)?).await {
            Ok(kept) => kept,
            Err(error) => {
                show::error(&format!("warning: {name} was not asked: {}", chain(&error)));
                continue;
            }
        };
        for (vm, bytes) in kept {
            match Papers::parse(&bytes) {
                Ok(papers) => {
                    let held = found.get(&papers.plan.id).is_some_and(Papers::has_coordinator_key);
                    if !held {
                        found.insert(papers.plan.id.clone(), papers);
                    }
                }
                Err(error) => show::error(&format!(
                    "warning: what {name} keeps of VM {vm}: {}",
                    chain(&error)
                )),
            }
        }
    }
    Ok(found)
}

/// Makes this state directory know a migration as if it had never been lost.
async fn take_in(context: &Context, papers: &Papers) -> Result<(), Failure> {
    let (store, plan) = (&context.store, &papers.plan);
    let unreadable = |error: &dyn std::error::Error| {
        Failure::new(Kind::Refused, format!("the papers of {} are damaged", plan.id))
            .caused_by(error)
    };
    let before = store.migration(plan.id.as_str())?;
    let state = before.as_ref().map(state_of).transpose()?;
    if state.as_ref().is_some_and(|state| state.phase.is_final()) {
        return Ok(());
    }
    keys::succeed(store, &papers.install)?;
    for (site, key) in papers.public_keys().map_err(|error| unreadable(&error))? {
        keys::learn(store, &site, &key)?;
    }
    if let Some(key) = papers.coordinator_key().map_err(|error| unreadable(&error))? {
        keys::restore_coordinator(store, &plan.id, &key)?;
    }
    let (source, destination) = (context.site(&plan.from)?, context.site(&plan.to)?);
    let remembered = remember(context, plan, &source, &destination).await?;
    let now_ms = crate::now_ms();
    let Some(records) = remembered.and_then(|of| mended(state.as_ref(), &of, now_ms)) else {
        return Ok(());
    };
    store.rebuild_migration(&Stored {
        plan: plan.clone(),
        login: papers.login.clone(),
        created_ms: papers.created_ms,
        records: records.into_iter().map(|record| (now_ms, record)).collect(),
    })?;
    tracing::info!(id = %plan.id, "taken in from the sites");
    Ok(())
}

/// What the ledgers say of the plan's attempt, if it was begun.
async fn remember(
    context: &Context,
    plan: &Plan,
    source: &Arc<dyn Site>,
    destination: &Arc<dyn Site>,
) -> Result<Option<Remembered>, Failure> {
    let refused = |error: &dyn std::error::Error| {
        Failure::new(Kind::Undecided, format!("the ledgers of {} cannot be read", plan.id))
            .caused_by(error)
    };
    let mut custody: Custody = open_custody(context, plan, source, destination).await?;
    custody.look().await.map_err(|error| refused(&error))?;
    Ok(Remembered::of(&custody))
}

/// Says how one stands, and brings it to its end if that was asked for and is safe.
async fn one(
    context: &Context,
    stored: &Stored,
    state: &State,
    args: &RecoverArgs,
    vouched: bool,
) -> Result<u8, Failure> {
    let verdict = verdict_of(context, &stored.plan, state).await?;
    let code = say(context, &stored.plan, state, &verdict);
    if !args.settle || verdict.verdict == VerdictKind::AlarmSplit {
        return Ok(code);
    }
    let undecided = state.phase.is_before_decision();
    let (vm, plan) = (&stored.plan.vm.name, &stored.plan);
    if vouched && undecided {
        let question = format!(
            "On your word that nothing of {vm} ever runs at {}: take {} back and let {vm} run at {}?",
            plan.to, plan.id, plan.from
        );
        agreed(args, &question)?;
        keys::speak_for(&context.store, &plan.to)?;
        let (mut run, listening) = prepare(context, stored).await?;
        run.attested = args.reason.as_deref().map(attestation);
        engine::abort(&mut run, "its destination is gone, by the operator's word").await.map_err(
            |error| {
                Failure::new(Kind::Undecided, format!("{} cannot be called off", plan.id))
                    .caused_by(&error)
            },
        )?;
        return follow(context, run, listening, stored.created_ms, Interrupts::listen()).await;
    }
    if !state.phase.is_past_copying() {
        return Ok(code);
    }
    let question = format!("Go on with {} of {vm}, which is {}?", plan.id, state.phase.word());
    agreed(args, &question)?;
    let (run, listening) = prepare(context, stored).await?;
    match follow(context, run, listening, stored.created_ms, Interrupts::listen()).await {
        Ok(exit::ROLLED_BACK) => Ok(exit::DONE),
        other => other,
    }
}

fn agreed(args: &RecoverArgs, question: &str) -> Result<(), Failure> {
    if args.yes || show::ask(question) {
        return Ok(());
    }
    Err(Failure::new(Kind::Refused, "not agreed to, nothing more was touched"))
}
