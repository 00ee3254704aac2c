//! The keys of all lab guests, made once per cache: one to get in by, one for the guests to show.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{cache, run::run};

#[derive(Debug, Clone)]
pub struct Keys(PathBuf);

impl Keys {
    /// The keys in the cache, made if there are none.
    pub fn get() -> Result<Self> {
        cache::entry("keys", make).map(Self)
    }

    /// The private key that opens `root` and `ops` in every guest.
    #[must_use]
    pub fn private(&self) -> PathBuf {
        self.0.join("id_ed25519")
    }

    /// Its public half, as a line of `authorized_keys`.
    pub fn public(&self) -> Result<String> {
        self.text("id_ed25519.pub")
    }

    /// What every guest shows, as `type base64 comment`.
    pub fn host_public(&self) -> Result<String> {
        self.text("host_ed25519.pub")
    }

    /// The guests' host key at any address, for `UserKnownHostsFile`.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.0.join("known_hosts")
    }

    pub(super) fn host_private(&self) -> Result<String> {
        self.text("host_ed25519")
    }

    /// The host's private key in dropbear's format.
    pub(super) fn host_dropbear(&self) -> PathBuf {
        self.0.join("host_dropbear")
    }

    fn text(&self, name: &str) -> Result<String> {
        let path = self.0.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for (name, comment) in [("id_ed25519", "causeway-lab"), ("host_ed25519", "lab-guest")] {
        let arguments = ["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", name];
        run(Command::new("ssh-keygen").args(arguments).current_dir(dir))?;
    }
    let convert = ["openssh", "dropbear", "host_ed25519", "host_dropbear"];
    run(Command::new("dropbearconvert").args(convert).current_dir(dir))?;
    let public = fs::read_to_string(dir.join("host_ed25519.pub"))?;
    fs::write(dir.join("known_hosts"), format!("* {public}"))?;
    Ok(())
}
