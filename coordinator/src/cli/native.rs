//! Live migrations by the sites' own workflow: what becomes of them is the mobility agents' business. Here
//! it is told in the words of `status`, from what both sites keep.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::evidence::{self, About, Asked, Gathered};
use handover::{
    DestinationState, Evidence, Next, Platform, Side, SourceState, Verdict, VerdictKind, verdict,
};
use model::{SiteName, VmId};
use serde_json::json;
use site::{LiveJob, Site, SiteError, SiteErrorKind};
use site_ledger::{LiveWire, NativePaper, kept_wire, natives};
use units::{Digest, Epoch, chain};

use super::exit;
use super::status::{exit_code, head, is_for_people, patiently};
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::show;

/// Those that the registered sites know of, told one by one: of `which`, a migration or a VM's name, or all.
/// Sites that are `silent` are not asked again.
pub async fn tell(
    context: &Context,
    which: Option<&str>,
    from: Option<&SiteName>,
    silent: &[SiteName],
) -> Result<Told, Failure> {
    let mut sites = Sites::new();
    for name in context.sites()?.into_iter().map(|site| site.name) {
        if from.is_none_or(|from| *from == name) && !silent.contains(&name) {
            sites.insert(name.clone(), context.site(&name)?);
        }
    }
    let (papers, silent) = ask(&mut sites).await;
    let mut told = Told { count: 0, code: exit::DONE, silent };
    for ((_, _, epoch), paper) in papers {
        let is_it = |which: &str| paper.name == which || paper.id.as_str() == which;
        if !which.is_none_or(is_it) {
            continue;
        }
        told.count += 1;
        told.code = told.code.max(match gather(&sites, &paper, epoch).await {
            Ok(gathered) => {
                let progress = progress(&sites, &paper, epoch, &gathered).await;
                say(context, &paper, &gathered, progress)
            }
            Err(failure) => {
                failure.show(context.json);
                failure.exit_code()
            }
        });
    }
    Ok(told)
}

/// What came of telling.
#[derive(Default)]
pub struct Told {
    pub count: usize,
    /// The exit code.
    pub code: u8,
    /// Sites that turned out not to answer.
    pub silent: Vec<SiteName>,
}

pub type Sites = BTreeMap<SiteName, Arc<dyn Site>>;

/// One of them, as an attempt in the ledgers.
pub struct Attempt {
    pub epoch: Epoch,
    pub paper: NativePaper,
}

/// The last attempt to move this VM live that these sites know of; what could not be read of them besides.
pub async fn latest(sites: &Sites, vm: VmId) -> (Option<Attempt>, Vec<SiteError>) {
    let (mut last, mut unread) = (None::<Attempt>, Vec::new());
    for site in sites.values() {
        match natives(&**site).await {
            Ok(kept) => {
                for (epoch, paper) in kept {
                    let paper = paper.ok().filter(|paper| paper.vm == vm);
                    let is_later = last.as_ref().is_none_or(|last| last.epoch < epoch);
                    last =
                        paper.filter(|_| is_later).map(|paper| Attempt { epoch, paper }).or(last);
                }
            }
            Err(error) => unread.push(error),
        }
    }
    (last, unread)
}

/// By when they began. Of two that say different things of one VM both are told.
type Papers = BTreeMap<(i64, Digest, Epoch), NativePaper>;

/// Sites that do not answer are told of, and not asked any more.
async fn ask(sites: &mut Sites) -> (Papers, Vec<SiteName>) {
    let mut papers = Papers::new();
    let (mut silent, mut unread) = (Vec::new(), Vec::new());
    for (name, site) in &*sites {
        let kept = match natives(&**site).await {
            Ok(kept) => kept,
            Err(error) => {
                let why = chain(&error);
                show::error(&format!("warning: {name} was not asked for live migrations: {why}"));
                unread.push(name.clone());
                silent.extend((error.kind == SiteErrorKind::Unreachable).then(|| name.clone()));
                continue;
            }
        };
        for (epoch, paper) in kept {
            match paper {
                // Of itself alone a site is believed.
                Ok(paper) if paper.from == *name || paper.to == *name => {
                    papers.insert((paper.began_ms, paper.digest(), epoch), paper);
                }
                Ok(paper) => show::error(&format!(
                    "warning: what {name} keeps of {} is about {} and {}",
                    paper.id, paper.from, paper.to
                )),
                Err(error) => show::error(&format!(
                    "warning: papers of a live migration at {name}: {}",
                    chain(&error)
                )),
            }
        }
    }
    sites.retain(|name, _| !unread.contains(name));
    (papers, silent)
}

pub async fn gather(sites: &Sites, paper: &NativePaper, epoch: Epoch) -> Result<Gathered, Failure> {
    let undecided = |error: &dyn std::error::Error| {
        let what = format!("what the ledgers say of {} cannot be told", paper.id);
        Failure::new(Kind::Undecided, what).caused_by(error)
    };
    let about = About {
        id: paper.vm,
        digest: paper.digest(),
        vm: paper.vm_key().map_err(|error| undecided(&error))?,
        epoch: Some(epoch),
        destination_key: paper.key(&paper.to).map_err(|error| undecided(&error))?,
    };
    let asked = |name: &SiteName| -> Result<Option<Asked>, Failure> {
        let Some(site) = sites.get(name) else { return Ok(None) };
        let identity = paper.identity(name, None).map_err(|error| undecided(&error))?;
        Ok(Some(Asked {
            identity,
            ledger: None,
            site: Some(Arc::clone(site)),
            keeps_another: false,
        }))
    };
    let gathering = evidence::gather(&about, asked(&paper.from)?, asked(&paper.to)?);
    let gathered = patiently(&format!("asking the sites about {}", paper.id), gathering).await;
    let mut gathered = gathered.map_err(|error| undecided(&error))?;
    is_told_later(&mut gathered.evidence);
    Ok(gathered)
}

/// The destination's agent opens an attempt, and the source hears of it with its answer: one that has not, as the
/// line broke, is not behind. Nothing was fenced for it before the destination had the VM whole.
fn is_told_later(evidence: &mut Evidence) {
    use DestinationState as D;
    let before_it_was_whole = match evidence.destination {
        Some(D::Known | D::Placed) => true,
        // It may have been whole before, and the source off for it.
        Some(D::Revoked(_)) => evidence.source_platform == Platform::Running,
        _ => false,
    };
    if evidence.behind == Some(Side::Source)
        && evidence.source == Some(SourceState::Unknown)
        && before_it_was_whole
    {
        evidence.behind = None;
    }
}

/// How one gets on that is under way, whoever began it.
pub struct Progress {
    job: LiveJob,
    line: Option<LiveWire>,
}

async fn progress(
    sites: &Sites,
    paper: &NativePaper,
    epoch: Epoch,
    gathered: &Gathered,
) -> Option<Progress> {
    let source = sites.get(&paper.from)?;
    if gathered.is_followed || verdict(&gathered.evidence).verdict != VerdictKind::NotStarted {
        return None;
    }
    let job = source.live_job(paper.vm).await.ok()??;
    let wire = kept_wire(&**source, &paper.vm_key().ok()?).await;
    let line = wire.filter(|(of, _)| *of == epoch).map(|(_, wire)| wire);
    Some(Progress { job, line })
}

pub fn say(
    context: &Context,
    paper: &NativePaper,
    gathered: &Gathered,
    progress: Option<Progress>,
) -> u8 {
    let NativePaper { id, name, from, to, .. } = paper;
    let verdict = verdict(&gathered.evidence);
    // What both sites show by now is a later migration's doing, whoever made that; that both run is not
    // passed over for it.
    if gathered.is_followed && verdict.verdict != VerdictKind::AlarmSplit {
        let value = json!({
            "id": id, "vm": name, "from": from, "to": to, "method": "native",
            "superseded_by": "a later migration",
        });
        context.say(&format!("{id}   {name}   superseded by a later migration"), &value);
        return exit::DONE;
    }
    let site = |side| if side == Side::Source { from } else { to };
    let lives_at = verdict.lives_at.map(site);
    let has_ended = has_ended(&verdict);
    let mut lines = vec![head((id, name), &verdict, (from, to))];
    lines.push(format!("  {from} → {to}, by the sites' own live migration"));
    lines.extend(verdict.evidence.iter().map(|evidence| format!("  evidence  {evidence}")));
    lines.extend(
        progress.as_ref().map(|Progress { job, line }| {
            format!("  progress  {}", show::live_sentence(job, *line))
        }),
    );
    lines.extend(next(paper, &verdict).map(|next| format!("  next      {next}")));
    let progress = progress.map(|Progress { job, line }| json!({ "job": job, "line": line }));
    let value = json!({
        "id": id, "vm": name, "from": from, "to": to, "method": "native",
        "verdict": verdict, "lives_at": lives_at, "progress": progress, "next": null,
    });
    context.say(&lines.join("\n"), &value);
    exit_code(&verdict, has_ended)
}

/// As far as it shows: no journal of it is here.
pub fn has_ended(verdict: &Verdict) -> bool {
    match verdict.verdict {
        VerdictKind::RolledBack => verdict.next == Next::Nothing,
        VerdictKind::Completed => verdict.started == Some(true),
        _ => false,
    }
}

/// The agents bring it to its end, whatever is next; a person is needed where they cannot.
fn next(paper: &NativePaper, verdict: &Verdict) -> Option<String> {
    if verdict.next == Next::RestoreDestination && !has_ended(verdict) {
        if verdict.verdict == VerdictKind::Completed {
            return Some(format!("reach {}: the VM belongs there", paper.to));
        }
        let (to, name) = (&paper.to, &paper.name);
        // What is signed with its key nobody else can sign: there is no word that takes it back.
        return Some(format!(
            "bring {to} back, with what its libvirt keeps; if it is gone for good, and {name} never runs there: LIVE.md, \"gone for good\""
        ));
    }
    if is_for_people(verdict) || verdict.verdict == VerdictKind::NeedsOperator {
        return Some(verdict.next.to_string());
    }
    if verdict.verdict == VerdictKind::NotStarted {
        return Some(format!(
            "nothing while it is under way (at {}: virsh domjobinfo {}); else see that both mobility agents run: they take it back",
            paper.from, paper.name
        ));
    }
    (!has_ended(verdict)).then(|| {
        format!(
            "see that the mobility agents of {} and {} run and reach one another: they settle it",
            paper.from, paper.to
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_has_not_heard_of_an_attempt_is_behind_once_there_is_a_vm() {
        use DestinationState as D;
        let content = handover::Content::new(vec![Digest([1; 32])]).unwrap();
        for (destination, behind) in [
            (D::Known, None),
            (D::Placed, None),
            (D::Synced(content), Some(Side::Source)),
            (D::Unknown, Some(Side::Source)),
        ] {
            let mut evidence = Evidence {
                source: Some(SourceState::Unknown),
                destination: Some(destination),
                source_platform: Platform::Running,
                behind: Some(Side::Source),
                ..Evidence::nothing(Epoch(3))
            };
            is_told_later(&mut evidence);
            assert_eq!(evidence.behind, behind, "{:?}", evidence.destination);
            let told = verdict(&evidence).verdict;
            assert_eq!(told == VerdictKind::NeedsOperator, behind.is_some(), "{told:?}");
            evidence.behind = Some(Side::Destination);
            is_told_later(&mut evidence);
            assert_eq!(evidence.behind, Some(Side::Destination));
        }
    }
}
