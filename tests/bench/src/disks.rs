//! The source, which is only read, and the target, which every run gets anew.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Advice, fadvise, syncfs};

use crate::child;

/// How much is compared at once.
const PIECE: usize = 1 << 20;

/// In which state a tool wants to find its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// It creates the file itself.
    Absent,
    /// As large as the source, one hole.
    Empty,
}

#[derive(Debug)]
pub struct Disks {
    pub source: PathBuf,
    pub target: PathBuf,
    /// Of the source, holes included.
    pub bytes: u64,
    /// What the source takes on its disk.
    pub allocated_bytes: u64,
    log: PathBuf,
}

impl Disks {
    /// With a private copy of `original` in `dir` as the source.
    pub fn copy_of(original: &Path, dir: &Path) -> Result<Self> {
        let (source, target, log) = (dir.join("source"), dir.join("target"), dir.join(child::LOG));
        let mut copy = Command::new("cp");
        child::run(copy.args(["--sparse=always", "--"]).arg(original).arg(&source), &log)?;
        let found = fs::metadata(&source)?;
        ensure!(found.len() > 0, "{} is empty", original.display());
        let allocated_bytes = found.blocks() * 512;
        Ok(Self { source, target, bytes: found.len(), allocated_bytes, log })
    }

    /// Equal conditions for the next run: no target but an empty one, nothing left to be written
    /// by the run before, and nothing of the source in memory.
    pub fn make_ready(&self, target: Target) -> Result<()> {
        remove(&self.log)?;
        remove(&self.target)?;
        if target == Target::Empty {
            File::create_new(&self.target)?.set_len(self.bytes)?;
        }
        let source = File::open(&self.source)?;
        syncfs(&source)?;
        forget(&source)
    }

    /// Returns when the target's data is on stable storage. By a process, so that it is counted.
    pub fn sync_target(&self) -> Result<()> {
        child::run(Command::new("sync").arg("--data").arg(&self.target), &self.log)
    }

    /// Fails unless source and target are the same, byte by byte, as read from their disk.
    pub fn compare(&self) -> Result<()> {
        let (source, target) = (File::open(&self.source)?, File::open(&self.target)?);
        forget(&target)?;
        let difference = first_difference(source, target)?;
        ensure!(
            difference.is_none(),
            "the copy differs at byte {}",
            difference.unwrap_or_default()
        );
        Ok(())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}

/// Drops a file's clean pages from the page cache.
fn forget(file: &File) -> Result<()> {
    fadvise(file, 0, None, Advice::DontNeed).context("cannot drop cached pages")
}

/// Where the files differ first; the end of the shorter one counts.
fn first_difference(mut one: File, mut other: File) -> io::Result<Option<usize>> {
    let mut pieces = [Vec::with_capacity(PIECE), Vec::with_capacity(PIECE)];
    let mut at = 0;
    loop {
        let [a, b] = &mut pieces;
        a.clear();
        b.clear();
        one.by_ref().take(PIECE as u64).read_to_end(a)?;
        other.by_ref().take(PIECE as u64).read_to_end(b)?;
        if a != b {
            let same = a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count();
            return Ok(Some(at + same));
        }
        if a.is_empty() {
            return Ok(None);
        }
        at += a.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(source: &[u8], target: &[u8]) -> Option<usize> {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["one", "other"].map(|name| dir.path().join(name));
        fs::write(&paths[0], source).unwrap();
        fs::write(&paths[1], target).unwrap();
        let [one, other] = paths.map(|path| File::open(path).unwrap());
        first_difference(one, other).unwrap()
    }

    #[test]
    fn one_other_byte_is_a_difference() {
        let source = vec![7; 3 * PIECE + 100];
        let mut target = source.clone();
        assert_eq!(difference(&source, &target), None);
        target[2 * PIECE + 5] = 8;
        assert_eq!(difference(&source, &target), Some(2 * PIECE + 5));
    }

    #[test]
    fn another_length_is_a_difference() {
        assert_eq!(difference(&[0; 4096], &[0; 4095]), Some(4095));
        assert_eq!(difference(&[0; PIECE], &[0; PIECE + 1]), Some(PIECE));
        assert_eq!(difference(&[0; 10], &[]), Some(0));
    }

    #[test]
    fn every_run_finds_the_target_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let original = dir.path().join("original");
        fs::write(&original, [1; 5000]).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let disks = Disks::copy_of(&original, scratch.path()).unwrap();
        fs::write(&disks.target, "of the run before").unwrap();
        disks.make_ready(Target::Empty).unwrap();
        assert_eq!(fs::read(&disks.target).unwrap(), [0; 5000]);
        assert!(disks.compare().is_err());
        disks.make_ready(Target::Absent).unwrap();
        assert!(!disks.target.exists());
        fs::copy(&original, &disks.target).unwrap();
        disks.sync_target().unwrap();
        disks.compare().unwrap();
    }
}
