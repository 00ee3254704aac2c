//! A migration that waits before its decision, so that a test can look at both sides.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

const PATIENCE: Duration = Duration::from_secs(400);

/// For `--gate`: it says that it was reached and waits until it is opened.
pub struct Gate {
    reached: PathBuf,
    open: PathBuf,
}

impl Gate {
    /// A closed one.
    pub fn new(dir: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(dir)?.keep();
        Ok(Self { reached: dir.join("reached"), open: dir.join("open") })
    }

    /// Ends by itself should the test be gone.
    pub fn command(&self) -> String {
        format!(
            "touch {}; for i in $(seq 4000); do test -e {} && exit; sleep 0.1; done; exit 1",
            self.reached.display(),
            self.open.display()
        )
    }

    /// Is it being asked, or was it?
    pub fn was_reached(&self) -> bool {
        self.reached.exists()
    }

    /// Waits until `migrating` asks. Answers whether it does; the alternative is that it ended.
    pub fn is_reached(&self, migrating: &mut Child) -> Result<bool> {
        let began = Instant::now();
        while !self.was_reached() {
            if migrating.try_wait()?.is_some() {
                return Ok(false);
            }
            ensure!(began.elapsed() < PATIENCE, "the migration hangs before its decision");
            sleep(Duration::from_millis(50));
        }
        Ok(true)
    }

    pub fn open(&self) -> Result<()> {
        Ok(std::fs::write(&self.open, "")?)
    }
}
