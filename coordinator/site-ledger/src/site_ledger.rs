//! One site's ledger with the role that it amounts to, and the copy that the site keeps.

use std::path::Path;
use std::sync::Arc;

use handover::{
    Action, Attempt, DestinationEffect, DestinationRequest, DestinationRole, Identity, LedgerError,
    MarkSeen, Record, Refusal, SourceEffect, SourceRequest, SourceRole, VmKey,
};
use journal::{Journal, StoreId};
use site::{RecordKey, Site, SiteError, SiteErrorKind};
use units::Epoch;

use crate::LEDGER_KIND;
use crate::copy::{self, Copy, LEDGER as COPY};
use crate::error::CustodyError;
use crate::shelf::{LEDGER, Shelf};
use crate::stories::is_overruled;

pub struct SiteLedger<R> {
    /// Of the site.
    pub name: String,
    pub role: R,
    me: Identity,
    vm: VmKey,
    journal: Journal,
    /// Those of this VM, in order.
    records: Vec<Record>,
    copy: Copy,
    /// The site's copy was gone once in this life, and put back from here.
    was_lost: bool,
}

pub trait Role: Sized {
    type Effect;

    fn replay(me: Identity, vm: VmKey, records: &[Record]) -> Result<Self, LedgerError>;
    fn apply(&mut self, record: &Record) -> Result<(), LedgerError>;
    /// Takes up an attempt, given what the site's own VM of this id bears.
    fn open(
        &self,
        attempt: &Attempt,
        mark: &MarkSeen,
    ) -> Result<Vec<Action<Self::Effect>>, Refusal>;
}

impl Role for SourceRole {
    type Effect = SourceEffect;

    fn replay(me: Identity, vm: VmKey, records: &[Record]) -> Result<Self, LedgerError> {
        Self::replay(me, vm, records)
    }

    fn apply(&mut self, record: &Record) -> Result<(), LedgerError> {
        self.apply(record)
    }

    fn open(
        &self,
        attempt: &Attempt,
        mark: &MarkSeen,
    ) -> Result<Vec<Action<SourceEffect>>, Refusal> {
        self.open(attempt, mark)
    }
}

impl Role for DestinationRole {
    type Effect = DestinationEffect;

    fn replay(me: Identity, vm: VmKey, records: &[Record]) -> Result<Self, LedgerError> {
        Self::replay(me, vm, records)
    }

    fn apply(&mut self, record: &Record) -> Result<(), LedgerError> {
        self.apply(record)
    }

    fn open(
        &self,
        attempt: &Attempt,
        mark: &MarkSeen,
    ) -> Result<Vec<Action<DestinationEffect>>, Refusal> {
        self.open(attempt, mark)
    }
}

impl<R: Role> SiteLedger<R> {
    pub fn open(
        shelf: &dyn Shelf,
        site: Arc<dyn Site>,
        me: Identity,
        vm: VmKey,
        id: StoreId,
    ) -> Result<Self, CustodyError> {
        let name = me.site.to_string();
        let path = || shelf.path(&name, LEDGER);
        let opened = shelf.ledger(&name).and_then(|on| Journal::open_on(on, LEDGER_KIND, id));
        let opened = opened.map_err(|cause| CustodyError::Open { path: path(), cause })?;
        if let Some(torn) = opened.torn {
            tracing::info!(?torn, site = name, "an interrupted ledger record was cut off");
        }
        let records = decode(&path(), &opened.records)?;
        let role = R::replay(me.clone(), vm.clone(), &records)?;
        let copy = Copy::new(site, copy::key(&vm, COPY)?);
        let journal = opened.journal;
        Ok(Self { name, role, me, vm, journal, records, copy, was_lost: false })
    }

    pub const fn vm(&self) -> &VmKey {
        &self.vm
    }

    pub fn at(&self) -> Arc<dyn Site> {
        Arc::clone(&self.copy.site)
    }

    /// Makes ledger and copy one, once in this life and again where an answer got lost. The longer of
    /// the two is what happened: the other gets back what it forgot.
    pub async fn look(&mut self) -> Result<(), CustodyError> {
        if self.copy.is_known() {
            return Ok(());
        }
        let there = self.copy.look().await.map_err(|cause| self.failed(cause))?;
        self.was_lost |= there.is_none() && !self.records.is_empty();
        if let Some(bytes) = &there {
            let site = || self.name.clone();
            let copied =
                copy::decode(bytes).map_err(|cause| CustodyError::Copy { site: site(), cause })?;
            if let Some(missing) = copied.strip_prefix(&*self.records) {
                self.take_in(missing)?;
            } else if !self.records.starts_with(&copied) && !is_overruled(&self.records, &copied) {
                return Err(CustodyError::TwoStories { site: site() });
            }
        }
        self.copy.know(there);
        // It has lost some of it, or all: it gets it again.
        if !self.records.is_empty() {
            self.copy.bring_up(&self.records).await.map_err(|cause| self.failed(cause))?;
        }
        Ok(())
    }

    /// Asks the role, once it knows what the site knows.
    pub async fn ask<A>(
        &mut self,
        request: impl FnOnce(&R) -> Result<Vec<A>, Refusal>,
    ) -> Result<Vec<A>, CustodyError> {
        self.look().await?;
        self.has_key()?;
        Ok(request(&self.role)?)
    }

    /// Without one there is a ledger to read, and nothing is done on it.
    pub fn has_key(&self) -> Result<(), CustodyError> {
        match self.me.key {
            Some(_) => Ok(()),
            None => Err(CustodyError::NoKey { site: self.name.clone() }),
        }
    }

    /// Somebody may have written at the site: it is looked at again.
    pub fn doubt(&mut self) {
        self.copy.doubt();
    }

    /// Is the ledger all that there is of it, as far as was looked?
    pub const fn is_seen(&self) -> bool {
        self.copy.is_known()
    }

    /// Had the site lost its copy? It was put back from here, where the last of it may be missing.
    pub const fn was_lost(&self) -> bool {
        self.was_lost
    }

    /// Takes away what was put back: whoever comes next must not take it for what the site knew.
    pub async fn leave_lost(&mut self) -> Result<(), CustodyError> {
        let forgotten = self.copy.forget().await;
        forgotten.map_err(|cause| self.failed(cause))
    }

    fn take_in(&mut self, missing: &[Record]) -> Result<(), CustodyError> {
        if missing.is_empty() {
            return Ok(());
        }
        let all = [&*self.records, missing].concat();
        // Whoever administers a site can write there what they like, but no other site's receipts.
        self.me.check(&all)?;
        // Replayed, not applied: what another process did this one has not seen. And before any of it is
        // durable here: what cannot be replayed would not open any more.
        let role = R::replay(self.me.clone(), self.vm.clone(), &all)?;
        tracing::warn!(
            site = self.name,
            records = missing.len(),
            "the ledger here had lost records"
        );
        for record in missing {
            append(&mut self.journal, &self.name, record)?;
        }
        (self.records, self.role) = (all, role);
        Ok(())
    }

    /// Makes the records durable, at the site and then here; answers what is to be done on them. The
    /// site first: of two coordinators it lets one go on, and the other has written nothing.
    pub async fn carry<E>(&mut self, actions: Vec<Action<E>>) -> Result<Vec<E>, CustodyError> {
        let (records, effects) = split(actions)?;
        let all = [&*self.records, &*records].concat();
        if !all.is_empty() {
            self.copy.bring_up(&all).await.map_err(|cause| self.failed(cause))?;
        }
        self.write(records)?;
        Ok(effects)
    }

    /// As [`SiteLedger::carry`], without the site's copy.
    pub fn carry_here<E>(&mut self, actions: Vec<Action<E>>) -> Result<Vec<E>, CustodyError> {
        self.has_key()?;
        let (records, effects) = split(actions)?;
        self.write(records)?;
        Ok(effects)
    }

    fn write(&mut self, records: Vec<Record>) -> Result<(), CustodyError> {
        for record in records {
            append(&mut self.journal, &self.name, &record)?;
            self.role.apply(&record)?;
            self.records.push(record);
        }
        Ok(())
    }

    fn failed(&self, cause: SiteError) -> CustodyError {
        let site = self.name.clone();
        match cause.kind {
            SiteErrorKind::Conflict => CustodyError::Elsewhere { site },
            _ => CustodyError::Site { site, cause },
        }
    }

    /// Something besides the ledger, in place of whatever was there.
    pub async fn keep(&self, key: &RecordKey, body: &[u8]) -> Result<(), CustodyError> {
        let there = self.kept(key).await?;
        let kept = self.copy.site.keep(key, there.as_deref(), body).await;
        kept.map_err(|cause| self.failed(cause))
    }

    /// ... where there is nothing.
    pub async fn keep_again(&self, key: &RecordKey, body: &[u8]) -> Result<(), CustodyError> {
        if self.kept(key).await?.is_some() {
            return Ok(());
        }
        let kept = self.copy.site.keep(key, None, body).await;
        kept.map_err(|cause| self.failed(cause))
    }

    pub async fn kept(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, CustodyError> {
        self.copy.site.kept(key).await.map_err(|cause| self.failed(cause))
    }
}

impl SiteLedger<SourceRole> {
    /// What the role asks for is on record; answers what is to be done on it.
    pub async fn request(
        &mut self,
        epoch: Epoch,
        request: SourceRequest,
    ) -> Result<Vec<SourceEffect>, CustodyError> {
        let actions = self.ask(|role| role.step(epoch, request)).await?;
        self.carry(actions).await
    }
}

impl SiteLedger<DestinationRole> {
    /// As for the source, given what the placeholder shows now.
    pub async fn request(
        &mut self,
        epoch: Epoch,
        request: DestinationRequest,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationEffect>, CustodyError> {
        self.requests(epoch, [request], mark).await
    }

    /// Several at once, each as the one before leaves the role: they are on record together, and then all of
    /// what is to be done on them is.
    pub async fn requests(
        &mut self,
        epoch: Epoch,
        requests: impl IntoIterator<Item = DestinationRequest>,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationEffect>, CustodyError> {
        self.look().await?;
        self.has_key()?;
        let mut role = self.role.clone();
        let (mut actions, mut effects) = (Vec::new(), Vec::new());
        for request in requests {
            let (more, then) = split(role.step(epoch, request, mark)?)?;
            for record in &more {
                role.apply(record)?;
            }
            actions.extend(more.into_iter().map(Action::Record));
            effects.extend(then.into_iter().map(Action::Effect));
        }
        actions.append(&mut effects);
        self.carry(actions).await
    }
}

pub(crate) fn decode(
    path: &Path,
    records: &[journal::Record],
) -> Result<Vec<Record>, CustodyError> {
    let decode = |record: &journal::Record| Record::decode(record.kind, &record.payload);
    let records = records.iter().map(decode).collect::<Result<_, _>>();
    records.map_err(|cause| CustodyError::Decode { path: path.to_owned(), cause })
}

fn append(journal: &mut Journal, site: &str, record: &Record) -> Result<(), CustodyError> {
    let (kind, payload) = record.encode();
    journal
        .append(kind, &payload)
        .map_err(|cause| CustodyError::Append { site: site.to_owned(), cause })?;
    Ok(())
}

/// Records before effects: a role never asks for a record after an effect, and if it did, the
/// effect would have to be done first by someone who is not here.
fn split<E>(actions: Vec<Action<E>>) -> Result<(Vec<Record>, Vec<E>), CustodyError> {
    let (mut records, mut effects) = (Vec::new(), Vec::new());
    for action in actions {
        match action {
            Action::Record(record) if effects.is_empty() => records.push(record),
            Action::Record(_) => {
                return Err(CustodyError::Unfit { what: "a record behind an effect".to_owned() });
            }
            Action::Effect(effect) => effects.push(effect),
        }
    }
    Ok((records, effects))
}
