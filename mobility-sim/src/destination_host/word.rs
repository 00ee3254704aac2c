//! An operator's word that a VM is dead at its source, where nobody saw it end. It lies in the agent's
//! own directory, is recorded with the fence, and is never called proof.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use handover::Attestation;
use site_ledger::keep_file;
use tracing::warn;
use units::MigrationId;

fn file(state_dir: &Path, id: &MigrationId) -> PathBuf {
    state_dir.join(format!("word-{id}"))
}

/// For whoever runs the agent: it is taken up within seconds, if it is needed.
pub fn give(state_dir: &Path, id: &MigrationId, by: &str, reason: &str) -> io::Result<()> {
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    keep_file(&file(state_dir, id), format!("{}\n{}\n", line(by), line(reason)).as_bytes())
}

/// `None`: none was given, or it cannot be read.
pub fn given(state_dir: &Path, id: &MigrationId) -> Option<Attestation> {
    let path = file(state_dir, id);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                warn!(%error, "{} cannot be read: is it this agent's user's?", path.display());
            }
            return None;
        }
    };
    let (by, reason) = text.trim_end().split_once('\n')?;
    Some(Attestation { by: by.into(), reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_about_one_migration_and_says_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (id, other) = ("native-1".parse().unwrap(), "native-2".parse().unwrap());
        assert_eq!(given(dir.path(), &id), None);
        give(dir.path(), &id, "ann", "I saw it end\nand wept").unwrap();
        let word = given(dir.path(), &id).unwrap();
        assert_eq!((word.by.as_str(), word.reason.as_str()), ("ann", "I saw it end and wept"));
        assert_eq!(given(dir.path(), &other), None);
    }
}
