//! Images that the destination holds already, by the content of their blocks: what a VM has of them need not come.
//!
//! The receiving end reads them once and tells the other one the hashes. What is then named is read again where it was,
//! and looked at: an image that has changed since is found out, and nothing of it is passed on.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use super::codec::{PAGE, Page};
use super::store::{Hash, hash};

/// Of all images together, without zeros and what is there twice: 2 GiB of content. For each migration the other end is
/// sent up to 16 MiB for that, and takes up to 60 MiB of memory.
pub const BLOCKS_MAX: u32 = 1 << 19;
/// On the line.
pub const HASH_LEN: usize = size_of::<Hash>();
/// So many are told at a time, 64 KiB.
pub const HASHES_AT_ONCE: usize = (64 << 10) / HASH_LEN;

/// At the beginning of what is no raw image.
const FORMATS: [(&[u8], &str); 4] =
    [(b"QFI\xfb", "qcow2"), (b"KDMV", "VMDK"), (b"vhdxfile", "VHDX"), (b"QED\0", "QED")];

#[derive(Debug, Error)]
#[error("the template {} {what}", path.display())]
pub struct TemplateError {
    path: PathBuf,
    what: String,
}

/// Those of an agent.
#[derive(Debug, Default)]
pub struct Library {
    paths: Vec<PathBuf>,
    read: Arc<Mutex<Read>>,
}

#[derive(Debug, Default)]
struct Read {
    /// As the files were then.
    index: Option<(Vec<Stamp>, Arc<Index>)>,
    is_under_way: bool,
}

/// A file's content is the same while this is.
type Stamp = Option<(u64, u64, u64, [i64; 4])>;

fn stamp(path: &Path) -> Stamp {
    let it = fs::metadata(path).ok()?;
    let times = [it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()];
    Some((it.dev(), it.ino(), it.size(), times))
}

/// What may take as long as a disk, or a network, does: others of the runtime's tasks go on meanwhile.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        _ => work(),
    }
}

/// What is wrong with them, before any is read.
///
/// # Errors
/// One is not there, or is no raw image.
pub fn check(paths: &[PathBuf]) -> Result<(), TemplateError> {
    paths.iter().try_for_each(|path| open(path).map(drop))
}

fn open(path: &Path) -> Result<File, TemplateError> {
    let wrong = |what: String| TemplateError { path: path.to_owned(), what };
    let cannot = |error: io::Error| wrong(format!("cannot be read: {error}"));
    // Opening a pipe would wait for whoever writes to it; what a device holds changes without a trace.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(wrong("is no image: name a file".to_owned()));
    }
    let file = File::open(path).map_err(cannot)?;
    let mut head = [0; 8];
    let len = file.read_at(&mut head, 0).map_err(cannot)?;
    match FORMATS.iter().find(|(magic, _)| head[..len].starts_with(magic)) {
        Some((_, format)) => {
            let raw = "make a raw image of it (`qemu-img convert -O raw`), and name that";
            Err(wrong(format!("is an image in {format}: {raw}")))
        }
        None => Ok(file),
    }
}

impl Library {
    /// Reads nothing yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, read: Arc::default() }
    }

    /// What is known of them now. Where that is not what they are any more, or nothing yet, they are read, on a thread of
    /// its own, for whoever asks later.
    pub fn index(&self) -> Option<Arc<Index>> {
        if self.paths.is_empty() {
            return None;
        }
        let now: Vec<_> = aside(|| self.paths.iter().map(|path| stamp(path)).collect());
        let mut read = held(&self.read);
        match &read.index {
            Some((then, index)) if *then == now && !index.has_changed() => {
                return Some(Arc::clone(index));
            }
            _ => read.index = None,
        }
        if !std::mem::replace(&mut read.is_under_way, true) {
            let (paths, whose) = (self.paths.clone(), Arc::clone(&self.read));
            let read_all = move || {
                let index = Index::read(&paths);
                tracing::info!(blocks = index.hashes.len(), "templates are read");
                let mut read = held(&whose);
                *read = Read { index: Some((now, Arc::new(index))), is_under_way: false };
            };
            let thread = std::thread::Builder::new().name("templates".to_owned()).spawn(read_all);
            read.is_under_way = thread.is_ok();
        }
        None
    }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Images as they were when they were read. A block is known by its number among them.
#[derive(Debug, Default)]
pub struct Index {
    files: Vec<(PathBuf, File)>,
    hashes: Vec<Hash>,
    /// File and place of each, in blocks.
    places: Vec<(usize, u64)>,
    /// One was found to be another than it was.
    has_changed: AtomicBool,
}

impl Index {
    /// Those that can be read, as far as there is room.
    pub fn read(paths: &[PathBuf]) -> Self {
        let (mut index, mut seen) = (Self::default(), HashSet::new());
        for path in paths {
            let read = open(path).map_err(|error| error.to_string());
            let read = read.and_then(|file| {
                let number = index.files.len();
                index.take_in(number, &file, &mut seen).map_err(|error| error.to_string())?;
                index.files.push((path.clone(), file));
                Ok(())
            });
            if let Err(why) = read {
                tracing::warn!(template = %path.display(), "it is left out: {why}");
                let files = index.files.len();
                let kept = index.places.partition_point(|(file, _)| *file < files);
                index.places.truncate(kept);
                index.hashes.truncate(kept);
            }
        }
        index
    }

    fn take_in(&mut self, number: usize, file: &File, seen: &mut HashSet<Hash>) -> io::Result<()> {
        let mut buffer = vec![0; AT_ONCE];
        let mut at = 0;
        loop {
            let len = fill(file, &mut buffer, at)?;
            // What is left over at the end is no block.
            let blocks = buffer[..len].as_chunks::<PAGE>().0;
            for (block, place) in blocks.iter().zip(at / PAGE as u64..) {
                if self.hashes.len() == BLOCKS_MAX as usize {
                    return Ok(());
                }
                if block.iter().any(|byte| *byte != 0) {
                    let hash = hash(block);
                    if seen.insert(hash) {
                        self.hashes.push(hash);
                        self.places.push((number, place));
                    }
                }
            }
            at += len as u64;
            if len < AT_ONCE {
                return Ok(());
            }
        }
    }

    /// By their numbers.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    fn has_changed(&self) -> bool {
        self.has_changed.load(Ordering::Relaxed)
    }

    /// The block of that number; `None` where there is none.
    ///
    /// # Errors
    /// It is not any more what it was, or cannot be read.
    pub(super) fn block(&self, number: u32) -> Option<io::Result<Page>> {
        let number = usize::try_from(number).ok()?;
        let (file, place) = *self.places.get(number)?;
        let (path, file) = &self.files[file];
        let mut block = [0; PAGE];
        let read = aside(|| file.read_exact_at(&mut block, place * PAGE as u64));
        let block = read.and_then(|()| match hash(&block) == self.hashes[number] {
            true => Ok(block),
            false => Err(io::Error::other("it is not what it was when it was read")),
        });
        Some(block.inspect_err(|error| {
            tracing::warn!(template = %path.display(), "it cannot be used: {error}");
            self.has_changed.store(true, Ordering::Relaxed);
        }))
    }
}

const AT_ONCE: usize = 256 * PAGE;

/// As much as there is.
fn fill(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], at + have as u64) {
            Ok(0) => break,
            Ok(len) => have += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, name: &str, blocks: &[u8], rest: usize) -> PathBuf {
        let path = dir.join(name);
        let bytes: Vec<u8> = blocks.iter().flat_map(|byte| [*byte; PAGE]).collect();
        fs::write(&path, [bytes, vec![9; rest]].concat()).unwrap();
        path
    }

    #[test]
    fn every_block_is_known_once_and_zeros_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let one = image(dir.path(), "one", &[1, 0, 2, 1], 100);
        let other = image(dir.path(), "other", &[2, 3], 0);
        let missing = dir.path().join("missing");
        let index = Index::read(&[one.clone(), missing, other]);
        let known: Vec<_> = [1, 2, 3].iter().map(|byte| hash(&[*byte; PAGE])).collect();
        assert_eq!(index.hashes(), known);
        for (number, byte) in [1, 2, 3].into_iter().enumerate() {
            let block = index.block(u32::try_from(number).unwrap()).unwrap().unwrap();
            assert_eq!(block, [byte; PAGE]);
        }
        assert!(index.block(3).is_none());
        assert!(!index.has_changed());
        // What has changed, or is gone, is not passed on.
        image(dir.path(), "one", &[1, 0, 7], 0);
        assert_eq!(index.block(0).unwrap().unwrap(), [1; PAGE]);
        assert!(index.block(1).unwrap().is_err());
        assert!(index.has_changed());
        fs::write(one, []).unwrap();
        assert!(index.block(0).unwrap().is_err());
    }

    #[test]
    fn they_are_read_for_whoever_asks_later_and_again_when_they_are_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), "one", &[1], 0);
        let library = Library::new(vec![path]);
        let until = |blocks: usize| {
            for _ in 0..10_000 {
                match library.index() {
                    Some(index) if index.hashes().len() == blocks => return index,
                    Some(index) => panic!("{} blocks", index.hashes().len()),
                    None => std::thread::sleep(std::time::Duration::from_millis(1)),
                }
            }
            panic!("they are never read");
        };
        assert!(library.index().is_none(), "nothing was read yet");
        let index = until(1);
        // One that was found out to be another is read anew, also where it looks the same.
        index.has_changed.store(true, Ordering::Relaxed);
        assert!(library.index().is_none());
        until(1);
        image(dir.path(), "one", &[1, 2], 0);
        until(2);
        assert!(Library::default().index().is_none());
    }

    #[test]
    fn what_is_no_raw_image_is_refused_with_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let refused = |path: &Path| check(&[path.to_owned()]).unwrap_err().to_string();
        assert!(refused(&path).contains("cannot be read"));
        assert!(refused(dir.path()).contains("is no image"));
        fs::write(&path, b"QFI\xfb\0\0\0\x03").unwrap();
        let said = refused(&path);
        assert!(said.contains("in qcow2") && said.contains("qemu-img convert -O raw"), "{said}");
        fs::write(&path, b"").unwrap();
        check(&[path]).unwrap();
    }
}
