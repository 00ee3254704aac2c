//! Planned → Preparing: opens the attempt in both ledgers.

use crate::error::StepError;
use crate::record::Record;
use crate::run::Run;

/// The destination's record is durable before anything is made anywhere: whoever finds leftovers
/// of this migration finds the record as well.
pub(crate) async fn begin(run: &mut Run) -> Result<Record, StepError> {
    let (destination, vm) = (std::sync::Arc::clone(&run.destination), run.vm());
    let epoch = run.custody.open_attempt(&*destination, vm).await?;
    Ok(Record::Began { epoch })
}
