//! What can be found out about a migration's VM, for a verdict: what ledgers say and platforms show.
//! Changes nothing, and holds nothing for true because it cannot be seen.

use std::sync::Arc;

use handover::{
    Attempt, DestinationRole, Evidence, Identity, LedgerError, MarkSeen, PlanDigest, Platform,
    Record, Side, SourceRole, VerifyingKey, VmKey,
};
use model::{Power, VmId};
use plan::Plan;
use site::{PlaceholderState, Site};
use units::{Digest, Epoch};

use crate::custody::mark_seen;

/// A site that can be asked.
pub struct Asked {
    pub identity: Identity,
    /// `None` where there is none: that proves nothing, while an empty one would.
    pub ledger: Option<Vec<Record>>,
    pub site: Arc<dyn Site>,
}

/// Whose VM, and what is known of its migration besides.
pub struct About<'a> {
    pub plan: &'a Plan,
    pub digest: Digest,
    pub vm: VmKey,
    /// The attempt that the coordinator's journal knows of, if it does.
    pub epoch: Option<Epoch>,
    /// Signs what is written on the placeholder.
    pub destination_key: VerifyingKey,
}

/// Asks the sites that can be asked.
///
/// # Errors
/// When a ledger contradicts itself.
pub async fn gather(
    about: &About<'_>,
    source: Option<Asked>,
    destination: Option<Asked>,
) -> Result<Evidence, LedgerError> {
    let (mut at_source, mut at_destination) = (None, None);
    let mut evidence = Evidence::nothing(about.epoch.unwrap_or_default());
    let id = about.plan.vm.id;
    if let Some(Asked { identity, ledger, site }) = source {
        let replayed =
            ledger.map(|records| SourceRole::replay(identity, about.vm.clone(), &records));
        at_source = replayed.transpose()?;
        evidence.source_platform = source_platform(&*site, id).await;
    }
    if let Some(Asked { identity, ledger, site }) = destination {
        let replayed =
            ledger.map(|records| DestinationRole::replay(identity, about.vm.clone(), &records));
        at_destination = replayed.transpose()?;
        evidence.mark = verified_mark(&*site, id, &about.destination_key).await;
        evidence.destination_platform = destination_platform(&*site, id).await;
    }
    // Killed between the ledgers and the journal, or with a journal from a backup, only they know of
    // the attempt.
    let ours = |attempt: &&Attempt| attempt.plan == PlanDigest(about.digest);
    let known = [
        at_destination.as_ref().and_then(|role| role.attempt(role.last_epoch())),
        at_source.as_ref().and_then(|role| role.attempt(role.last_epoch())),
    ];
    let known = known.into_iter().flatten().find(ours).map(|attempt| attempt.epoch);
    evidence.epoch = about.epoch.or(known).unwrap_or_default();
    evidence.source = at_source.as_ref().map(|role| role.state(evidence.epoch));
    evidence.destination = at_destination.as_ref().map(|role| role.state(evidence.epoch));
    // Between its two records of the beginning an attempt is in one of them alone; what the journal
    // knows of is in both.
    let behind =
        |last: Option<Epoch>| about.epoch.zip(last).is_some_and(|(ours, last)| last < ours);
    if behind(at_destination.as_ref().map(DestinationRole::last_epoch)) {
        evidence.behind = Some(Side::Destination);
    } else if behind(at_source.as_ref().map(SourceRole::last_epoch)) {
        evidence.behind = Some(Side::Source);
    }
    Ok(evidence)
}

async fn verified_mark(site: &dyn Site, vm: VmId, key: &VerifyingKey) -> MarkSeen {
    match mark_seen(site, vm).await {
        MarkSeen::Present(mark) if mark.verify(mark.attempt(), key).is_err() => MarkSeen::Unknown,
        seen => seen,
    }
}

async fn source_platform(site: &dyn Site, vm: VmId) -> Platform {
    match site.power(vm).await {
        Ok(Power::Running) => Platform::Running,
        Ok(Power::Paused | Power::Off) => Platform::Held,
        Ok(Power::Absent) => Platform::Absent,
        Err(_) => Platform::Unreachable,
    }
}

async fn destination_platform(site: &dyn Site, vm: VmId) -> Platform {
    match site.placeholder(vm).await {
        Ok(PlaceholderState::Released { power: Power::Running, .. }) => Platform::Running,
        // A VM there that we did not make runs its own system, whatever it is.
        Ok(PlaceholderState::Foreign { power: Power::Running, .. }) => Platform::Running,
        Ok(PlaceholderState::Absent) => Platform::Absent,
        Ok(PlaceholderState::Released { .. }) => Platform::Off,
        Ok(PlaceholderState::Held { .. } | PlaceholderState::Foreign { .. }) => Platform::Held,
        Err(_) => Platform::Unreachable,
    }
}
