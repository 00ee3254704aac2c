//! Why a plan says no.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One reason against a migration, found before anything was touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Short and stable, for scripts: `network-unmapped`.
    pub code: String,
    /// What is wrong, with names and measured values.
    pub text: String,
    /// What the operator can do about it.
    pub remedy: String,
}

impl Refusal {
    pub(crate) fn new(code: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code: code.to_owned(), text: text.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nhint: {}", self.text, self.remedy)
    }
}
