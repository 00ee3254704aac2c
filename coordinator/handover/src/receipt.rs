//! Receipts: signed statements about one attempt. A receipt is the right to act; a command is
//! only a request.
//!
//! | receipt | signed by | says | is the right to |
//! |---|---|---|---|
//! | F, [`FenceReceipt`] | source | the VM cannot run or write here; its disks hold this content | grant |
//! | Y, [`SyncReceipt`] | destination | the targets hold this content | show |
//! | G, [`GrantReceipt`] | destination | decided: the VM runs here, because of F | retire the source |
//! | R, [`RevokeReceipt`] | destination | decided: this attempt never runs here | un-fence the source |
//!
//! ```text
//! receipt   = "causeway receipt" 0  version=1  kind  attempt  claim  signer(32)  signature(64)
//! signature = Ed25519 over everything before it
//! ```

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::attempt::{Attempt, Attestation, Content, Field, Mismatch};
use crate::codec::{DecodeError, Reader, Writer};
use crate::fence::Fence;

/// What is said before anything else is signed, so that no other signature of the same key can be
/// taken for a receipt.
const DOMAIN: &[u8; 17] = b"causeway receipt\0";
const VERSION: u8 = 1;

/// The public key that signed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 32]);

impl From<&VerifyingKey> for KeyId {
    fn from(key: &VerifyingKey) -> Self {
        Self(key.to_bytes())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a kind of receipt says beyond which attempt it is about.
pub trait Claim: Clone + fmt::Debug + PartialEq + Eq + sealed::Sealed {
    const KIND: u8;
    const NAME: &'static str;
}

mod sealed {
    use super::{DecodeError, Reader, Writer};

    pub trait Sealed: Sized {
        fn encode(&self, to: &mut Writer);
        fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError>;
    }
}

pub type FenceReceipt = Receipt<Fence>;
pub type SyncReceipt = Receipt<Synced>;
pub type GrantReceipt = Receipt<Grant>;
pub type RevokeReceipt = Receipt<Revoke>;

/// The targets are on stable storage and hold this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Synced {
    pub content: Content,
}

/// The VM runs at the destination from now on; the fence that gave the right to decide so is
/// inside, so that the receipt proves its own case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    pub fence: FenceReceipt,
}

/// The destination will never run the VM in this attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revoke {
    /// Where the placeholder could not be asked: the operator who answers for it.
    pub attested: Option<Attestation>,
}

/// A signed statement about one attempt. Unverified until [`Receipt::verify`] has agreed.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String", bound = "")]
pub struct Receipt<C: Claim>(Arc<Signed<C>>);

#[derive(PartialEq, Eq, Hash)]
struct Signed<C> {
    attempt: Attempt,
    claim: C,
    signer: KeyId,
    signature: [u8; 64],
}

impl<C: Claim> Receipt<C> {
    /// Only the roles sign, after the record that the receipt speaks of is in their ledger.
    /// Without a key nobody signed it, and nobody believes it.
    pub(crate) fn sign(attempt: Attempt, claim: C, key: Option<&SigningKey>) -> Self {
        let signer = key.map_or(KeyId([0; 32]), |key| KeyId::from(&key.verifying_key()));
        let mut signed = Signed { attempt, claim, signer, signature: [0; 64] };
        if let Some(key) = key {
            signed.signature = key.sign(&signed.part()).to_bytes();
        }
        Self(Arc::new(signed))
    }

    /// Whether it is about `expected` and `key` signed it; then what it says.
    pub fn verify(&self, expected: &Attempt, key: &VerifyingKey) -> Result<&C, ReceiptError> {
        let named = |mismatch| ReceiptError::Mismatch { kind: C::NAME, mismatch };
        expected.check(&self.0.attempt).map_err(named)?;
        Mismatch::check(Field::Signer, &KeyId::from(key), &self.0.signer).map_err(named)?;
        let signature = Signature::from_bytes(&self.0.signature);
        match key.verify_strict(&self.0.part(), &signature) {
            Ok(()) => Ok(&self.0.claim),
            Err(_) => Err(ReceiptError::Forged { kind: C::NAME, signer: self.0.signer }),
        }
    }

    /// What it says it is about. Not verified.
    pub fn attempt(&self) -> &Attempt {
        &self.0.attempt
    }

    /// What it says. Not verified.
    pub fn claim(&self) -> &C {
        &self.0.claim
    }

    /// Who it says signed it. Not verified.
    pub fn signer(&self) -> KeyId {
        self.0.signer
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.0.part();
        bytes.extend(self.0.signature);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader(bytes);
        let receipt = Self::decode_from(&mut from)?;
        from.finish()?;
        Ok(receipt)
    }

    fn decode_from(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if from.array()? != *DOMAIN {
            return Err(DecodeError::Text { what: "the start of the receipt" });
        }
        match from.u8()? {
            VERSION => {}
            found => return Err(DecodeError::Version { found }),
        }
        match from.u8()? {
            kind if kind == C::KIND => {}
            kind => return Err(DecodeError::Tag { what: C::NAME, tag: kind.into() }),
        }
        Ok(Self(Arc::new(Signed {
            attempt: Attempt::decode(from)?,
            claim: C::decode(from)?,
            signer: KeyId(from.array()?),
            signature: from.array()?,
        })))
    }
}

impl<C: Claim> Signed<C> {
    /// The bytes that are signed.
    fn part(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.array(DOMAIN);
        to.u8(VERSION);
        to.u8(C::KIND);
        self.attempt.encode(&mut to);
        self.claim.encode(&mut to);
        to.array(&self.signer.0);
        to.0
    }
}

/// Hexadecimal of [`Receipt::encode`].
impl<C: Claim> fmt::Display for Receipt<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.encode()))
    }
}

impl<C: Claim> FromStr for Receipt<C> {
    type Err = DecodeError;
    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let bytes = hex::decode(text).map_err(|_| DecodeError::Text { what: C::NAME })?;
        Self::decode(&bytes)
    }
}

impl<C: Claim> TryFrom<String> for Receipt<C> {
    type Error = DecodeError;
    fn try_from(text: String) -> Result<Self, DecodeError> {
        text.parse()
    }
}

impl<C: Claim> From<Receipt<C>> for String {
    fn from(receipt: Receipt<C>) -> Self {
        receipt.to_string()
    }
}

impl<C: Claim> fmt::Debug for Receipt<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Attempt { vm, epoch, .. } = self.attempt();
        write!(f, "{} of {vm}, epoch {epoch}: {:?}", C::NAME, self.claim())
    }
}

/// Why a receipt gives no right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReceiptError {
    /// It is about something else, or somebody else signed it.
    #[error("the {kind} does not fit: {mismatch}")]
    Mismatch { kind: &'static str, mismatch: Mismatch },

    #[error("the {kind} was not signed by {signer} as it stands")]
    Forged { kind: &'static str, signer: KeyId },
}

impl ReceiptError {
    /// The field that does not fit, if that is what is wrong.
    pub const fn field(&self) -> Option<Field> {
        match self {
            Self::Mismatch { mismatch, .. } => Some(mismatch.field),
            Self::Forged { .. } => None,
        }
    }
}

impl Claim for Fence {
    const KIND: u8 = 1;
    const NAME: &'static str = "fence receipt";
}

impl sealed::Sealed for Fence {
    fn encode(&self, to: &mut Writer) {
        self.encode_to(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode_from(from)
    }
}

impl Claim for Synced {
    const KIND: u8 = 2;
    const NAME: &'static str = "sync receipt";
}

impl sealed::Sealed for Synced {
    fn encode(&self, to: &mut Writer) {
        self.content.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { content: Content::decode(from)? })
    }
}

impl Claim for Grant {
    const KIND: u8 = 3;
    const NAME: &'static str = "grant receipt";
}

impl sealed::Sealed for Grant {
    fn encode(&self, to: &mut Writer) {
        to.bytes(&self.fence.encode());
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let fence = from.bytes("the fence receipt", MAX_RECEIPT)?;
        Ok(Self { fence: Receipt::decode(fence)? })
    }
}

impl Claim for Revoke {
    const KIND: u8 = 4;
    const NAME: &'static str = "revoke receipt";
}

impl sealed::Sealed for Revoke {
    fn encode(&self, to: &mut Writer) {
        Attestation::encode_option(self.attested.as_ref(), to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { attested: Attestation::decode_option(from)? })
    }
}

/// In bytes. A grant receipt with its fence receipt inside: 256 disks of 32 bytes, eight keys of
/// 128 and three descriptions of 1 KiB are below 13 KiB.
pub(crate) const MAX_RECEIPT: usize = 32 << 10;
