//! Looks into everything a plan is drawn up from. What cannot be learned is kept as a problem, so
//! that all of them are told at once.
//!
//! Nothing is changed, but for the agent, which is put into the guest's memory to look around.

use engine::State;
use model::{SiteName, SiteReport, Vm, VmId};
use plan::{
    Facts, GuestFacts, GuestFinding, GuestMount, GuestSwap, GuestWriter, Problem, Request, Taken,
};
use site::Site;
use units::{Bytes, chain};
use wire::control::{GuestReport, Severity};

use crate::context::Context;
use crate::failure::problem;
use crate::visit::Visit;

/// Both sites, the VM and the guest of `visit`, side by side.
pub async fn gather(
    context: &Context,
    request: &Request,
    source: &dyn Site,
    destination: &dyn Site,
    visit: Result<&Visit, Problem>,
    line: Option<Bytes>,
) -> Facts {
    let (from, to, vm) = tokio::join!(source.probe(), destination.probe(), source.vm(&request.vm));
    let vm = vm.map_err(|error| problem(&error));
    let fence = match &vm {
        Ok(vm) => source.fence_offer(vm.id).await.map_err(|error| problem(&error)),
        Err(problem) => Err(problem.clone()),
    };
    let (taken, to) = match to {
        Ok(report) => taken(context, destination, &vm, report).await,
        Err(error) => (Vec::new(), Err(problem(&error))),
    };
    let guest = match (visit, &vm) {
        // Without its VM nothing is known to be the right guest.
        (_, Err(problem)) => Err(vec![problem.clone()]),
        (Ok(visit), Ok(_)) => look_inside(context, visit).await,
        (Err(problem), Ok(_)) => Err(vec![problem]),
    };
    Facts {
        source: from.map_err(|error| problem(&error)),
        destination: to,
        vm,
        fence,
        guest,
        taken,
        appliance: appliance(context),
        line,
    }
}

async fn taken(
    context: &Context,
    destination: &dyn Site,
    vm: &Result<Vm, Problem>,
    report: SiteReport,
) -> (Vec<Taken>, Result<SiteReport, Problem>) {
    let Ok(vm) = vm else { return (Vec::new(), Ok(report)) };
    match destination.vms().await {
        Ok(there) => {
            let alike = there.into_iter().filter(|(id, name)| *id == vm.id || *name == vm.name);
            let taken = alike.map(|(id, name)| Taken {
                same_id: id == vm.id,
                same_name: name == vm.name,
                kept_by: kept_by(context, destination.name(), id),
                name,
            });
            (taken.collect(), Ok(report))
        }
        Err(error) => (Vec::new(), Err(problem(&error))),
    }
}

/// The finished migration whose source `vm` at `site` is, if that was not deleted since.
pub fn kept_by(context: &Context, site: &SiteName, vm: VmId) -> Option<String> {
    let ids = context.store.migration_ids().ok()?;
    ids.into_iter().rev().find(|id| {
        let stored = context.store.migration(id).ok().flatten();
        stored.is_some_and(|stored| {
            let records = stored.records.iter().map(|(_, record)| record);
            let state = State::replay(records);
            let kept = state.is_ok_and(|state| state.retired_as.is_some() && !state.discarded);
            stored.plan.from == *site && stored.plan.vm.id == vm && kept
        })
    })
}

async fn look_inside(context: &Context, visit: &Visit) -> Result<GuestFacts, Vec<Problem>> {
    let binary = context.agent_binary();
    let refusals = visit.refusals(&binary).await.map_err(|error| vec![problem(&error)])?;
    if !refusals.is_empty() {
        return Err(refusals.into_iter().map(|error| problem(&error)).collect());
    }
    visit.look(&binary).await.map(|report| facts_of(*report)).map_err(|problem| vec![problem])
}

fn facts_of(report: GuestReport) -> GuestFacts {
    let (fine, rest): (Vec<_>, Vec<_>) =
        report.boot.into_iter().partition(|finding| finding.severity == Severity::Fine);
    let fine = fine.into_iter().map(|finding| finding.text).collect();
    let findings = rest
        .into_iter()
        .map(|finding| GuestFinding {
            check: finding.check,
            blocking: finding.severity == Severity::Blocking,
            text: finding.text,
            remedy: finding.remedy,
        })
        .collect();
    GuestFacts {
        kernel: report.kernel,
        os: report.os,
        devices: engine::guest_devices(report.devices),
        mounts: report
            .file_systems
            .into_iter()
            .map(|mount| GuestMount {
                mount_point: mount.mount_point,
                kind: mount.kind,
                disks: mount.disks,
                read_only: mount.read_only,
                freezable: mount.freezable,
            })
            .collect(),
        swaps: report
            .swaps
            .into_iter()
            .map(|swap| GuestSwap { path: swap.path, used: swap.used, disks: swap.disks })
            .collect(),
        raw_writers: report
            .raw_writers
            .into_iter()
            .map(|writer| GuestWriter {
                program: writer.program,
                pid: writer.pid,
                device: writer.device,
                disks: writer.disks,
            })
            .collect(),
        findings,
        fine,
        memory_available: report.memory_available,
        tracker: report.tracker.map(|tracker| (tracker.choice.to_string(), tracker.reason)),
        boot_ms: report.boot_ms,
    }
}

/// Built, intact, and with the very agent that goes into the guest: two that differ might not
/// understand each other, and would find out with the copy half made.
fn appliance(context: &Context) -> Result<(), Problem> {
    let problem = |text: String| Problem {
        code: "appliance".to_owned(),
        text,
        hint: "causeway appliance build".to_owned(),
    };
    let helper = appliance::Appliance::load(&context.appliance_dir())
        .map_err(|error| problem(format!("the helper is not built: {}", chain(&error))))?;
    let agent = context.agent_binary();
    // One that is missing is the guest's problem, and said there.
    let Ok(bytes) = std::fs::read(&agent) else { return Ok(()) };
    if blake3::hash(&bytes).as_bytes() == &helper.manifest.agent_blake3.0 {
        return Ok(());
    }
    let agent = agent.display();
    Err(problem(format!("the helper was built with another version of the agent than {agent}")))
}
