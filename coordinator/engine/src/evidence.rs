//! What can be found out about a migration's VM, for a verdict: what ledgers say and platforms show.
//! Changes nothing, and holds nothing for true because it cannot be seen.

use std::sync::Arc;

use handover::{
    Attempt, DestinationRole, DestinationState, Evidence, Identity, MarkSeen, PlanDigest, Platform,
    Record, Side, SourceRole, SourceState, VerifyingKey, VmKey,
};
use model::{Power, VmId};
use site::{PlaceholderState, Site, SiteErrorKind};
use units::{Digest, Epoch};

use crate::custody::{CustodyError, copy_of_ledger, is_being_revoked, longer, mark_seen};

/// A site that can be asked.
pub struct Asked {
    pub identity: Identity,
    /// On this machine; `None` where there is none: that proves nothing, while an empty one would.
    pub ledger: Option<Vec<Record>>,
    pub site: Arc<dyn Site>,
}

/// Whose VM, and what is known of its migration besides.
pub struct About {
    pub id: VmId,
    /// Of the plan that the attempt carries out.
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
/// When a ledger contradicts itself, or its site's copy of it.
pub async fn gather(
    about: &About,
    source: Option<Asked>,
    destination: Option<Asked>,
) -> Result<Evidence, CustodyError> {
    let mut evidence = Evidence::nothing(about.epoch.unwrap_or_default());
    let id = about.id;
    let (source, destination) =
        tokio::join!(ask_source(about, source), ask_destination(about, destination));
    let (source, destination) = (source?, destination?);
    evidence.source_platform = source.platform;
    (evidence.mark, evidence.destination_platform) = (destination.mark, destination.platform);
    let (source_was_read, unfenced_counts) = (source.was_kept, source.site_asked);
    let (at_source, at_source_site) = (source.role, source.site);
    let undecided_counts = destination.site_asked;
    let (at_destination, at_destination_site) = (destination.role, destination.site);
    // Between the two looks it may have moved.
    let both = [evidence.source_platform, evidence.destination_platform];
    if let Some(site) = at_source_site
        && both == [Platform::Running; 2]
    {
        evidence.source_platform = source_platform(&*site, id).await;
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
    if let Some(site) = at_destination_site
        && is_granted(&evidence)
        // Under a grant there is a fence, unless the last of the source's ledger is lost.
        && !(source_was_read && evidence.source.as_ref().is_some_and(SourceState::was_fenced))
    {
        // What cannot be read at a site that answers may be there.
        let said = is_being_revoked(&*site, &about.vm, evidence.epoch).await;
        let answers = evidence.destination_platform != Platform::Unreachable;
        evidence.may_be_released = said.unwrap_or(answers);
    }
    // The site's copy is written first: that nothing was fenced or decided only it can tell.
    if !unfenced_counts {
        evidence.source = evidence.source.filter(SourceState::was_fenced);
    }
    if !undecided_counts {
        evidence.destination = evidence.destination.filter(is_decided);
    }
    // Between its two records of the beginning an attempt is in one of them alone; what the journal
    // knows of is in both. One that was not read where it is kept may be anything.
    let behind = |last: Option<Epoch>, site_asked: bool| {
        site_asked && about.epoch.zip(last).is_some_and(|(ours, last)| last < ours)
    };
    if behind(at_destination.as_ref().map(DestinationRole::last_epoch), undecided_counts) {
        evidence.behind = Some(Side::Destination);
    } else if behind(at_source.as_ref().map(SourceRole::last_epoch), unfenced_counts) {
        evidence.behind = Some(Side::Source);
    }
    Ok(evidence)
}

struct Found<R> {
    role: Option<R>,
    site: Option<Arc<dyn Site>>,
    site_asked: bool,
    was_kept: bool,
    platform: Platform,
    mark: MarkSeen,
}

impl<R> Found<R> {
    const fn nothing() -> Self {
        Self {
            role: None,
            site: None,
            site_asked: false,
            was_kept: false,
            platform: Platform::Unreachable,
            mark: MarkSeen::Unknown,
        }
    }
}

async fn ask_source(
    about: &About,
    asked: Option<Asked>,
) -> Result<Found<SourceRole>, CustodyError> {
    let Some(Asked { identity, ledger, site }) = asked else { return Ok(Found::nothing()) };
    let Known { records, site_asked, was_kept, answers } =
        known(&identity, ledger, &*site, &about.vm).await?;
    let role = records.map(|records| SourceRole::replay(identity, about.vm.clone(), &records));
    let role = role.transpose()?;
    let mut found = Found { role, site_asked, was_kept, ..Found::nothing() };
    if answers {
        found.platform = source_platform(&*site, about.id).await;
    }
    Ok(Found { site: Some(site), ..found })
}

async fn ask_destination(
    about: &About,
    asked: Option<Asked>,
) -> Result<Found<DestinationRole>, CustodyError> {
    let Some(Asked { identity, ledger, site }) = asked else { return Ok(Found::nothing()) };
    let Known { records, site_asked, was_kept, answers } =
        known(&identity, ledger, &*site, &about.vm).await?;
    let role = records.map(|records| DestinationRole::replay(identity, about.vm.clone(), &records));
    let role = role.transpose()?;
    let mut found = Found { role, site_asked, was_kept, ..Found::nothing() };
    if answers {
        found.mark = verified_mark(&*site, about.id, &about.destination_key).await;
        found.platform = destination_platform(&*site, about.id).await;
    }
    Ok(Found { site: Some(site), ..found })
}

const fn is_decided(state: &DestinationState) -> bool {
    state.is_granted() || matches!(state, DestinationState::Revoked(_))
}

/// By the ledger, or by the mark where that has lost it.
fn is_granted(evidence: &Evidence) -> bool {
    evidence.destination.as_ref().is_some_and(DestinationState::is_granted)
        || matches!(&evidence.mark, MarkSeen::Present(mark) if mark.attempt().epoch == evidence.epoch)
}

struct Known {
    records: Option<Vec<Record>>,
    /// What the site keeps is in it.
    site_asked: bool,
    /// ... and it did keep something.
    was_kept: bool,
    /// It is asked no more where it does not: each question takes its time.
    answers: bool,
}

/// What this machine and the site know of a VM: one of the two may be old or lost.
async fn known(
    identity: &Identity,
    here: Option<Vec<Record>>,
    site: &dyn Site,
    vm: &VmKey,
) -> Result<Known, CustodyError> {
    let there = copy_of_ledger(site, vm).await;
    let was_kept = matches!(there, Ok(Some(_)));
    if let Ok(Some(there)) = &there {
        identity.check(there)?;
    }
    let records = match (here, there) {
        (Some(here), Ok(Some(there))) => Some(longer(site.name().as_str(), here, there)?),
        // It has lost what it kept, or never had it.
        (Some(here), Ok(None)) => {
            let site_asked = here.is_empty();
            return Ok(Known { records: Some(here), site_asked, was_kept, answers: true });
        }
        (None, Ok(there)) => there,
        (None, Err(error @ CustodyError::Copy { .. })) => return Err(error),
        (here, Err(error)) => {
            tracing::info!(error = %units::chain(&error), "the ledger on this machine alone is read");
            let kind = error.at_site().map(|error| error.kind);
            let answers = kind != Some(SiteErrorKind::Unreachable);
            return Ok(Known { records: here, site_asked: false, was_kept, answers });
        }
    };
    Ok(Known { records, site_asked: true, was_kept, answers: true })
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
        Ok(Power::Paused) => Platform::Suspended,
        Ok(Power::Off) => Platform::Off,
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
        Ok(PlaceholderState::Released { power: Power::Paused, .. }) => Platform::Suspended,
        Ok(PlaceholderState::Released { .. }) => Platform::Off,
        Ok(PlaceholderState::Held { .. } | PlaceholderState::Foreign { .. }) => Platform::Held,
        Err(_) => Platform::Unreachable,
    }
}
