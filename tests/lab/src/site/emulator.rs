//! What libvirt starts for QEMU at a site.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::Result;

use crate::cache;

const PROGRAM: &str = include_str!("emulator.sh");

/// The same file for all sites: libvirt asks one that it does not know what it can do, for seconds.
pub(crate) fn program() -> Result<PathBuf> {
    let name = format!("emulator/{}", &blake3::hash(PROGRAM.as_bytes()).to_hex()[..16]);
    cache::entry(&name, |path| {
        fs::write(path, PROGRAM)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    })
}
