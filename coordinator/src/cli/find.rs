//! Which migration is meant.

use std::collections::BTreeSet;

use engine::State;

use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::store::Stored;

/// A migration by its id, or the last one of a VM by its name: the last that has not ended, if there is
/// one.
pub fn find(context: &Context, which: &str) -> Result<Stored, Failure> {
    lookup(context, which)?.ok_or_else(|| not_known(which))
}

pub fn not_known(which: &str) -> Failure {
    if is_live(which) {
        return of_agents(which);
    }
    Failure::new(Kind::Refused, format!("no migration {which}, and none of a VM of that name"))
        .hint("causeway status lists them; `causeway recover` asks the sites for others")
}

/// As [`find`]; `None` where this machine knows none.
pub fn lookup(context: &Context, which: &str) -> Result<Option<Stored>, Failure> {
    if let Some(stored) = context.store.migration(which)? {
        return Ok(Some(stored));
    }
    let mut of_that_name = Vec::new();
    for id in context.store.ids_of_vm(which)? {
        of_that_name.push(by_id(context, &id)?);
    }
    // Those that go on, if any do.
    let mut open = Vec::new();
    for stored in &of_that_name {
        if !state_of(stored)?.phase.is_final() {
            open.push(stored.plan.id.clone());
        }
    }
    if !open.is_empty() {
        of_that_name.retain(|stored| open.contains(&stored.plan.id));
    }
    let vms: BTreeSet<_> = of_that_name.iter().map(|stored| stored.plan.vm.id).collect();
    if vms.len() > 1 {
        let ids: Vec<_> = of_that_name.iter().map(|stored| stored.plan.id.as_str()).collect();
        return Err(Failure::new(Kind::Usage, format!("several VMs are called {which}"))
            .hint(format!("name the migration: {}", ids.join(", "))));
    }
    Ok(of_that_name.pop())
}

/// By its id alone: for what cannot be undone.
pub fn by_id(context: &Context, id: &str) -> Result<Stored, Failure> {
    context.store.migration(id)?.ok_or_else(|| match is_live(id) {
        true => of_agents(id),
        false => Failure::new(Kind::Refused, format!("no migration {id}"))
            .hint("causeway status lists them"),
    })
}

/// As mobility agents name theirs: with twelve hexadecimal digits.
fn is_live(which: &str) -> bool {
    which.strip_prefix("native-").is_some_and(|id| {
        id.len() == 12 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn of_agents(id: &str) -> Failure {
    Failure::new(Kind::Refused, format!("{id} is a live migration: its mobility agents settle it"))
        .hint("while it is under way, virsh domjobabort VM at its source calls it off; causeway status VM says how it stands")
}

pub fn state_of(stored: &Stored) -> Result<State, Failure> {
    State::replay(stored.records.iter().map(|(_, record)| record)).map_err(|error| {
        Failure::new(Kind::Undecided, "the journal contradicts itself").caused_by(&error)
    })
}
