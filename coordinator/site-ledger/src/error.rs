//! What keeps a site's ledger from being read or written.

use std::path::PathBuf;

use handover::{LedgerError, Refusal};
use journal::{AppendError, OpenError};
use site::SiteError;
use thiserror::Error;

use crate::copy::CopyError;

#[derive(Debug, Error)]
pub enum CustodyError {
    #[error("cannot open the ledger {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        cause: OpenError,
    },
    #[error("the ledger {} holds what this version cannot read", path.display())]
    Decode {
        path: PathBuf,
        #[source]
        cause: handover::DecodeError,
    },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cannot write the ledger of {site}; this process must stop")]
    Append {
        site: String,
        #[source]
        cause: AppendError,
    },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("cannot keep {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("what undoes the fence is not what the ledger recorded: {}", path.display())]
    Tampered { path: PathBuf },
    #[error("not as the ledger needs it: {what}")]
    Unfit { what: String },
    /// Whether it was recorded is known when it answers; nothing was done on it.
    #[error("the copy of its ledger at {site} cannot be kept up")]
    Site {
        site: String,
        #[source]
        cause: SiteError,
    },
    #[error("the copy of its ledger that {site} keeps cannot be read")]
    Copy {
        site: String,
        #[source]
        cause: CopyError,
    },
    #[error(
        "the key of {site} could not be had when this began, and without it nothing is recorded there"
    )]
    NoKey { site: String },
    #[error(
        "somebody began to call it off, and {site}, which knows whether the VM was let go on there, does not tell"
    )]
    MayBeReleased { site: String },
    #[error("another coordinator has written the ledger of {site} meanwhile")]
    Elsewhere { site: String },
    #[error("the ledger of {site} here and the copy that {site} keeps tell different stories")]
    TwoStories { site: String },
}

impl CustodyError {
    /// What nobody can put right but a person.
    pub const fn both_ways() -> Self {
        Self::Refused(Refusal::Contradiction {
            what: "decided for the destination, and the source was released",
        })
    }

    /// Did a site not answer? What was recorded stands, and asking again goes on from there.
    pub const fn at_site(&self) -> Option<&SiteError> {
        match self {
            Self::Site { cause, .. } => Some(cause),
            _ => None,
        }
    }
}
