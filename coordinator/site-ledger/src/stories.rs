//! A ledger as it is here and as its site keeps it: which of the two tells what happened.

use handover::{DestinationEntry, Entry, Record};

use crate::error::CustodyError;

/// The one that counts.
///
/// # Errors
/// Where both have what the other has not.
pub fn longer(
    site: &str,
    here: Vec<Record>,
    there: Vec<Record>,
) -> Result<Vec<Record>, CustodyError> {
    match (here.starts_with(&there), there.starts_with(&here)) {
        (true, _) => Ok(here),
        (_, true) => Ok(there),
        _ if is_overruled(&here, &there) => Ok(here),
        _ => Err(CustodyError::TwoStories { site: site.to_owned() }),
    }
}

/// An operator vouched for a site that did not answer, and it had come somewhat further than was known
/// here: what it only prepared for the attempt that was revoked decides nothing, and that it was revoked
/// there as well is no other story. Anything else is.
pub(crate) fn is_overruled(here: &[Record], there: &[Record]) -> bool {
    use DestinationEntry as E;
    let common = here.iter().zip(there).take_while(|(here, there)| here == there).count();
    let (ours, theirs) = (&here[common..], &there[common..]);
    let Some(revoked) = ours.iter().find(|record| {
        matches!(record.entry, Entry::Destination(E::Revoked { attested: Some(_) }))
    }) else {
        return false;
    };
    theirs.iter().all(|record| {
        let prepared = matches!(
            record.entry,
            Entry::Destination(
                E::AttemptKnown(_) | E::Placeholder { .. } | E::Synced { .. } | E::Revoked { .. }
            )
        );
        prepared && record.epoch == revoked.epoch
    })
}
