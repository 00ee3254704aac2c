//! Every check that can refuse a plan, one function per subject.

mod budget;
mod disks;
mod guest;
mod vm;

pub(crate) use budget::budget;
pub use disks::devices_of;
pub(crate) use disks::disks;
pub(crate) use guest::guest;
pub(crate) use vm::{machine, nics, vm, warnings};

use crate::facts::{Facts, Problem};
use crate::refusal::Refusal;
use crate::request::Request;

/// What could not even be looked at.
pub(crate) fn reachability(request: &Request, facts: &Facts) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if request.from == request.to {
        refusals.push(Refusal::new(
            "same-site",
            format!("source and destination are the same site: {}", request.from),
            "name two different sites with --from and --to",
        ));
    }
    let mut note = |problem: Option<&Problem>| {
        let refusal = problem.map(|p| Refusal::new(&p.code, p.text.as_str(), p.hint.as_str()));
        // One cause (a site that is down) shows in several facts: said once.
        refusals.extend(refusal.filter(|r| !refusals.contains(r)));
    };
    note(facts.source.as_ref().err());
    note(facts.destination.as_ref().err());
    note(facts.vm.as_ref().err());
    note(facts.fence.as_ref().err());
    for problem in facts.guest.as_ref().err().into_iter().flatten() {
        note(Some(problem));
    }
    note(facts.appliance.as_ref().err());
    refusals
}
