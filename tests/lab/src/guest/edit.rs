//! Changes files in an ext4 inside a raw image, by `debugfs`: nothing is mounted.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::run::run;

/// Changes that are made all at once.
#[derive(Debug)]
pub(super) struct Edits {
    script: String,
    scratch: tempfile::TempDir,
    count: usize,
}

impl Edits {
    pub fn new() -> Result<Self> {
        Ok(Self { script: String::new(), scratch: tempfile::tempdir()?, count: 0 })
    }

    /// Creates or replaces a file in a directory that exists.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl AsRef<[u8]>) -> Result<()> {
        if path.contains(['"', '\n']) || !path.starts_with('/') {
            bail!("not a path that debugfs takes: {path}");
        }
        let content: PathBuf = self.scratch.path().join(self.count.to_string());
        self.count += 1;
        fs::write(&content, bytes)?;
        // `rm` of what is not there only complains.
        writeln!(self.script, "rm \"{path}\"\nwrite \"{}\" \"{path}\"", content.display())?;
        writeln!(self.script, "sif \"{path}\" mode 0100{mode:03o}")?;
        writeln!(self.script, "sif \"{path}\" uid 0\nsif \"{path}\" gid 0")?;
        Ok(())
    }

    /// Makes the changes in the file system that begins at byte `at` of `image`, and looks at each
    /// file afterwards: debugfs does not say by its exit code whether it did as told.
    pub fn apply(&self, image: &Path, at: u64) -> Result<()> {
        let script = self.scratch.path().join("script");
        fs::write(&script, &self.script)?;
        let target = format!("{}?offset={at}", image.display());
        run(Command::new("debugfs").arg("-w").arg("-f").arg(&script).arg(&target))?;
        for number in 0..self.count {
            let wanted = self.scratch.path().join(number.to_string());
            let path = self.path_of(number);
            let found = self.scratch.path().join("found");
            let dump = format!("dump \"{path}\" \"{}\"", found.display());
            run(Command::new("debugfs").arg("-R").arg(&dump).arg(&target))?;
            if fs::read(&found).ok() != Some(fs::read(wanted)?) {
                bail!("debugfs did not write {path} into {}", image.display());
            }
        }
        Ok(())
    }

    fn path_of(&self, number: usize) -> &str {
        let line = self.script.lines().filter(|line| line.starts_with("rm ")).nth(number);
        line.unwrap_or_default().trim_start_matches("rm ").trim_matches('"')
    }
}
