//! `causeway migrate --method native`: the source's own live migration, begun and followed as an admin would with
//! `virsh migrate`. The mobility agents carry it, and what came of it their ledgers say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use handover::{Platform, Verdict, VerdictKind, VmKey, verdict};
use model::{Power, SiteName, Vm, VmId};
use plan::Refusal;
use serde_json::json;
use site::{LiveWish, Remedy, Site, SiteError};
use site_ledger::{LiveWire, Unpaired, kept_job, kept_wire};
use units::{Bytes, Epoch, chain};

use super::args::Ask;
use super::exit;
use super::method::{Choice, Way, choose};
use super::native::{self, Attempt, Sites};
use super::plan::under_way;
use super::site::site_name;
use crate::context::Context;
use crate::facts::kept_by;
use crate::failure::{Failure, Kind, problem};
use crate::interrupts::Interrupts;
use crate::show::{self, live_text};

/// What is going to be done.
pub struct Live {
    pub vm: Vm,
    pub from: SiteName,
    pub to: SiteName,
    pub wish: LiveWish,
    /// Why by this way.
    pub why: Option<String>,
}

/// Between two looks at how it gets on.
const EVERY: Duration = Duration::from_secs(1);
/// Until the agents have settled what libvirt has ended. They look several times a second; a line that fell
/// silent takes them 19 s.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// A source that says nothing for so long, while its libvirt migrates, is not waited for.
const SILENT_FOR: Duration = Duration::from_secs(120);

/// What is to be done if it is to move live. If it is not, why is told where somebody may wonder.
pub async fn chosen(context: &Context, ask: &Ask) -> Result<Option<Live>, Failure> {
    let Choice { way, why } = choose(context, ask).await?;
    match way {
        Way::Native { neighbour, unpaired } => {
            let against = unpaired.map(|unpaired| not_paired(&unpaired));
            draw_up(context, ask, neighbour, (why, against)).await.map(Some)
        }
        Way::Guest => {
            if let Some(why) = why {
                show::error(&format!("method: guest, since {why}"));
            }
            Ok(None)
        }
    }
}

/// Looks, and names all that stands against it. What stands against it at the destination besides, its agent
/// says before anything is copied.
async fn draw_up(
    context: &Context,
    ask: &Ask,
    neighbour: String,
    (why, against): (Option<String>, Option<Refusal>),
) -> Result<Live, Failure> {
    let (from, to) = (site_name(&ask.from)?, site_name(&ask.to)?);
    if from == to {
        return Err(Failure::new(Kind::Usage, format!("{from} is the source and the destination")));
    }
    let (source, destination) = (context.site(&from)?, context.site(&to)?);
    let vm = source.vm(&ask.vm).await.map_err(|error| refused(&error))?;
    let mut refusals = Vec::from_iter(against);
    if vm.power != Power::Running {
        refusals.push(Refusal {
            code: "not-running".to_owned(),
            text: format!(
                "{} is {} at {from}, and only what runs is moved live",
                vm.name, vm.power
            ),
            remedy: "start it, or move it with --method guest once it runs".to_owned(),
        });
    }
    refusals.extend(under_way(context, None, vm.id)?);
    match destination.power(vm.id).await {
        Ok(Power::Absent) => {}
        Ok(power) => refusals.push(Refusal {
            code: "already-there".to_owned(),
            text: format!("{to} has a VM of this id, which is {power}"),
            remedy: match kept_by(context, &to, vm.id) {
                Some(id) => format!(
                    "it is the source that {id} keeps; delete it with its disks: causeway discard {id}"
                ),
                None => format!("see what it is: causeway status {}", vm.name),
            },
        }),
        Err(error) => {
            let problem = problem(&error);
            refusals.push(Refusal { code: problem.code, text: problem.text, remedy: problem.hint });
        }
    }
    if ask.limit_rate.is_some_and(|limit| limit > 0 && limit < 1 << 20) {
        refusals.push(Refusal {
            code: "limit-too-small".to_owned(),
            text: "libvirt limits in whole MiB per second".to_owned(),
            remedy: "say --limit-rate 1M or more".to_owned(),
        });
    }
    if !refusals.is_empty() {
        return Err(Failure::refused(refusals));
    }
    let limit_rate = ask.limit_rate.filter(|limit| *limit > 0).map(Bytes);
    let wish = LiveWish { neighbour, limit_rate, max_downtime_ms: ask.max_downtime };
    Ok(Live { vm, from, to, wish, why })
}

fn not_paired(unpaired: &Unpaired) -> Refusal {
    let remedy = match unpaired {
        Unpaired::NoAgent { .. } => {
            "causeway-mobility serve --config FILE; the names of both sites in it are those that they are registered under"
                .to_owned()
        }
        Unpaired::OtherKey { at, neighbour } => format!(
            "at {neighbour}, causeway-mobility introduce --config FILE prints the section for the agent of {at}; start that anew with it"
        ),
    };
    Refusal { code: "agents-not-paired".to_owned(), text: unpaired.to_string(), remedy }
}

/// For people by `say`.
pub fn show_plan(context: &Context, live: &Live, say: fn(&str)) {
    if context.json {
        let Live { vm, from, to, wish, .. } = live;
        let plan = json!({
            "method": "native", "vm": vm.name, "from": from, "to": to, "by": wish.neighbour,
            "max_downtime_ms": wish.max_downtime_ms, "limit_rate": wish.limit_rate,
        });
        show::line(&json!({ "plan": plan }).to_string());
    } else {
        let Live { vm, from, to, wish, why } = live;
        say(&live_text((vm, wish), from, to, why.as_deref()));
    }
}

/// Plan, show, ask, run.
pub async fn migrate(
    context: &Context,
    live: Live,
    yes: bool,
    mut interrupts: Interrupts,
) -> Result<u8, Failure> {
    show_plan(context, &live, show::error);
    if !yes && interrupts.before(show::asked("\nGo ahead?")).await != Some(true) {
        return Err(Failure::new(Kind::Refused, "not agreed to, nothing was touched"));
    }
    let (source, destination) = (context.site(&live.from)?, context.site(&live.to)?);
    let sites = Sites::from([
        (live.from.clone(), Arc::clone(&source)),
        (live.to.clone(), Arc::clone(&destination)),
    ]);
    let (before, unread) = native::latest(&sites, live.vm.id).await;
    if let Some(error) = unread.first() {
        return Err(refused(error));
    }
    // Whoever interrupts before it began is not made to call it off.
    if interrupts.before(std::future::ready(())).await.is_none() {
        return Err(Failure::new(Kind::Refused, "interrupted, nothing was touched"));
    }
    let began = Instant::now();
    let before = before.map(|attempt| attempt.epoch);
    let ended = follow(context, &live, &*source, before, interrupts).await?;
    // Its agent records it before anything is copied. An earlier attempt is not this one.
    let (attempt, unread) = native::latest(&sites, live.vm.id).await;
    let attempt = attempt.filter(|attempt| before.is_none_or(|before| before < attempt.epoch));
    let Some(attempt) = attempt else {
        return Err(without_record(&live, &*source, ended, unread).await);
    };
    if let Err(error) = &ended {
        show::error(&format!("{}: {}", live.from, chain(error)));
    }
    let verdict = settled(context, &sites, &attempt).await?;
    match (verdict.verdict, verdict.shown) {
        (VerdictKind::Completed, _) if verdict.started == Some(true) => {
            let job = match attempt.paper.vm_key() {
                Ok(vm) => kept_job(&*destination, &vm, attempt.epoch).await,
                Err(_) => None,
            };
            let wire = wire(&*source, live.vm.id, before).await;
            show::live_done(context.json, began.elapsed(), job.as_ref(), wire);
            Ok(exit::DONE)
        }
        (VerdictKind::RolledBack, Some(Platform::Running)) if native::has_ended(&verdict) => {
            Ok(exit::ROLLED_BACK)
        }
        // It runs nowhere, or the agents have still to settle it.
        _ => Ok(exit::UNDECIDED),
    }
}

/// Until libvirt has ended it: its word, or that nobody knows.
async fn follow(
    context: &Context,
    live: &Live,
    source: &dyn Site,
    before: Option<Epoch>,
    mut interrupts: Interrupts,
) -> Result<Result<(), SiteError>, Failure> {
    let (vm, name) = (live.vm.id, &live.vm.name);
    let unknown = |what: String| {
        let failure = Failure::new(Kind::Undecided, what);
        failure.next(format!("causeway status {name}"))
    };
    let migrating = source.migrate_live(vm, &live.wish);
    tokio::pin!(migrating);
    let mut shown = show::LiveWatch::new(context.json);
    let (mut called_off, mut heard) = (false, Instant::now());
    loop {
        let interrupted = async {
            match called_off {
                false => interrupts.next().await,
                true => interrupts.insisted().await,
            }
        };
        tokio::select! {
            biased;
            ended = &mut migrating => return Ok(ended),
            () = interrupted => {
                if called_off {
                    return Err(unknown(format!("not waited for: {name} may still be moving")));
                }
                called_off = true;
                let runs_on = format!("{name} runs on at {} unless it has moved", live.from);
                show::error(&format!("calling it off: {runs_on}"));
                if let Err(error) = source.cancel_live(vm).await {
                    show::error(&format!("warning: {}", chain(&error)));
                }
            }
            () = tokio::time::sleep(EVERY) => match source.live_job(vm).await {
                Ok(job) => {
                    heard = Instant::now();
                    match job {
                        // What was not under way yet when it was called off, or had a job of its own.
                        Some(_) if called_off => drop(source.cancel_live(vm).await),
                        Some(job) => shown.tell(&job, wire(source, vm, before).await),
                        None => {}
                    }
                }
                Err(error) => {
                    tracing::info!(error = %chain(&error), "the source does not say how it gets on");
                    if heard.elapsed() > SILENT_FOR {
                        return Err(unknown(format!("{} does not answer", live.from)).caused_by(&error));
                    }
                }
            }
        }
    }
}

/// What the source's agent says of the line; `before`: an attempt that is not this one.
async fn wire(source: &dyn Site, vm: VmId, before: Option<Epoch>) -> Option<LiveWire> {
    let vm: VmKey = vm.to_string().parse().ok()?;
    let (epoch, wire) = kept_wire(source, &vm).await?;
    before.is_none_or(|before| before < epoch).then_some(wire)
}

/// No agent took it up, or none can be asked.
async fn without_record(
    live: &Live,
    source: &dyn Site,
    ended: Result<(), SiteError>,
    unread: Vec<SiteError>,
) -> Failure {
    let (name, from, by) = (&live.vm.name, &live.from, &live.wish.neighbour);
    let runs = matches!(source.power(live.vm.id).await, Ok(Power::Running));
    // If it was the connection that broke, libvirt may go on without us.
    let is_over = matches!(source.live_job(live.vm.id).await, Ok(None))
        && ended.as_ref().err().is_some_and(|error| error.remedy() != Remedy::Reconcile);
    if let Some(error) = unread.first() {
        let failure = Failure::new(Kind::Undecided, format!("what became of {name} is not known"));
        return failure.caused_by(error).next(format!("causeway status {name}"));
    }
    match ended {
        Err(error) if runs && is_over => {
            let what = format!("{name} was not moved; it runs at {from} as before");
            let failure = Failure::new(Kind::Refused, what).caused_by(&error);
            failure.hint(format!("{by} is the mobility agent of {from}; its log says more"))
        }
        ended => {
            let what = match &ended {
                Ok(()) => {
                    format!("libvirt says that it moved {name}, and no agent has recorded it")
                }
                Err(_) if runs => format!("{name} may be on its way, and no agent has recorded it"),
                Err(_) => format!("{name} does not run at {from}, and no agent has recorded why"),
            };
            let failure = Failure::new(Kind::Undecided, what).hint(format!(
                "see where it runs, by virsh at {from} and at {}; is {by} the mobility agent of {from}?",
                live.to
            ));
            match &ended {
                Ok(()) => failure,
                Err(error) => failure.caused_by(error),
            }
        }
    }
}

/// Says where it lives, once the agents are done with it.
async fn settled(context: &Context, sites: &Sites, attempt: &Attempt) -> Result<Verdict, Failure> {
    let ended = Instant::now();
    loop {
        let is_time = ended.elapsed() < SETTLED_WITHIN;
        match native::gather(sites, &attempt.paper, attempt.epoch).await {
            Ok(gathered) => {
                let verdict = verdict(&gathered.evidence);
                if native::has_ended(&verdict) || !is_time {
                    native::say(context, &attempt.paper, &gathered, None);
                    return Ok(verdict);
                }
            }
            // Of what is being settled two stories can be heard.
            Err(failure) if !is_time => return Err(failure),
            Err(_) => {}
        }
        tokio::time::sleep(EVERY).await;
    }
}

pub fn refused(error: &SiteError) -> Failure {
    let problem = problem(error);
    Failure::refused(vec![Refusal { code: problem.code, text: problem.text, remedy: problem.hint }])
}
