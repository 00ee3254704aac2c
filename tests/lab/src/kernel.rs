//! Debian's cloud kernel, fetched once by apt and cached.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::run::run;

/// A package with no content that depends on the newest kernel of this kind.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel to boot directly and the modules that belong to it.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub vmlinuz: PathBuf,
    /// Ends in `lib/modules/<version>` and holds `modules.dep`, `modules.alias`, `kernel/`.
    pub modules_dir: PathBuf,
    /// As `uname -r` says it, such as `6.1.0-56-cloud-amd64`.
    pub version: String,
}

/// The kernel in the cache, or the newest one that apt offers when there is none.
///
/// Needs a package index (`apt-get update`) the first time only.
pub fn debian_cloud() -> Result<Kernel> {
    let dir = cache::entry("kernel/debian-cloud", fetch)?;
    let version = fs::read_to_string(dir.join("version"))
        .with_context(|| format!("{} is not a kernel; remove it", dir.display()))?;
    Ok(Kernel {
        vmlinuz: dir.join("boot").join(format!("vmlinuz-{version}")),
        modules_dir: dir.join("lib/modules").join(&version),
        version,
    })
}

fn fetch(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let package = resolve()?;
    run(Command::new("apt-get").args(["download", &package]).current_dir(dir))
        .context("cannot download the kernel; try `apt-get update`")?;
    let archive = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .map(|found| found.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(dir))?;
    fs::remove_file(&archive)?;

    let version = package
        .strip_prefix("linux-image-")
        .and_then(|rest| rest.split('=').next())
        .with_context(|| format!("not the name of a kernel package: {package}"))?;
    // Debian's kernels come without the index that depmod makes at installation.
    run(Command::new("busybox").args(["depmod", "-b"]).arg(dir).arg(version))?;
    fs::write(dir.join("version"), version)?;
    Ok(())
}

/// The versioned package behind [`META_PACKAGE`], as `name=version`.
fn resolve() -> Result<String> {
    let shown = run(Command::new("apt-cache").args(["show", "--no-all-versions", META_PACKAGE]))
        .with_context(|| format!("apt does not know {META_PACKAGE}; try `apt-get update`"))?;
    let depends = shown
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))
        .with_context(|| format!("{META_PACKAGE} depends on nothing"))?;
    // Such as: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
    let Some((name, rest)) = depends.split_once(" (= ") else {
        bail!("{META_PACKAGE} has dependencies of an unknown shape: {depends}");
    };
    let version = rest.split(')').next().unwrap_or(rest);
    Ok(format!("{name}={version}"))
}
