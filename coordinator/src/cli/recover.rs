//! `causeway recover`: what the sites know of migrations that this machine has lost.
//!
//! ```text
//! ask every site for its papers ─→ believe them as far as both ledgers agree
//!                               ─→ take in: keys, ledgers, plan; a journal from what the ledgers say
//!                               ─→ say where each VM lives, on what evidence
//!                               ─→ --settle: what stopped in its switchover is brought to its end
//! ```
//!
//! Papers and ledger copies are what a site's administrators let us see. So a site is believed about
//! migrations from or to it alone; the way into the guest and the coordinator's key are taken from the
//! source, where the guest is; a plan counts if the ledger of every site that answers has it by its
//! digest; and receipts have to be those of the site that they name.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::custody::{copy_of_ledger, papers as papers_at, read_ledger};
use engine::rebuild::{Unmade, behind};
use engine::{Phase, Run, State, StepError, Vouched};
use handover::{Attempt, DestinationEntry, Entry, PlanDigest, Record, SourceEntry, VerdictKind};
use model::SiteName;
use plan::Plan;
use site::{Site, SiteErrorKind};
use units::{Digest, MigrationId, chain};

use super::abort::attestation;
use super::args::RecoverArgs;
use super::exit;
use super::find::{by_id, state_of};
use super::migrate::{Listening, follow, ledgers, open_custody, prepare, vm_key};
use super::native;
use super::site::registered;
use super::status::{say, verdict_of};
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::guest::GuestLogin;
use crate::interrupts::Interrupts;
use crate::papers::Papers;
use crate::show::plan_text;
use crate::store::Stored;
use crate::{keys, show};

pub async fn recover(context: &Context, args: RecoverArgs) -> Result<u8, Failure> {
    let _lock = context.store.lock()?;
    let vouched_for =
        args.attest.as_deref().map(|text| destination_of(context, text)).transpose()?;
    if context.sites()?.is_empty() {
        return Err(Failure::new(Kind::Refused, "no site is registered, so none can be asked")
            .hint("register them under the names they had: causeway site add NAME --uri URI"));
    }
    let asked = ask(context).await?;
    // Of one that its operator vouches for nobody expects an answer.
    let unheard = asked.silent.iter().any(|site| Some(site) != vouched_for.as_ref());
    let mut code = if unheard { exit::UNDECIDED } else { exit::DONE };
    let mut failed = false;
    for found in asked.found.values().filter(|f| concerns(f.plan(), args.which.as_deref())) {
        // One that cannot be taken in does not hold up the others.
        if let Err(failure) = take_in(context, found).await {
            failure.show(context.json);
            code = worse(code, failure.exit_code());
            failed = true;
        }
    }
    // Those its sites' agents settle: they are told, and left alone.
    let told = native::tell(context, args.which.as_deref(), None, &asked.silent).await?;
    code = worse(code, told.code);
    let mut known = told.count > 0;
    let mut to_tell = Vec::new();
    for id in context.store.migration_ids()? {
        let stored = by_id(context, &id)?;
        if concerns(&stored.plan, args.which.as_deref()) {
            known = true;
            // One whose journal is damaged does not hide the others.
            match state_of(&stored) {
                Ok(state) if state.phase.is_final() => {}
                Ok(state) => to_tell.push((stored, state)),
                Err(failure) => {
                    failure.show(context.json);
                    code = worse(code, failure.exit_code());
                    failed = true;
                }
            }
        }
    }
    let whom = if asked.silent.is_empty() { "the sites" } else { "the sites that answered" };
    if !failed {
        let kind = if unheard { Kind::Undecided } else { Kind::Refused };
        is_about_something(&args, vouched_for.as_ref(), known, &to_tell).map_err(|what| {
            let failure = Failure::new(kind, format!("{what} is known here or to {whom}"));
            match told.count > 0 && vouched_for.is_some() {
                true => failure.hint(
                    "no word that is given here settles a live migration: its agents do; of a destination that is gone for good see LIVE.md",
                ),
                false => failure,
            }
        })?;
    }
    if to_tell.is_empty() && told.count == 0 && !failed && !context.json {
        show::line(&format!("nothing that has not ended is known here or to {whom}"));
    }
    for (stored, state) in to_tell {
        let vouched = vouched_for.as_ref() == Some(&stored.plan.to);
        let ended = one(context, (&stored, &state), &args, vouched, &asked.away).await;
        let ended = ended.unwrap_or_else(|failure| {
            failure.show(context.json);
            failure.exit_code()
        });
        code = worse(code, ended);
    }
    Ok(code)
}

/// A name that is mistyped must not look as if all were well.
fn is_about_something(
    args: &RecoverArgs,
    vouched_for: Option<&SiteName>,
    known: bool,
    to_tell: &[(Stored, State)],
) -> Result<(), String> {
    if let Some(which) = args.which.as_ref().filter(|_| !known) {
        return Err(format!("neither a migration {which} nor one of a VM of that name"));
    }
    match vouched_for {
        Some(site) if !to_tell.iter().any(|(stored, _)| stored.plan.to == *site) => {
            Err(format!("no migration to {site} that has not ended"))
        }
        _ => Ok(()),
    }
}

/// Of several exit codes the one that tells of more: that it is undecided goes before all.
fn worse(one: u8, other: u8) -> u8 {
    let weight = |code: u8| (code == exit::UNDECIDED, code);
    if weight(other) > weight(one) { other } else { one }
}

/// `fenced=SITE`.
fn destination_of(context: &Context, text: &str) -> Result<SiteName, Failure> {
    let site = text.strip_prefix("fenced=").ok_or_else(|| {
        Failure::new(Kind::Usage, format!("not an attestation: {text}"))
            .hint("write --attest fenced=SITE; only for a destination that cannot be asked")
    })?;
    registered(context, site)
}

fn concerns(plan: &Plan, which: Option<&str>) -> bool {
    which.is_none_or(|which| plan.vm.name == which || plan.id.as_str() == which)
}

/// What the sites keep of migrations.
struct Asked {
    /// By what they say: whoever writes at one site must not hide what another keeps.
    found: BTreeMap<(MigrationId, Digest), Found>,
    /// Those that did not answer.
    /// Not asked.
    silent: Vec<SiteName>,
    /// ... since they do not answer at all.
    away: Vec<SiteName>,
}

/// The papers of one migration, by whose they are.
enum Found {
    AtSource(Papers),
    /// The source's were not seen.
    AtDestination(Papers),
}

impl Found {
    const fn papers(&self) -> &Papers {
        match self {
            Self::AtSource(papers) | Self::AtDestination(papers) => papers,
        }
    }

    const fn plan(&self) -> &Plan {
        &self.papers().plan
    }
}

async fn ask(context: &Context) -> Result<Asked, Failure> {
    let mut asked = Asked { found: BTreeMap::new(), silent: Vec::new(), away: Vec::new() };
    for name in context.sites()?.into_iter().map(|site| site.name) {
        let kept = match papers_at(&*context.site(&name)?).await {
            Ok(kept) => kept,
            Err(error) => {
                show::error(&format!("warning: {name} was not asked: {}", chain(&error)));
                asked.away.extend((error.kind == SiteErrorKind::Unreachable).then(|| name.clone()));
                asked.silent.push(name);
                continue;
            }
        };
        for (vm, bytes) in kept {
            let warn = |why: &str| {
                show::error(&format!("warning: what {name} keeps of VM {vm}: {why}"));
            };
            let papers = match bytes.map(|bytes| Papers::parse(&bytes)) {
                Ok(Ok(papers)) => papers,
                Ok(Err(error)) => {
                    warn(&chain(&error));
                    continue;
                }
                Err(error) => {
                    warn(&chain(&error));
                    continue;
                }
            };
            let plan = &papers.plan;
            let digest = match plan.digest() {
                Ok(digest) => digest,
                Err(error) => {
                    warn(&chain(&error));
                    continue;
                }
            };
            let id = (plan.id.clone(), digest);
            if plan.vm.id.to_string() != vm.as_str() {
                warn("it is about another VM");
            } else if plan.from == name {
                asked.found.insert(id, Found::AtSource(papers));
            } else if plan.to == name {
                asked.found.entry(id).or_insert(Found::AtDestination(papers));
            } else {
                warn(&format!("it is about {} and {}, not about {name}", plan.from, plan.to));
            }
        }
    }
    Ok(asked)
}

/// Makes this state directory know a migration as if it had never been lost.
async fn take_in(context: &Context, found: &Found) -> Result<(), Failure> {
    let (store, papers, plan) = (&context.store, found.papers(), found.plan());
    let refused = |what: String, error: &dyn std::error::Error| {
        Failure::new(Kind::Refused, format!("{} is not taken in: {what}", plan.id)).caused_by(error)
    };
    let undecided = |what: String, error: &dyn std::error::Error| Failure {
        kind: Kind::Undecided,
        ..refused(what, error)
    };
    let before = store.migration(plan.id.as_str())?;
    let state = before.as_ref().map(state_of).transpose()?;
    if state.as_ref().is_some_and(|state| state.phase.is_final())
        || before.as_ref().is_some_and(|before| before.plan.digest().ok() != plan.digest().ok())
    {
        return Ok(());
    }
    let (source, destination) = (context.site(&plan.from)?, context.site(&plan.to)?);
    if !is_known(plan, [&source, &destination]).await? {
        show::error(&format!(
            "warning: papers of {} are left alone: the ledgers of the sites know no such plan",
            plan.id
        ));
        return Ok(());
    }
    let damaged =
        |error: &dyn std::error::Error| refused("its papers are damaged".to_owned(), error);
    keys::succeed(store, &papers.install)?;
    for site in [&plan.from, &plan.to] {
        keys::learn(store, site, &papers.public_key(site).map_err(|error| damaged(&error))?)?;
    }
    let mut custody = open_custody(context, plan, &source, &destination).await?;
    custody
        .look()
        .await
        .map_err(|error| refused("its ledgers cannot be read".to_owned(), &error))?;
    custody.heal(plan.vm.id).await.map_err(|error| {
        undecided("its destination's ledger is not what its mark says".to_owned(), &error)
    })?;
    let now_ms = crate::now_ms();
    let records = match behind(&custody, state.as_ref(), now_ms) {
        Ok(None) => return Ok(()),
        Ok(Some(records)) => records,
        Err(why @ Unmade::SourceUnseen) => {
            let what = format!("it was copying when {} was last heard of", plan.from);
            return Err(undecided(what, &why).hint("causeway recover again, when it answers"));
        }
        Err(why @ Unmade::SourceLost) => {
            let what = format!("look at {} by hand: its VM may be fenced", plan.from);
            return Err(undecided(what, &why));
        }
        Err(why @ Unmade::Contradiction) => {
            return Err(undecided("nobody but a person can put that right".to_owned(), &why)
                .hint("stop both copies at their platforms and compare them: one of the two was started by hand, or on an operator's word that was wrong"));
        }
    };
    let mut login = GuestLogin::unknown();
    if let Found::AtSource(papers) = found {
        login = papers.login.clone();
        if let Some(key) = papers.coordinator_key().map_err(|error| damaged(&error))? {
            keys::restore_coordinator(store, &plan.id, &key)?;
        }
    }
    store.rebuild_migration(&Stored {
        plan: plan.clone(),
        login,
        created_ms: papers.created_ms,
        records: records.into_iter().map(|record| (now_ms, record)).collect(),
    })?;
    tracing::info!(id = %plan.id, "taken in from the sites");
    Ok(())
}

/// Have the ledgers of the sites that answer this very plan? Where one says otherwise its papers were
/// forged, or left over.
async fn is_known(plan: &Plan, sites: [&Arc<dyn Site>; 2]) -> Result<bool, Failure> {
    let (digest, vm) = (plan.digest().ok(), vm_key(plan)?);
    let mut answers = [None, None];
    for (answer, site) in answers.iter_mut().zip(sites) {
        match copy_of_ledger(&**site, &vm).await {
            // One that keeps none does not say that there was none.
            Ok(records) => *answer = records,
            Err(error) => tracing::warn!(error = %chain(&error), "a ledger's copy is not seen"),
        }
    }
    let is_it = |attempt: &&Attempt| Some(attempt.plan) == digest.map(PlanDigest);
    // One that was taken back before its source knew of it may have been begun again.
    let last = |records: &[Record]| attempts(records).filter(is_it).last().map(|it| it.epoch);
    let [at_source, at_destination] = &answers;
    Ok(match (at_source, at_destination) {
        (Some(source), Some(destination)) => last(destination).is_some_and(|begun| {
            // Begun at its destination and not yet at its source it is taken back.
            attempts(source).filter(|attempt| attempt.epoch == begun).all(|it| is_it(&it))
        }),
        (Some(one), None) | (None, Some(one)) => last(one).is_some(),
        (None, None) => false,
    })
}

/// All that a ledger knows of.
fn attempts(records: &[Record]) -> impl Iterator<Item = &Attempt> {
    records.iter().filter_map(|record| match &record.entry {
        Entry::Source(SourceEntry::AttemptKnown(attempt))
        | Entry::Destination(DestinationEntry::AttemptKnown(attempt)) => Some(attempt),
        _ => None,
    })
}

/// Says how one stands, and brings it to its end if that was asked for and is safe.
async fn one(
    context: &Context,
    (stored, state): (&Stored, &State),
    args: &RecoverArgs,
    vouched: bool,
    away: &[SiteName],
) -> Result<u8, Failure> {
    let verdict = verdict_of(context, &stored.plan, state, away).await?;
    let code = say(context, &stored.plan, state, &verdict, false);
    if !args.settle || verdict.verdict == VerdictKind::AlarmSplit {
        return Ok(code);
    }
    if vouched && state.phase.is_before_decision() {
        return vouch(context, stored, state, args).await;
    }
    // A journal from a backup is taken to where the ledgers are before it is believed.
    let is_decided = matches!(
        verdict.verdict,
        VerdictKind::InHandover | VerdictKind::RolledBack | VerdictKind::Completed
    );
    if verdict.verdict == VerdictKind::NeedsOperator {
        return Ok(code);
    }
    if !(state.phase.is_past_copying() || is_decided) {
        let id = &stored.plan.id;
        show::error(&format!(
            "{id} has not begun its switchover, and is left to causeway resume {id} or causeway abort {id}"
        ));
        return Ok(code);
    }
    agree_to_go_on(context, stored, state, args.yes)?;
    let (run, listening) = prepare(context, stored).await?;
    if !run.state.phase.is_past_copying() {
        return Ok(code);
    }
    to_its_end(context, run, listening, stored).await
}

/// One that was taken in from the sites may run commands here and log in with keys of this machine: its
/// plan and its login are shown first.
pub fn agree_to_go_on(
    context: &Context,
    stored: &Stored,
    state: &State,
    yes: bool,
) -> Result<(), Failure> {
    let plan = &stored.plan;
    show_if_taken_in(context, stored, state);
    let (phase, vm) = (state.phase.word(), &plan.vm.name);
    let question = match state.phase {
        Phase::RollingBack => format!("Take {} of {vm} back: it runs at {}?", plan.id, plan.from),
        _ => format!("Go on with {} of {vm}, which is {phase}?", plan.id),
    };
    agreed(yes, &question).map_err(|failure| failure.hint(format!("{} is as it was", plan.id)))
}

/// What nobody at this machine has seen yet.
pub fn show_if_taken_in(context: &Context, stored: &Stored, state: &State) {
    if !state.from_sites {
        return;
    }
    if context.json {
        let login = stored.login.to_string();
        show::line(&serde_json::json!({ "plan": stored.plan, "login": login }).to_string());
    } else {
        show::error(&plan_text(&stored.plan));
        show::error(&format!("  login     {}", stored.login));
    }
}

/// Takes it back on the operator's word for a destination that is gone.
async fn vouch(
    context: &Context,
    stored: &Stored,
    state: &State,
    args: &RecoverArgs,
) -> Result<u8, Failure> {
    let (plan, vm) = (&stored.plan, &stored.plan.vm.name);
    match context.site(&plan.to)?.power(plan.vm.id).await {
        Err(error) if error.kind == SiteErrorKind::Unreachable => {}
        _ => {
            return Err(Failure::new(
                Kind::Refused,
                format!("{} answers: it is asked, nobody has to vouch for it", plan.to),
            )
            .hint(format!("causeway abort {}", plan.id)));
        }
    }
    show_if_taken_in(context, stored, state);
    let question = format!(
        "On your word that nothing of {vm} ever runs at {}: take {} back and let {vm} run at {}?",
        plan.to, plan.id, plan.from
    );
    agreed(args.yes, &question)?;
    call_off(context, stored).await?;
    // Nothing but the revocation is left to be signed: no sooner is there a key that it had not.
    let made_now = keys::speak_for(&context.store, &plan.to)?;
    let ended = taken_back(context, &plan.id, args).await;
    if ended.is_err() && made_now && !has_spoken(context, plan) {
        keys::unspeak(&context.store, &plan.to);
    } else if ended.is_ok() && made_now {
        let to = &plan.to;
        show::error(&format!(
            "{to} is another one from now on: should it come back, causeway abort {} removes what may be left there, and a new migration to it wants it under a name of its own (causeway site add)",
            plan.id
        ));
    }
    ended
}

/// As far as that needs no key.
async fn call_off(context: &Context, stored: &Stored) -> Result<(), Failure> {
    let (mut run, _listening) = prepare(context, stored).await?;
    let why = "its destination is gone, by the operator's word";
    let called_off = match run.custody.see_source().await {
        Ok(()) => engine::abort(&mut run, why).await,
        Err(error) => Err(StepError::from(error)),
    };
    called_off.map_err(|error| {
        let what = format!("{} cannot be called off", stored.plan.id);
        let failure = Failure::new(Kind::Undecided, what).caused_by(&error);
        error.hints().into_iter().fold(failure, Failure::hint)
    })
}

async fn taken_back(
    context: &Context,
    id: &MigrationId,
    args: &RecoverArgs,
) -> Result<u8, Failure> {
    let stored = by_id(context, id.as_str())?;
    let (mut run, listening) = prepare(context, &stored).await?;
    if let Some(reason) = &args.reason {
        run.vouched = Vouched::DestinationGone(attestation(reason));
    }
    to_its_end(context, run, listening, &stored).await
}

/// Was anything recorded for the lost site by an operator's word? What cannot be read may hold it.
pub fn has_spoken(context: &Context, plan: &Plan) -> bool {
    let by_word = |record: &Record| {
        matches!(&record.entry, Entry::Destination(DestinationEntry::Revoked { attested: Some(_) }))
    };
    let records = ledgers(context, plan).map(|folder| read_ledger(&folder, &plan.to));
    match records {
        Ok(Ok(records)) => records.is_some_and(|records| records.iter().any(by_word)),
        _ => true,
    }
}

/// What was asked for is what was done, if it is taken back.
pub async fn to_its_end(
    context: &Context,
    run: Run,
    listening: Listening,
    stored: &Stored,
) -> Result<u8, Failure> {
    match follow(context, run, listening, stored.created_ms, Interrupts::listen()).await {
        Ok(exit::ROLLED_BACK) => Ok(exit::DONE),
        other => other,
    }
}

fn agreed(yes: bool, question: &str) -> Result<(), Failure> {
    if yes || show::ask(question) {
        return Ok(());
    }
    Err(Failure::new(Kind::Refused, "not agreed to, nothing more was touched"))
}
