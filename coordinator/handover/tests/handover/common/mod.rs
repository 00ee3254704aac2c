//! Two sites, one attempt, and ledgers that take what the roles ask to be recorded.
#![allow(dead_code, reason = "each test file uses its part")]

use handover::*;
use units::{Digest, Epoch};

pub fn key(site: &str) -> SigningKey {
    SigningKey::from_bytes(&[if site == "east" { 1 } else { 2 }; 32])
}

pub fn attempt(epoch: u64) -> Attempt {
    Attempt {
        install: "lab".parse().unwrap(),
        vm: "web1".parse().unwrap(),
        epoch: Epoch(epoch),
        source: "east".parse().unwrap(),
        destination: "west".parse().unwrap(),
        plan: PlanDigest(Digest([7; 32])),
    }
}

pub fn identity(site: &str) -> Identity {
    let other = if site == "east" { "west" } else { "east" };
    Identity {
        install: "lab".parse().unwrap(),
        site: site.parse().unwrap(),
        key: Some(key(site)),
        pinned: [(other.parse().unwrap(), key(other).verifying_key())].into(),
        former: [].into(),
    }
}

pub fn content(byte: u8) -> Content {
    Content::new(vec![Digest([byte; 32]), Digest([byte + 1; 32])]).unwrap()
}

pub fn unfence(text: &str) -> Unfence {
    Unfence::new(text.into()).unwrap()
}

pub fn fence(content: Content) -> Fence {
    Fence {
        level: FenceLevel::StartProof,
        established: Established::ByPlatform { means: "undefined and off".into() },
        content,
        basis: ContentBasis::Drained,
    }
}

pub fn absent() -> MarkSeen {
    MarkSeen::Absent { placeholder_of: Epoch(1) }
}

/// A source and what its ledger holds.
pub struct Source {
    pub role: SourceRole,
    pub records: Vec<Record>,
}

impl Source {
    pub fn replayed(records: Vec<Record>) -> Self {
        let vm = attempt(1).vm;
        let role = SourceRole::replay(identity("east"), vm, &records).unwrap();
        Self { role, records }
    }

    pub fn opened() -> Self {
        let mut source = Self::replayed(vec![]);
        let actions = source.role.open(&attempt(1), &MarkSeen::NoPlaceholder).unwrap();
        source.carry_out(actions);
        source
    }

    pub fn fencing(content: Option<Content>) -> Self {
        let mut source = Self::opened();
        source.ask(SourceRequest::Fence { unfence: unfence("definition"), content }).unwrap();
        source
    }

    pub fn fenced(content: Content) -> Self {
        let mut source = Self::fencing(Some(content.clone()));
        source.ask(SourceRequest::FenceHolds(fence(content))).unwrap();
        source
    }

    /// Records what is to be recorded; the effects.
    pub fn ask(&mut self, request: SourceRequest) -> Result<Vec<SourceEffect>, Refusal> {
        let actions = self.role.step(Epoch(1), request)?;
        Ok(self.carry_out(actions))
    }

    pub fn carry_out(&mut self, actions: Vec<SourceAction>) -> Vec<SourceEffect> {
        let mut effects = vec![];
        for action in actions {
            match action {
                Action::Record(record) => {
                    self.role.apply(&record).unwrap();
                    self.records.push(record);
                }
                Action::Effect(effect) => effects.push(effect),
            }
        }
        effects
    }

    /// The process dies and starts anew.
    pub fn restarted(self) -> Self {
        Self::replayed(self.records)
    }

    pub fn receipt(&self) -> FenceReceipt {
        match self.role.state(Epoch(1)) {
            SourceState::Fenced(receipt) => receipt,
            other => panic!("not fenced: {other:?}"),
        }
    }
}

/// A destination and what its ledger holds.
pub struct Destination {
    pub role: DestinationRole,
    pub records: Vec<Record>,
}

impl Destination {
    pub fn replayed(records: Vec<Record>) -> Self {
        let vm = attempt(1).vm;
        let role = DestinationRole::replay(identity("west"), vm, &records).unwrap();
        Self { role, records }
    }

    pub fn opened() -> Self {
        let mut destination = Self::replayed(vec![]);
        let actions = destination.role.open(&attempt(1), &MarkSeen::NoPlaceholder).unwrap();
        destination.carry_out(actions);
        destination
    }

    pub fn synced(content: Content) -> Self {
        let mut destination = Self::opened();
        let id = "placeholder".into();
        destination.ask(DestinationRequest::Placeholder { id }, &absent()).unwrap();
        destination.ask(DestinationRequest::Synced(content), &absent()).unwrap();
        destination
    }

    pub fn granted(content: Content) -> Self {
        let mut destination = Self::synced(content.clone());
        let receipt = Source::fenced(content).receipt();
        destination.ask(DestinationRequest::Grant(receipt), &absent()).unwrap();
        destination
    }

    pub fn marked(content: Content) -> Self {
        let mut destination = Self::granted(content);
        let mark = destination.mark();
        destination.ask(DestinationRequest::MarkWritten, &mark).unwrap();
        destination
    }

    pub fn revoked() -> Self {
        let mut destination = Self::opened();
        let request = DestinationRequest::Revoke { attested: None };
        destination.ask(request, &MarkSeen::NoPlaceholder).unwrap();
        destination
    }

    /// Records what is to be recorded; the effects.
    pub fn ask(
        &mut self,
        request: DestinationRequest,
        mark: &MarkSeen,
    ) -> Result<Vec<DestinationEffect>, Refusal> {
        let actions = self.role.step(Epoch(1), request, mark)?;
        Ok(self.carry_out(actions))
    }

    pub fn carry_out(&mut self, actions: Vec<DestinationAction>) -> Vec<DestinationEffect> {
        let mut effects = vec![];
        for action in actions {
            match action {
                Action::Record(record) => {
                    self.role.apply(&record).unwrap();
                    self.records.push(record);
                }
                Action::Effect(effect) => effects.push(effect),
            }
        }
        effects
    }

    /// The mark that the role wants written.
    pub fn mark(&self) -> MarkSeen {
        match self.role.unfinished().first() {
            Some(DestinationEffect::WriteMark(mark)) => MarkSeen::Present(mark.clone()),
            _ => MarkSeen::Present(self.grant_receipt()),
        }
    }

    pub fn grant_receipt(&self) -> GrantReceipt {
        match self.role.state(Epoch(1)) {
            DestinationState::Marked(receipt)
            | DestinationState::Started(receipt)
            | DestinationState::Healthy(receipt) => receipt,
            other => panic!("not marked: {other:?}"),
        }
    }

    pub fn revoke_receipt(&self) -> RevokeReceipt {
        match self.role.state(Epoch(1)) {
            DestinationState::Revoked(receipt) => receipt,
            other => panic!("not revoked: {other:?}"),
        }
    }
}
