//! Landlock: which files, ports and processes can be reached at all.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};

use super::{Landlock, Needs, Sockets};
use crate::sys;

/// The newest version of Landlock of which everything is used.
const NEWEST: ABI = ABI::V6;

pub const ABI_OF_TCP: i32 = 4;
pub const ABI_OF_SIGNALS: i32 = 6;
pub const ABI_OF_ALL: i32 = ABI_OF_SIGNALS;

pub fn confine(needs: &Needs<'_>) -> Result<Landlock, String> {
    let abi = sys::landlock_abi().map_err(|error| error.to_string())?;
    match restrict(needs) {
        Ok(RulesetStatus::NotEnforced) => Err("the kernel did not take it".to_owned()),
        Ok(_) => Ok(Landlock(abi)),
        Err(error) => Err(error.to_string()),
    }
}

/// Everything that Landlock knows is forbidden, but for what is needed. Parts that this kernel does
/// not know yet are left out, which is the library's best effort.
fn restrict(needs: &Needs<'_>) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    rules = allow(rules, needs.read, read)?;
    rules = allow(rules, needs.devices, read | AccessFs::WriteFile)?;
    if let Sockets::Own { listen: Some(port) } = needs.sockets {
        rules = rules.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn allow(
    rules: RulesetCreated,
    paths: &[&Path],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    rules.add_rules(path_beneath_rules(paths, access))
}
