//! Planned → Preparing: opens the attempt in both ledgers.

use std::sync::Arc;

use crate::error::StepError;
use crate::record::Record;
use crate::run::Run;

/// The destination's record is durable before anything is made anywhere: whoever finds leftovers
/// of this migration finds the record as well.
pub(crate) async fn begin(run: &mut Run) -> Result<Record, StepError> {
    let (source, destination) = (Arc::clone(&run.source), Arc::clone(&run.destination));
    let vm = run.vm();
    let epoch = run.custody.open_attempt(&*source, &*destination, vm).await?;
    Ok(Record::Began { epoch })
}
