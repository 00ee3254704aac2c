//! Calls of libvirt's public interface and their replies, as far as a migration needs them.
//!
//! A [`Call`] is written by a client and read by a server, a [`Reply`] the other way round. Which
//! reply belongs to a call is told by [`Procedure`]. What has no number here is
//! [`CallError::Unknown`]: numbers that libvirt left out, its events and everything else it
//! serves.

mod call;
mod migrate;
mod reply;

use thiserror::Error;

pub use call::Call;
pub use migrate::{Begin, Begun, COOKIE_MAX, Confirm, Finish, Finished, Prepare, Prepared};
pub use reply::{AUTH_TYPES_MAX, Auth, Reply};

use crate::xdr::{Reader, TEXT_MAX, Writer, XdrError};

/// A UUID, in the order in which it is written.
pub type Uuid = [u8; 16];

/// A procedure that is read and written here, by its number in `src/remote/remote_protocol.x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Procedure {
    Open = 1,
    Close = 2,
    GetType = 3,
    GetVersion = 4,
    GetCapabilities = 7,
    LookupByName = 23,
    LookupByUuid = 24,
    GetHostname = 59,
    SupportsFeature = 60,
    AuthList = 66,
    GetUri = 110,
    IsSecure = 149,
    GetLibVersion = 157,
    GetState = 212,
    UndefineFlags = 231,
    Begin3Params = 302,
    Prepare3Params = 303,
    PrepareTunnel3Params = 304,
    Finish3Params = 306,
    Confirm3Params = 307,
    RegisterCloseCallback = 360,
    UnregisterCloseCallback = 361,
}

impl Procedure {
    pub const ALL: [Self; 22] = [
        Self::Open,
        Self::Close,
        Self::GetType,
        Self::GetVersion,
        Self::GetCapabilities,
        Self::LookupByName,
        Self::LookupByUuid,
        Self::GetHostname,
        Self::SupportsFeature,
        Self::AuthList,
        Self::GetUri,
        Self::IsSecure,
        Self::GetLibVersion,
        Self::GetState,
        Self::UndefineFlags,
        Self::Begin3Params,
        Self::Prepare3Params,
        Self::PrepareTunnel3Params,
        Self::Finish3Params,
        Self::Confirm3Params,
        Self::RegisterCloseCallback,
        Self::UnregisterCloseCallback,
    ];

    pub const fn number(self) -> i32 {
        self as i32
    }

    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|procedure| procedure.number() == number)
    }
}

/// Why a payload is no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// libvirt's own words: clients look for them, and then try what older servers have.
    #[error("unknown procedure: {number}")]
    Unknown { number: i32 },

    #[error("arguments of {procedure:?} that are none")]
    Arguments {
        procedure: Procedure,
        #[source]
        cause: XdrError,
    },
}

/// A VM as libvirt names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    pub name: String,
    pub uuid: Uuid,
    /// -1: it does not run.
    pub id: i32,
}

impl Domain {
    fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let name = fields.text("VM's name", TEXT_MAX)?.to_owned();
        Ok(Self { name, uuid: fields.fixed("VM's UUID")?, id: fields.i32("VM's id")? })
    }

    fn write(&self, out: &mut Writer) {
        out.text(&self.name);
        out.fixed(&self.uuid);
        out.i32(self.id);
    }
}

#[cfg(test)]
mod tests;
