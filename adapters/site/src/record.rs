//! What a site keeps for a coordinator, and under which name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes that one record may have. Ledgers and definitions have some thousand; a plan of a VM with
/// hundreds of disks has less than a million.
pub const RECORD_MAX: usize = 16 << 20;

/// The name of a record: 1 to 120 of `a-z`, `0-9`, `-`, `.` and `/`, starting with a letter. It
/// stands in descriptions that people read, and is kept to what every platform accepts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RecordKey(String);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "not a record's key (1 to 120 of a-z, 0-9, '-', '.' and '/', starting with a letter): {text:?}"
)]
pub struct RecordKeyError {
    pub text: String,
}

impl RecordKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RecordKey {
    type Err = RecordKeyError;

    fn from_str(text: &str) -> Result<Self, RecordKeyError> {
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '/');
        let fits = text.len() <= 120
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(allowed);
        if fits { Ok(Self(text.to_owned())) } else { Err(RecordKeyError { text: text.to_owned() }) }
    }
}

impl TryFrom<String> for RecordKey {
    type Error = RecordKeyError;
    fn try_from(text: String) -> Result<Self, RecordKeyError> {
        text.parse()
    }
}

impl From<RecordKey> for String {
    fn from(key: RecordKey) -> Self {
        key.0
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_to_what_every_platform_accepts() {
        let longest = "a".repeat(120);
        for key in ["a", "vm/3b2f1c7e-27f1/ledger", "vm/x/unfence-7.disks", longest.as_str()] {
            let parsed: RecordKey = key.parse().unwrap();
            assert_eq!((parsed.as_str(), parsed.to_string().as_str()), (key, key));
            assert_eq!(RecordKey::try_from(key.to_owned()), Ok(parsed));
        }
        let longer = "a".repeat(121);
        for text in ["", "A", "1a", "-a", "/a", ".a", "a b", "a\n", "a_b", "ä", "a\0", &longer] {
            let error = text.parse::<RecordKey>().unwrap_err();
            assert!(error.to_string().contains("1 to 120"), "{text:?}: {error}");
        }
    }
}
