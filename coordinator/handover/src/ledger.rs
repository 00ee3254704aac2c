//! A site's ledger for one VM, folded into what it means.
//!
//! Replaying after a crash and going on are the same: a record takes effect here when it is
//! durable, by [`Ledger::apply`], and in no other way.

use std::collections::BTreeMap;

use thiserror::Error;
use units::Epoch;

use crate::attempt::{Attempt, Attestation, Content, VmKey, Words};
use crate::fence::{Fence, Unfence};
use crate::receipt::{FenceReceipt, GrantReceipt, RevokeReceipt};
use crate::record::{DestinationEntry, Entry, Record, SourceEntry};

/// What a site remembers of one VM, every attempt in either role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    vm: VmKey,
    attempts: BTreeMap<Epoch, Held>,
}

/// One attempt as a ledger holds it. A site has one role in it, never both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub attempt: Attempt,
    pub part: Part,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Source(AsSource),
    Destination(AsDestination),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AsSource {
    /// In the order in which the parts of the fence were made.
    pub unfence: Vec<Unfence>,
    pub intended_content: Option<Content>,
    pub fenced: Option<Fence>,
    pub end: Option<SourceEnd>,
    pub settled: bool,
    pub destroyed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceEnd {
    Released(RevokeReceipt),
    Retired(GrantReceipt),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AsDestination {
    pub placeholder: Option<Words>,
    pub synced: Option<Content>,
    pub decision: Option<Decision>,
    pub marked: bool,
    pub started: bool,
    pub healthy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Decision {
    Granted(FenceReceipt),
    Revoked(Option<Attestation>),
}

/// Where the VM stands at this site, by this ledger alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing was ever written about it: the platform's word counts.
    Unheard,
    /// It lives here.
    Home,
    /// It is being fenced or is fenced, or its end is not carried out yet.
    Leaving(Epoch),
    /// It may come here, or has been granted and the mark is missing.
    Arriving(Epoch),
    /// It lives elsewhere.
    Away,
}

/// A record that cannot stand where it does.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the ledger contradicts itself about {vm}, epoch {epoch}: {what}")]
pub struct LedgerError {
    pub vm: VmKey,
    pub epoch: Epoch,
    pub what: &'static str,
}

impl Ledger {
    pub(crate) const fn new(vm: VmKey) -> Self {
        Self { vm, attempts: BTreeMap::new() }
    }

    /// What the records of `vm` say; those of other VMs are passed over.
    pub(crate) fn replay<'a>(
        vm: VmKey,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<Self, LedgerError> {
        let mut ledger = Self::new(vm);
        for record in records {
            ledger.apply(record)?;
        }
        Ok(ledger)
    }

    pub(crate) const fn vm(&self) -> &VmKey {
        &self.vm
    }

    pub(crate) fn held(&self, epoch: Epoch) -> Option<&Held> {
        self.attempts.get(&epoch)
    }

    /// The highest epoch that this site has heard of; 0 for none.
    pub fn last_epoch(&self) -> Epoch {
        self.attempts.last_key_value().map_or(Epoch(0), |(epoch, _)| *epoch)
    }

    pub(crate) fn standing(&self) -> Standing {
        let Some((epoch, held)) = self.attempts.last_key_value() else {
            return Standing::Unheard;
        };
        match &held.part {
            Part::Source(part) => match (&part.end, part.settled) {
                (None, _) if part.unfence.is_empty() && part.fenced.is_none() => Standing::Home,
                (None, _) | (Some(_), false) => Standing::Leaving(*epoch),
                (Some(SourceEnd::Released(_)), true) => Standing::Home,
                (Some(SourceEnd::Retired(_)), true) => Standing::Away,
            },
            Part::Destination(part) => match (&part.decision, part.marked) {
                (Some(Decision::Granted(_)), true) => Standing::Home,
                (Some(Decision::Revoked(_)), _) => Standing::Away,
                (Some(Decision::Granted(_)), false) | (None, _) => Standing::Arriving(*epoch),
            },
        }
    }

    /// Takes in a record that is durable.
    pub(crate) fn apply(&mut self, record: &Record) -> Result<(), LedgerError> {
        if record.vm != self.vm {
            return Ok(());
        }
        let epoch = record.epoch;
        let wrong = |what| LedgerError { vm: record.vm.clone(), epoch, what };
        match &record.entry {
            Entry::Source(SourceEntry::AttemptKnown(attempt)) => {
                self.open(attempt, epoch, Part::Source(AsSource::default())).map_err(wrong)
            }
            Entry::Destination(DestinationEntry::AttemptKnown(attempt)) => self
                .open(attempt, epoch, Part::Destination(AsDestination::default()))
                .map_err(wrong),
            Entry::Source(entry) => {
                match self.attempts.get_mut(&epoch).map(|held| &mut held.part) {
                    Some(Part::Source(part)) => part.apply(entry).map_err(wrong),
                    _ => Err(wrong("a source's record of an attempt it does not know")),
                }
            }
            Entry::Destination(entry) => {
                match self.attempts.get_mut(&epoch).map(|held| &mut held.part) {
                    Some(Part::Destination(part)) => part.apply(entry).map_err(wrong),
                    _ => Err(wrong("a destination's record of an attempt it does not know")),
                }
            }
        }
    }

    fn open(&mut self, attempt: &Attempt, epoch: Epoch, part: Part) -> Result<(), &'static str> {
        if attempt.epoch != epoch || attempt.vm != self.vm {
            return Err("an attempt filed under another VM or epoch");
        }
        if epoch <= self.last_epoch() {
            return Err("an epoch that does not grow");
        }
        self.attempts.insert(epoch, Held { attempt: attempt.clone(), part });
        Ok(())
    }
}

impl AsSource {
    fn apply(&mut self, entry: &SourceEntry) -> Result<(), &'static str> {
        match entry {
            SourceEntry::AttemptKnown(_) => return Err("an attempt known twice"),
            SourceEntry::FenceIntent { unfence, content } => {
                if !self.unfence.is_empty() || self.fenced.is_some() || self.end.is_some() {
                    return Err("a second fence intent");
                }
                self.unfence.push(unfence.clone());
                self.intended_content.clone_from(content);
            }
            SourceEntry::FenceFurther { unfence } => {
                if self.unfence.is_empty() || self.fenced.is_some() || self.end.is_some() {
                    return Err("a further fence without an intent");
                }
                self.unfence.push(unfence.clone());
            }
            SourceEntry::Fenced(fence) => {
                if self.fenced.is_some() || self.end.is_some() {
                    return Err("fenced twice");
                }
                self.fenced = Some(fence.clone());
            }
            SourceEntry::Released(receipt) => self.finish(SourceEnd::Released(receipt.clone()))?,
            SourceEntry::Retired(receipt) => self.finish(SourceEnd::Retired(receipt.clone()))?,
            SourceEntry::Settled => {
                if self.end.is_none() {
                    return Err("settled before it ended");
                }
                self.settled = true;
            }
            SourceEntry::Destroyed => {
                if !matches!(self.end, Some(SourceEnd::Retired(_))) {
                    return Err("destroyed before it was retired");
                }
                self.destroyed = true;
            }
        }
        Ok(())
    }

    fn finish(&mut self, end: SourceEnd) -> Result<(), &'static str> {
        if self.end.is_some() {
            return Err("ended twice");
        }
        self.end = Some(end);
        Ok(())
    }
}

impl AsDestination {
    fn apply(&mut self, entry: &DestinationEntry) -> Result<(), &'static str> {
        match entry {
            DestinationEntry::AttemptKnown(_) => return Err("an attempt known twice"),
            DestinationEntry::Placeholder { id } => {
                self.undecided()?;
                self.placeholder = Some(id.clone());
            }
            DestinationEntry::Synced { content } => {
                self.undecided()?;
                self.synced = Some(content.clone());
            }
            DestinationEntry::Granted { fence } => {
                self.undecided()?;
                self.decision = Some(Decision::Granted(fence.clone()));
            }
            DestinationEntry::Revoked { attested } => {
                self.undecided()?;
                self.decision = Some(Decision::Revoked(attested.clone()));
            }
            DestinationEntry::Marked => {
                if !matches!(self.decision, Some(Decision::Granted(_))) {
                    return Err("marked without a grant");
                }
                self.marked = true;
            }
            DestinationEntry::Started => {
                if !self.marked {
                    return Err("started without a mark");
                }
                self.started = true;
            }
            DestinationEntry::Healthy => {
                if !self.started {
                    return Err("healthy before it started");
                }
                self.healthy = true;
            }
        }
        Ok(())
    }

    const fn undecided(&self) -> Result<(), &'static str> {
        match self.decision {
            None => Ok(()),
            Some(_) => Err("a record that cannot follow the decision"),
        }
    }
}
