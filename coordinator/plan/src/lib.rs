//! Draws up plans. Pure: what was asked and what was found go in, a plan or every reason against
//! it comes out. A plan is a value: printed, saved, compared, executed.
//!
//! ```text
//! Request ─┐
//!          ├─ draw_up ─→ Ok(Plan)            shown, agreed to, run by the engine
//! Facts ───┘         └─→ Err(Vec<Refusal>)   all at once, each with its remedy
//! ```
//!
//! Also here, because it is a decision and pure: [`rounds::decide`], when to stop copying and
//! switch over.

mod checks;
mod facts;
mod forecast;
mod plain;
mod plan;
mod refusal;
mod request;
pub mod rounds;

pub use checks::devices_of;
pub use facts::{
    Facts, GuestDevice, GuestFacts, GuestFinding, GuestMount, GuestSwap, GuestWriter, Problem,
    Taken,
};
pub use forecast::Forecast;
pub use plain::is_plain;
pub use plan::{PLAN_VERSION, Plan, PlanDigestError, PlannedDisk, PlannedNic, PlannedVm};
pub use refusal::Refusal;
pub use request::{Options, Probe, Request, Route, Tracker, VolumeFormat};

/// Draws up the plan of one migration, or says everything that stands against it.
///
/// # Errors
/// Never stops at the first refusal: an operator wants to fix them in one go.
pub fn draw_up(request: &Request, facts: &Facts) -> Result<Plan, Vec<Refusal>> {
    let mut refusals = checks::reachability(request, facts);
    let (Ok(vm), Ok(destination)) = (&facts.vm, &facts.destination) else {
        return Err(refusals);
    };
    let disks = checks::disks(request, facts, vm, destination, &mut refusals);
    let nics = checks::nics(request, vm, destination, &mut refusals);
    checks::vm(request, facts, vm, destination, &mut refusals);
    let mut warnings = checks::guest(request, facts, &disks, &mut refusals);
    warnings.extend(checks::warnings(request, facts, vm, destination));
    let forecast = forecast::forecast(&request.options, facts, &disks);
    refusals.extend(checks::budget(&request.options, &forecast));
    let machine = checks::machine(vm, destination).filter(|_| refusals.is_empty());
    let Some(machine) = machine else { return Err(refusals) };
    let mapped = plan::Mapped { machine, disks, nics, forecast, warnings };
    Ok(plan::assemble(request, facts, vm, mapped))
}

#[cfg(test)]
mod tests;
