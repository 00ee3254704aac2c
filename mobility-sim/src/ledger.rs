//! What this agent has said and done, on stable storage before it is said or done. After a restart
//! it is gone on from here.
//!
//! ```text
//!  at the source:       AttemptKnown ──► FenceIntent ──► Fenced ─────► Ended
//!                            └────────────────┴────────────┴──► Released ──► Ended
//!  at the destination:  AttemptKnown ──► Placed ──► Synced ──► Granted ──► Started
//!                            └─────────────┴───────────┴─────► Revoked ──► Ended
//! ```
//! It says how far this agent came; who may run, the site's ledger says ([`crate::custody`]), which is
//! asked first. The words are those of `coordinator/handover`: `FenceIntent` is that success was offered to the
//! source's libvirt, `Fenced` that its VM was seen dead. `Granted` and `Revoked` exclude each
//! other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use journal::{AppendError, Journal, OpenError, StoreId};
use model::VmId;
use serde::{Deserialize, Serialize};
use site::Belongings;
use site_ledger::NativePaper;
use thiserror::Error;
use units::{Epoch, MigrationId};

use crate::custody::Carried;

#[derive(Debug, Error)]
pub enum LedgerError {
    #[error("the ledger cannot be opened")]
    Open(#[from] OpenError),
    #[error("record {record} of the ledger is not understood: was it written by a later version?")]
    NotUnderstood { record: u64, source: serde_json::Error },
    #[error("{now:?} cannot follow {before:?} in the ledger, for {id}")]
    Order { id: MigrationId, before: Option<Stage>, now: Stage },
    #[error("nobody began {id}")]
    NotBegun { id: MigrationId },
    #[error("the ledger cannot be written: this agent must be started again")]
    Write(#[from] AppendError),
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
}

/// What is known of one migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub id: MigrationId,
    pub vm: VmId,
    pub name: String,
    /// What both sites' ledgers have of it, once it is in one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// What came over, once the VM is whole; for whoever reads this, since the site's ledger has its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
    /// What the destination's libvirt will keep of it beside its disks, from before that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub belongings: Option<Belongings>,
    /// At the destination: it is to be defined for no longer than it waits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transient: bool,
    /// At the destination: somebody resumed it while it waited, or nobody knows, and it may have written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ran: bool,
    pub stage: Stage,
}

/// One that the site's ledger knows, or is about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    pub paper: NativePaper,
    pub epoch: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Source(Source),
    Destination(Destination),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    AttemptKnown,
    /// Success is offered: its libvirt may end the VM from now on, and nobody else may go back.
    FenceIntent,
    /// Its VM was seen dead.
    Fenced,
    /// Its VM runs there, and success was never, or in vain, offered.
    Released,
    /// The destination knows.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    AttemptKnown,
    /// libvirtd holds a VM of that id for us.
    Placed,
    /// The VM is whole, and stands still.
    Synced(Then),
    Granted(Then),
    Started,
    Revoked,
    /// Nothing is left of it here.
    Ended,
}

/// What becomes of a VM that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    Runs,
    /// Its operator asked for that.
    StaysPaused,
}

impl Stage {
    fn may_follow(self, before: Option<Self>) -> bool {
        use Destination as D;
        use Source as S;
        use Stage::{Destination as Dst, Source as Src};
        matches!(
            (before, self),
            (None, Src(S::AttemptKnown) | Dst(D::AttemptKnown))
                | (Some(Src(S::AttemptKnown)), Src(S::FenceIntent | S::Released))
                | (Some(Src(S::FenceIntent)), Src(S::Fenced | S::Released))
                // Started again before anything was granted.
                | (Some(Src(S::Fenced)), Src(S::Released))
                | (Some(Src(S::Fenced | S::Released)), Src(S::Ended))
                | (Some(Dst(D::AttemptKnown)), Dst(D::Placed | D::Revoked))
                | (Some(Dst(D::Placed)), Dst(D::Synced(_) | D::Revoked))
                | (Some(Dst(D::Synced(_))), Dst(D::Revoked))
                | (Some(Dst(D::Granted(_))), Dst(D::Started))
                | (Some(Dst(D::Revoked)), Dst(D::Ended))
        ) || matches!(
            (before, self),
            (Some(Dst(D::Synced(then))), Dst(D::Granted(now))) if then == now
        )
    }
}

/// The one that owns the file.
#[derive(Clone)]
pub struct Ledger(Arc<Mutex<Inner>>);

struct Inner {
    journal: Journal,
    entries: Entries,
}

type Entries = BTreeMap<MigrationId, Entry>;

/// Of a mobility agent's ledger among journals.
const KIND: u16 = 21;
/// Of every record: the whole entry as it is from now on.
const ENTRY: u16 = 1;

impl Ledger {
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        Self::of(Journal::open(path, KIND, StoreId(id))?)
    }

    fn of(opened: journal::Opened) -> Result<Self, LedgerError> {
        let journal::Opened { journal, records, .. } = opened;
        let mut entries = BTreeMap::new();
        for (record, at) in records.iter().zip(1..) {
            let entry: Entry = serde_json::from_slice(&record.payload)
                .map_err(|source| LedgerError::NotUnderstood { record: at, source })?;
            // One that was lost, and taken back, begins anywhere.
            if entries.contains_key(&entry.id) {
                check(&entries, &entry)?;
            }
            entries.insert(entry.id.clone(), entry);
        }
        Ok(Self(Arc::new(Mutex::new(Inner { journal, entries }))))
    }

    pub fn entry(&self, id: &MigrationId) -> Option<Entry> {
        self.lock().entries.get(id).cloned()
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.lock().entries.values().cloned().collect()
    }

    /// A migration begins.
    pub async fn begin(&self, entry: Entry) -> Result<(), LedgerError> {
        self.change(move |_| Ok(entry)).await
    }

    /// One that was lost, as far as it had come by what the site keeps; unless it is known after all.
    pub async fn take_back(&self, entry: Entry) -> Result<(), LedgerError> {
        self.write(|ledger| {
            let mut inner = ledger.lock();
            match inner.entries.contains_key(&entry.id) {
                true => Ok(()),
                false => inner.append(entry),
            }
        })
        .await
    }

    /// On stable storage when this returns. What is so already is success.
    pub async fn record(&self, id: &MigrationId, stage: Stage) -> Result<(), LedgerError> {
        let id = id.clone();
        self.change(move |entries| match entries.get(&id) {
            Some(entry) => Ok(Entry { stage, ..entry.clone() }),
            None => Err(LedgerError::NotBegun { id }),
        })
        .await
    }

    /// What is learnt on the way.
    pub async fn learn(
        &self,
        id: &MigrationId,
        what: impl FnOnce(&mut Entry) + Send + 'static,
    ) -> Result<(), LedgerError> {
        let id = id.clone();
        self.change(move |entries| {
            let mut entry = entries.get(&id).cloned().ok_or(LedgerError::NotBegun { id })?;
            what(&mut entry);
            Ok(entry)
        })
        .await
    }

    async fn change(
        &self,
        entry: impl FnOnce(&Entries) -> Result<Entry, LedgerError> + Send + 'static,
    ) -> Result<(), LedgerError> {
        self.write(|ledger| {
            let mut inner = ledger.lock();
            let entry = entry(&inner.entries)?;
            if inner.entries.get(&entry.id) == Some(&entry) {
                return Ok(());
            }
            check(&inner.entries, &entry)?;
            inner.append(entry)
        })
        .await
    }

    /// A disk that is slow must not keep pings from being answered.
    async fn write(
        &self,
        write: impl FnOnce(&Self) -> Result<(), LedgerError> + Send + 'static,
    ) -> Result<(), LedgerError> {
        let ledger = self.clone();
        let writing = tokio::task::spawn_blocking(move || write(&ledger));
        writing.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn append(&mut self, entry: Entry) -> Result<(), LedgerError> {
        let bytes = serde_json::to_vec(&entry).expect("an entry is made of texts");
        self.journal.append(ENTRY, &bytes)?;
        self.entries.insert(entry.id.clone(), entry);
        Ok(())
    }
}

fn check(entries: &Entries, entry: &Entry) -> Result<(), LedgerError> {
    let before = entries.get(&entry.id).map(|entry| entry.stage);
    if before == Some(entry.stage) || entry.stage.may_follow(before) {
        return Ok(());
    }
    Err(LedgerError::Order { id: entry.id.clone(), before, now: entry.stage })
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::faulty::Disk;
    use site::UefiVariables;
    use uuid::Uuid;

    fn entry(id: &str, stage: Stage) -> Entry {
        let (id, vm, name) = (id.parse().unwrap(), VmId(Uuid::nil()), "web1".to_owned());
        Entry {
            id,
            vm,
            name,
            attempt: None,
            carried: None,
            belongings: None,
            transient: false,
            ran: false,
            stage,
        }
    }

    fn open(disk: &Disk) -> Result<Ledger, LedgerError> {
        Ledger::of(Journal::open_on(disk.storage(), KIND, StoreId([1; 16])).unwrap())
    }

    const ALL: [Stage; 14] = {
        use {Destination as D, Source as S};
        [
            Stage::Source(S::AttemptKnown),
            Stage::Source(S::FenceIntent),
            Stage::Source(S::Fenced),
            Stage::Source(S::Released),
            Stage::Source(S::Ended),
            Stage::Destination(D::AttemptKnown),
            Stage::Destination(D::Placed),
            Stage::Destination(D::Synced(Then::Runs)),
            Stage::Destination(D::Synced(Then::StaysPaused)),
            Stage::Destination(D::Granted(Then::Runs)),
            Stage::Destination(D::Granted(Then::StaysPaused)),
            Stage::Destination(D::Started),
            Stage::Destination(D::Revoked),
            Stage::Destination(D::Ended),
        ]
    };

    #[tokio::test]
    async fn what_was_recorded_is_there_after_a_restart() {
        let disk = Disk::default();
        let ledger = open(&disk).unwrap();
        for (id, stages) in [("a", &ALL[..3]), ("b", &ALL[5..8])] {
            ledger.begin(entry(id, stages[0])).await.unwrap();
            for stage in stages {
                ledger.record(&id.parse().unwrap(), *stage).await.unwrap();
            }
        }
        let before = ledger.entries();
        drop(ledger);
        let ledger = open(&disk).unwrap();
        assert_eq!(ledger.entries(), before);
        assert_eq!(ledger.entry(&"a".parse().unwrap()).unwrap().stage, ALL[2]);
        assert_eq!(ledger.entry(&"b".parse().unwrap()).unwrap().stage, ALL[7]);
        let nobody = ledger.record(&"c".parse().unwrap(), ALL[3]).await.unwrap_err();
        assert!(matches!(nobody, LedgerError::NotBegun { .. }), "{nobody}");
        assert_eq!(ledger.entries(), before);
    }

    /// Never edited: a ledger lives longer than a version.
    #[test]
    fn records_are_written_as_released() {
        let stages = [
            r#"{"source":"attempt_known"}"#,
            r#"{"source":"fence_intent"}"#,
            r#"{"source":"fenced"}"#,
            r#"{"source":"released"}"#,
            r#"{"source":"ended"}"#,
            r#"{"destination":"attempt_known"}"#,
            r#"{"destination":"placed"}"#,
            r#"{"destination":{"synced":"runs"}}"#,
            r#"{"destination":{"synced":"stays_paused"}}"#,
            r#"{"destination":{"granted":"runs"}}"#,
            r#"{"destination":{"granted":"stays_paused"}}"#,
            r#"{"destination":"started"}"#,
            r#"{"destination":"revoked"}"#,
            r#"{"destination":"ended"}"#,
        ];
        for (stage, written) in ALL.into_iter().zip(stages) {
            let json = format!(
                "{{\"id\":\"a\",\"vm\":\"00000000-0000-0000-0000-000000000000\",\
                 \"name\":\"web1\",\"stage\":{written}}}"
            );
            assert_eq!(serde_json::to_string(&entry("a", stage)).unwrap(), json);
            assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry("a", stage));
        }
    }

    #[test]
    fn what_is_kept_beside_a_vm_is_read_as_it_was_written() {
        let variables = UefiVariables { loader: "/fw/c".to_owned(), file: "/fw/v".to_owned() };
        let belongings = Belongings {
            kind: "kvm".to_owned(),
            arch: "x86_64".to_owned(),
            variables: Some(variables),
            tpm: Some("tpm-crb".to_owned()),
        };
        let entry = Entry { belongings: Some(belongings), ..entry("a", ALL[5]) };
        let json = "{\"id\":\"a\",\"vm\":\"00000000-0000-0000-0000-000000000000\",\
                    \"name\":\"web1\",\"belongings\":{\"kind\":\"kvm\",\"arch\":\"x86_64\",\
                    \"variables\":{\"loader\":\"/fw/c\",\"file\":\"/fw/v\"},\"tpm\":\"tpm-crb\"},\
                    \"stage\":{\"destination\":\"attempt_known\"}}";
        assert_eq!(serde_json::to_string(&entry).unwrap(), json);
        assert_eq!(serde_json::from_str::<Entry>(json).unwrap(), entry);
    }

    #[test]
    fn no_order_of_records_grants_what_was_revoked_or_what_was_not_whole() {
        // All that can be reached, with what was passed on the way.
        let mut ways: Vec<Vec<Stage>> = vec![vec![]];
        let mut ended = 0;
        while let Some(way) = ways.pop() {
            let has = |stage: Stage| way.contains(&stage);
            let granted = has(ALL[9]) || has(ALL[10]);
            assert!(!(granted && has(ALL[12])), "{way:?}");
            assert!(!has(ALL[2]) || has(ALL[1]), "fenced without intent: {way:?}");
            assert!(!granted || has(ALL[7]) || has(ALL[8]), "granted, not synced: {way:?}");
            let next = ALL.into_iter().filter(|stage| stage.may_follow(way.last().copied()));
            let before = ways.len();
            ways.extend(next.map(|stage| [&way[..], &[stage]].concat()));
            ended += usize::from(ways.len() == before);
        }
        assert_eq!(ended, 4 + 2 + 4);
    }

    #[tokio::test]
    async fn a_record_that_cannot_follow_is_refused_and_leaves_the_ledger_as_it_was() {
        let disk = Disk::default();
        let ledger = open(&disk).unwrap();
        let id = "a".parse().unwrap();
        ledger.begin(entry("a", ALL[5])).await.unwrap();
        for stage in [ALL[7], ALL[9], ALL[1]] {
            let refused = ledger.record(&id, stage).await.unwrap_err();
            assert!(matches!(refused, LedgerError::Order { .. }), "{refused}");
        }
        drop(ledger);
        assert_eq!(open(&disk).unwrap().entry(&id).unwrap().stage, ALL[5]);
    }
}
