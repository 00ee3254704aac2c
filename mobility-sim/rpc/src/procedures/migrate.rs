//! The steps of a migration. A destination takes two: Prepare before anything is sent, Finish when all was
//! sent, or will never be. A source begins before the first and confirms after the last.

use super::Domain;
use crate::flags::Flags;
use crate::params::Params;
use crate::xdr::{Reader, TEXT_MAX, Writer, XdrError};

/// The longest cookie, in bytes: `REMOTE_MIGRATE_COOKIE_MAX`.
pub const COOKIE_MAX: usize = 4 << 20;

/// A cookie is XML with a NUL behind it that counts; it is carried here and not read.
const COOKIE: &str = "cookie";

/// At the source. With [`Flags::CHANGE_PROTECTION`] its VM is held from then on, until Confirm or the end of the
/// connection: whatever would change it waits, and is refused after 30 s; it can be suspended and ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Begin {
    pub domain: Domain,
    pub params: Params,
    pub flags: Flags,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    pub cookie: Vec<u8>,
    /// The definition that the destination is to have.
    pub xml: String,
}

/// At the source: it has moved, and is ended; or it was cancelled, and is as it was before.
#[derive(Clone, Debug, PartialEq)]
pub struct Confirm {
    pub domain: Domain,
    pub params: Params,
    pub cookie: Vec<u8>,
    pub flags: Flags,
    pub cancelled: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Prepare {
    pub params: Params,
    pub cookie: Vec<u8>,
    pub flags: Flags,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub cookie: Vec<u8>,
    /// Where the source sends RAM, `tcp:HOST:PORT`; `None`: where the operator said. Whatever is
    /// named has to listen before this is said. Not part of the reply to a tunnelled one.
    pub uri: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    pub params: Params,
    pub cookie: Vec<u8>,
    pub flags: Flags,
    /// The source has given up, and its VM runs there.
    pub cancelled: bool,
}

/// The VM is at the destination. The source ends its own as soon as it has read this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub domain: Domain,
    pub cookie: Vec<u8>,
}

impl Begin {
    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let domain = Domain::read(fields)?;
        let params = Params::read(fields)?;
        Ok(Self { domain, params, flags: Flags(fields.u32("flags")?) })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        self.domain.write(out);
        self.params.write(out);
        out.u32(self.flags.0);
    }
}

impl Begun {
    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let cookie = fields.opaque(COOKIE, COOKIE_MAX)?.to_vec();
        Ok(Self { cookie, xml: fields.text("definition", TEXT_MAX)?.to_owned() })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.opaque(&self.cookie);
        out.text(&self.xml);
    }
}

impl Confirm {
    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let domain = Domain::read(fields)?;
        let params = Params::read(fields)?;
        let cookie = fields.opaque(COOKIE, COOKIE_MAX)?.to_vec();
        let flags = Flags(fields.u32("flags")?);
        Ok(Self { domain, params, cookie, flags, cancelled: fields.bool("cancelled")? })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        self.domain.write(out);
        self.params.write(out);
        out.opaque(&self.cookie);
        out.u32(self.flags.0);
        out.bool(self.cancelled);
    }
}

impl Prepare {
    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let params = Params::read(fields)?;
        let cookie = fields.opaque(COOKIE, COOKIE_MAX)?.to_vec();
        Ok(Self { params, cookie, flags: Flags(fields.u32("flags")?) })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        self.params.write(out);
        out.opaque(&self.cookie);
        out.u32(self.flags.0);
    }
}

impl Prepared {
    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let cookie = fields.opaque(COOKIE, COOKIE_MAX)?.to_vec();
        let uri = fields.optional("URI", |fields| fields.text("URI", TEXT_MAX))?;
        Ok(Self { cookie, uri: uri.map(str::to_owned) })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.opaque(&self.cookie);
        out.optional_text(self.uri.as_deref());
    }
}

impl Finish {
    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let params = Params::read(fields)?;
        let cookie = fields.opaque(COOKIE, COOKIE_MAX)?.to_vec();
        let flags = Flags(fields.u32("flags")?);
        Ok(Self { params, cookie, flags, cancelled: fields.bool("cancelled")? })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        self.params.write(out);
        out.opaque(&self.cookie);
        out.u32(self.flags.0);
        out.bool(self.cancelled);
    }
}

impl Finished {
    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, XdrError> {
        let domain = Domain::read(fields)?;
        Ok(Self { domain, cookie: fields.opaque(COOKIE, COOKIE_MAX)?.to_vec() })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        self.domain.write(out);
        out.opaque(&self.cookie);
    }
}
