//! A lab's directory: who owns it, whether the owner lives, and what a dead owner left behind.
//!
//! The owner holds a lock on the file `owner` for as long as it lives; the kernel lets go of the
//! lock when the process dies in any way. Every process that a lab starts carries the directory in
//! its environment ([`MARK`]), so leftovers can be told from another lab's processes.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The variable in the environment of every process of a lab; its value is the lab's directory.
pub const MARK: &str = "CAUSEWAY_LAB";

const PREFIX: &str = "causeway-lab-";

/// Where labs live unless told otherwise: `$CAUSEWAY_LAB_DIR`, or else `/var/tmp`, which is on a
/// disk where `/tmp` may be in memory.
pub fn default_root() -> PathBuf {
    env::var_os("CAUSEWAY_LAB_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// The directory of a living lab.
#[derive(Debug)]
pub(crate) struct State {
    pub dir: PathBuf,
    _owner: File,
}

impl State {
    pub fn create(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        let _creating = lock(root)?;
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(8)
            .tempdir_in(root)
            .with_context(|| format!("cannot create a directory in {}", root.display()))?
            .keep();
        let mut owner = File::create(dir.join("owner"))?;
        owner.lock().context("cannot lock a file just made")?;
        let pid = std::process::id();
        writeln!(owner, "{pid} {}", start_time(pid).unwrap_or_default())?;
        Ok(Self { dir, _owner: owner })
    }
}

/// What [`reap`] found of one dead lab, and removed.
#[derive(Debug)]
pub struct Reaped {
    pub dir: PathBuf,
    pub processes: usize,
}

/// Ends the processes of labs under `root` whose owner is dead and removes their directories.
/// Directories that somebody asked to keep (`LAB_KEEP`) stay.
pub fn reap(root: &Path) -> Result<Vec<Reaped>> {
    let mut reaped = Vec::new();
    let Ok(found) = fs::read_dir(root) else {
        return Ok(reaped);
    };
    let _creating = lock(root)?;
    for dir in found.filter_map(Result::ok).map(|entry| entry.path()) {
        if !is_lab(&dir) || dir.join("kept").exists() || is_owned(&dir) {
            continue;
        }
        let processes = kill_marked(&dir)?;
        remove(&dir)?;
        reaped.push(Reaped { dir, processes });
    }
    Ok(reaped)
}

fn is_lab(dir: &Path) -> bool {
    dir.is_dir() && dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// Whether the lab's owner lives. Nobody creates a lab meanwhile: see [`lock`].
fn is_owned(dir: &Path) -> bool {
    File::open(dir.join("owner"))
        .is_ok_and(|owner| matches!(owner.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Between creating a directory and locking its `owner` a lab looks dead: both happen under this.
fn lock(root: &Path) -> Result<File> {
    let dir = File::open(root).with_context(|| format!("cannot open {}", root.display()))?;
    dir.lock().with_context(|| format!("cannot lock {}", root.display()))?;
    Ok(dir)
}

fn kill_marked(dir: &Path) -> Result<usize> {
    let mut killed = 0;
    // Processes may be born while we look: until a look finds none.
    for _ in 0..200 {
        let marked = marked_processes(dir)?;
        if marked.is_empty() {
            return Ok(killed);
        }
        for pid in marked {
            // It may have ended by itself since.
            let _ = kill_process(pid, Signal::KILL);
            killed += 1;
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("processes of {} do not end", dir.display())
}

/// The processes that carry the mark of the lab at `dir`. Zombies have no environment any more.
pub(crate) fn marked_processes(dir: &Path) -> Result<Vec<Pid>> {
    let mark = [MARK.as_bytes(), b"=", dir.as_os_str().as_encoded_bytes()].concat();
    let mut marked = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list processes")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|&byte| byte == 0).any(|variable| variable == mark) {
            marked.extend(Pid::from_raw(pid));
        }
    }
    Ok(marked)
}

/// How many processes there are that carry the mark of the lab at `dir`.
pub fn processes(dir: &Path) -> Result<usize> {
    Ok(marked_processes(dir)?.len())
}

fn remove(dir: &Path) -> Result<()> {
    if fs::remove_dir_all(dir).is_ok() {
        return Ok(());
    }
    // A fence may have made images immutable.
    let _ = Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(dir).status();
    match fs::remove_dir_all(dir) {
        // The lab's own warden may be removing it at the same time.
        Err(_) if !dir.exists() => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", dir.display())),
    }
}

/// When a process started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name, may have spaces; it ends at the last parenthesis.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}
