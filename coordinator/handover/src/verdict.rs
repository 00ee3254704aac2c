//! Where a VM lives, from whatever evidence is left.
//!
//! The rules are tried in order, the first that fits decides. An absence of evidence is never
//! evidence of absence: what is not known is said to be unknown, and what is safe then is said
//! too.

use std::fmt;

use serde::Serialize;
use units::Epoch;

use crate::attempt::Attestation;
use crate::coordinator::Side;
use crate::destination::DestinationState;
use crate::fence::Established;
use crate::mark::MarkSeen;
use crate::receipt::{FenceReceipt, GrantReceipt, RevokeReceipt};
use crate::source::SourceState;

/// Everything that could be found out about one VM and one attempt. Both sites are always asked.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub epoch: Epoch,
    /// What the source's ledger says; `None` if nobody can read it. A ledger that is missing where
    /// an attempt is known to have been made is not an empty one: it is `None` too.
    pub source: Option<SourceState>,
    /// What the destination's ledger says; `None` if nobody can read it, or it is missing.
    pub destination: Option<DestinationState>,
    /// The mark is verified.
    pub mark: MarkSeen,
    pub source_platform: Platform,
    pub destination_platform: Platform,
    /// A decision's receipt that somebody kept, verified.
    pub held: Option<Held>,
    /// A ledger whose last epoch is below what a peer, a receipt or a placeholder remembers.
    pub behind: Option<Side>,
    /// Granted, and somebody has begun to call it off, and what the source made of that could not be
    /// read where it is kept: it may have been released before the grant was seen.
    pub may_be_released: bool,
}

impl Evidence {
    /// Nobody answers.
    pub const fn nothing(epoch: Epoch) -> Self {
        Self {
            epoch,
            source: None,
            destination: None,
            mark: MarkSeen::Unknown,
            source_platform: Platform::Unreachable,
            destination_platform: Platform::Unreachable,
            held: None,
            behind: None,
            may_be_released: false,
        }
    }
}

/// What a platform shows of its copy of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    /// Running its own system, able to write to its disks.
    Running,
    /// There, and not running its own system: off, or the helper runs in it.
    Held,
    /// There with its own system, which is stopped where it was: it goes on by a word to the platform.
    Suspended,
    /// There with its own system, and not running: it may have run.
    Off,
    /// The platform does not know it.
    Absent,
    Unreachable,
}

/// A verified receipt of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    Grant(GrantReceipt),
    Revoke(RevokeReceipt),
}

/// What is true of a VM, how surely, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub verdict: VerdictKind,
    pub strength: Strength,
    /// `None` while it runs nowhere, or nobody knows. The destination from the decision on.
    pub lives_at: Option<Side>,
    /// What the platform of the site where it lives shows of it. `None` if that is no site.
    pub shown: Option<Platform>,
    /// Where a platform shows it running, if one alone does: also where nobody decided that.
    pub seen: Option<Side>,
    /// Was it started where it was decided to live? `None` if that is not the destination, or not
    /// known.
    pub started: Option<bool>,
    /// What was seen, one fact a line.
    pub evidence: Vec<String>,
    pub next: Next,
    /// What does no harm now, `next` among it.
    pub safe: Vec<Next>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// Nothing was copied yet; the VM lives at the source.
    NotStarted,
    /// The VM lives at the source, and copying can go on.
    Resumable,
    /// It did not move in this epoch.
    NotMigrated,
    /// Fenced and undecided: it runs nowhere, and either way is open.
    InHandover,
    RolledBack,
    Completed,
    NeedsOperator,
    /// Both copies run and can write.
    AlarmSplit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// Ledgers and receipts say so.
    Proven,
    /// A platform showed it.
    Observed,
    /// An operator answers for it.
    Attested,
    Unknown,
}

/// Something to be done about a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    Nothing,
    /// Go on: copy, decide, start, retire, whatever is next.
    Resume,
    /// Take back: revoke and release.
    Abort,
    /// Write down that this attempt never completes, so that it is final.
    Revoke,
    /// Un-fence the source with the revoke receipt, as soon as it answers.
    ReleaseSource,
    /// Write the decision into the destination's ledger again, from the mark.
    HealDestination,
    /// Bring the destination's ledger back, or stop the VM there at its platform and attest it.
    RestoreDestination,
    /// Stop this side at its platform: it is not the owner. Do not merge the two.
    FenceAgain(Side),
    /// Let this side's ledger decide nothing until its current copy is back.
    Quarantine(Side),
    /// Reach the source, or answer for it: nothing else can tell whether it was released.
    AskSource,
    CallForHelp,
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Resume => "go on",
            Self::Abort => "take back",
            Self::Revoke => "make it final that this attempt does not complete",
            Self::ReleaseSource => "release the source when it answers",
            Self::HealDestination => "heal the destination's ledger from the mark",
            Self::RestoreDestination => {
                "bring the destination's ledger back, or stop the VM there and attest it"
            }
            Self::FenceAgain(Side::Source) => "stop the copy at the source; do not merge",
            Self::FenceAgain(Side::Destination) => "stop the copy at the destination; do not merge",
            Self::Quarantine(Side::Source) => "let the source's ledger decide nothing",
            Self::Quarantine(Side::Destination) => "let the destination's ledger decide nothing",
            Self::AskSource => "reach the source: it may have been let go on there",
            Self::CallForHelp => "call for help: the ledgers contradict each other",
        })
    }
}

/// Judges the evidence.
pub fn verdict(evidence: &Evidence) -> Verdict {
    let judgement = judge(evidence);
    let mut safe = vec![judgement.next];
    safe.extend(judgement.also_safe.iter().copied().filter(|other| *other != judgement.next));
    Verdict {
        verdict: judgement.verdict,
        strength: judgement.strength,
        lives_at: judgement.lives_at,
        shown: judgement.lives_at.map(|side| match side {
            Side::Source => evidence.source_platform,
            Side::Destination => evidence.destination_platform,
        }),
        seen: if both_run(evidence) { None } else { seen(evidence) },
        started: match judgement.verdict {
            VerdictKind::Completed => started(evidence),
            _ => None,
        },
        evidence: in_words(evidence),
        next: judgement.next,
        safe,
    }
}

fn started(evidence: &Evidence) -> Option<bool> {
    use DestinationState as D;
    // It is retired once the destination has answered.
    if let Some(SourceState::Retired { .. } | SourceState::Destroyed) = evidence.source {
        return Some(true);
    }
    match (&evidence.destination, evidence.destination_platform) {
        (_, Platform::Running) | (Some(D::Started(_) | D::Healthy(_)), _) => Some(true),
        // A ledger that was not read where it is kept first may be behind.
        (Some(D::Granted(_)), Platform::Unreachable) => None,
        (Some(D::Granted(_)), _) => Some(false),
        // That it was started is recorded once it was: only its platform knows of the moment between, as
        // long as it still has the helper's definition.
        (Some(D::Marked(_)), Platform::Held) => Some(false),
        (Some(D::Marked(_)), _) => None,
        (Some(D::Unknown | D::Known | D::Placed | D::Synced(_) | D::Revoked(_)) | None, _) => None,
    }
}

struct Judgement {
    verdict: VerdictKind,
    strength: Strength,
    lives_at: Option<Side>,
    next: Next,
    also_safe: &'static [Next],
}

/// What is decided, by whatever remembers it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decided {
    Granted(Strength),
    Revoked(Strength),
    /// The ledger was read, and nothing else remembers a decision.
    NotYet,
    /// Nobody could read the ledger, and nothing else remembers a decision.
    Unreadable,
    Contradiction,
}

fn judge(evidence: &Evidence) -> Judgement {
    use {SourceState as S, VerdictKind as V};
    let decided = decided(evidence);
    let source = evidence.source.as_ref();
    let is = |verdict, strength, lives_at, next, also_safe| Judgement {
        verdict,
        strength,
        lives_at,
        next,
        also_safe,
    };
    let seen_at_source = (evidence.source_platform == Platform::Running).then_some(Side::Source);
    match (decided, source) {
        // Before all else: while both write, every moment makes it worse.
        _ if both_run(evidence) => split(decided, source),
        (Decided::Contradiction, _) => {
            is(V::NeedsOperator, Strength::Unknown, None, Next::CallForHelp, &[])
        }

        (Decided::Granted(_), _) if evidence.may_be_released && started(evidence) != Some(true) => {
            is(V::NeedsOperator, Strength::Unknown, None, Next::AskSource, &[])
        }
        // It was started all the same: that it runs at the source as well nobody has ruled out.
        (Decided::Granted(_), _) if evidence.may_be_released => {
            let runs = evidence.destination_platform == Platform::Running;
            let strength = if runs { Strength::Observed } else { Strength::Unknown };
            is(V::Completed, strength, Some(Side::Destination), after_grant(evidence), &[])
        }
        (Decided::Granted(strength), _) => {
            is(V::Completed, strength, Some(Side::Destination), after_grant(evidence), &[])
        }
        // A ledger that has forgotten something can neither prove nor decide.
        _ if evidence.behind.is_some() => {
            let side = evidence.behind.unwrap_or(Side::Destination);
            is(V::NeedsOperator, Strength::Observed, seen_at_source, Next::Quarantine(side), &[])
        }
        (Decided::Revoked(strength), Some(S::Released { settled: false })) => {
            is(V::RolledBack, strength, Some(Side::Source), Next::Resume, &[])
        }
        (Decided::Revoked(strength), Some(S::Fencing | S::Fenced(_))) => {
            is(V::RolledBack, strength, Some(Side::Source), Next::ReleaseSource, &[Next::Resume])
        }
        // A later attempt has the VM, wherever that went.
        (Decided::Revoked(strength), Some(S::Superseded)) => {
            is(V::RolledBack, strength, seen_at_source, Next::Nothing, &[])
        }
        (Decided::Revoked(strength), Some(_)) => {
            is(V::RolledBack, strength, Some(Side::Source), Next::Nothing, &[])
        }
        (Decided::Revoked(strength), None) => {
            is(V::NotMigrated, strength, seen_at_source, Next::ReleaseSource, &[])
        }

        // A later attempt has the VM, wherever that went.
        (Decided::NotYet | Decided::Unreadable, Some(S::Superseded)) => {
            is(V::NotMigrated, Strength::Proven, seen_at_source, Next::Abort, &[])
        }
        // Somebody started what was fenced: no fence stops everything.
        (Decided::NotYet, Some(S::Fenced(_))) if seen_at_source.is_some() => {
            // What it has written since is nowhere else.
            is(V::NeedsOperator, Strength::Observed, seen_at_source, Next::Abort, &[])
        }
        // It was suspended before, so somebody let it go on: what it writes is not in the copy.
        (Decided::NotYet, Some(S::Fencing)) if seen_at_source.is_some() => {
            is(V::NotMigrated, Strength::Proven, seen_at_source, Next::Abort, &[Next::Resume])
        }
        (Decided::NotYet, Some(S::Fencing | S::Fenced(_))) => {
            let also_safe: &[Next] =
                if evidence.mark == MarkSeen::Unknown { &[] } else { &[Next::Abort] };
            is(V::InHandover, Strength::Proven, None, Next::Resume, also_safe)
        }
        (Decided::NotYet, Some(S::Known)) => {
            let kind = if copying(evidence) { V::Resumable } else { V::NotStarted };
            is(kind, Strength::Proven, Some(Side::Source), Next::Resume, &[Next::Abort])
        }
        (Decided::NotYet, Some(S::Unknown))
            if matches!(
                evidence.destination,
                Some(DestinationState::Unknown | DestinationState::Known)
            ) =>
        {
            is(V::NotStarted, Strength::Proven, Some(Side::Source), Next::Resume, &[Next::Abort])
        }
        (Decided::NotYet, _) => {
            is(V::NotMigrated, Strength::Proven, seen_at_source, Next::Revoke, &[])
        }

        // No fence was ever made, so nothing can have been granted.
        (Decided::Unreadable, Some(S::Known | S::Unknown)) => {
            is(V::NotMigrated, Strength::Proven, Some(Side::Source), Next::Resume, &[])
        }
        // No fence receipt was ever given, so nothing can have been granted.
        (Decided::Unreadable, Some(S::Fencing)) => {
            is(V::NotMigrated, Strength::Proven, seen_at_source, Next::RestoreDestination, &[])
        }
        // Somebody started what was fenced, as above; the mark would show a decision.
        (Decided::Unreadable, Some(S::Fenced(_)))
            if seen_at_source.is_some() && matches!(evidence.mark, MarkSeen::Absent { .. }) =>
        {
            is(V::NeedsOperator, Strength::Observed, seen_at_source, Next::Abort, &[])
        }
        // The ledger is gone, but its second mark is looked at before every start.
        (Decided::Unreadable, Some(_)) if matches!(evidence.mark, MarkSeen::Absent { .. }) => {
            is(V::InHandover, Strength::Observed, None, Next::Abort, &[])
        }
        // There is no ledger at all, no attempt that anybody knows of, and nothing at the destination: it
        // was killed before it began.
        (Decided::Unreadable, None)
            if evidence.epoch == Epoch(0)
                && evidence.mark == MarkSeen::NoPlaceholder
                && seen_at_source.is_some() =>
        {
            is(V::NotMigrated, Strength::Observed, seen_at_source, Next::Resume, &[])
        }
        // Fenced, and whoever runs it, it may be decided for the destination.
        (Decided::Unreadable, Some(S::Fenced(_))) => {
            is(V::NeedsOperator, Strength::Unknown, None, Next::RestoreDestination, &[])
        }
        (Decided::Unreadable, _) => {
            is(V::NeedsOperator, Strength::Unknown, seen(evidence), Next::RestoreDestination, &[])
        }
    }
}

fn decided(evidence: &Evidence) -> Decided {
    use {DestinationState as D, SourceState as S};
    let mut granted = None;
    let mut revoked = None;
    let strength = |fence: &FenceReceipt| match fence.claim().established {
        Established::ByPlatform { .. } => Strength::Proven,
        Established::Attested(_) => Strength::Attested,
    };
    match &evidence.destination {
        Some(D::Granted(fence)) => granted = Some(strength(fence)),
        Some(D::Marked(receipt) | D::Started(receipt) | D::Healthy(receipt)) => {
            granted = Some(strength(&receipt.claim().fence));
        }
        Some(D::Revoked(receipt)) => revoked = Some(strength_of(receipt)),
        Some(D::Unknown | D::Known | D::Placed | D::Synced(_)) | None => {}
    }
    match &evidence.mark {
        MarkSeen::Present(mark) if mark.attempt().epoch == evidence.epoch => {
            granted = Some(strength(&mark.claim().fence));
        }
        _ => {}
    }
    match &evidence.held {
        Some(Held::Grant(receipt)) => granted = Some(strength(&receipt.claim().fence)),
        Some(Held::Revoke(receipt)) => revoked = Some(strength_of(receipt)),
        None => {}
    }
    // A source ends only with the receipt in its ledger.
    match &evidence.source {
        Some(S::Released { .. }) => revoked = revoked.or(Some(Strength::Proven)),
        Some(S::Retired { .. } | S::Destroyed) => granted = granted.or(Some(Strength::Proven)),
        Some(S::Unknown | S::Known | S::Superseded | S::Fencing | S::Fenced(_)) | None => {}
    }
    match (granted, revoked, &evidence.destination) {
        (Some(_), Some(_), _) => Decided::Contradiction,
        (Some(strength), None, _) => Decided::Granted(strength),
        (None, Some(strength), _) => Decided::Revoked(strength),
        (None, None, Some(_)) => Decided::NotYet,
        (None, None, None) => Decided::Unreadable,
    }
}

fn strength_of(receipt: &RevokeReceipt) -> Strength {
    if receipt.claim().attested.is_some() { Strength::Attested } else { Strength::Proven }
}

fn after_grant(evidence: &Evidence) -> Next {
    use {DestinationState as D, SourceState as S};
    if evidence.source_platform == Platform::Running {
        return Next::FenceAgain(Side::Source);
    }
    match (&evidence.destination, &evidence.source) {
        (Some(D::Unknown | D::Known | D::Placed | D::Synced(_)), _) => Next::HealDestination,
        (None, _) => Next::RestoreDestination,
        (Some(D::Healthy(_)), Some(S::Retired { settled: true } | S::Destroyed)) => Next::Nothing,
        (Some(_), _) => Next::Resume,
    }
}

fn split(decided: Decided, source: Option<&SourceState>) -> Judgement {
    let (lives_at, next) = match (decided, source) {
        (Decided::Granted(_), _) => (Some(Side::Destination), Next::FenceAgain(Side::Source)),
        // Both may be a later attempt's doing.
        (_, Some(SourceState::Superseded)) => (None, Next::CallForHelp),
        (Decided::Revoked(_), _) | (_, Some(SourceState::Known)) => {
            (Some(Side::Source), Next::FenceAgain(Side::Destination))
        }
        // Nothing gave the destination the right to run.
        (Decided::NotYet, _) => (None, Next::FenceAgain(Side::Destination)),
        (Decided::Unreadable | Decided::Contradiction, _) => (None, Next::CallForHelp),
    };
    let verdict = VerdictKind::AlarmSplit;
    Judgement { verdict, strength: Strength::Observed, lives_at, next, also_safe: &[] }
}

fn both_run(evidence: &Evidence) -> bool {
    evidence.source_platform == Platform::Running
        && evidence.destination_platform == Platform::Running
}

/// Where a platform shows it running.
const fn seen(evidence: &Evidence) -> Option<Side> {
    match (evidence.source_platform, evidence.destination_platform) {
        (Platform::Running, _) => Some(Side::Source),
        (_, Platform::Running) => Some(Side::Destination),
        _ => None,
    }
}

const fn copying(evidence: &Evidence) -> bool {
    matches!(evidence.destination, Some(DestinationState::Placed | DestinationState::Synced(_)))
}

fn in_words(evidence: &Evidence) -> Vec<String> {
    let epoch = evidence.epoch;
    let mut lines = vec![
        format!("source's ledger: {}", source_in_words(evidence.source.as_ref())),
        format!("destination's ledger: {}", destination_in_words(evidence.destination.as_ref())),
        match &evidence.mark {
            MarkSeen::Absent { placeholder_of } => {
                format!("placeholder of epoch {placeholder_of}: bears no mark")
            }
            MarkSeen::NoPlaceholder => "placeholder: there is none".to_owned(),
            MarkSeen::Present(mark) => {
                format!("placeholder: marked as granted in epoch {}", mark.attempt().epoch)
            }
            MarkSeen::Unknown => "placeholder: could not be looked at".to_owned(),
        },
        format!("source's platform: {}", evidence.source_platform),
        format!("destination's platform: {}", evidence.destination_platform),
    ];
    match &evidence.held {
        Some(Held::Grant(_)) => lines.push(format!("a grant receipt of epoch {epoch} is held")),
        Some(Held::Revoke(_)) => lines.push(format!("a revoke receipt of epoch {epoch} is held")),
        None => {}
    }
    if evidence.may_be_released {
        lines.push(
            "somebody has begun to call it off, and the source does not tell what came of it"
                .into(),
        );
    }
    match evidence.behind {
        Some(Side::Source) => lines.push("source's ledger: an old copy, others know more".into()),
        Some(Side::Destination) => {
            lines.push("destination's ledger: an old copy, others know more".into());
        }
        None => {}
    }
    lines
}

const fn source_in_words(state: Option<&SourceState>) -> &'static str {
    match state {
        None => "not known: its site was not asked, does not answer, or has lost it",
        Some(SourceState::Unknown) => "has not heard of this epoch",
        Some(SourceState::Known) => "the VM was not fenced",
        Some(SourceState::Superseded) => "the VM was not fenced, a later epoch is known",
        Some(SourceState::Fencing) => "a fence was begun, no receipt given",
        Some(SourceState::Fenced(_)) => "fenced",
        Some(SourceState::Released { settled: true }) => "released, the VM may run again",
        Some(SourceState::Released { settled: false }) => "released, un-fencing is under way",
        Some(SourceState::Retired { settled: true }) => "retired",
        Some(SourceState::Retired { settled: false }) => "retired, renaming is under way",
        Some(SourceState::Destroyed) => "retired and destroyed",
    }
}

fn destination_in_words(state: Option<&DestinationState>) -> String {
    if let Some(DestinationState::Revoked(receipt)) = state
        && let Some(Attestation { by, reason }) = &receipt.claim().attested
    {
        return format!("revoked, by word of {by}: {reason}");
    }
    let words = match state {
        None => "not known: its site was not asked, does not answer, or has lost it",
        Some(DestinationState::Unknown) => "has not heard of this epoch",
        Some(DestinationState::Known) => "nothing decided, no placeholder yet",
        Some(DestinationState::Placed) => "nothing decided, placeholder made",
        Some(DestinationState::Synced(_)) => "nothing decided, targets synced",
        Some(DestinationState::Granted(_)) => "granted, not marked on the placeholder yet",
        Some(DestinationState::Marked(_)) => "granted and marked, no start recorded",
        Some(DestinationState::Started(_)) => "granted and started",
        Some(DestinationState::Healthy(_)) => "granted, started and answering",
        Some(DestinationState::Revoked(_)) => "revoked",
    };
    words.to_owned()
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "the VM runs and can write",
            Self::Held => "the VM is there and does not run its own system",
            Self::Suspended => "the VM is there and is suspended",
            Self::Off => "the VM is there and is off",
            Self::Absent => "knows no such VM",
            Self::Unreachable => "was not asked, or does not answer",
        })
    }
}
