//! `causeway plan`, and what `migrate` shares with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use engine::Record;
use plan::{
    Options, Plan, PlannedDisk, Probe, Problem, Refusal, Request, Route, Tracker, VolumeFormat,
};
use site::Site;
use units::{Bytes, MigrationId};

use super::args::{Ask, Format, LoginArgs, PlanArgs, TrackerArg};
use super::exit;
use super::find::{by_id, find, state_of};
use super::live;
use super::site::site_name;
use crate::context::Context;
use crate::facts;
use crate::failure::{Failure, Kind};
use crate::guest::{GuestLogin, parse_login};
use crate::interrupts::Interrupts;
use crate::show::{self, line, plan_text};
use crate::store::Stored;
use crate::visit::Visit;

/// A plan that was drawn up, and what it was drawn up with.
pub struct Drawn {
    pub plan: Plan,
    pub login: GuestLogin,
    /// Goes on until the migration takes it over or it is ended.
    pub visit: Visit,
}

pub async fn plan(context: &Context, args: PlanArgs) -> Result<u8, Failure> {
    if let Some(live) = live::chosen(context, &args.ask).await? {
        if args.output.is_some() {
            return Err(Failure::new(Kind::Usage, "a plan to move live is not saved")
                .hint("move it at once, with `causeway migrate`; or plan with --method guest"));
        }
        live::show_plan(context, &live, show::line);
        return Ok(exit::DONE);
    }
    let mut interrupts = Interrupts::listen();
    let drawn = draw_up(context, args.ask, &mut interrupts).await?;
    drawn.visit.end(&mut interrupts).await;
    if let Some(path) = &args.output {
        let text = toml::to_string_pretty(&drawn.plan).map_err(|error| {
            Failure::new(Kind::Refused, "the plan cannot be written as TOML").caused_by(&error)
        })?;
        std::fs::write(path, text).map_err(|error| {
            Failure::new(Kind::Refused, format!("cannot write {}", path.display()))
                .caused_by(&error)
        })?;
    }
    if context.json {
        line(&serde_json::json!({ "plan": drawn.plan }).to_string());
    } else {
        line(&plan_text(&drawn.plan));
        if let Some(path) = &args.output {
            line(&format!(
                "\nsaved; run it with: causeway run {} --guest {}@{}",
                path.display(),
                drawn.login.user,
                drawn.login.host
            ));
        }
    }
    Ok(exit::DONE)
}

/// Looks into everything and draws up the plan.
pub async fn draw_up(
    context: &Context,
    ask: Ask,
    interrupts: &mut Interrupts,
) -> Result<Drawn, Failure> {
    let (from, to) = (site_name(&ask.from)?, site_name(&ask.to)?);
    let login = login(context, &ask.vm, &ask.login)?;
    let request = request(context, &ask, from, to)?;
    let visit =
        login.as_ref().map(|login| Visit::new(context, &request, &ask.vm, login)).transpose()?;
    let line = ask.line.map(Bytes);
    let plan = of_request(context, &request, visit.as_ref(), line, interrupts).await?;
    // A plan is refused without a login.
    match (login, visit) {
        (Some(login), Some(visit)) => Ok(Drawn { plan, login, visit }),
        _ => Err(Failure::new(Kind::Usage, "no --guest was given")),
    }
}

/// Looks into everything and decides. If it comes to no plan, `visit` is over.
async fn of_request(
    context: &Context,
    request: &Request,
    visit: Option<&Visit>,
    line: Option<Bytes>,
    interrupts: &mut Interrupts,
) -> Result<Plan, Failure> {
    let drawing = drawn(context, request, visit, line);
    let Some(visit) = visit else { return drawing.await };
    let drawn = visit.unless_interrupted(interrupts, drawing).await?;
    if drawn.is_err() {
        visit.end(interrupts).await;
    }
    drawn
}

async fn drawn(
    context: &Context,
    request: &Request,
    visit: Option<&Visit>,
    line: Option<Bytes>,
) -> Result<Plan, Failure> {
    let source: Arc<dyn Site> = context.site(&request.from)?;
    let destination: Arc<dyn Site> = context.site(&request.to)?;
    let visit = visit.ok_or_else(|| Problem {
        code: "no-login".to_owned(),
        text: format!("no way into {} is known", request.vm),
        hint: "name one with --guest root@ADDRESS, or in the configuration under [guests]"
            .to_owned(),
    });
    let mut facts = facts::gather(context, request, &*source, &*destination, visit, line).await;
    if let Err(problem) = &mut facts.vm
        && problem.code == "not-found"
        && let Some(moved) = moved(context, request)?
    {
        problem.hint = moved;
    }
    let under_way = match &facts.vm {
        Ok(vm) => under_way(context, Some(&request.id), vm.id)?,
        Err(_) => None,
    };
    match (under_way, plan::draw_up(request, &facts)) {
        (None, drawn) => drawn.map_err(Failure::refused),
        (Some(other), Ok(_)) => Err(Failure::refused(vec![other])),
        (Some(other), Err(mut refusals)) => {
            refusals.insert(0, other);
            Err(Failure::refused(refusals))
        }
    }
}

/// Where a VM went that is there no more under its name.
fn moved(context: &Context, request: &Request) -> Result<Option<String>, Failure> {
    let Request { vm, from, .. } = request;
    for id in context.store.migration_ids()?.into_iter().rev() {
        let Stored { plan, records, .. } = by_id(context, &id)?;
        let decided = records.iter().any(|(_, record)| matches!(record, Record::Decided { .. }));
        let is_it = plan.vm.name == *vm || plan.vm.id.to_string() == *vm;
        if is_it && plan.from == *from && decided {
            return Ok(Some(format!("{id} moved it to {}: causeway status {id}", plan.to)));
        }
    }
    Ok(None)
}

/// Two migrations of one VM would take the source from each other. `id` is not counted.
pub fn under_way(
    context: &Context,
    id: Option<&MigrationId>,
    vm: model::VmId,
) -> Result<Option<Refusal>, Failure> {
    for other in context.store.migration_ids()? {
        let stored = find(context, &other)?;
        let plan = &stored.plan;
        if id == Some(&plan.id) || plan.vm.id != vm {
            continue;
        }
        let phase = state_of(&stored)?.phase;
        if !phase.is_final() {
            let name = &plan.vm.name;
            return Ok(Some(Refusal {
                code: "under-way".to_owned(),
                text: format!(
                    "{name} is on its way from {} to {} already: {other} is {}",
                    plan.from,
                    plan.to,
                    phase.word()
                ),
                remedy: format!(
                    "go on with `causeway resume {other}`, or `causeway abort {other}`"
                ),
            }));
        }
    }
    Ok(None)
}

/// Is a plan that was saved still true? Everything is looked into again, as when it was drawn up;
/// the visit goes on if it is.
pub async fn still_holds(
    context: &Context,
    plan: &Plan,
    login: &GuestLogin,
    interrupts: &mut Interrupts,
) -> Result<Visit, Failure> {
    let request = Request {
        id: plan.id.clone(),
        vm: plan.vm.id.to_string(),
        from: plan.from.clone(),
        to: plan.to.clone(),
        pools: plan.disks.iter().map(|d| (d.target.clone(), d.pool.clone())).collect(),
        networks: plan
            .nics
            .iter()
            .map(|nic| (nic.from.clone(), nic.network.name().to_owned()))
            .collect(),
        options: plan.options.clone(),
    };
    let visit = Visit::new(context, &request, &plan.vm.name, login)?;
    let now = of_request(context, &request, Some(&visit), None, interrupts).await?;
    let changed: Vec<_> = [
        ("the VM", now.vm != plan.vm),
        ("its disks", shapes(&now) != shapes(plan)),
        ("its cards", now.nics != plan.nics),
        ("its fence", now.fence != plan.fence),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what))
    .collect();
    if changed.is_empty() {
        return Ok(visit);
    }
    visit.end(interrupts).await;
    let what = format!("changed since the plan was drawn up: {}", changed.join(", "));
    Err(Failure::new(Kind::Refused, what).hint("look at it again with `causeway plan`"))
}

/// Disks without what changes all the time.
fn shapes(plan: &Plan) -> Vec<PlannedDisk> {
    let disks = plan.disks.iter().cloned();
    disks.map(|disk| PlannedDisk { allocated: None, ..disk }).collect()
}

/// From the command line, else from the configuration.
pub fn login(context: &Context, vm: &str, args: &LoginArgs) -> Result<Option<GuestLogin>, Failure> {
    let configured = context.config.guests.get(vm);
    let text = args.guest.as_deref().or_else(|| configured.map(|guest| guest.login.as_str()));
    let Some(text) = text else { return Ok(None) };
    let mut login = parse_login(text)?;
    login.identity = args.identity.clone().or_else(|| configured?.identity.clone());
    login.host_key = args.host_key.clone().or_else(|| configured?.host_key.clone());
    login.known_hosts = args.known_hosts.clone().or_else(|| configured?.known_hosts.clone());
    for (what, file) in [("private key", &login.identity), ("known hosts", &login.known_hosts)] {
        if let Some(file) = file {
            readable(what, file)?;
        }
    }
    Ok(Some(login))
}

/// Found out now, and not as a login that is refused.
pub fn readable(what: &str, file: &Path) -> Result<(), Failure> {
    std::fs::File::open(file).map(drop).map_err(|error| {
        let what = format!("the file of the {what}, {}, cannot be read", file.display());
        Failure::new(Kind::Usage, what).caused_by(&error)
    })
}

fn request(
    context: &Context,
    ask: &Ask,
    from: model::SiteName,
    to: model::SiteName,
) -> Result<Request, Failure> {
    let configured = context.config.routes.get(&format!("{from}/{to}"));
    let mut pools = configured.map(|route| route.pools.clone()).unwrap_or_default();
    let mut networks = configured.map(|route| route.networks.clone()).unwrap_or_default();
    for pool in &ask.pool {
        let (disk, pool) = pool.split_once('=').unwrap_or(("*", pool));
        pools.insert(disk.to_owned(), pool.to_owned());
    }
    networks.extend(pairs("--network", &ask.network)?);
    Ok(Request {
        id: free_id(context, &ask.vm)?,
        vm: ask.vm.clone(),
        from,
        to,
        pools,
        networks,
        options: options(ask)?,
    })
}

fn pairs(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |text: &String| {
        let (from, to) =
            text.split_once('=').filter(|(a, b)| !a.is_empty() && !b.is_empty()).ok_or_else(
                || Failure::new(Kind::Usage, format!("{flag} takes FROM=TO, not: {text}")),
            )?;
        Ok((from.to_owned(), to.to_owned()))
    };
    texts.iter().map(pair).collect()
}

fn options(ask: &Ask) -> Result<Options, Failure> {
    Ok(Options {
        max_downtime_ms: ask.max_downtime.unwrap_or(30_000),
        limit_rate: ask.limit_rate.filter(|rate| *rate > 0).map(Bytes),
        limit_read: ask.limit_read.filter(|rate| *rate > 0).map(Bytes),
        tracker: match ask.tracker {
            TrackerArg::Auto => Tracker::Auto,
            TrackerArg::Bpf => Tracker::Bpf,
            TrackerArg::Rescan => Tracker::Rescan,
        },
        route: match &ask.direct {
            None => Route::Relay,
            Some(text) => {
                let (network, address) = text.split_once('=').ok_or_else(|| {
                    Failure::new(Kind::Usage, format!("--direct takes BRIDGE=ADDRESS, not: {text}"))
                })?;
                Route::Direct { network: network.to_owned(), address: address.to_owned() }
            }
        },
        streams: ask.streams.unwrap_or(2),
        compress: ask.compress.unwrap_or(3),
        format: match ask.format {
            Format::Same => VolumeFormat::AsSource,
            Format::Raw => VolumeFormat::Raw,
            Format::Qcow2 => VolumeFormat::Qcow2,
        },
        stop_units: ask.stop_unit.clone(),
        hooks_before: ask.hook_before.clone(),
        hooks_undo: ask.hook_undo.clone(),
        gate: ask.gate.clone(),
        hold: ask.hold,
        not_before: ask.at.as_deref().map(time).transpose()?,
        rounds_max: ask.rounds_max.unwrap_or(30),
        boot_ms: ask.boot_time,
        probe: probe(ask.probe.as_deref())?,
        reread: ask.reread,
    })
}

fn probe(text: Option<&str>) -> Result<Probe, Failure> {
    match text.map(|text| text.split_once(':')) {
        None => Ok(Probe::Running),
        Some(Some(("tcp", address))) => Ok(Probe::Tcp { address: address.to_owned() }),
        Some(Some(("ssh", address))) => Ok(Probe::Ssh { address: address.to_owned() }),
        Some(_) => Err(Failure::new(Kind::Usage, "--probe takes tcp:HOST:PORT or ssh:HOST:PORT")),
    }
}

fn time(text: &str) -> Result<i64, Failure> {
    let zoned = text.parse::<jiff::Timestamp>().ok();
    let local = || {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
    };
    zoned.or_else(local).map(jiff::Timestamp::as_second).ok_or_else(|| {
        Failure::new(Kind::Usage, format!("--at is not a time: {text}"))
            .hint("write 2026-11-21T02:00, or with an offset: 2026-11-21T02:00+01:00")
    })
}

/// Four digits are met again some day, and an id stands for an agent, a key and a ledger.
fn free_id(context: &Context, vm: &str) -> Result<MigrationId, Failure> {
    loop {
        let id = new_id(vm);
        if context.store.migration(id.as_str())?.is_none() {
            return Ok(id);
        }
    }
}

/// The VM's name as far as an id can hold it, the day, and four random digits.
fn new_id(vm: &str) -> MigrationId {
    let mut name: String = vm
        .to_ascii_lowercase()
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
        .take(24)
        .collect();
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.insert_str(0, "vm-");
    }
    let day = jiff::Zoned::now().strftime("%y%m%d").to_string();
    let random = &uuid::Uuid::new_v4().simple().to_string()[..4];
    format!("{name}-{day}-{random}")
        .parse()
        .expect("lower-case letters, digits and dashes, starting with a letter, at most 39")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_vm_name_gives_an_id() {
        for name in ["web1", "", "9", "Ünï", "a/b\0c", &"x".repeat(300)] {
            assert!(new_id(name).as_str().len() <= 40, "{name}");
        }
    }

    #[test]
    fn times_are_read_with_and_without_an_offset() {
        assert_eq!(time("2026-11-21T02:00:00+01:00").unwrap(), 1_795_222_800);
        assert!(time("2026-11-21T02:00").is_ok());
        assert!(time("tomorrow").is_err());
    }
}
