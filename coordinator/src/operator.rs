//! What the operator says while a migration runs: a release from the hold, and a gate's answer.

use std::io::{Read as _, Seek as _};
use std::process::Stdio;

use async_trait::async_trait;
use engine::Operator;
use model::SiteName;
use tokio::process::Command;
use units::MigrationId;

use crate::store::Store;

/// How much of what a gate that says no has printed is passed on, in lines.
const LAST_LINES: usize = 3;

/// The person, through `causeway switchover` and through the plan's gate.
pub struct Person {
    pub store: Store,
    pub id: MigrationId,
    pub vm: String,
    pub from: SiteName,
    pub to: SiteName,
}

#[async_trait]
impl Operator for Person {
    async fn has_released(&self) -> bool {
        self.store.is_released(&self.id).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look for a release");
            false
        })
    }

    async fn passes(&self, gate: &str) -> Result<(), String> {
        let unusable = |error: std::io::Error| format!("it cannot be run: {error}");
        let mut told = tempfile::tempfile().map_err(unusable)?;
        let status = Command::new("sh")
            .args(["-c", gate])
            .env("CAUSEWAY_MIGRATION", self.id.as_str())
            .env("CAUSEWAY_VM", &self.vm)
            .env("CAUSEWAY_FROM", self.from.as_str())
            .env("CAUSEWAY_TO", self.to.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A file, and no pipe: something that the gate leaves running must not hold us up.
            .stderr(told.try_clone().map_err(unusable)?)
            // Ctrl-C is for us: what it means in a switchover is not for the gate to say.
            .process_group(0)
            .kill_on_drop(true)
            .status()
            .await
            .map_err(unusable)?;
        if status.success() {
            return Ok(());
        }
        let mut said = Vec::new();
        told.rewind().and_then(|()| told.read_to_end(&mut said)).map_err(unusable)?;
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().rev().take(LAST_LINES).collect();
        let said: Vec<_> = lines.into_iter().rev().collect();
        Err(format!("{status}: {}", said.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gate_is_told_what_it_is_about_and_its_answer_counts() {
        let dir = tempfile::tempdir().unwrap();
        let person = Person {
            store: Store::open(dir.path()).unwrap(),
            id: "web1-1".parse().unwrap(),
            vm: "web1".to_owned(),
            from: "east".parse().unwrap(),
            to: "west".parse().unwrap(),
        };
        let asks =
            r#"test "$CAUSEWAY_FROM-$CAUSEWAY_TO" = east-west && test -n "$CAUSEWAY_MIGRATION""#;
        assert_eq!(person.passes(asks).await, Ok(()));
        let no = person.passes("echo too bad >&2; exit 7").await.unwrap_err();
        assert!(no.contains('7') && no.contains("too bad"), "{no}");
    }
}
