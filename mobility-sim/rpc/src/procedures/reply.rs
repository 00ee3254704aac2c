//! Replies.

use super::migrate::COOKIE_MAX;
use super::{Begun, Domain, Finished, Prepared, Procedure};
use crate::xdr::{Reader, TEXT_MAX, Writer, XdrError};

/// `REMOTE_AUTH_TYPE_LIST_MAX`.
pub const AUTH_TYPES_MAX: usize = 20;

/// What answers a call, unless an error does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Of calls that are only done.
    Done(Procedure),
    AuthList(Vec<Auth>),
    /// Of [`SupportsFeature`](Procedure::SupportsFeature): 0 is no.
    Supported(i32),
    Type(String),
    /// Of the hypervisor: 1 000 000 × major + 1000 × minor + release.
    Version(u64),
    /// Of libvirt, in the same form.
    LibVersion(u64),
    Hostname(String),
    Uri(String),
    /// XML.
    Capabilities(String),
    Secure(bool),
    /// Of either lookup.
    Found(Procedure, Domain),
    State {
        state: i32,
        reason: i32,
    },
    Begun(Begun),
    Prepared(Prepared),
    /// Of a tunnelled Prepare: the cookie.
    TunnelPrepared(Vec<u8>),
    Finished(Finished),
}

/// A way to authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    None,
    Sasl,
    Polkit,
}

impl Auth {
    const fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Sasl => 1,
            Self::Polkit => 2,
        }
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let what = "way to authenticate";
        match fields.u32(what)? {
            0 => Ok(Self::None),
            1 => Ok(Self::Sasl),
            2 => Ok(Self::Polkit),
            found => Err(XdrError::Value { what, found }),
        }
    }
}

impl Reply {
    /// What it answers.
    pub const fn procedure(&self) -> Procedure {
        match self {
            Self::Done(procedure) | Self::Found(procedure, _) => *procedure,
            Self::AuthList(_) => Procedure::AuthList,
            Self::Supported(_) => Procedure::SupportsFeature,
            Self::Type(_) => Procedure::GetType,
            Self::Version(_) => Procedure::GetVersion,
            Self::LibVersion(_) => Procedure::GetLibVersion,
            Self::Hostname(_) => Procedure::GetHostname,
            Self::Uri(_) => Procedure::GetUri,
            Self::Capabilities(_) => Procedure::GetCapabilities,
            Self::Secure(_) => Procedure::IsSecure,
            Self::State { .. } => Procedure::GetState,
            Self::Begun(_) => Procedure::Begin3Params,
            Self::Prepared(_) => Procedure::Prepare3Params,
            Self::TunnelPrepared(_) => Procedure::PrepareTunnel3Params,
            Self::Finished(_) => Procedure::Finish3Params,
        }
    }

    /// The payload of the reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Self::Done(_) => {}
            Self::AuthList(types) => out.list(types, |out, each| out.u32(each.number())),
            Self::Supported(supported) => out.i32(*supported),
            Self::Type(text)
            | Self::Hostname(text)
            | Self::Uri(text)
            | Self::Capabilities(text) => {
                out.text(text);
            }
            Self::Version(version) | Self::LibVersion(version) => out.u64(*version),
            Self::Secure(secure) => out.bool(*secure),
            Self::Found(_, domain) => domain.write(&mut out),
            Self::State { state, reason } => {
                out.i32(*state);
                out.i32(*reason);
            }
            Self::Begun(begun) => begun.write(&mut out),
            Self::Prepared(prepared) => prepared.write(&mut out),
            Self::TunnelPrepared(cookie) => out.opaque(cookie),
            Self::Finished(finished) => finished.write(&mut out),
        }
        out.into_payload()
    }

    pub fn decode(procedure: Procedure, payload: &[u8]) -> Result<Self, XdrError> {
        let mut fields = Reader::new(payload);
        let reply = Self::read(procedure, &mut fields)?;
        fields.end()?;
        Ok(reply)
    }

    fn read(procedure: Procedure, fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let text =
            |fields: &mut Reader<'_>, what| fields.text(what, TEXT_MAX).map(ToOwned::to_owned);
        Ok(match procedure {
            Procedure::Open
            | Procedure::Close
            | Procedure::UndefineFlags
            | Procedure::Confirm3Params
            | Procedure::RegisterCloseCallback
            | Procedure::UnregisterCloseCallback => Self::Done(procedure),
            Procedure::AuthList => {
                let types = fields.list("ways to authenticate", AUTH_TYPES_MAX, 4, Auth::read)?;
                Self::AuthList(types)
            }
            Procedure::SupportsFeature => Self::Supported(fields.i32("supported")?),
            Procedure::GetType => Self::Type(text(fields, "type")?),
            Procedure::GetVersion => Self::Version(fields.u64("version")?),
            Procedure::GetLibVersion => Self::LibVersion(fields.u64("version")?),
            Procedure::GetHostname => Self::Hostname(text(fields, "hostname")?),
            Procedure::GetUri => Self::Uri(text(fields, "URI")?),
            Procedure::GetCapabilities => Self::Capabilities(text(fields, "capabilities")?),
            Procedure::IsSecure => Self::Secure(fields.bool("secure")?),
            Procedure::LookupByName | Procedure::LookupByUuid => {
                Self::Found(procedure, Domain::read(fields)?)
            }
            Procedure::GetState => {
                Self::State { state: fields.i32("state")?, reason: fields.i32("reason")? }
            }
            Procedure::Begin3Params => Self::Begun(Begun::read(fields)?),
            Procedure::Prepare3Params => Self::Prepared(Prepared::read(fields)?),
            Procedure::PrepareTunnel3Params => {
                Self::TunnelPrepared(fields.opaque("cookie", COOKIE_MAX)?.to_vec())
            }
            Procedure::Finish3Params => Self::Finished(Finished::read(fields)?),
        })
    }
}
