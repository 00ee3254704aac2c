//! The ledger program for guests: static, so that it runs in any of them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

use crate::{cache, run::run};

/// Names a program that was built elsewhere.
const VARIABLE: &str = "CAUSEWAY_LEDGER";

/// The static `ledger`: what `CAUSEWAY_LEDGER` names, or else built from this source, by cargo, in
/// the cache.
pub fn ledger() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = BUILT.get() {
        return Ok(path.clone());
    }
    let path = match env::var_os(VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => build()?,
    };
    if !path.is_file() {
        bail!("{VARIABLE} is not a file: {}", path.display());
    }
    Ok(BUILT.get_or_init(|| path).clone())
}

fn build() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let workspace = workspace.context("the crate is not in its workspace")?;
    // Cargo puts programs of the same name from different checkouts in the same place.
    let checkout = blake3::hash(workspace.as_os_str().as_encoded_bytes()).to_hex();
    let target = cache::dir()?.join(format!("ledger-target/{}", &checkout[..8]));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["rustc", "--quiet", "-p", "lab", "--bin", "ledger"]);
    // Quick to build, and quick enough for an emulated CPU: what is hot there is in this crate.
    command.args(["--config", "profile.dev.package.lab.opt-level=3"]);
    command.arg("--target-dir").arg(&target);
    command.args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    command.current_dir(workspace);
    run(&mut command).context("cannot build the ledger program")?;
    Ok(target.join("debug/ledger"))
}
