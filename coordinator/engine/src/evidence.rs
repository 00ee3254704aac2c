//! What can be found out about a migration's VM, for a verdict: what ledgers say and platforms show.
//! Changes nothing, and holds nothing for true because it cannot be seen.

use std::collections::BTreeSet;
use std::sync::Arc;

use handover::{
    Attempt, DestinationEntry, DestinationRole, DestinationState, Entry, Evidence, Identity,
    MarkSeen, PlanDigest, Platform, Record, Side, SourceEntry, SourceRole, SourceState,
    VerifyingKey, VmKey,
};
use model::{Power, VmId};
use site::{PlaceholderState, Site, SiteErrorKind};
use site_ledger::Role;
use units::{Digest, Epoch};

use crate::custody::{CustodyError, copy_of_ledger, is_being_revoked, longer, mark_seen};

/// A site that can be asked.
pub struct Asked {
    pub identity: Identity,
    /// On this machine; `None` where there is none: that proves nothing, while an empty one would.
    pub ledger: Option<Vec<Record>>,
    /// `None`: it is known not to answer, and each question would take its time.
    pub site: Option<Arc<dyn Site>>,
    /// What it keeps is known to be another's story: its platform alone is asked.
    pub keeps_another: bool,
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

/// All that was found out.
pub struct Gathered {
    pub evidence: Evidence,
    /// By the sites' own ledgers a later attempt of this VM was opened, and not taken back: what both sites
    /// show by now is its doing.
    pub is_followed: bool,
}

/// Asks the sites that can be asked, side by side.
///
/// # Errors
/// When a ledger contradicts itself, or its site's copy of it.
pub async fn gather(
    about: &About,
    source: Option<Asked>,
    destination: Option<Asked>,
) -> Result<Gathered, CustodyError> {
    let mut evidence = Evidence::nothing(about.epoch.unwrap_or_default());
    let id = about.id;
    let at_source = async {
        let found = ask::<SourceRole>(about, source).await?;
        let platform = match &found.site {
            Some(site) => source_platform(&**site, id).await,
            None => Platform::Unreachable,
        };
        Ok::<_, CustodyError>((found, platform))
    };
    let at_destination = async {
        let found = ask::<DestinationRole>(about, destination).await?;
        let seen = match &found.site {
            Some(site) => {
                let mark = verified_mark(&**site, id, &about.destination_key).await;
                (mark, destination_platform(&**site, id).await)
            }
            None => (MarkSeen::Unknown, Platform::Unreachable),
        };
        Ok::<_, CustodyError>((found, seen))
    };
    let (at_source, at_destination) = tokio::join!(at_source, at_destination);
    let (source, platform) = at_source?;
    evidence.source_platform = platform;
    let (destination, (mark, platform)) = at_destination?;
    (evidence.mark, evidence.destination_platform) = (mark, platform);
    // Between the two looks it may have moved.
    let both = [evidence.source_platform, evidence.destination_platform];
    if let Some(site) = &source.site
        && both == [Platform::Running; 2]
    {
        evidence.source_platform = source_platform(&**site, id).await;
    }
    // Killed between the ledgers and the journal, or with a journal from a backup, only they know of
    // the attempt.
    let ours = |attempt: &&Attempt| attempt.plan == PlanDigest(about.digest);
    let known = [
        destination.role.as_ref().and_then(|role| role.attempt(role.last_epoch())),
        source.role.as_ref().and_then(|role| role.attempt(role.last_epoch())),
    ];
    let known = known.into_iter().flatten().find(ours).map(|attempt| attempt.epoch);
    evidence.epoch = about.epoch.or(known).unwrap_or_default();
    evidence.source = source.role.as_ref().map(|role| role.state(evidence.epoch));
    evidence.destination = destination.role.as_ref().map(|role| role.state(evidence.epoch));
    if let Some(site) = &destination.site
        && is_granted(&evidence)
        // Under a grant there is a fence, unless the last of the source's ledger is lost.
        && !(source.was_kept && evidence.source.as_ref().is_some_and(SourceState::was_fenced))
    {
        // What cannot be read at a site that answers may be there.
        let said = is_being_revoked(&**site, &about.vm, evidence.epoch).await;
        evidence.may_be_released = said.unwrap_or(true);
    }
    // The site's copy is written first: that nothing was fenced or decided only it can tell.
    if !source.site_asked {
        evidence.source = evidence.source.filter(SourceState::was_fenced);
    }
    if !destination.site_asked {
        evidence.destination = evidence.destination.filter(is_decided);
    }
    // Between its two records of the beginning an attempt is in one of them alone; what the journal
    // knows of is in both. One that was not read where it is kept may be anything.
    let behind = |last: Option<Epoch>, site_asked: bool| {
        site_asked && about.epoch.zip(last).is_some_and(|(ours, last)| last < ours)
    };
    if behind(destination.role.as_ref().map(DestinationRole::last_epoch), destination.site_asked) {
        evidence.behind = Some(Side::Destination);
    } else if behind(source.role.as_ref().map(SourceRole::last_epoch), source.site_asked) {
        evidence.behind = Some(Side::Source);
    }
    let taken_back =
        |epoch: &Epoch| source.taken_back.contains(epoch) || destination.taken_back.contains(epoch);
    let mut opened = source.opened.iter().chain(&destination.opened);
    let is_followed = opened.any(|epoch| *epoch > evidence.epoch && !taken_back(epoch));
    Ok(Gathered { evidence, is_followed })
}

/// What is known at one site.
struct Found<R> {
    role: Option<R>,
    /// If it answers: each further question takes its time.
    site: Option<Arc<dyn Site>>,
    /// What the site keeps is in it.
    site_asked: bool,
    /// ... and it did keep something.
    was_kept: bool,
    /// Of all attempts that its ledger knows of.
    opened: BTreeSet<Epoch>,
    taken_back: BTreeSet<Epoch>,
}

async fn ask<R: Role>(about: &About, asked: Option<Asked>) -> Result<Found<R>, CustodyError> {
    let mut found = Found {
        role: None,
        site: None,
        site_asked: false,
        was_kept: false,
        opened: BTreeSet::new(),
        taken_back: BTreeSet::new(),
    };
    let Some(Asked { identity, ledger, site, keeps_another }) = asked else { return Ok(found) };
    let known = match &site {
        Some(_) if keeps_another => {
            Known { records: ledger, site_asked: false, was_kept: false, answers: true }
        }
        Some(site) => known(&identity, ledger, &**site, &about.vm).await?,
        None => Known { records: ledger, site_asked: false, was_kept: false, answers: false },
    };
    (found.site_asked, found.was_kept) = (known.site_asked, known.was_kept);
    if let Some(records) = known.records {
        for record in &records {
            match record.entry {
                Entry::Source(SourceEntry::AttemptKnown(_))
                | Entry::Destination(DestinationEntry::AttemptKnown(_)) => {
                    found.opened.insert(record.epoch);
                }
                Entry::Source(SourceEntry::Released(_))
                | Entry::Destination(DestinationEntry::Revoked { .. }) => {
                    found.taken_back.insert(record.epoch);
                }
                _ => {}
            }
        }
        found.role = Some(R::replay(identity, about.vm.clone(), &records)?);
    }
    found.site = site.filter(|_| known.answers);
    Ok(found)
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
