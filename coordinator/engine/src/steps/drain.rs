//! Draining → Fencing: the guest stands still, the rest is copied, both sides agree on every byte.

use std::time::Instant;

use handover::{Content, DestinationRequest};
use units::{Bytes, Digest};
use wire::control::{Reply, Request, Sealed};

use crate::error::StepError;
use crate::progress::Progress;
use crate::record::{Record, StoredCount};
use crate::run::{Run, now_ms};

/// The guest thaws by itself after this long, so that a coordinator that dies does not leave it
/// frozen. Far above a drain that fits any sensible budget.
const THAW_FLOOR_MS: u64 = 60_000;
/// Drain rounds. Nothing writes, so the second finds only what the first one's reads raced with.
const DRAIN_ROUNDS: u32 = 4;

pub(crate) async fn drain(run: &mut Run) -> Result<Record, StepError> {
    // Suspended by a process that died before it could say that it was drained.
    if run.source.power(run.vm()).await? == model::Power::Paused {
        run.source.resume(run.vm()).await?;
    }
    run.planned_counts().await?;
    run.connect().await?;
    let thaw_after_ms = THAW_FLOOR_MS.max(run.plan.options.max_downtime_ms.saturating_mul(2));
    let began = Instant::now();
    let at_ms = now_ms();
    let quiesce = Request::Quiesce {
        units: run.plan.options.stop_units.clone(),
        hooks: run.plan.options.hooks_before.clone(),
        thaw_after_ms,
        thaw_hooks: run.plan.options.hooks_undo.clone(),
    };
    run.watcher.step("freezing the guest");
    run.source_agent().await?.tell(quiesce).await?;
    run.watcher.tell(Progress::Frozen);

    let (mut rounds, mut sent, mut wire) = (0, Bytes::ZERO, Bytes::ZERO);
    let sealed = loop {
        let end = run.round(run.state.next_round + rounds).await?;
        rounds += 1;
        sent = end.progress.disks.iter().map(|disk| disk.sent).fold(sent, Bytes::saturating_add);
        wire = end.progress.disks.iter().map(|disk| disk.wire).fold(wire, Bytes::saturating_add);
        // The platform's count is taken before the agent looks for the last time: whatever is
        // written after this moment moves the count, whatever before it the agent still sees.
        let counts = run.planned_counts().await?;
        if end.remaining != Bytes::ZERO && rounds < DRAIN_ROUNDS {
            continue;
        }
        match seal(run, thaw_after_ms).await {
            Ok(sealed) => break (sealed, counts),
            Err(error) if error.is_not_clean() && rounds < DRAIN_ROUNDS => {}
            Err(error) => return Err(error),
        }
    };
    let (sealed, counts) = sealed;
    compare(run, &sealed.digests).await?;
    let counts: Vec<_> = counts.into_iter().map(StoredCount::from).collect();
    super::fence::suspend_unwritten(run, &counts).await?;
    synced(run, &sealed.digests).await?;
    tracing::info!(elapsed_ms = began.elapsed().as_millis(), "drained");
    let Sealed { digests, audit, .. } = sealed;
    Ok(Record::Drained { digests, audit, counts, at_ms: Some(at_ms), sent, wire })
}

/// The destination's ledger learns what the targets hold; a grant needs exactly that.
async fn synced(run: &mut Run, digests: &[Digest]) -> Result<(), StepError> {
    let content = Content::new(digests.to_vec())
        .map_err(|error| StepError::GuestChanged { what: error.to_string() })?;
    run.tell_destination(DestinationRequest::Synced(content)).await
}

async fn seal(run: &mut Run, thaw_after_ms: u64) -> Result<Sealed, StepError> {
    let agent = run.source_agent().await?;
    match agent.call(Request::Seal { thaw_after_ms }).await? {
        Reply::Sealed(sealed) => Ok(sealed),
        other => Err(agent.unexpected(&other).into()),
    }
}

/// The destination's own word for what it holds, durable, against the source's.
async fn compare(run: &mut Run, ours: &[Digest]) -> Result<(), StepError> {
    let request = if run.plan.options.reread { Request::Reread } else { Request::Digests };
    let agent = run.destination_agent().await?;
    let theirs = match agent.call(request).await? {
        Reply::Digests { disks } => disks,
        other => return Err(agent.unexpected(&other).into()),
    };
    let names = run.plan.disks.iter().map(|disk| disk.target.as_str());
    let text =
        |digest: Option<&Digest>| digest.map_or_else(|| "none".to_owned(), Digest::to_string);
    for (index, name) in names.enumerate() {
        let (ours, theirs) = (ours.get(index), theirs.get(index));
        if ours.is_none() || ours != theirs {
            return Err(StepError::DigestMismatch {
                disk: name.to_owned(),
                source_digest: text(ours),
                destination_digest: text(theirs),
            });
        }
    }
    Ok(())
}
