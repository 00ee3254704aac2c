//! The folder of an agent in a guest: what lies there, and whose it is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;
use thiserror::Error;

use crate::log::Log;

#[derive(Clone, Debug)]
pub struct Place {
    dir: PathBuf,
}

#[derive(Debug, Error)]
pub enum PlaceError {
    #[error("{} is not this user's alone: anyone could talk to the agent", dir.display())]
    NotPrivate { dir: PathBuf },

    #[error("an agent already runs in {}", dir.display())]
    Taken { dir: PathBuf },

    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The pid file of a running agent: locked for as long as it runs.
#[derive(Debug)]
pub struct Claim {
    _file: File,
}

impl Place {
    pub fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self { dir: std::path::absolute(dir)? })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("agent.pid")
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
        |source| PlaceError::Io { path: path.to_owned(), source }
    }

    /// Makes the folder if it is missing; refuses one that others may write to.
    pub fn prepare(&self) -> Result<(), PlaceError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(Self::io(&self.dir))?;
        let found = fs::metadata(&self.dir).map_err(Self::io(&self.dir))?;
        let own = found.uid() == rustix::process::geteuid().as_raw();
        if !own || found.mode() & 0o022 != 0 {
            return Err(PlaceError::NotPrivate { dir: self.dir.clone() });
        }
        Ok(())
    }

    /// Takes the folder for this process, as the only agent in it.
    pub fn claim(&self) -> Result<Claim, PlaceError> {
        let path = self.pid_file();
        let open = || -> io::Result<File> {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)
        };
        let mut file = open().map_err(Self::io(&path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(PlaceError::Taken { dir: self.dir.clone() });
        }
        let mut write = || -> io::Result<()> {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", std::process::id())
        };
        write().map_err(Self::io(&path))?;
        Ok(Claim { _file: file })
    }

    /// The running agent of this folder, if there is one: the process that the pid file names, if
    /// the file is locked (it dies with its process) and the process is this program.
    pub fn running(&self) -> Result<Option<Pid>, PlaceError> {
        let path = self.pid_file();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Self::io(&path)(error)),
        };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(None);
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(Self::io(&path))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        Ok(pid.filter(|pid| self.is_agent(*pid)))
    }

    /// Is this process an agent of this folder? A number in a file may be anyone's by now.
    fn is_agent(&self, pid: Pid) -> bool {
        let command =
            fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let arguments: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        let dir = self.dir.as_os_str().as_encoded_bytes();
        arguments.contains(&&b"serve"[..]) && arguments.contains(&dir)
    }

    /// Removes what an agent leaves here, and the folder if nothing else is in it; names it. What
    /// is gone already is no error, and files of others stay.
    pub fn clear(&self) -> Result<Vec<PathBuf>, PlaceError> {
        let mut files =
            vec![self.socket(), self.log(), Log::path_of_previous(&self.log()), self.pid_file()];
        files.extend(self.own_binary());
        let mut removed = Vec::new();
        for path in files {
            match fs::remove_file(&path) {
                Ok(()) => removed.push(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Self::io(&path)(error)),
            }
        }
        match fs::remove_dir(&self.dir) {
            Ok(()) => removed.push(self.dir.clone()),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty => {}
                _ => return Err(Self::io(&self.dir)(error)),
            },
        }
        Ok(removed)
    }

    /// This program's file, if it was put into this folder.
    fn own_binary(&self) -> Option<PathBuf> {
        let own = fs::read_link("/proc/self/exe").ok()?;
        let dir = fs::canonicalize(&self.dir).ok()?;
        (own.parent() == Some(&dir)).then_some(own)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place() -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(&dir.path().join("agent")).unwrap();
        place.prepare().unwrap();
        (dir, place)
    }

    #[test]
    fn a_second_agent_in_the_same_folder_is_refused() {
        let (_dir, place) = place();
        let claim = place.claim().unwrap();
        assert!(matches!(place.claim(), Err(PlaceError::Taken { .. })));
        drop(claim);
        assert!(place.claim().is_ok());
    }

    #[test]
    fn a_pid_that_is_someone_elses_by_now_is_no_agent() {
        let (_dir, place) = place();
        assert_eq!(place.running().unwrap(), None);
        // Locked by this test, which is not `serve`.
        let _claim = place.claim().unwrap();
        assert_eq!(place.running().unwrap(), None);
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let (_dir, place) = place();
        fs::set_permissions(place.dir(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(place.prepare(), Err(PlaceError::NotPrivate { .. })));
    }

    #[test]
    fn clearing_twice_is_no_error_and_files_of_others_stay() {
        let (_dir, place) = place();
        drop(place.claim().unwrap());
        let other = place.dir().join("other");
        fs::write(&other, "x").unwrap();
        assert_eq!(place.clear().unwrap().len(), 1);
        assert_eq!(place.clear().unwrap().len(), 0);
        assert!(other.exists());
        fs::remove_file(other).unwrap();
        assert_eq!(place.clear().unwrap(), [place.dir()]);
    }
}
