//! The product's functions, each distinct call made once.
//!
//! They are pure, so a remembered answer is the answer. Ledgers and receipts are kept in a table
//! and named by their number, which makes a world small and quick to compare.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{LazyLock, Mutex};

use handover::*;
use units::{Digest, Epoch};

/// Who moves where in which epoch: a first attempt, its repetition, and the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Move {
    First,
    Again,
    Back,
}

pub const MOVES: [Move; 3] = [Move::First, Move::Again, Move::Back];

impl Move {
    pub const fn epoch(self) -> Epoch {
        match self {
            Self::First => Epoch(1),
            Self::Again | Self::Back => Epoch(2),
        }
    }

    pub const fn source(self) -> usize {
        match self {
            Self::First | Self::Again => 0,
            Self::Back => 1,
        }
    }

    pub const fn destination(self) -> usize {
        1 - self.source()
    }

    pub fn attempt(self) -> Attempt {
        Attempt {
            install: "lab".parse().unwrap(),
            vm: vm(),
            epoch: self.epoch(),
            source: site_key(self.source()),
            destination: site_key(self.destination()),
            plan: PlanDigest(Digest([self as u8; 32])),
        }
    }
}

pub fn vm() -> VmKey {
    "web1".parse().unwrap()
}

fn site_key(site: usize) -> SiteKey {
    ["east", "west"][site].parse().unwrap()
}

fn key(site: usize) -> SigningKey {
    SigningKey::from_bytes(&[[1; 32], [2; 32]][site])
}

fn identity(site: usize) -> Identity {
    let other = 1 - site;
    Identity {
        install: "lab".parse().unwrap(),
        site: site_key(site),
        key: Some(key(site)),
        pinned: [(site_key(other), key(other).verifying_key())].into(),
        former: [].into(),
    }
}

/// What the disks hold after so many writes.
pub fn content(version: u8) -> Content {
    Content::new(vec![Digest([version; 32])]).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LedgerId(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReceiptId(usize);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AnyReceipt {
    Fence(FenceReceipt),
    Grant(GrantReceipt),
    Revoke(RevokeReceipt),
}

/// A call of a role, with everything that the platform showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    OpenSource(Move, Mark),
    OpenDestination(Move, Mark),
    Fence(Move, u8),
    FenceHolds(Move, FenceLevel, Basis, u8),
    Release(Move, ReceiptId),
    Retire(Move, ReceiptId),
    Settled(Move),
    Destroy(Move),
    Destroyed(Move),
    Placeholder(Move, Mark),
    Synced(Move, u8, Mark),
    Grant(Move, ReceiptId, Mark),
    MarkWritten(Move, Mark),
    Start(Move, Mark),
    Started(Move, Mark),
    Healthy(Move, Mark),
    Revoke(Move, Mark),
    Decline(Move, Mark),
    Heal(ReceiptId),
    /// What the role finds unfinished when it is replayed.
    CarryOnAsSource,
    CarryOnAsDestination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Basis {
    ReadWhileOff,
    Drained,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    Absent(Epoch),
    NoPlaceholder,
    Present(ReceiptId),
}

/// What a call asks for, in the order in which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// The ledger with one more record.
    Append(LedgerId),
    MakeStartProof,
    PowerOff,
    Unfence,
    Retire,
    Destroy,
    WriteMark(ReceiptId),
    Start,
    Send(ReceiptId),
}

/// Both roles' views of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AsSource {
    Unknown,
    Known,
    Superseded,
    Fencing,
    Fenced(ReceiptId),
    Released { settled: bool },
    Retired { settled: bool },
    Destroyed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AsDestination {
    Unknown,
    Known,
    Placed,
    Synced,
    Granted,
    Marked(ReceiptId),
    Revoked(ReceiptId),
}

struct Interned<T>(Mutex<(Vec<T>, HashMap<T, usize>)>);

impl<T: Clone + Eq + Hash> Interned<T> {
    fn new() -> Self {
        Self(Mutex::new((vec![], HashMap::new())))
    }

    fn put(&self, value: T) -> usize {
        let mut table = self.0.lock().unwrap();
        if let Some(id) = table.1.get(&value) {
            return *id;
        }
        let id = table.0.len();
        table.0.push(value.clone());
        table.1.insert(value, id);
        id
    }

    fn value(&self, id: usize) -> T {
        self.0.lock().unwrap().0[id].clone()
    }
}

/// A pure function's answers so far.
struct Memo<K, V>(Mutex<HashMap<K, V>>);

impl<K: Copy + Eq + Hash, V: Clone> Memo<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn of(&self, key: K, compute: impl FnOnce() -> V) -> V {
        if let Some(value) = self.0.lock().unwrap().get(&key) {
            return value.clone();
        }
        let value = compute();
        self.0.lock().unwrap().insert(key, value.clone());
        value
    }
}

static LEDGERS: LazyLock<Interned<Vec<Record>>> = LazyLock::new(Interned::new);
static RECEIPTS: LazyLock<Interned<AnyReceipt>> = LazyLock::new(Interned::new);

pub fn ledger(records: Vec<Record>) -> LedgerId {
    LedgerId(LEDGERS.put(records))
}

pub fn records(ledger: LedgerId) -> Vec<Record> {
    LEDGERS.value(ledger.0)
}

pub fn receipt(id: ReceiptId) -> AnyReceipt {
    RECEIPTS.value(id.0)
}

pub fn keep(receipt: AnyReceipt) -> ReceiptId {
    ReceiptId(RECEIPTS.put(receipt))
}

/// The role as it is in a process that lives since it began the fence, or in one that was started
/// after it.
pub fn source_role(site: usize, ledger: LedgerId, live: bool) -> SourceRole {
    let records = records(ledger);
    let began =
        |record: &Record| matches!(record.entry, Entry::Source(SourceEntry::FenceIntent { .. }));
    let replayed = match records.iter().rposition(began) {
        Some(at) if live => at,
        _ => records.len(),
    };
    let mut role = SourceRole::replay(identity(site), vm(), &records[..replayed]).unwrap();
    records[replayed..].iter().for_each(|record| role.apply(record).unwrap());
    role
}

pub fn destination_role(site: usize, ledger: LedgerId) -> DestinationRole {
    DestinationRole::replay(identity(site), vm(), &records(ledger)).unwrap()
}

/// What a role answers; nothing if it refuses.
pub fn call(site: usize, at: LedgerId, live: bool, call: Call) -> Vec<Act> {
    type Key = (usize, LedgerId, bool, Call);
    static MEMO: LazyLock<Memo<Key, Vec<Act>>> = LazyLock::new(Memo::new);
    MEMO.of((site, at, live, call), || answer(site, at, live, call).unwrap_or_default())
}

/// [`call`], with the reason why it refuses.
pub fn answer(site: usize, at: LedgerId, live: bool, call: Call) -> Result<Vec<Act>, Refusal> {
    let source = || source_role(site, at, live);
    let destination = || destination_role(site, at);
    let fence_receipt = |id| match receipt(id) {
        AnyReceipt::Fence(receipt) => receipt,
        other => panic!("not a fence receipt: {other:?}"),
    };
    let grant_receipt = |id| match receipt(id) {
        AnyReceipt::Grant(receipt) => receipt,
        other => panic!("not a grant receipt: {other:?}"),
    };
    let revoke_receipt = |id| match receipt(id) {
        AnyReceipt::Revoke(receipt) => receipt,
        other => panic!("not a revoke receipt: {other:?}"),
    };
    let seen = |mark| match mark {
        Mark::Absent(placeholder_of) => MarkSeen::Absent { placeholder_of },
        Mark::NoPlaceholder => MarkSeen::NoPlaceholder,
        Mark::Present(id) => MarkSeen::Present(grant_receipt(id)),
    };
    let as_source = |at_move: Move, request| {
        source().step(at_move.epoch(), request).map(|actions| acts_of_source(at, actions))
    };
    let as_destination = |at_move: Move, request, mark| {
        let actions = destination().step(at_move.epoch(), request, &seen(mark))?;
        Ok(acts_of_destination(at, actions))
    };
    match call {
        Call::OpenSource(m, mark) => {
            source().open(&m.attempt(), &seen(mark)).map(|a| acts_of_source(at, a))
        }
        Call::OpenDestination(m, mark) => destination()
            .open(&m.attempt(), &seen(mark))
            .map(|actions| acts_of_destination(at, actions)),
        Call::Fence(m, version) => {
            let unfence = Unfence::new(b"definition".to_vec()).unwrap();
            as_source(m, SourceRequest::Fence { unfence, content: Some(content(version)) })
        }
        Call::FenceHolds(m, level, basis, version) => {
            let established = Established::ByPlatform { means: "looked".into() };
            let basis = match basis {
                Basis::ReadWhileOff => ContentBasis::ReadWhileOff,
                Basis::Drained => ContentBasis::Drained,
            };
            let content = content(version);
            let fence = Fence { level, established, content, basis };
            as_source(m, SourceRequest::FenceHolds(fence))
        }
        Call::Release(m, id) => as_source(m, SourceRequest::Release(revoke_receipt(id))),
        Call::Retire(m, id) => as_source(m, SourceRequest::Retire(grant_receipt(id))),
        Call::Settled(m) => as_source(m, SourceRequest::Settled),
        Call::Destroy(m) => as_source(m, SourceRequest::Destroy),
        Call::Destroyed(m) => as_source(m, SourceRequest::Destroyed),
        Call::Placeholder(m, mark) => {
            as_destination(m, DestinationRequest::Placeholder { id: "held".into() }, mark)
        }
        Call::Synced(m, version, mark) => {
            as_destination(m, DestinationRequest::Synced(content(version)), mark)
        }
        Call::Grant(m, id, mark) => {
            as_destination(m, DestinationRequest::Grant(fence_receipt(id)), mark)
        }
        Call::MarkWritten(m, mark) => as_destination(m, DestinationRequest::MarkWritten, mark),
        Call::Start(m, mark) => as_destination(m, DestinationRequest::Start, mark),
        Call::Started(m, mark) => as_destination(m, DestinationRequest::Started, mark),
        Call::Healthy(m, mark) => as_destination(m, DestinationRequest::Healthy, mark),
        Call::Revoke(m, mark) => {
            as_destination(m, DestinationRequest::Revoke { attested: None }, mark)
        }
        Call::Decline(m, mark) => destination()
            .decline(&m.attempt(), &seen(mark))
            .map(|actions| acts_of_destination(at, actions)),
        Call::CarryOnAsSource => {
            let effects = source().unfinished().into_iter().map(Action::Effect).collect();
            Ok(acts_of_source(at, effects))
        }
        Call::CarryOnAsDestination => {
            let effects = destination().unfinished().into_iter().map(Action::Effect).collect();
            Ok(acts_of_destination(at, effects))
        }
        Call::Heal(id) => {
            destination().heal(&grant_receipt(id)).map(|a| acts_of_destination(at, a))
        }
    }
}

/// Appends one after the other, each to the ledger that the one before left.
fn append(at: &mut Vec<Record>, record: Record) -> Act {
    // What a ledger reads back is what was written.
    let (kind, payload) = record.encode();
    assert_eq!(Record::decode(kind, &payload).as_ref(), Ok(&record));
    forget_what_counts_no_more(at, &record);
    at.push(record);
    Act::Append(ledger(at.clone()))
}

/// Keeps ledgers that mean the same the same: a later sync replaces an earlier one, and a
/// decision makes the way to it unimportant.
fn forget_what_counts_no_more(at: &mut Vec<Record>, next: &Record) {
    use DestinationEntry as D;
    let Entry::Destination(next_entry) = &next.entry else { return };
    at.retain(|old| {
        let Entry::Destination(entry) = &old.entry else { return true };
        let forgotten = match next_entry {
            D::Synced { .. } => matches!(entry, D::Synced { .. }),
            D::Granted { .. } | D::Revoked { .. } => {
                matches!(entry, D::Synced { .. } | D::Placeholder { .. })
            }
            _ => false,
        };
        old.epoch != next.epoch || !forgotten
    });
}

fn acts_of_source(at: LedgerId, actions: Vec<SourceAction>) -> Vec<Act> {
    let mut at = records(at);
    let act = |action| match action {
        Action::Record(record) => append(&mut at, record),
        Action::Effect(SourceEffect::MakeStartProof(_)) => Act::MakeStartProof,
        Action::Effect(SourceEffect::PowerOff) => Act::PowerOff,
        Action::Effect(SourceEffect::Unfence(_)) => Act::Unfence,
        Action::Effect(SourceEffect::Retire(_)) => Act::Retire,
        Action::Effect(SourceEffect::Destroy) => Act::Destroy,
        Action::Effect(SourceEffect::Send(receipt)) => Act::Send(keep(AnyReceipt::Fence(receipt))),
    };
    actions.into_iter().map(act).collect()
}

fn acts_of_destination(at: LedgerId, actions: Vec<DestinationAction>) -> Vec<Act> {
    let mut at = records(at);
    let act = |action| {
        Some(match action {
            Action::Record(record) => append(&mut at, record),
            Action::Effect(DestinationEffect::WriteMark(mark)) => {
                Act::WriteMark(keep(AnyReceipt::Grant(mark)))
            }
            Action::Effect(DestinationEffect::Start) => Act::Start,
            Action::Effect(DestinationEffect::SendGranted(receipt)) => {
                Act::Send(keep(AnyReceipt::Grant(receipt)))
            }
            Action::Effect(DestinationEffect::SendRevoked(receipt)) => {
                Act::Send(keep(AnyReceipt::Revoke(receipt)))
            }
            // Gives no right to anybody.
            Action::Effect(DestinationEffect::SendSynced(_)) => return None,
        })
    };
    actions.into_iter().filter_map(act).collect()
}

pub fn as_source(site: usize, ledger: LedgerId, m: Move) -> AsSource {
    static MEMO: LazyLock<Memo<(usize, LedgerId, Move), AsSource>> = LazyLock::new(Memo::new);
    MEMO.of((site, ledger, m), || match source_role(site, ledger, false).state(m.epoch()) {
        SourceState::Unknown => AsSource::Unknown,
        SourceState::Known => AsSource::Known,
        SourceState::Superseded => AsSource::Superseded,
        SourceState::Fencing => AsSource::Fencing,
        SourceState::Fenced(receipt) => AsSource::Fenced(keep(AnyReceipt::Fence(receipt))),
        SourceState::Released { settled } => AsSource::Released { settled },
        SourceState::Retired { settled } => AsSource::Retired { settled },
        SourceState::Destroyed => AsSource::Destroyed,
    })
}

pub fn as_destination(site: usize, ledger: LedgerId, m: Move) -> AsDestination {
    static MEMO: LazyLock<Memo<(usize, LedgerId, Move), AsDestination>> = LazyLock::new(Memo::new);
    MEMO.of((site, ledger, m), || match destination_role(site, ledger).state(m.epoch()) {
        DestinationState::Unknown => AsDestination::Unknown,
        DestinationState::Known => AsDestination::Known,
        DestinationState::Placed => AsDestination::Placed,
        DestinationState::Synced(_) => AsDestination::Synced,
        DestinationState::Granted(_) => AsDestination::Granted,
        DestinationState::Marked(receipt)
        | DestinationState::Started(receipt)
        | DestinationState::Healthy(receipt) => {
            AsDestination::Marked(keep(AnyReceipt::Grant(receipt)))
        }
        DestinationState::Revoked(receipt) => {
            AsDestination::Revoked(keep(AnyReceipt::Revoke(receipt)))
        }
    })
}

/// What is said of the VM by who can ask the destination alone.
pub fn verdict_from_destination(
    site: usize,
    ledger: LedgerId,
    mark: Mark,
    m: Move,
) -> (VerdictKind, Option<Side>) {
    type Key = (usize, LedgerId, Mark, Move);
    static MEMO: LazyLock<Memo<Key, (VerdictKind, Option<Side>)>> = LazyLock::new(Memo::new);
    MEMO.of((site, ledger, mark, m), || {
        let verdict = verdict(&Evidence {
            destination: Some(destination_role(site, ledger).state(m.epoch())),
            mark: match mark {
                Mark::Absent(placeholder_of) => MarkSeen::Absent { placeholder_of },
                Mark::NoPlaceholder => MarkSeen::NoPlaceholder,
                Mark::Present(id) => match receipt(id) {
                    AnyReceipt::Grant(receipt) => MarkSeen::Present(receipt),
                    other => panic!("not a mark: {other:?}"),
                },
            },
            destination_platform: Platform::Held,
            ..Evidence::nothing(m.epoch())
        });
        (verdict.verdict, verdict.lives_at)
    })
}
