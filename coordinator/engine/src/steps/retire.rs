//! Confirmed → Retired: the source is renamed and kept, start-proof, until told otherwise.

use handover::SourceRequest;
use site::{FenceStage, SiteErrorKind};

use crate::error::StepError;
use crate::record::Record;
use crate::run::Run;

pub(crate) async fn retire(run: &mut Run) -> Result<Record, StepError> {
    let epoch = run.epoch();
    let missing = |what: &str| StepError::GuestChanged { what: what.to_owned() };
    let receipt = run
        .custody
        .granted(epoch)
        .ok_or_else(|| missing("the destination's ledger has no grant"))?;
    run.custody.source(epoch, SourceRequest::Retire(receipt)).await?;
    let record = run
        .custody
        .unfence_record(epoch, FenceStage::Definition)
        .await?
        .ok_or_else(|| missing("the source's ledger has no fence record"))?;
    let name = match run.source.retire(run.vm(), &record).await {
        // Somebody deleted it, perhaps not its disks: nothing of it is known any more.
        Err(error) if error.kind == SiteErrorKind::NotFound => {
            run.watcher
                .warn(format!("{}'s definition of the source is gone already", run.plan.from));
            None
        }
        name => Some(name?),
    };
    run.custody.source(epoch, SourceRequest::Settled).await?;
    Ok(Record::Retired { name })
}
