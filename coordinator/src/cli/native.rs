//! Live migrations by the sites' own workflow: what becomes of them is the mobility agents' business. Here
//! it is told in the words of `status`, from what both sites keep.

use std::collections::BTreeMap;

use engine::evidence::{self, About, Asked};
use handover::{Next, Side, Verdict, VerdictKind, verdict};
use model::SiteName;
use serde_json::json;
use site_ledger::{NativePaper, copy_of_ledger, natives};
use units::{Digest, Epoch, chain};

use super::exit;
use super::status::{is_for_people, patiently, strength, word};
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::show;

/// Those that the registered sites know of, told one by one: of `which`, a migration or a VM's name, or all.
/// Answers how many there were, and the exit code. `silent` sites are not asked again.
pub async fn tell(
    context: &Context,
    which: Option<&str>,
    from: Option<&SiteName>,
    silent: &[SiteName],
) -> Result<(usize, u8), Failure> {
    let (mut told, mut code) = (0, exit::DONE);
    for (epoch, paper) in ask(context, from, silent).await?.into_values() {
        let is_it = |which: &str| paper.name == which || paper.id.as_str() == which;
        if !which.is_none_or(is_it) {
            continue;
        }
        told += 1;
        if is_followed(context, &paper, epoch, from).await? {
            let (id, name) = (&paper.id, &paper.name);
            let value = json!({
                "id": id, "vm": name, "from": paper.from, "to": paper.to, "method": "native",
                "superseded_by": "a later migration",
            });
            context.say(&format!("{id}   {name}   superseded by a later migration"), &value);
            continue;
        }
        code = code.max(match gather(context, &paper, epoch, from).await {
            Ok(verdict) => say(context, &paper, &verdict),
            Err(failure) => {
                failure.show(context.json);
                failure.exit_code()
            }
        });
    }
    Ok((told, code))
}

type Papers = BTreeMap<(i64, Digest), (Epoch, NativePaper)>;

/// By when they began. Of two that say different things of one VM both are told.
async fn ask(
    context: &Context,
    from: Option<&SiteName>,
    silent: &[SiteName],
) -> Result<Papers, Failure> {
    let mut papers = Papers::new();
    for name in context.sites()?.into_iter().map(|site| site.name) {
        if from.is_some_and(|from| *from != name) || silent.contains(&name) {
            continue;
        }
        let kept = match natives(&*context.site(&name)?).await {
            Ok(kept) => kept,
            Err(error) => {
                let why = chain(&error);
                show::error(&format!("warning: {name} was not asked for live migrations: {why}"));
                continue;
            }
        };
        for (epoch, paper) in kept {
            match paper {
                // Of itself alone a site is believed.
                Ok(paper) if paper.from == name || paper.to == name => {
                    papers.insert((paper.began_ms, paper.digest()), (epoch, paper));
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
    Ok(papers)
}

/// What both sites show by now is a later migration's doing, whoever made that.
async fn is_followed(
    context: &Context,
    paper: &NativePaper,
    epoch: Epoch,
    from: Option<&SiteName>,
) -> Result<bool, Failure> {
    let Ok(vm) = paper.vm_key() else { return Ok(false) };
    let registered: Vec<_> = context.sites()?.into_iter().map(|site| site.name).collect();
    for name in [&paper.from, &paper.to] {
        if from.is_some_and(|from| from != name) || !registered.contains(name) {
            continue;
        }
        // One that does not answer is told of below.
        if let Ok(Some(records)) = copy_of_ledger(&*context.site(name)?, &vm).await
            && records.iter().any(|record| record.epoch > epoch)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn gather(
    context: &Context,
    paper: &NativePaper,
    epoch: Epoch,
    from: Option<&SiteName>,
) -> Result<Verdict, Failure> {
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
    let registered: Vec<_> = context.sites()?.into_iter().map(|site| site.name).collect();
    let asked = |name: &SiteName| -> Result<Option<Asked>, Failure> {
        if from.is_some_and(|from| from != name) || !registered.contains(name) {
            return Ok(None);
        }
        let identity = paper.identity(name, None).map_err(|error| undecided(&error))?;
        Ok(Some(Asked { identity, ledger: None, site: context.site(name)? }))
    };
    let gathering = evidence::gather(&about, asked(&paper.from)?, asked(&paper.to)?);
    let gathered = patiently(&format!("asking the sites about {}", paper.id), gathering).await;
    gathered.map(|evidence| verdict(&evidence)).map_err(|error| undecided(&error))
}

fn say(context: &Context, paper: &NativePaper, verdict: &Verdict) -> u8 {
    let site = |side| if side == Side::Source { &paper.from } else { &paper.to };
    let lives_at = verdict.lives_at.map(site);
    let next = next(paper, verdict);
    let lives = match lives_at {
        None => "runs nowhere that is known".to_owned(),
        Some(site) if is_sure(verdict) => format!("lives at {site}"),
        Some(site) => format!("belongs to {site}"),
    };
    let mut lines = vec![format!(
        "{}   {} {lives}   {} ({})",
        paper.id,
        paper.name,
        word(verdict),
        strength(verdict.strength)
    )];
    lines.push(format!("  {} → {}, by the sites' own live migration", paper.from, paper.to));
    lines.extend(verdict.evidence.iter().map(|evidence| format!("  evidence  {evidence}")));
    lines.extend(next.iter().map(|next| format!("  next      {next}")));
    let value = json!({
        "id": paper.id, "vm": paper.name, "from": paper.from, "to": paper.to, "method": "native",
        "verdict": verdict, "lives_at": lives_at, "next": null,
    });
    context.say(&lines.join("\n"), &value);
    match verdict.verdict {
        VerdictKind::AlarmSplit | VerdictKind::NeedsOperator | VerdictKind::InHandover => {
            exit::UNDECIDED
        }
        VerdictKind::Completed if verdict.started != Some(true) => exit::UNDECIDED,
        _ if is_for_people(verdict) => exit::UNDECIDED,
        _ => exit::DONE,
    }
}

fn is_sure(verdict: &Verdict) -> bool {
    verdict.verdict != VerdictKind::Completed || verdict.started == Some(true)
}

/// The agents bring it to its end, whatever is next; a person is needed where they cannot.
fn next(paper: &NativePaper, verdict: &Verdict) -> Option<String> {
    match verdict.next {
        Next::FenceAgain(_) | Next::Quarantine(_) | Next::CallForHelp => {
            Some(verdict.next.to_string())
        }
        _ if verdict.verdict == VerdictKind::InHandover || !is_sure(verdict) => Some(format!(
            "see that the mobility agents of {} and {} run and reach one another: they settle it",
            paper.from, paper.to
        )),
        _ => None,
    }
}
