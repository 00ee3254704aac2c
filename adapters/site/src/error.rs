//! Why a site did not do what it was asked, and what the caller may do about it.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use model::SiteName;
use serde::{Deserialize, Serialize};

/// What may be done about an error. Nothing retries without asking for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remedy {
    /// Nothing happened; the same call may succeed later.
    RetryAfter(Duration),
    /// It will not succeed until someone changes something; the hint says what.
    GiveUp,
    /// We do not know whether it happened: look first.
    Reconcile,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteErrorKind {
    /// No connection to the site, or it broke.
    Unreachable,
    /// The site does not accept our credentials.
    Denied,
    NotFound,
    /// Something is there already and is not ours.
    Conflict,
    /// The VM is not in the state that this needs.
    WrongState,
    /// Space, memory, quota.
    Exhausted,
    /// The site cannot do this at all.
    Unsupported,
    /// The site refused with a reason of its own.
    Platform,
    /// We gave the site nonsense: our bug.
    Internal,
}

/// An error of one operation at one site: what was attempted, what the site said, what to do.
#[derive(Debug)]
pub struct SiteError {
    pub site: SiteName,
    pub kind: SiteErrorKind,
    /// What was attempted, with names: `start helper web1`.
    pub attempt: String,
    /// What is wrong in one line, without the source's text.
    pub what: String,
    /// What the operator can do, in one sentence.
    pub hint: Option<String>,
    pub remedy: Remedy,
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl SiteError {
    pub const fn remedy(&self) -> Remedy {
        self.remedy
    }
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "site {}: cannot {}: {}", self.site, self.attempt, self.what)
    }
}

impl StdError for SiteError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
