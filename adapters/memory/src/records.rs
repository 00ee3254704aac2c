//! What is kept for coordinators.

use std::collections::BTreeMap;

use site::{RECORD_MAX, RecordKey, SiteErrorKind};

use crate::machine::{Trouble, conflict};

pub(crate) fn keep(
    records: &mut BTreeMap<RecordKey, Vec<u8>>,
    key: &RecordKey,
    expected: Option<&[u8]>,
    body: &[u8],
) -> Result<(), Trouble> {
    if body.len() > RECORD_MAX {
        let what = format!("it has {} bytes, more than {RECORD_MAX}", body.len());
        return Err(Trouble::new(SiteErrorKind::Exhausted, what));
    }
    let there = records.get(key).map(Vec::as_slice);
    if there == Some(body) {
        return Ok(());
    }
    if there != expected {
        return Err(conflict("it is another than expected")
            .hint("another coordinator may be at work with it"));
    }
    records.insert(key.clone(), body.to_vec());
    Ok(())
}
