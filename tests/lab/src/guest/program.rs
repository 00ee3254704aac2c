//! The ledger program for guests: static, so that it runs in any of them.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};

/// Names a program that lies elsewhere.
const VARIABLE: &str = "CAUSEWAY_LEDGER";

/// The static `ledger`: what `CAUSEWAY_LEDGER` names, or else the one that cargo put beside the
/// program that asks; tests lie one directory further down.
pub fn ledger() -> Result<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE) {
        let named = PathBuf::from(named);
        if !named.is_file() {
            bail!("{VARIABLE} is not a file: {}", named.display());
        }
        return Ok(named);
    }
    let program = env::current_exe()?;
    let beside = program.ancestors().skip(1).take(2).map(|dir| dir.join("ledger"));
    let Some(found) = beside.into_iter().find(|path| path.is_file()) else {
        bail!(
            "no ledger program beside {}: build it with the same profile, `cargo build --workspace`",
            program.display()
        );
    };
    Ok(found)
}
