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
    scratch: tempfile::TempDir,
    /// Path, permissions; the content is in a file named after its number.
    files: Vec<(String, u32)>,
}

impl Edits {
    pub fn new() -> Result<Self> {
        Ok(Self { scratch: tempfile::tempdir()?, files: Vec::new() })
    }

    /// Creates or replaces a file of root's in a directory that exists.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl AsRef<[u8]>) -> Result<()> {
        if path.contains(['"', '\n']) || !path.starts_with('/') {
            bail!("not a path that debugfs takes: {path}");
        }
        fs::write(self.scratch_file("wanted", self.files.len()), bytes)?;
        self.files.push((path.to_owned(), mode));
        Ok(())
    }

    /// Makes the changes in the file system that begins at byte `at` of `image`, and reads all
    /// files back: debugfs does not say by its exit code whether it did as told.
    pub fn apply(&self, image: &Path, at: u64) -> Result<()> {
        let mut write = String::new();
        let mut read = String::new();
        for (number, (path, mode)) in self.files.iter().enumerate() {
            let wanted = self.scratch_file("wanted", number);
            // `rm` of what is not there only complains.
            writeln!(write, "rm \"{path}\"\nwrite \"{}\" \"{path}\"", wanted.display())?;
            writeln!(write, "sif \"{path}\" mode 0100{mode:03o}")?;
            writeln!(write, "sif \"{path}\" uid 0\nsif \"{path}\" gid 0")?;
            let found = self.scratch_file("found", number);
            writeln!(read, "dump \"{path}\" \"{}\"", found.display())?;
        }
        let script = self.scratch.path().join("script");
        let target = format!("{}?offset={at}", image.display());
        for (option, text) in [(Some("-w"), write), (None, read)] {
            fs::write(&script, text)?;
            run(Command::new("debugfs").args(option).arg("-f").arg(&script).arg(&target))?;
        }
        for (number, (path, _)) in self.files.iter().enumerate() {
            let wanted = fs::read(self.scratch_file("wanted", number))?;
            if fs::read(self.scratch_file("found", number)).ok() != Some(wanted) {
                bail!("debugfs did not write {path} into {}", image.display());
            }
        }
        Ok(())
    }

    fn scratch_file(&self, kind: &str, number: usize) -> PathBuf {
        self.scratch.path().join(format!("{kind}-{number}"))
    }
}
