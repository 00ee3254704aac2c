//! The copy of a ledger that its own site keeps, and what else lies there for a coordinator that has
//! lost everything.
//!
//! A record takes effect when it is in the copy *and* in the ledger on this machine: whatever was done,
//! the site itself can tell of. The copy is written first, and only if it is what this coordinator knows
//! it to be, so that of two which do not know of one another one goes on.
//!
//! ```text
//! vm/VM/ledger                  records of this VM in the site's ledger, in order
//! vm/VM/unfence-EPOCH-STAGE-H   what undoes a fence (source)
//! vm/VM/papers-EPOCH            the plan and what else `recover` needs
//! vm/VM/revoking-EPOCH          somebody has begun to call it off (destination)
//! ```

use std::sync::Arc;

use handover::{DecodeError, Record, VmKey};
use site::{RecordKey, Site, SiteError};
use thiserror::Error;

use crate::error::CustodyError;

/// The first bytes of a copy, with its version.
const MAGIC: &[u8; 8] = b"CWLEDG\0\x01";
const HASH_LEN: usize = 32;

/// What a site keeps cannot be read as a ledger.
#[derive(Debug, Error)]
pub enum CopyError {
    #[error("it is no copy of a ledger, or of a newer causeway")]
    Foreign,
    #[error("it is damaged")]
    Damaged,
    #[error("it holds what this version cannot read")]
    Decode(#[from] DecodeError),
}

/// The copy of one VM's records at one site.
pub(crate) struct Copy {
    pub site: Arc<dyn Site>,
    key: RecordKey,
    /// What is there, as far as is known: not asked yet, or not since an answer got lost.
    there: Option<Option<Vec<u8>>>,
}

impl Copy {
    pub(crate) const fn new(site: Arc<dyn Site>, key: RecordKey) -> Self {
        Self { site, key, there: None }
    }

    pub(crate) const fn is_known(&self) -> bool {
        self.there.is_some()
    }

    pub(crate) async fn look(&self) -> Result<Option<Vec<u8>>, SiteError> {
        self.site.kept(&self.key).await
    }

    /// What was seen there is in the ledger as well.
    pub(crate) fn know(&mut self, there: Option<Vec<u8>>) {
        self.there = Some(there);
    }

    /// Forgets what is there.
    pub(crate) fn doubt(&mut self) {
        self.there = None;
    }

    /// Removes it.
    pub(crate) async fn forget(&mut self) -> Result<(), SiteError> {
        self.there = None;
        self.site.forget(&self.key).await
    }

    /// Makes it what the ledger is, if it is as it is known to be. Harmless where it is so already.
    pub(crate) async fn bring_up(&mut self, records: &[Record]) -> Result<(), SiteError> {
        let body = encode(records);
        // Forgotten until the answer is there.
        let known = self.there.take().flatten();
        if known.as_ref() != Some(&body) {
            self.site.keep(&self.key, known.as_deref(), &body).await?;
        }
        self.there = Some(Some(body));
        Ok(())
    }
}

/// A copy's place.
pub(crate) const LEDGER: &str = "ledger";

/// Under which name a site keeps what is known of a VM.
pub fn key(vm: &VmKey, what: &str) -> Result<RecordKey, CustodyError> {
    let key = format!("vm/{vm}/{what}");
    key.parse().map_err(|_| CustodyError::Unfit { what: format!("no key of a record: {key}") })
}

/// Whose key it is, and of what; `None` where it is of no VM.
pub fn of_key(key: &RecordKey) -> Option<(&str, &str)> {
    key.as_str().strip_prefix("vm/")?.split_once('/')
}

/// What nobody needs any more; that it cannot be removed harms nobody.
pub async fn forget(site: &dyn Site, key: &RecordKey) {
    if let Err(error) = site.forget(key).await {
        tracing::warn!(%key, error = %units::chain(&error), "a record that nobody needs is left");
    }
}

/// What a copy says.
///
/// # Errors
/// Where it is none, or damaged.
pub fn decode(bytes: &[u8]) -> Result<Vec<Record>, CopyError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(CopyError::Foreign)?;
    let (mut body, hash) = body.split_last_chunk::<HASH_LEN>().ok_or(CopyError::Damaged)?;
    if hash_of(body) != *hash {
        return Err(CopyError::Damaged);
    }
    let mut records = Vec::new();
    while !body.is_empty() {
        let (kind, rest) = body.split_first_chunk().ok_or(CopyError::Damaged)?;
        let (len, rest) = rest.split_first_chunk().ok_or(CopyError::Damaged)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| CopyError::Damaged)?;
        let (payload, rest) = rest.split_at_checked(len).ok_or(CopyError::Damaged)?;
        records.push(Record::decode(u16::from_le_bytes(*kind), payload)?);
        body = rest;
    }
    Ok(records)
}

fn encode(records: &[Record]) -> Vec<u8> {
    let mut body = Vec::new();
    for record in records {
        let (kind, payload) = record.encode();
        // Records are some hundred bytes each.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        body.extend(kind.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(payload);
    }
    let hash = hash_of(&body);
    [MAGIC.as_slice(), &body, &hash].concat()
}

fn hash_of(body: &[u8]) -> [u8; HASH_LEN] {
    blake3::derive_key("causeway ledger copy v1", body)
}

/// What a site keeps of a VM's ledger; `None` where it keeps none.
pub async fn copy_of_ledger(
    site: &dyn Site,
    vm: &VmKey,
) -> Result<Option<Vec<Record>>, CustodyError> {
    let name = site.name().to_string();
    let kept = site.kept(&key(vm, LEDGER)?).await;
    let kept = kept.map_err(|cause| CustodyError::Site { site: name.clone(), cause })?;
    let records = kept.map(|body| decode(&body)).transpose();
    records.map_err(|cause| CustodyError::Copy { site: name, cause })
}
