//! What this agent's own ledger has lost, and its site has not: its state directory is gone. Who may run each VM is on
//! record at the site, and so is how far its migration came; the agent goes on from there. (Of what an older copy of the
//! ledger has, it believes that copy.)
//!
//! Lost for good is what is of this agent alone. Of a VM that waits nobody knows whether somebody resumed it meanwhile:
//! it is held again, and ended by nobody but its operator if it stays at the source. Neither is it known whether
//! `--suspend` was asked for, or `--persistent`, nor what libvirt keeps of it beside its disks.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use site::SiteErrorKind;
use site_ledger::{NativeError, NativePaper, natives};
use tokio::time::sleep;
use tracing::{Instrument, debug, error, info_span, warn};
use units::{Epoch, chain};

use crate::custody::HandoverError;
use crate::ledger::{Attempt, Destination, Entry, Stage};
use crate::serve::{Agent, go_on_with};

const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Once, when the agent starts; as soon as its libvirtd answers.
pub async fn take_back(agent: Arc<Agent>) {
    let mut told = false;
    let papers = loop {
        match natives(&*agent.site).await.map_err(NativeError::from).and_then(readable) {
            Ok(papers) => break papers,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    warn!("what this site keeps of migrations is not seen yet: {}", chain(&error));
                }
            }
        }
        sleep(TRY_AGAIN_AFTER).await;
    };
    let mut papers = VecDeque::from(papers);
    let mut told_of = HashSet::new();
    while let Some((epoch, paper)) = papers.pop_front() {
        let span = info_span!("lost", id = %paper.id, vm = %paper.name);
        if let Err(error) = one(&agent, &paper, epoch).instrument(span.clone()).await {
            if told_of.insert(paper.id.clone()) {
                span.in_scope(|| warn!("what its site keeps of it is not used: {}", chain(&error)));
            }
            if !error.is_final() {
                // It does not hold up the others.
                papers.push_back((epoch, paper));
                sleep(TRY_AGAIN_AFTER).await;
            }
        }
    }
}

/// One that is damaged is told of by `status`.
///
/// # Errors
/// libvirtd went away before all were read.
fn readable(
    papers: Vec<(Epoch, Result<NativePaper, NativeError>)>,
) -> Result<Vec<(Epoch, NativePaper)>, NativeError> {
    let all = papers.into_iter().filter_map(|(epoch, paper)| match paper {
        Ok(paper) => Some(Ok((epoch, paper))),
        Err(NativeError::Site(error)) if error.kind == SiteErrorKind::Unreachable => {
            Some(Err(error.into()))
        }
        Err(_) => None,
    });
    all.collect()
}

async fn one(agent: &Arc<Agent>, paper: &NativePaper, epoch: Epoch) -> Result<(), HandoverError> {
    // An agent of another neighbour may have the same site.
    let (here, there) = (&agent.config.site.name, &agent.config.neighbour.name);
    let leaves = (&paper.from, &paper.to) == (here, there);
    let comes = (&paper.to, &paper.from) == (here, there);
    if !(leaves || comes) || agent.ledger.entry(&paper.id).is_some() {
        return Ok(());
    }
    let Some((stage, may_have_run)) = came(agent, paper, epoch, leaves).await? else {
        return Ok(());
    };
    let entry = Entry {
        id: paper.id.clone(),
        vm: paper.vm,
        name: paper.name.clone(),
        attempt: Some(Attempt { paper: paper.clone(), epoch }),
        carried: None,
        belongings: None,
        transient: false,
        ran: may_have_run,
        stage,
    };
    debug!(?stage, "this agent knew nothing of it, and its site does");
    // Held before anybody can decide on it: whoever grants it lets go of it.
    let waits = matches!(stage, Stage::Destination(Destination::Synced(_)));
    if waits {
        go_on_with(agent, &entry);
    }
    if let Err(error) = agent.ledger.take_back(entry.clone()).await {
        error!("not on record: {}", chain(&error));
        return Ok(());
    }
    if !waits {
        go_on_with(agent, &entry);
    }
    Ok(())
}

/// How far, and whether somebody may have had it run at its destination. `None`: nobody asks for it any more.
async fn came(
    agent: &Agent,
    paper: &NativePaper,
    epoch: Epoch,
    leaves: bool,
) -> Result<Option<(Stage, bool)>, HandoverError> {
    if leaves {
        let came = agent.custody.came_to_leave(paper, epoch).await?;
        return Ok(came.map(|stage| (Stage::Source(stage), false)));
    }
    let came = agent.custody.came_in(paper, epoch).await?;
    Ok(Some((Stage::Destination(came.stage), came.was_whole)))
}
