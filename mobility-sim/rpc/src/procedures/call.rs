//! Calls.

use super::{Begin, CallError, Confirm, Domain, Finish, Prepare, Procedure, Uuid};
use crate::feature::Feature;
use crate::xdr::{Reader, TEXT_MAX, Writer, XdrError};

/// A call with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Which ways to authenticate are there?
    AuthList,
    Open {
        /// A URI without host and transport, such as `qemu:///system`.
        name: Option<String>,
        /// Bit 0: only for reading.
        flags: u32,
    },
    Close,
    /// The number of a [`Feature`], or of one that is not known here.
    SupportsFeature(i32),
    GetType,
    GetVersion,
    GetLibVersion,
    GetHostname,
    GetUri,
    GetCapabilities,
    IsSecure,
    RegisterCloseCallback,
    UnregisterCloseCallback,
    LookupByName(String),
    LookupByUuid(Uuid),
    GetState {
        domain: Domain,
        flags: u32,
    },
    /// The definition goes; a VM that runs goes on.
    Undefine {
        domain: Domain,
        /// `VIR_DOMAIN_UNDEFINE_*`.
        flags: u32,
    },
    Begin(Begin),
    Prepare(Prepare),
    /// The RAM stream is to come through this connection.
    PrepareTunnel(Prepare),
    Finish(Finish),
    Confirm(Confirm),
}

impl Call {
    pub fn supports(feature: Feature) -> Self {
        Self::SupportsFeature(feature.number())
    }

    pub const fn procedure(&self) -> Procedure {
        match self {
            Self::AuthList => Procedure::AuthList,
            Self::Open { .. } => Procedure::Open,
            Self::Close => Procedure::Close,
            Self::SupportsFeature(_) => Procedure::SupportsFeature,
            Self::GetType => Procedure::GetType,
            Self::GetVersion => Procedure::GetVersion,
            Self::GetLibVersion => Procedure::GetLibVersion,
            Self::GetHostname => Procedure::GetHostname,
            Self::GetUri => Procedure::GetUri,
            Self::GetCapabilities => Procedure::GetCapabilities,
            Self::IsSecure => Procedure::IsSecure,
            Self::RegisterCloseCallback => Procedure::RegisterCloseCallback,
            Self::UnregisterCloseCallback => Procedure::UnregisterCloseCallback,
            Self::LookupByName(_) => Procedure::LookupByName,
            Self::LookupByUuid(_) => Procedure::LookupByUuid,
            Self::GetState { .. } => Procedure::GetState,
            Self::Undefine { .. } => Procedure::UndefineFlags,
            Self::Begin(_) => Procedure::Begin3Params,
            Self::Prepare(_) => Procedure::Prepare3Params,
            Self::PrepareTunnel(_) => Procedure::PrepareTunnel3Params,
            Self::Finish(_) => Procedure::Finish3Params,
            Self::Confirm(_) => Procedure::Confirm3Params,
        }
    }

    /// The payload of the call.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Self::Open { name, flags } => {
                out.optional_text(name.as_deref());
                out.u32(*flags);
            }
            Self::SupportsFeature(feature) => out.i32(*feature),
            Self::LookupByName(name) => out.text(name),
            Self::LookupByUuid(uuid) => out.fixed(uuid),
            Self::GetState { domain, flags } | Self::Undefine { domain, flags } => {
                domain.write(&mut out);
                out.u32(*flags);
            }
            Self::Begin(begin) => begin.write(&mut out),
            Self::Prepare(prepare) | Self::PrepareTunnel(prepare) => prepare.write(&mut out),
            Self::Finish(finish) => finish.write(&mut out),
            Self::Confirm(confirm) => confirm.write(&mut out),
            Self::AuthList
            | Self::Close
            | Self::GetType
            | Self::GetVersion
            | Self::GetLibVersion
            | Self::GetHostname
            | Self::GetUri
            | Self::GetCapabilities
            | Self::IsSecure
            | Self::RegisterCloseCallback
            | Self::UnregisterCloseCallback => {}
        }
        out.into_payload()
    }

    /// # Errors
    /// [`CallError::Unknown`] is everyday: clients ask for much more than is served here.
    pub fn decode(procedure: i32, payload: &[u8]) -> Result<Self, CallError> {
        let number = procedure;
        let procedure = Procedure::from_number(number).ok_or(CallError::Unknown { number })?;
        let mut fields = Reader::new(payload);
        Self::read(procedure, &mut fields)
            .and_then(|call| fields.end().map(|()| call))
            .map_err(|cause| CallError::Arguments { procedure, cause })
    }

    fn read(procedure: Procedure, fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(match procedure {
            Procedure::AuthList => Self::AuthList,
            Procedure::Open => {
                let name = fields.optional("URI", |fields| fields.text("URI", TEXT_MAX))?;
                Self::Open { name: name.map(str::to_owned), flags: fields.u32("flags")? }
            }
            Procedure::Close => Self::Close,
            Procedure::SupportsFeature => Self::SupportsFeature(fields.i32("feature")?),
            Procedure::GetType => Self::GetType,
            Procedure::GetVersion => Self::GetVersion,
            Procedure::GetLibVersion => Self::GetLibVersion,
            Procedure::GetHostname => Self::GetHostname,
            Procedure::GetUri => Self::GetUri,
            Procedure::GetCapabilities => Self::GetCapabilities,
            Procedure::IsSecure => Self::IsSecure,
            Procedure::RegisterCloseCallback => Self::RegisterCloseCallback,
            Procedure::UnregisterCloseCallback => Self::UnregisterCloseCallback,
            Procedure::LookupByName => {
                Self::LookupByName(fields.text("VM's name", TEXT_MAX)?.to_owned())
            }
            Procedure::LookupByUuid => Self::LookupByUuid(fields.fixed("VM's UUID")?),
            Procedure::GetState => {
                Self::GetState { domain: Domain::read(fields)?, flags: fields.u32("flags")? }
            }
            Procedure::UndefineFlags => {
                Self::Undefine { domain: Domain::read(fields)?, flags: fields.u32("flags")? }
            }
            Procedure::Begin3Params => Self::Begin(Begin::read(fields)?),
            Procedure::Prepare3Params => Self::Prepare(Prepare::read(fields)?),
            Procedure::PrepareTunnel3Params => Self::PrepareTunnel(Prepare::read(fields)?),
            Procedure::Finish3Params => Self::Finish(Finish::read(fields)?),
            Procedure::Confirm3Params => Self::Confirm(Confirm::read(fields)?),
        })
    }
}
