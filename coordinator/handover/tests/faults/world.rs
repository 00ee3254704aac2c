//! Two sites, one VM, and everything that may happen to them.
//!
//! The coordinator is arbitrary: anything may be asked of either side at any time, with any
//! receipt that was ever sent, again and again. A message that is lost is one that is asked for
//! later or never. A crash is a list of actions that is carried out up to some point only.

use std::collections::BTreeSet;

use handover::{FenceLevel, Record};
use units::Epoch;

use crate::pure::{
    self, Act, AnyReceipt, AsDestination, AsSource, Basis, Call, LedgerId, MOVES, Mark, Move,
    ReceiptId,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub sites: [Site; 2],
    /// Every receipt ever sent: any of them may arrive at any time, more than once or never.
    pub wire: BTreeSet<ReceiptId>,
    /// How often the VM has written.
    pub latest: u8,
    /// How often a ledger was replaced by an old copy of itself.
    pub restored: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    pub ledger: LedgerId,
    /// The process that began the last fence has not stopped since.
    pub live: bool,
    pub vm: Option<Vm>,
}

/// What the platform has under the VM's id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vm {
    /// The write that its disks hold last.
    pub disk: u8,
    pub form: Form,
    pub running: bool,
    pub start_proof: bool,
    pub mark: Option<ReceiptId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The VM itself.
    Own,
    /// A placeholder made for this epoch.
    Held(Epoch),
}

/// A disk that was never copied to.
pub const EMPTY: u8 = 255;

/// A disk that missed a write and was written to.
const FORKED: u8 = 254;

/// What is asked of a role. Everything else that its step needs is read off the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    OpenSource(Move),
    OpenDestination(Move),
    Fence(Move),
    FenceHolds(Move, Basis),
    Release(Move, ReceiptId),
    Retire(Move, ReceiptId),
    Settled(Move),
    Destroy(Move),
    Destroyed(Move),
    Placeholder(Move),
    Synced(Move),
    Grant(Move, ReceiptId),
    MarkWritten(Move),
    Start(Move),
    /// Not among the happenings: they decide nothing.
    Started(Move),
    Healthy(Move),
    Revoke(Move),
    Decline(Move),
    /// Of the site's own mark.
    Heal(usize),
    CarryOnAsSource(usize),
    CarryOnAsDestination(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Happens {
    /// The first `done` actions of the answer are carried out; if that is not all, the process
    /// has died.
    Asked {
        ask: Ask,
        done: usize,
    },
    /// The process at a site dies and starts anew.
    Crash(usize),
    /// The placeholder and its disks are created.
    Place(Move),
    /// The destination's disks become what the source's are.
    Copy(Move),
    Write(usize),
    /// Somebody at the platform starts the VM: a person, its high availability, a host's reboot.
    StartedByHand(usize),
    /// The ledger is replaced by a copy of it that has so many records.
    Restore(usize, usize),
    /// Only in mutants, see there.
    Broken(Broken),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    Unfence(usize),
    Delete(usize),
    PowerOnByBelief(usize),
    Forget(usize),
    LateBlock(usize),
}

/// How far the exploration goes, and which rule is broken.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub writes: u8,
    pub moves: Vec<Move>,
    /// How many ledgers may be replaced by old copies; which sites' may.
    pub restores: u8,
    pub restorable: Restorable,
    pub mutant: Option<Mutant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restorable {
    #[default]
    None,
    /// A destination's ledger once it has granted and while the VM lives there.
    Granted,
    /// The same of one that has revoked.
    Revoked,
    /// A source's ledger, to any earlier state.
    Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    ReceiptBeforeRecord,
    UnfenceOnTimeout,
    GrantWithoutReceipt,
    FenceInGuestOnly,
    ReleaseWithoutRevoke,
    DeleteEarly,
    RevokeTwice,
    SyncUnseen,
    MarkInLedgerOnly,
    RevokeWithoutLooking,
    DrainBeforeCrashBelieved,
    PowerOnByBelief,
    IntentAfterFence,
    StartBeforeMark,
    LateBlocks,
    RetireWithoutGrant,
}

impl World {
    pub fn new() -> Self {
        let site = |vm| Site { ledger: pure::ledger(vec![]), live: false, vm };
        let vm = Vm { disk: 0, form: Form::Own, running: true, start_proof: false, mark: None };
        Self { sites: [site(Some(vm)), site(None)], wire: BTreeSet::new(), latest: 0, restored: 0 }
    }

    /// Everything that may happen next.
    pub fn happenings(&self, rules: &Rules) -> Vec<Happens> {
        let mut all = vec![];
        for m in &rules.moves {
            self.asks(*m, &mut all, rules);
            all.push(Happens::Place(*m));
            all.push(Happens::Copy(*m));
        }
        for (i, site) in self.sites.iter().enumerate() {
            if self.mark(i) != Mark::NoPlaceholder {
                self.push_ask(Ask::Heal(i), &mut all, rules);
            }
            self.push_ask(Ask::CarryOnAsSource(i), &mut all, rules);
            self.push_ask(Ask::CarryOnAsDestination(i), &mut all, rules);
            if site.live {
                all.push(Happens::Crash(i));
            }
            if self.latest < rules.writes {
                all.push(Happens::Write(i));
            }
            all.push(Happens::StartedByHand(i));
            if self.restored < rules.restores && self.may_restore(i, rules) {
                let len = pure::records(site.ledger).len();
                all.extend((0..len).map(|keep| Happens::Restore(i, keep)));
            }
            match rules.mutant {
                Some(Mutant::UnfenceOnTimeout) => all.push(Happens::Broken(Broken::Unfence(i))),
                Some(Mutant::DeleteEarly) => all.push(Happens::Broken(Broken::Delete(i))),
                Some(Mutant::PowerOnByBelief) => {
                    all.push(Happens::Broken(Broken::PowerOnByBelief(i)));
                }
                Some(Mutant::RevokeTwice) => all.push(Happens::Broken(Broken::Forget(i))),
                Some(Mutant::LateBlocks) => all.push(Happens::Broken(Broken::LateBlock(i))),
                _ => {}
            }
        }
        all
    }

    fn asks(&self, m: Move, all: &mut Vec<Happens>, rules: &Rules) {
        let plain = [
            Ask::OpenSource(m),
            Ask::OpenDestination(m),
            Ask::Fence(m),
            Ask::FenceHolds(m, Basis::ReadWhileOff),
            Ask::FenceHolds(m, Basis::Drained),
            Ask::Settled(m),
            Ask::Destroy(m),
            Ask::Destroyed(m),
            Ask::Placeholder(m),
            Ask::Synced(m),
            Ask::MarkWritten(m),
            Ask::Start(m),
            Ask::Revoke(m),
            Ask::Decline(m),
        ];
        for ask in plain {
            self.push_ask(ask, all, rules);
        }
        for id in &self.wire {
            let ask = match pure::receipt(*id) {
                AnyReceipt::Fence(_) => Ask::Grant(m, *id),
                AnyReceipt::Grant(_) => Ask::Retire(m, *id),
                AnyReceipt::Revoke(_) => Ask::Release(m, *id),
            };
            self.push_ask(ask, all, rules);
        }
        match rules.mutant {
            Some(Mutant::GrantWithoutReceipt) => {
                if let Some(id) = self.forged_fence(m) {
                    self.push_ask(Ask::Grant(m, id), all, rules);
                }
            }
            Some(Mutant::ReleaseWithoutRevoke) => {
                self.push_ask(Ask::Release(m, forged_revoke(m)), all, rules);
            }
            Some(Mutant::RetireWithoutGrant) => {
                self.push_ask(Ask::Retire(m, forged_grant(m)), all, rules);
            }
            _ => {}
        }
    }

    fn push_ask(&self, ask: Ask, all: &mut Vec<Happens>, rules: &Rules) {
        let len = self.answer(ask, rules).len();
        all.extend((1..=len).map(|done| Happens::Asked { ask, done }));
    }

    /// The world after that; `None` if it changes nothing.
    pub fn after(&self, happens: &Happens, rules: &Rules) -> Option<Self> {
        let mut world = self.clone();
        match happens {
            Happens::Asked { ask, done } => {
                let i = self.site_of(*ask);
                let acts = self.answer(*ask, rules);
                acts.iter().take(*done).for_each(|act| world.carry_out(i, *act, rules));
                if matches!(ask, Ask::Fence(_)) && world.sites[i].ledger != self.sites[i].ledger {
                    world.sites[i].live = true;
                }
                if *done < acts.len() {
                    world.sites[i].live = false;
                }
            }
            Happens::Crash(i) => world.sites[*i].live = false,
            Happens::Place(m) => world.place(*m)?,
            Happens::Copy(m) => world.copy(*m)?,
            Happens::Write(i) => {
                let vm = world.sites[*i].vm.as_mut().filter(|vm| vm.running)?;
                vm.disk = if vm.disk == self.latest { self.latest + 1 } else { FORKED };
                world.latest += 1;
            }
            Happens::StartedByHand(i) => {
                let vm = world.sites[*i].vm.as_mut().filter(|vm| vm.form == Form::Own)?;
                if vm.start_proof {
                    return None;
                }
                vm.running = true;
            }
            Happens::Restore(i, keep) => {
                let mut records = pure::records(self.sites[*i].ledger);
                records.truncate(*keep);
                world.sites[*i].ledger = pure::ledger(records);
                world.sites[*i].live = false;
                world.restored += 1;
                if rules.mutant == Some(Mutant::MarkInLedgerOnly) {
                    world.sites[*i].vm.iter_mut().for_each(|vm| vm.mark = None);
                }
            }
            Happens::Broken(broken) => world.broken(broken)?,
        }
        world.settle();
        (world != *self).then_some(world)
    }

    /// Makes worlds that cannot be told apart the same: a receipt that may be had for the asking
    /// is on the wire, and the process matters only while it is fencing.
    fn settle(&mut self) {
        for m in MOVES {
            let (source, destination) = (m.source(), m.destination());
            if let AsSource::Fenced(id) = pure::as_source(source, self.sites[source].ledger, m) {
                self.wire.insert(id);
            }
            let decided = pure::as_destination(destination, self.sites[destination].ledger, m);
            if let AsDestination::Marked(id) | AsDestination::Revoked(id) = decided {
                self.wire.insert(id);
            }
        }
        for (i, site) in self.sites.iter_mut().enumerate() {
            let fencing = |m: &Move| pure::as_source(i, site.ledger, *m) == AsSource::Fencing;
            site.live &= MOVES.iter().filter(|m| m.source() == i).any(fencing);
        }
    }

    /// Creates the held VM, in place of a retired one if need be. The caller has looked at its
    /// ledger, and the adapter never touches a VM that bears a mark this ledger does not know.
    fn place(&mut self, m: Move) -> Option<()> {
        let i = m.destination();
        let healed = pure::call(
            i,
            self.sites[i].ledger,
            false,
            match self.mark(i) {
                Mark::Present(id) => Call::Heal(id),
                _ => return self.place_now(m),
            },
        );
        if healed.is_empty() { self.place_now(m) } else { None }
    }

    fn place_now(&mut self, m: Move) -> Option<()> {
        let site = &mut self.sites[m.destination()];
        if pure::as_destination(m.destination(), site.ledger, m) != AsDestination::Known
            || site.vm.as_ref().is_some_and(|vm| vm.running || vm.form == Form::Held(m.epoch()))
        {
            return None;
        }
        site.vm = Some(Vm {
            disk: EMPTY,
            form: Form::Held(m.epoch()),
            running: false,
            start_proof: false,
            mark: None,
        });
        Some(())
    }

    fn copy(&mut self, m: Move) -> Option<()> {
        let disk = self.sites[m.source()].vm.as_ref()?.disk;
        let site = &mut self.sites[m.destination()];
        let state = pure::as_destination(m.destination(), site.ledger, m);
        let vm = site.vm.as_mut().filter(|vm| vm.form == Form::Held(m.epoch()))?;
        if !matches!(state, AsDestination::Placed | AsDestination::Synced) {
            return None;
        }
        vm.disk = disk;
        Some(())
    }

    fn carry_out(&mut self, i: usize, act: Act, rules: &Rules) {
        let site = &mut self.sites[i];
        match act {
            Act::Append(ledger) => site.ledger = ledger,
            Act::Send(receipt) => {
                self.wire.insert(receipt);
            }
            Act::Destroy => site.vm = None,
            Act::Retire => {}
            Act::MakeStartProof | Act::PowerOff | Act::Unfence => {
                let Some(vm) = site.vm.as_mut().filter(|vm| vm.form == Form::Own) else { return };
                match act {
                    Act::MakeStartProof => {
                        vm.start_proof = rules.mutant != Some(Mutant::FenceInGuestOnly);
                    }
                    Act::PowerOff => vm.running = false,
                    _ => (vm.start_proof, vm.running) = (false, true),
                }
            }
            Act::WriteMark(receipt) => {
                if let Some(vm) = site.vm.as_mut().filter(|vm| vm.mark.is_none())
                    && matches!(vm.form, Form::Held(_))
                {
                    vm.mark = Some(receipt);
                }
            }
            Act::Start => {
                // The adapter refuses to start what bears no mark.
                let Some(vm) = site.vm.as_mut() else { return };
                if vm.mark.is_some() || rules.mutant == Some(Mutant::StartBeforeMark) {
                    vm.form = Form::Own;
                    vm.running = true;
                }
            }
        }
    }

    /// What the role at the site answers, in the order in which it is carried out.
    pub fn answer(&self, ask: Ask, rules: &Rules) -> Vec<Act> {
        let i = self.site_of(ask);
        let site = &self.sites[i];
        let Some(call) = self.call(ask, rules) else { return vec![] };
        let live = site.live || rules.mutant == Some(Mutant::DrainBeforeCrashBelieved);
        let mut acts = pure::call(i, site.ledger, live, call);
        let record = |act: &Act| matches!(act, Act::Append(_));
        match rules.mutant {
            Some(Mutant::ReceiptBeforeRecord) => {
                acts.sort_by_key(|act| !matches!(act, Act::Send(_)));
            }
            Some(Mutant::IntentAfterFence) if matches!(ask, Ask::Fence(_)) => {
                acts.sort_by_key(record);
            }
            Some(Mutant::StartBeforeMark)
                if matches!(ask, Ask::Grant(..)) && acts.iter().any(record) =>
            {
                acts.insert(1, Act::Start);
            }
            _ => {}
        }
        acts
    }

    pub const fn site_of(&self, ask: Ask) -> usize {
        match ask {
            Ask::OpenSource(m)
            | Ask::Fence(m)
            | Ask::FenceHolds(m, _)
            | Ask::Release(m, _)
            | Ask::Retire(m, _)
            | Ask::Settled(m)
            | Ask::Destroy(m)
            | Ask::Destroyed(m) => m.source(),
            Ask::OpenDestination(m)
            | Ask::Placeholder(m)
            | Ask::Synced(m)
            | Ask::Grant(m, _)
            | Ask::MarkWritten(m)
            | Ask::Start(m)
            | Ask::Started(m)
            | Ask::Healthy(m)
            | Ask::Revoke(m)
            | Ask::Decline(m) => m.destination(),
            Ask::Heal(i) | Ask::CarryOnAsSource(i) | Ask::CarryOnAsDestination(i) => i,
        }
    }

    /// The call with what the platform shows truly; `None` if there is nothing to show.
    pub fn call(&self, ask: Ask, rules: &Rules) -> Option<Call> {
        let site = &self.sites[self.site_of(ask)];
        let mark = self.mark(self.site_of(ask));
        Some(match ask {
            Ask::OpenSource(m) => {
                // A plan is only made where the platform has that VM.
                site.vm.as_ref().filter(|vm| vm.form == Form::Own)?;
                Call::OpenSource(m, mark)
            }
            Ask::OpenDestination(m) => {
                // And only to where the id is free, or taken by a copy that was retired.
                let i = m.destination();
                let retired = MOVES.iter().filter(|m| m.source() == i).any(|m| {
                    matches!(pure::as_source(i, site.ledger, *m), AsSource::Retired { .. })
                });
                if site.vm.as_ref().is_some_and(|vm| vm.form == Form::Own) && !retired {
                    return None;
                }
                Call::OpenDestination(m, mark)
            }
            Ask::Fence(m) => Call::Fence(m, site.vm.as_ref()?.disk),
            Ask::FenceHolds(m, basis) => {
                let vm = site.vm.as_ref()?;
                let level = match (vm.running, vm.start_proof) {
                    (true, _) => FenceLevel::Guest,
                    (false, true) => FenceLevel::StartProof,
                    (false, false) if rules.mutant == Some(Mutant::FenceInGuestOnly) => {
                        FenceLevel::StartProof
                    }
                    (false, false) => FenceLevel::Off,
                };
                let version = match basis {
                    Basis::ReadWhileOff if vm.running => return None,
                    Basis::ReadWhileOff => vm.disk,
                    Basis::Drained => drained(&pure::records(site.ledger), m)?,
                };
                Call::FenceHolds(m, level, basis, version)
            }
            Ask::Release(m, id) => Call::Release(m, id),
            Ask::Retire(m, id) => Call::Retire(m, id),
            Ask::Settled(m) => {
                let vm = site.vm.as_ref();
                let released = AsSource::Released { settled: false };
                if pure::as_source(m.source(), site.ledger, m) == released
                    && vm.is_some_and(|vm| vm.start_proof)
                {
                    return None;
                }
                Call::Settled(m)
            }
            Ask::Destroy(m) => Call::Destroy(m),
            Ask::Destroyed(m) => {
                if site.vm.is_some() {
                    return None;
                }
                Call::Destroyed(m)
            }
            Ask::Placeholder(m) => {
                site.vm.as_ref().filter(|vm| vm.form == Form::Held(m.epoch()))?;
                Call::Placeholder(m, mark)
            }
            Ask::Synced(m) => {
                let vm = site.vm.as_ref().filter(|vm| vm.form == Form::Held(m.epoch()))?;
                if vm.disk == EMPTY {
                    return None;
                }
                let version =
                    if rules.mutant == Some(Mutant::SyncUnseen) { self.latest } else { vm.disk };
                Call::Synced(m, version, mark)
            }
            Ask::Grant(m, id) => Call::Grant(m, id, mark),
            Ask::MarkWritten(m) => Call::MarkWritten(m, mark),
            Ask::Start(m) => Call::Start(m, mark),
            Ask::Started(m) => Call::Started(m, mark),
            Ask::Healthy(m) => Call::Healthy(m, mark),
            Ask::Revoke(m) => {
                let mark = if rules.mutant == Some(Mutant::RevokeWithoutLooking) {
                    Mark::Absent(m.epoch())
                } else {
                    mark
                };
                Call::Revoke(m, mark)
            }
            Ask::Decline(m) => Call::Decline(m, mark),
            Ask::CarryOnAsSource(_) => Call::CarryOnAsSource,
            Ask::CarryOnAsDestination(_) => Call::CarryOnAsDestination,
            Ask::Heal(i) => match self.mark(i) {
                Mark::Present(id) => Call::Heal(id),
                Mark::Absent(_) | Mark::NoPlaceholder => return None,
            },
        })
    }

    pub fn mark(&self, i: usize) -> Mark {
        match &self.sites[i].vm {
            None => Mark::NoPlaceholder,
            Some(Vm { mark: Some(id), .. }) => Mark::Present(*id),
            Some(Vm { form: Form::Held(epoch), .. }) => Mark::Absent(*epoch),
            Some(_) => Mark::NoPlaceholder,
        }
    }

    fn may_restore(&self, i: usize, rules: &Rules) -> bool {
        let ledger = self.sites[i].ledger;
        let states: Vec<AsDestination> = MOVES
            .iter()
            .filter(|m| m.destination() == i)
            .map(|m| pure::as_destination(i, ledger, *m))
            .collect();
        let revoked = states.iter().any(|state| matches!(state, AsDestination::Revoked(_)));
        let granted = states
            .iter()
            .any(|state| matches!(state, AsDestination::Granted | AsDestination::Marked(_)));
        let fencing = MOVES.iter().filter(|m| m.source() == i).any(|m| {
            let state = pure::as_source(i, ledger, *m);
            !matches!(state, AsSource::Unknown | AsSource::Known | AsSource::Superseded)
        });
        match rules.restorable {
            Restorable::None => false,
            Restorable::Granted => granted && !revoked && !fencing,
            Restorable::Revoked => revoked,
            Restorable::Source => states.iter().all(|state| *state == AsDestination::Unknown),
        }
    }

    fn broken(&mut self, broken: &Broken) -> Option<()> {
        let fenced = |world: &Self, i: usize| {
            MOVES.iter().any(|m| {
                m.source() == i
                    && matches!(
                        pure::as_source(i, world.sites[i].ledger, *m),
                        AsSource::Fencing | AsSource::Fenced(_)
                    )
            })
        };
        match broken {
            Broken::Unfence(i) => {
                let fenced = fenced(self, *i);
                let vm = self.sites[*i].vm.as_mut().filter(|_| fenced)?;
                (vm.start_proof, vm.running) = (false, true);
            }
            Broken::Delete(i) => {
                if !fenced(self, *i) {
                    return None;
                }
                self.sites[*i].vm = None;
            }
            Broken::PowerOnByBelief(i) => {
                let ledger = self.sites[*i].ledger;
                let owner = MOVES.iter().filter(|m| m.source() == *i).all(|m| {
                    let state = pure::as_source(*i, ledger, *m);
                    matches!(state, AsSource::Unknown | AsSource::Known | AsSource::Superseded)
                });
                let vm = self.sites[*i].vm.as_mut().filter(|vm| owner && vm.form == Form::Own)?;
                (vm.start_proof, vm.running) = (false, true);
            }
            Broken::LateBlock(i) => {
                let held = |vm: &&mut Vm| matches!(vm.form, Form::Held(_)) && vm.disk != EMPTY;
                let vm = self.sites[*i].vm.as_mut().filter(held)?;
                vm.disk = vm.disk.checked_sub(1)?;
            }
            Broken::Forget(i) => {
                let mut records = pure::records(self.sites[*i].ledger);
                let last = records.pop()?;
                if !matches!(
                    last.entry,
                    handover::Entry::Destination(handover::DestinationEntry::Revoked { .. })
                ) {
                    return None;
                }
                self.sites[*i].ledger = pure::ledger(records);
            }
        }
        Some(())
    }

    /// A fence receipt for what the targets hold, from a source that was never fenced.
    fn forged_fence(&self, m: Move) -> Option<ReceiptId> {
        let disk = self.sites[m.destination()].vm.as_ref()?.disk;
        forged(m.source(), &fenced_with(m, disk))
    }
}

fn fenced_with(m: Move, disk: u8) -> [Call; 3] {
    [
        Call::OpenSource(m, Mark::NoPlaceholder),
        Call::Fence(m, disk),
        Call::FenceHolds(m, FenceLevel::StartProof, Basis::ReadWhileOff, disk),
    ]
}

/// A revoke receipt that no ledger knows of.
fn forged_revoke(m: Move) -> ReceiptId {
    let calls =
        [Call::OpenDestination(m, Mark::NoPlaceholder), Call::Revoke(m, Mark::NoPlaceholder)];
    forged(m.destination(), &calls).unwrap()
}

/// A grant receipt that no ledger knows of.
fn forged_grant(m: Move) -> ReceiptId {
    let fence = forged(m.source(), &fenced_with(m, 0)).unwrap();
    let held = Mark::Absent(m.epoch());
    let calls = [
        Call::OpenDestination(m, Mark::NoPlaceholder),
        Call::Placeholder(m, held),
        Call::Synced(m, 0, held),
        Call::Grant(m, fence, held),
    ];
    forged(m.destination(), &calls).unwrap()
}

/// The last receipt that a role gives or writes down where it is asked all that with an empty ledger.
fn forged(site: usize, calls: &[Call]) -> Option<ReceiptId> {
    let (mut ledger, mut last) = (pure::ledger(vec![]), None);
    for call in calls {
        for act in pure::call(site, ledger, true, *call) {
            match act {
                Act::Append(after) => ledger = after,
                Act::Send(receipt) | Act::WriteMark(receipt) => last = Some(receipt),
                _ => {}
            }
        }
    }
    last
}

/// What the disks held when they were drained for this fence.
fn drained(records: &[Record], m: Move) -> Option<u8> {
    records.iter().find_map(|record| match &record.entry {
        handover::Entry::Source(handover::SourceEntry::FenceIntent { content, .. })
            if record.epoch == m.epoch() =>
        {
            content.as_ref().map(|content| content.disks()[0].0[0])
        }
        _ => None,
    })
}
