//! Errors as libvirt's programs tell them to one another (`virNetMessageError`).
//!
//! What another end said is kept as it came: an error of the real destination is handed to the
//! source byte by byte, and an operator reads there what was said here.

use std::fmt;

use crate::xdr::{Reader, TEXT_MAX, Writer, XdrError};

/// The longest message of an error of our own, in bytes. It is cut there.
pub const MESSAGE_MAX: usize = 8 << 10;

/// An error in place of a reply.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteError {
    pub code: Code,
    pub domain: Origin,
    /// Empty if there was none; other bytes than UTF-8 are replaced.
    pub message: String,
    pub level: i32,
    raw: Vec<u8>,
}

/// What went wrong (`virErrorNumber`, `include/libvirt/virterror.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    pub const INTERNAL_ERROR: Self = Self(1);
    /// What clients make of an "unknown procedure" of [`Code::RPC`], and then try older ones.
    pub const NO_SUPPORT: Self = Self(3);
    pub const NO_CONNECT: Self = Self(5);
    pub const INVALID_ARG: Self = Self(8);
    pub const OPERATION_FAILED: Self = Self(9);
    pub const OPERATION_DENIED: Self = Self(29);
    pub const RPC: Self = Self(39);
    pub const NO_DOMAIN: Self = Self(42);
    pub const AUTH_FAILED: Self = Self(45);
    pub const OPERATION_INVALID: Self = Self(55);
    pub const CONFIG_UNSUPPORTED: Self = Self(67);
    pub const ARGUMENT_UNSUPPORTED: Self = Self(74);
    pub const OPERATION_ABORTED: Self = Self(78);
    pub const OPERATION_UNSUPPORTED: Self = Self(84);
    /// Finish of a cancelled migration went well: there is no VM to tell about. With any other
    /// code of [`Origin::QEMU`] the source shows that error instead of its own.
    pub const MIGRATE_FINISH_OK: Self = Self(93);
}

/// Who says so (`virErrorDomain`); libvirt calls it a domain, which a VM is as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin(pub i32);

impl Origin {
    pub const NONE: Self = Self(0);
    pub const RPC: Self = Self(7);
    pub const QEMU: Self = Self(10);
    pub const REMOTE: Self = Self(13);
    pub const DOMAIN: Self = Self(20);
    pub const AUTH: Self = Self(46);
}

/// `VIR_ERR_ERROR`: neither a warning nor nothing.
const LEVEL_ERROR: i32 = 2;

impl RemoteError {
    /// An error of our own. Clients show the message as it is, so it says all there is to say; a
    /// NUL, which would end it, is replaced.
    pub fn new(code: Code, domain: Origin, message: &str) -> Self {
        let message = message[..message.floor_char_boundary(MESSAGE_MAX)].replace('\0', "\u{fffd}");
        let level = LEVEL_ERROR;
        let mut out = Writer::new();
        out.i32(code.0);
        out.i32(domain.0);
        out.optional_text(Some(&message));
        out.i32(level);
        out.bool(false);
        // libvirt puts the message into the first of three more texts as well.
        out.optional_text(Some(&message));
        out.optional_text(None);
        out.optional_text(None);
        out.i32(-1);
        out.i32(-1);
        out.bool(false);
        Self { code, domain, message, level, raw: out.into_payload() }
    }

    pub fn operation_failed(message: &str) -> Self {
        Self::new(Code::OPERATION_FAILED, Origin::QEMU, message)
    }

    pub fn unsupported(message: &str) -> Self {
        Self::new(Code::OPERATION_UNSUPPORTED, Origin::QEMU, message)
    }

    pub fn auth_failed(message: &str) -> Self {
        Self::new(Code::AUTH_FAILED, Origin::AUTH, message)
    }

    pub fn internal(message: &str) -> Self {
        Self::new(Code::INTERNAL_ERROR, Origin::QEMU, message)
    }

    pub fn rpc(message: &str) -> Self {
        Self::new(Code::RPC, Origin::RPC, message)
    }

    pub fn no_support(message: &str) -> Self {
        Self::new(Code::NO_SUPPORT, Origin::REMOTE, message)
    }

    /// The answer to a cancelled Finish that has tidied up.
    pub fn migrate_finish_ok() -> Self {
        let message = "migration successfully aborted";
        Self::new(Code::MIGRATE_FINISH_OK, Origin::QEMU, message)
    }

    /// # Errors
    /// If it is no error; nothing of it is kept then.
    pub fn decode(payload: &[u8]) -> Result<Self, XdrError> {
        let mut fields = Reader::new(payload);
        let code = Code(fields.i32("error code")?);
        let domain = Origin(fields.i32("error domain")?);
        // What a program of the system said may be in any encoding.
        let text = |fields: &mut Reader<'_>| fields.opaque("error text", TEXT_MAX).map(<[u8]>::len);
        let message =
            fields.optional("error message", |fields| fields.opaque("error message", TEXT_MAX))?;
        let message = message.map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        let level = fields.i32("error level")?;
        fields.optional("error's VM", |fields| {
            fields.opaque("name", TEXT_MAX)?;
            fields.fixed::<16>("UUID")?;
            fields.i32("id")
        })?;
        for _ in 0..3 {
            fields.optional("error text", text)?;
        }
        fields.i32("error number")?;
        fields.i32("error number")?;
        fields.optional("error's network", |fields| {
            fields.opaque("name", TEXT_MAX)?;
            fields.fixed::<16>("UUID")
        })?;
        fields.end()?;
        Ok(Self { code, domain, message, level, raw: payload.to_vec() })
    }

    /// As it came, or as [`RemoteError::new`] wrote it.
    pub fn encode(&self) -> &[u8] {
        &self.raw
    }
}

impl fmt::Debug for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, domain, message, level, raw: _ } = self;
        write!(f, "RemoteError {{ {}/{}, level {level}: {message:?} }}", code.0, domain.0)
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            write!(f, "error {} without a message", self.code.0)
        } else {
            f.write_str(&self.message)
        }
    }
}

impl std::error::Error for RemoteError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_passed_on_as_it_came() {
        let mut out = Writer::new();
        out.i32(1234);
        out.i32(10);
        out.optional(Some(b"caf\xe9"), |out, text| out.opaque(text));
        out.i32(2);
        out.optional(Some("web1"), |out, name| {
            out.text(name);
            out.fixed(&[7; 16]);
            out.i32(-1);
        });
        out.optional_text(Some("%s"));
        out.optional_text(None);
        out.optional_text(None);
        out.i32(1);
        out.i32(2);
        out.bool(false);
        let raw = out.into_payload();
        let error = RemoteError::decode(&raw).unwrap();
        assert_eq!((error.code, error.message.as_str()), (Code(1234), "caf\u{fffd}"));
        assert_eq!(error.encode(), raw);
    }

    #[test]
    fn an_error_of_our_own_is_read_as_it_was_meant() {
        let long = "x".repeat(MESSAGE_MAX - 1) + "é and more";
        for (error, code, domain) in [
            (RemoteError::operation_failed("no"), 9, 10),
            (RemoteError::unsupported("no"), 84, 10),
            (RemoteError::auth_failed("no"), 45, 46),
            (RemoteError::internal("no"), 1, 10),
            (RemoteError::rpc("no"), 39, 7),
            (RemoteError::no_support("no"), 3, 13),
            (RemoteError::migrate_finish_ok(), 93, 10),
            (RemoteError::internal(&long), 1, 10),
        ] {
            assert_eq!((error.code, error.domain), (Code(code), Origin(domain)));
            assert!(error.message.len() <= MESSAGE_MAX);
            assert_eq!(RemoteError::decode(error.encode()), Ok(error));
        }
        let with_nul = RemoteError::internal("no\0thing");
        assert_eq!(with_nul.message, "no\u{fffd}thing");
    }
}
