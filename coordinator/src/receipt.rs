//! The migration's receipt: what moved, from where to where, what the disks held, how long it
//! took. Signed by this installation, checkable offline.
//!
//! The signature is Ed25519 over `causeway migration receipt v1`, a NUL, and the bytes of `body`
//! exactly as they stand in the file. Inside lies the destination's grant receipt with the
//! source's fence receipt in it, each signed by its site's own key: the chain of right that
//! allowed the destination to run.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use handover::GrantReceipt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;
use units::{Bytes, Digest, Epoch, MigrationId};

const DOMAIN: &[u8] = b"causeway migration receipt v1\0";

/// The file.
#[derive(Serialize, Deserialize)]
pub struct Signed {
    pub causeway_receipt: u32,
    pub body: Box<RawValue>,
    /// The installation's public key, hexadecimal.
    pub key: String,
    pub signature: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub migration: MigrationId,
    pub vm: String,
    pub vm_name: String,
    pub epoch: Epoch,
    pub from: String,
    pub to: String,
    pub plan: Digest,
    pub disks: Vec<DiskReceipt>,
    /// Wall clock of the coordinator, milliseconds since 1970.
    pub began_ms: i64,
    pub decided_ms: i64,
    pub ended_ms: i64,
    /// The coordinator lost its journal on the way: rounds and bytes are those since.
    #[serde(default)]
    pub rebuilt: bool,
    pub rounds: u32,
    pub sent: Bytes,
    pub wire: Bytes,
    /// `None`: nobody knows, the coordinator that measured it was lost.
    pub downtime_ms: Option<u64>,
    pub downtime_forecast_ms: Option<u64>,
    pub downtime_budget_ms: u64,
    /// How the destination answered.
    pub answered: String,
    pub tracker: String,
    /// By whose word it was started, and why, where its source could not be asked whether it was let
    /// go on there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouched: Option<Word>,
    /// The agent's word at the seal.
    pub audit: String,
    /// The destination's grant receipt, hexadecimal.
    pub grant: String,
    pub source_key: String,
    pub destination_key: String,
    pub source_kept_as: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    pub by: String,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReceipt {
    pub target: String,
    pub size: Bytes,
    /// Bytes per hashed block; the digest rests on it.
    pub block_size: u64,
    /// The same at both sites: what the source had at the fence and the destination at the grant.
    pub digest: Digest,
}

#[derive(Debug, Error)]
pub enum ReceiptFault {
    #[error("not a receipt")]
    NotAReceipt(#[from] serde_json::Error),
    #[error("a receipt of version {0}, which this causeway does not know")]
    Version(u32),
    #[error("its {0} is not hexadecimal of the right length")]
    Hex(&'static str),
    #[error("signed by {found}, not by {expected}")]
    OtherKey { found: String, expected: String },
    #[error("the signature is not of this content: it was changed, or the key is another")]
    Forged,
    #[error("the grant inside cannot be read")]
    Grant(#[source] handover::DecodeError),
    #[error("the {which} receipt inside does not hold")]
    Inner {
        which: &'static str,
        #[source]
        cause: handover::ReceiptError,
    },
    #[error("the grant inside is about something else: {what}")]
    Contradiction { what: &'static str },
}

pub fn sign(body: &Body, key: &SigningKey) -> Result<Signed, serde_json::Error> {
    let body = RawValue::from_string(serde_json::to_string(body)?)?;
    let signature = key.sign(&signed_bytes(&body)).to_bytes();
    Ok(Signed {
        causeway_receipt: 1,
        body,
        key: hex::encode(key.verifying_key().to_bytes()),
        signature: hex::encode(signature),
    })
}

/// Checks everything in it: the signature, the site receipts inside, and that they are about the
/// same VM and content. `expected`: the key that must have signed, in hexadecimal.
pub fn verify(text: &str, expected: Option<&str>) -> Result<Body, ReceiptFault> {
    let signed: Signed = serde_json::from_str(text)?;
    if signed.causeway_receipt != 1 {
        return Err(ReceiptFault::Version(signed.causeway_receipt));
    }
    if let Some(expected) = expected
        && !expected.eq_ignore_ascii_case(&signed.key)
    {
        let expected = expected.to_owned();
        return Err(ReceiptFault::OtherKey { found: signed.key, expected });
    }
    let key = verifying_key(&signed.key, "key")?;
    let signature: [u8; 64] = hex::decode(&signed.signature)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(ReceiptFault::Hex("signature"))?;
    key.verify_strict(&signed_bytes(&signed.body), &Signature::from_bytes(&signature))
        .map_err(|_| ReceiptFault::Forged)?;
    let body: Body = serde_json::from_str(signed.body.get())?;
    verify_grant(&body)?;
    Ok(body)
}

fn verify_grant(body: &Body) -> Result<(), ReceiptFault> {
    let grant: GrantReceipt = body.grant.parse().map_err(ReceiptFault::Grant)?;
    let attempt = grant.attempt().clone();
    let contradiction = |what| ReceiptFault::Contradiction { what };
    if attempt.vm.as_str() != body.vm || attempt.epoch != body.epoch {
        return Err(contradiction("another VM or attempt"));
    }
    if attempt.source.as_str() != body.from || attempt.destination.as_str() != body.to {
        return Err(contradiction("other sites"));
    }
    if attempt.plan.0 != body.plan {
        return Err(contradiction("another plan"));
    }
    let inner = |which| move |cause| ReceiptFault::Inner { which, cause };
    let destination = verifying_key(&body.destination_key, "destination key")?;
    let claim = grant.verify(&attempt, &destination).map_err(inner("grant"))?;
    let source = verifying_key(&body.source_key, "source key")?;
    let fence = claim.fence.verify(&attempt, &source).map_err(inner("fence"))?;
    let digests: Vec<_> = body.disks.iter().map(|disk| disk.digest).collect();
    if fence.content.disks() != digests {
        return Err(contradiction("other content"));
    }
    Ok(())
}

fn verifying_key(text: &str, what: &'static str) -> Result<VerifyingKey, ReceiptFault> {
    let bytes: Option<[u8; 32]> = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()).ok_or(ReceiptFault::Hex(what))
}

fn signed_bytes(body: &RawValue) -> Vec<u8> {
    [DOMAIN, body.get().as_bytes()].concat()
}
