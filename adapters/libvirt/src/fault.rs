//! Why a call did not do what it was for, before site and attempt are known.

use model::Power;
use site::{Remedy, SiteErrorKind};
use virt::error::Error as Said;

/// May the platform be left changed by this call?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Look,
    Change,
}

#[derive(Debug)]
pub(crate) enum Fault {
    /// libvirt answered with an error, or the connection broke.
    Said(Said),
    /// Found by us, while looking at what libvirt answered.
    Found(Finding),
}

/// Something that is not as the call needs it.
#[derive(Debug)]
pub(crate) struct Finding {
    pub kind: SiteErrorKind,
    pub what: String,
    pub hint: Option<String>,
    pub remedy: Remedy,
}

impl From<Said> for Fault {
    fn from(said: Said) -> Self {
        Self::Said(said)
    }
}

impl Fault {
    pub(crate) fn found(kind: SiteErrorKind, what: impl Into<String>) -> Self {
        Self::Found(Finding { kind, what: what.into(), hint: None, remedy: Remedy::GiveUp })
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Self::Found(finding) => Self::Found(Finding { hint: Some(hint.into()), ..finding }),
            said @ Self::Said(_) => said,
        }
    }

    pub(crate) fn remedy(self, remedy: Remedy) -> Self {
        match self {
            Self::Found(finding) => Self::Found(Finding { remedy, ..finding }),
            said @ Self::Said(_) => said,
        }
    }

    pub(crate) fn wrong_state(what: impl Into<String>) -> Self {
        Self::found(SiteErrorKind::WrongState, what)
    }

    pub(crate) fn conflict(what: impl Into<String>) -> Self {
        Self::found(SiteErrorKind::Conflict, what)
    }

    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::found(SiteErrorKind::NotFound, what)
    }

    /// Something that only we could have caused.
    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::found(SiteErrorKind::Internal, what)
    }

    /// The VM would have to be off.
    pub(crate) fn loaded(power: Power) -> Self {
        Self::wrong_state(format!("the VM is {power}")).hint("power it off first")
    }

    /// Did libvirt say that this kind of pool, host or VM cannot do that at all?
    pub(crate) fn is_unsupported(&self) -> bool {
        match self {
            Self::Said(said) => said.code().is(virt::error::ErrorNumber::NoSupport),
            Self::Found(finding) => finding.kind == SiteErrorKind::Unsupported,
        }
    }

    /// Did libvirt say that what was looked for is not there?
    pub(crate) fn is_absence(&self) -> bool {
        use virt::error::ErrorNumber as Number;
        match self {
            Self::Said(said) => said.code().is_any(vec![
                Number::NoDomain,
                Number::NoStoragePool,
                Number::NoStorageVolume,
                Number::NoNetwork,
                Number::NoDomainMetadata,
                Number::NoSecret,
            ]),
            Self::Found(finding) => finding.kind == SiteErrorKind::NotFound,
        }
    }
}

/// `None` where libvirt says that it is not there.
pub(crate) fn maybe<T>(answer: Result<T, Said>) -> Result<Option<T>, Fault> {
    match answer.map_err(Fault::Said) {
        Ok(found) => Ok(Some(found)),
        Err(fault) if fault.is_absence() => Ok(None),
        Err(fault) => Err(fault),
    }
}
