//! The agent's own key, kept in its state directory, readable by nobody else.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use site_ledger::keep_file;
use thiserror::Error;
use transfer::secure::{Identity, KeptKeyError};

#[derive(Debug, Error)]
pub enum KeyError {
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no key: remove it, and tell the other agent the new one", path.display())]
    NoKey { path: PathBuf, source: KeptKeyError },
}

/// The kept key, or a new one.
pub fn identity(state_dir: &Path) -> Result<Identity, KeyError> {
    let path = state_dir.join("key");
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| KeyError::Io { doing, path, source }
    };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    made.map_err(io("make", state_dir))?;
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = Identity::generate_pkcs8();
            // Whole, or not there at all: another key would be another agent.
            keep_file(&path, &bytes).map_err(io("write", &path))?;
            bytes
        }
        Err(error) => return Err(io("read", &path)(error)),
    };
    Identity::from_pkcs8(&bytes).map_err(|source| KeyError::NoKey { path, source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_stays_the_same_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let first = identity(&state).unwrap().public();
        assert_eq!(identity(&state).unwrap().public(), first);
        let mode = fs::metadata(state.join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(state.join("key"), b"no").unwrap();
        assert!(identity(&state).is_err());
    }
}
