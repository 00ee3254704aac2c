//! The static agent, as it is shipped.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;
use lab::run::run;

/// The one that `CAUSEWAY_AGENT` names, or else it is built, once per run of the tests.
pub fn agent() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|text| anyhow::anyhow!("{text}"))
}

fn build() -> Result<PathBuf> {
    if let Some(built) = env::var_os("CAUSEWAY_AGENT") {
        return Ok(PathBuf::from(built));
    }
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let target_dir =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    run(Command::new(env!("CARGO"))
        .args(["build", "--locked", "--profile", "lab", "--target", TARGET, "-p", "causeway-agent"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_DIR", &target_dir)
        .current_dir(workspace))?;
    Ok(target_dir.join(TARGET).join("lab/causeway-agent"))
}
