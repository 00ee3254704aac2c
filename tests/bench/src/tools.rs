//! What must be there before anything is started.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Peers, and what measures them, with the packages of Debian 12 that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    ("cp", "coreutils"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("rsync", "rsync"),
    ("ssh", "openssh-client"),
    ("sync", "coreutils"),
    ("zstd", "zstd"),
];

/// The agent to measure, once everything is known to be there.
pub fn require(programs: Option<&Path>) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        .map(|(program, package)| format!("{program} (package {package})"))
        .collect();
    ensure!(missing.is_empty(), "missing: {}; run tests/bench/install.sh", missing.join(", "));
    let agent = self::programs(programs).join("causeway-agent");
    ensure!(agent.is_file(), "{} is missing: run `make programs`", agent.display());
    Ok(agent)
}

/// The folder with our programs.
pub fn programs(named: Option<&Path>) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/programs");
    named.map_or(built, Path::to_owned)
}

pub fn debian_image() -> Result<PathBuf> {
    eprintln!("looking for the Debian image (the first time it takes some minutes)");
    Ok(lab::guest::debian::build().context("cannot make the Debian image")?.root)
}
