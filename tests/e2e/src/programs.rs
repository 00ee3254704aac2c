//! The programs under test.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Where `make` put what it built: `causeway`, `causeway-agent` (static), `causeway-mobility`,
/// `appliance/`.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// # Errors
    /// A missing program fails the test: it never passes because there was nothing to test.
    pub fn find() -> Result<Self> {
        let dir = match std::env::var_os("CAUSEWAY_PROGRAMS") {
            Some(dir) => PathBuf::from(dir),
            // `make` puts them beside the profiles: TARGET/programs, TARGET/lab/deps/TEST.
            None => {
                let program = std::env::current_exe()?;
                let target = program.ancestors().find(|dir| dir.join("programs").is_dir());
                target.unwrap_or_else(|| Path::new(".")).join("programs")
            }
        };
        let found = Self { dir };
        let appliance = found.appliance().join("appliance.json");
        for path in [found.causeway(), found.agent(), found.mobility(), appliance] {
            ensure!(path.exists(), "{} is missing: run `make programs`", path.display());
        }
        Ok(found)
    }

    pub fn causeway(&self) -> PathBuf {
        self.dir.join("causeway")
    }

    pub fn agent(&self) -> PathBuf {
        self.dir.join("causeway-agent")
    }

    pub fn mobility(&self) -> PathBuf {
        self.dir.join("causeway-mobility")
    }

    pub fn appliance(&self) -> PathBuf {
        self.dir.join("appliance")
    }
}
