//! libvirt's knowledge of QEMU, carried from lab to lab.
//!
//! libvirtd starts QEMU several times to learn what it can do: seconds for every new site. What it
//! learnt lies in its cache directory, and it checks itself whether that still holds for the
//! programs, the kernel and the CPU at hand.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;
use crate::site::{Site, emulator};

/// Puts what is known into a site that is not started yet.
pub(crate) fn give(site: &Site) -> Result<()> {
    let known = cache::dir()?.join(entry()?);
    if known.exists() {
        copy(&known, &site.capabilities_dir())?;
    }
    Ok(())
}

/// Keeps what a running site knows, after making it learn, if nothing is kept yet.
pub(crate) fn keep(site: &Site) -> Result<()> {
    cache::entry(&entry()?, |dir| {
        site.virsh(&["domcapabilities", "--virttype", "qemu", "--arch", "x86_64"])?;
        fs::create_dir_all(dir)?;
        copy(&site.capabilities_dir(), dir)
    })?;
    Ok(())
}

/// Named after the programs, so that the knowledge of others is not in the way.
fn entry() -> Result<String> {
    let changed = |program: &Path| {
        fs::metadata(program)
            .map(|found| found.ctime())
            .with_context(|| format!("{} is missing", program.display()))
    };
    let qemu = changed("/usr/bin/qemu-system-x86_64".as_ref())?;
    let libvirtd = changed("/usr/sbin/libvirtd".as_ref())?;
    let emulator = changed(&emulator::program()?)?;
    Ok(format!("capabilities/emulated-{qemu}-{emulator}-{libvirtd}"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for file in fs::read_dir(from)?.filter_map(Result::ok) {
        let to: PathBuf = to.join(file.file_name());
        fs::copy(file.path(), &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}
