//! Disk images, compared byte by byte.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::run::run;
use serde_json::Value;
use tempfile::NamedTempFile;

/// The fence replaces so much at both ends of a source's image by a notice. It is passed over: the
/// receipt's digests cover what was there.
const NOTICE: u64 = 64 << 10;
/// libvirt makes qcow2 volumes in whole KiB.
const ROUNDED_UP_MAX: u64 = 1024;
const CHUNK: u64 = 1 << 20;

/// An image's content as a file.
enum Raw {
    Own(PathBuf),
    Converted(NamedTempFile),
}

impl Raw {
    fn of(image: &Path) -> Result<Self> {
        if image.extension().is_none_or(|ending| ending != "qcow2") {
            return Ok(Self::Own(image.to_owned()));
        }
        let flat = NamedTempFile::new()?;
        let words = ["convert", "-U", "-f", "qcow2", "-O", "raw"];
        let status = Command::new("qemu-img").args(words).arg(image).arg(flat.path()).status()?;
        ensure!(status.success(), "qemu-img cannot read {}", image.display());
        Ok(Self::Converted(flat))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Converted(file) => file.path(),
        }
    }
}

/// Fenced images of a source, and the targets that were made of them, in the same order.
pub fn are_equal(sources: &[PathBuf], targets: &[PathBuf]) -> Result<()> {
    ensure!(sources.len() == targets.len(), "{sources:?} and {targets:?}");
    for (source, target) in sources.iter().zip(targets) {
        equal(source, target).with_context(|| target.display().to_string())?;
    }
    Ok(())
}

/// What is in this qcow2 image goes into another one beside it, of which it becomes an empty overlay.
pub fn lay_over_base(image: &Path) -> Result<()> {
    let base = image.with_extension("base.qcow2");
    std::fs::rename(image, &base)?;
    let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    run(Command::new("qemu-img").args(words).args([&base, image]))?;
    Ok(())
}

/// The image that this one is an overlay of.
pub fn base_of(image: &Path) -> Result<Option<PathBuf>> {
    let words = ["info", "-U", "--output", "json"];
    let told: Value = serde_json::from_str(&run(Command::new("qemu-img").args(words).arg(image))?)?;
    Ok(told["full-backing-filename"].as_str().map(PathBuf::from))
}

fn equal(source: &Path, target: &Path) -> Result<()> {
    let (source, target) = (Raw::of(source)?, Raw::of(target)?);
    let (ours, theirs) = (File::open(source.path())?, File::open(target.path())?);
    let (size, target_size) = (ours.metadata()?.len(), theirs.metadata()?.len());
    let range = size..size + ROUNDED_UP_MAX;
    ensure!(range.contains(&target_size), "{size} bytes became {target_size}");
    let (mut ours, mut theirs) = (BufReader::new(ours), BufReader::new(theirs));
    let mut at = 0;
    while at < size {
        let length = next_piece(at, size);
        let (ours, theirs) = (piece(&mut ours, length)?, piece(&mut theirs, length)?);
        if at >= NOTICE && at + length <= size - NOTICE {
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            ensure!(differs.is_none(), "differs {differs:?} bytes after {at}");
        }
        at += length;
    }
    let tail = piece(&mut theirs, target_size - size)?;
    ensure!(tail.iter().all(|byte| *byte == 0), "something is behind its end");
    Ok(())
}

/// Pieces that begin and end where the notices do.
fn next_piece(at: u64, size: u64) -> u64 {
    let edge = if at < NOTICE { NOTICE } else { size - NOTICE };
    let edge = if at >= edge { size } else { edge };
    CHUNK.min(edge - at)
}

fn piece(from: &mut impl Read, length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length)?];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_seen_wherever_the_notices_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("a.raw"), dir.path().join("b.img"));
        let size = usize::try_from(3 * CHUNK + 517).unwrap();
        let notice = usize::try_from(NOTICE).unwrap();
        let content: Vec<u8> = (0..size).map(|at| at.to_le_bytes()[1]).collect();
        std::fs::write(&source, &content).unwrap();
        for (at, seen) in [
            (0, false),
            (notice - 1, false),
            (notice, true),
            (1 << 20, true),
            (size - notice - 1, true),
            (size - notice, false),
        ] {
            let mut changed = content.clone();
            changed[at] ^= 1;
            std::fs::write(&target, &changed).unwrap();
            assert_eq!(equal(&source, &target).is_err(), seen, "{at}");
        }
        std::fs::write(&target, [&content[..], &[1]].concat()).unwrap();
        assert!(equal(&source, &target).is_err(), "a tail");
        std::fs::write(&target, [&content[..], &[0]].concat()).unwrap();
        equal(&source, &target).unwrap();
    }
}
