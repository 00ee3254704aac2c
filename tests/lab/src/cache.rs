//! Things that take long to make and do not change: kernels, guest images, QEMU's capabilities.
//!
//! They live in `$CAUSEWAY_CACHE`, or else `~/.cache/causeway-lab`. An entry is complete or absent:
//! it is made beside its place under a lock and renamed into it.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The directory of everything cached.
pub fn dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("CAUSEWAY_CACHE") {
        let dir = PathBuf::from(dir);
        if !dir.is_absolute() {
            bail!("CAUSEWAY_CACHE is not an absolute path: {}", dir.display());
        }
        return Ok(dir);
    }
    let home = env::var_os("HOME").context("neither CAUSEWAY_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/causeway-lab"))
}

/// The entry `name` (may have slashes), made by `make` if it is absent.
///
/// `make` gets a path that does not exist and must leave a file or a directory there. Other
/// processes and threads that want the same entry wait for it.
pub fn entry(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = dir()?.join(name);
    if path.exists() {
        return Ok(path);
    }
    let _lock = lock(name)?;
    if path.exists() {
        return Ok(path);
    }
    let parent = path.parent().context("a cache entry has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let unfinished = path.with_file_name(format!(
        ".unfinished-{}",
        path.file_name().context("a cache entry has a name")?.to_string_lossy()
    ));
    remove(&unfinished)?;
    if let Err(cause) = make(&unfinished) {
        remove(&unfinished)?;
        return Err(cause.context(format!("cannot make {name} for the cache")));
    }
    fs::rename(&unfinished, &path)
        .with_context(|| format!("cannot rename {}", unfinished.display()))?;
    Ok(path)
}

/// Excludes other processes and threads from the entry `name` until the file is dropped.
pub fn lock(name: &str) -> Result<File> {
    let locks = dir()?.join("locks");
    fs::create_dir_all(&locks).with_context(|| format!("cannot create {}", locks.display()))?;
    let path = locks.join(name.replace('/', "_"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
