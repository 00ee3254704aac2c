//! Images that the destination holds already, by the content of their blocks: what a VM has of them need not come.
//!
//! The receiving end reads them once and tells the other one the hashes. What is then named is read again where it was,
//! and looked at: an image that has changed since is found out, and nothing of it is passed on.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::codec::{PAGE, Page};
use super::store::{Hash, hash};

/// Of all images together, without zeros and what is there twice: 2 GiB of content. The other end is sent 16 MiB
/// for that, and takes 45 MiB of memory.
pub const BLOCKS_MAX: u32 = 1 << 19;
/// On the line.
pub const HASH_LEN: usize = size_of::<Hash>();

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
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let it = fs::metadata(path).ok()?;
    Some((it.dev(), it.ino(), it.size(), it.mtime(), it.mtime_nsec()))
}

impl Library {
    /// Reads nothing yet.
    ///
    /// # Errors
    /// One is not there, or is no raw image.
    pub fn open(paths: &[PathBuf]) -> Result<Self, TemplateError> {
        for path in paths {
            let wrong = |what: String| TemplateError { path: path.clone(), what };
            let cannot = |error: io::Error| wrong(format!("cannot be read: {error}"));
            let file = File::open(path).map_err(cannot)?;
            let kind = file.metadata().map_err(cannot)?.file_type();
            if !kind.is_file() && !kind.is_block_device() {
                return Err(wrong("is no image: name a file or a block device".to_owned()));
            }
            let mut head = [0; 8];
            let len = file.read_at(&mut head, 0).map_err(cannot)?;
            let format = FORMATS.iter().find(|(magic, _)| head[..len].starts_with(magic));
            if let Some((_, format)) = format {
                let raw = "make a raw image of it (`qemu-img convert -O raw`), and name that";
                return Err(wrong(format!("is an image in {format}: {raw}")));
            }
        }
        Ok(Self { paths: paths.to_vec(), read: Arc::default() })
    }

    /// What is known of them now. Where that is not what they are any more, or nothing yet, they are read, on a thread of
    /// its own, for whoever asks later.
    pub fn index(&self) -> Option<Arc<Index>> {
        if self.paths.is_empty() {
            return None;
        }
        let now: Vec<_> = self.paths.iter().map(|path| stamp(path)).collect();
        let mut read = held(&self.read);
        match &read.index {
            Some((then, index)) if *then == now => return Some(Arc::clone(index)),
            _ => read.index = None,
        }
        if !std::mem::replace(&mut read.is_under_way, true) {
            let (paths, whose) = (self.paths.clone(), Arc::clone(&self.read));
            let read_all = move || {
                let index = Index::read(&paths);
                let mut read = held(&whose);
                read.is_under_way = false;
                match index {
                    Ok(index) => {
                        tracing::info!(blocks = index.hashes.len(), "templates are read");
                        read.index = Some((now, Arc::new(index)));
                    }
                    Err(error) => tracing::warn!(%error, "templates cannot be read"),
                }
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
#[derive(Debug)]
pub struct Index {
    files: Vec<File>,
    hashes: Vec<Hash>,
    /// File and place of each, in blocks.
    places: Vec<(usize, u64)>,
}

impl Index {
    /// # Errors
    /// One cannot be read.
    pub fn read(paths: &[PathBuf]) -> io::Result<Self> {
        const AT_ONCE: usize = 256 * PAGE;
        let (mut files, mut hashes, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        let mut buffer = vec![0; AT_ONCE];
        for path in paths {
            let file = File::open(path)?;
            let mut at = 0;
            loop {
                let len = fill(&file, &mut buffer, at)?;
                // What is left over at the end is no block.
                for (block, place) in
                    buffer[..len].as_chunks::<PAGE>().0.iter().zip(at / PAGE as u64..)
                {
                    if block.iter().any(|byte| *byte != 0) && hashes.len() < BLOCKS_MAX as usize {
                        let hash = hash(block);
                        if seen.insert(hash) {
                            hashes.push(hash);
                            places.push((files.len(), place));
                        }
                    }
                }
                at += len as u64;
                if len < AT_ONCE {
                    break;
                }
            }
            files.push(file);
        }
        Ok(Self { files, hashes, places })
    }

    /// By their numbers.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// The block of that number; `None` where there is none.
    ///
    /// # Errors
    /// It is not any more what it was, or cannot be read.
    pub(super) fn block(&self, number: u32) -> Option<io::Result<Page>> {
        let number = usize::try_from(number).ok()?;
        let (file, place) = *self.places.get(number)?;
        let mut block = [0; PAGE];
        let read = self.files[file].read_exact_at(&mut block, place * PAGE as u64);
        Some(read.and_then(|()| match hash(&block) == self.hashes[number] {
            true => Ok(block),
            false => Err(io::Error::other("the template has changed")),
        }))
    }
}

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
        let index = Index::read(&[one.clone(), other]).unwrap();
        let known: Vec<_> = [1, 2, 3].iter().map(|byte| hash(&[*byte; PAGE])).collect();
        assert_eq!(index.hashes(), known);
        for (number, byte) in [1, 2, 3].into_iter().enumerate() {
            let block = index.block(u32::try_from(number).unwrap()).unwrap().unwrap();
            assert_eq!(block, [byte; PAGE]);
        }
        assert!(index.block(3).is_none());
        // What has changed, or is gone, is not passed on.
        image(dir.path(), "one", &[1, 0, 7], 0);
        assert_eq!(index.block(0).unwrap().unwrap(), [1; PAGE]);
        assert!(index.block(1).unwrap().is_err());
        fs::write(one, []).unwrap();
        assert!(index.block(0).unwrap().is_err());
    }

    #[test]
    fn they_are_read_for_whoever_asks_later_and_again_when_they_are_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), "one", &[1], 0);
        let library = Library::open(std::slice::from_ref(&path)).unwrap();
        let until = |blocks: usize| {
            loop {
                match library.index() {
                    Some(index) if index.hashes().len() == blocks => break,
                    Some(index) => panic!("{} blocks", index.hashes().len()),
                    None => std::thread::sleep(std::time::Duration::from_millis(1)),
                }
            }
        };
        assert!(library.index().is_none(), "nothing was read yet");
        until(1);
        image(dir.path(), "one", &[1, 2], 0);
        until(2);
        assert!(Library::default().index().is_none());
    }

    #[test]
    fn what_is_no_raw_image_is_refused_with_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let refused = |path: &Path| Library::open(&[path.to_owned()]).unwrap_err().to_string();
        assert!(refused(&path).contains("cannot be read"));
        assert!(refused(dir.path()).contains("is no image"));
        fs::write(&path, b"QFI\xfb\0\0\0\x03").unwrap();
        let said = refused(&path);
        assert!(said.contains("in qcow2") && said.contains("qemu-img convert -O raw"), "{said}");
        fs::write(&path, b"").unwrap();
        Library::open(&[path]).unwrap();
    }
}
