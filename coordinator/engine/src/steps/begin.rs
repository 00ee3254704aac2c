//! Planned → Preparing: opens the attempt in both ledgers.

use crate::error::StepError;
use crate::record::Record;
use crate::run::Run;

/// The destination's record is durable before anything is made anywhere: whoever finds leftovers
/// of this migration finds the record as well.
pub(crate) async fn begin(run: &mut Run) -> Result<Record, StepError> {
    let vm = run.vm();
    let epoch = run.custody.open_attempt(vm, &run.papers).await?;
    Ok(Record::Began { epoch })
}
