//! What agents say to each other about a migration. JSON: definitions and cookies are text, and
//! there are some ten messages in a migration.

use std::fmt;

use handover::VerifyingKey;
use model::VmId;
use serde::{Deserialize, Serialize};
use units::{Epoch, MigrationId};
use uuid::Uuid;

pub use crate::custody::Carried;
use crate::relay::{Room, StreamKind};

pub const VERSION: u16 = 5;

/// The first message of a connection, in bytes.
pub const HELLO_MAX: usize = 1 << 10;
/// Every other one: a definition and a cookie of 4 MiB each, of which JSON may make twice as much.
pub const MESSAGE_MAX: usize = 20 << 20;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    pub version: u16,
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Purpose {
    /// A VM is to come; whoever shows the token later belongs to it.
    Migration { id: MigrationId, token: Token },
    /// One connection of the source's hypervisor: the one so many others to that door came before.
    Stream { token: Token, leads_to: Door, index: u32 },
    /// What the destination has of templates: the hashes of its blocks, one after the other, and then the end.
    Templates { token: Token },
    /// The source's word on a VM that waits here.
    Decision { id: MigrationId },
}

/// Where a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    Memory,
    Disks,
}

impl From<Door> for StreamKind {
    fn from(door: Door) -> Self {
        match door {
            Door::Memory => Self::Memory,
            Door::Disks => Self::Disk,
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Disks => "disks",
        })
    }
}

/// Shown by the streams of one migration. A secret of the two agents.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn new(random: [u8; 16]) -> Self {
        Self(hex::encode(random))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Now and then, so that silence means something.
    Alive,
    Prepare(Prepare),
    Prepared(Prepared),
    Finish(Finish),
    /// The VM is there and stands still.
    Finished(Finished),
    /// In place of either; nothing is left.
    Failed(Failed),
    Decide(Decision),
    Decided(Decided),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    pub leaving: Leaving,
    pub xml: String,
    pub cookie: String,
    pub flags: u32,
    pub params: Vec<Param>,
}

/// Who leaves, for the ledgers of both sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaving {
    pub vm: VmId,
    pub name: String,
    /// Wall clock of the source's agent, milliseconds since 1970.
    pub began_ms: i64,
    /// Signs what the source's role says.
    pub key: SiteKey,
    /// The last attempt that the source knows of.
    pub last: Epoch,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepared {
    pub cookie: String,
    /// Signs what the destination's role says.
    pub key: SiteKey,
    pub epoch: Epoch,
    /// What the destination keeps of what comes: the source names no more than that.
    pub room: Room,
    /// Blocks of templates that it has and tells of to whoever asks.
    pub templates: u32,
}

/// Of a site's role, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SiteKey(String);

impl From<VerifyingKey> for SiteKey {
    fn from(key: VerifyingKey) -> Self {
        Self(hex::encode(key.to_bytes()))
    }
}

impl SiteKey {
    /// `None`: it is none.
    pub fn get(&self) -> Option<VerifyingKey> {
        let bytes: [u8; 32] = hex::decode(&self.0).ok()?.try_into().ok()?;
        VerifyingKey::from_bytes(&bytes).ok()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finish {
    /// What the source's hypervisor has sent.
    pub carried: Carried,
    pub cookie: String,
    pub flags: u32,
    pub params: Vec<Param>,
}

/// A parameter of libvirt's migration, by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Param {
    pub field: String,
    pub value: ParamValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamValue {
    Int(i32),
    Ullong(u64),
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finished {
    pub name: String,
    pub uuid: Uuid,
    pub id: i32,
    pub cookie: String,
    /// What has reached the destination's hypervisor.
    pub carried: Carried,
}

/// What the source's operator is shown, with libvirt's numbers for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    pub code: i32,
    pub origin: i32,
    pub text: String,
}

/// The source's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The source's VM is dead, as this receipt shows: this one is it now.
    Grant { fence: String },
    /// The source's VM runs: this one never does.
    Revoke,
    /// None yet: is it there, as it came?
    Look,
}

/// What is on record at the destination. With a receipt: written once, and never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decided {
    Granted {
        receipt: String,
    },
    /// Without one the attempt never was in a ledger.
    Revoked {
        receipt: Option<String>,
    },
    /// Nothing was ever held here under that id.
    Unknown,
    /// It is here, whole, and stands still; nothing was decided.
    Waits,
    /// Nothing was decided, and what came is here no more.
    Lost,
}
