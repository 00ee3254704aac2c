//! The way into a guest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How to log in to a guest. Stored with the migration, so that `resume` needs no flags; holds no
/// secret, only where keys lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLogin {
    pub user: String,
    pub host: String,
    pub port: u16,
    #[serde(default)]
    pub identity: Option<PathBuf>,
    #[serde(default)]
    pub host_key: Option<String>,
    #[serde(default)]
    pub known_hosts: Option<PathBuf>,
}

impl GuestLogin {
    /// Nobody knows the way in: it is to be said with `--guest`.
    pub fn unknown() -> Self {
        let (user, host) = ("root".to_owned(), "unknown.invalid".to_owned());
        Self { user, host, port: 22, identity: None, host_key: None, known_hosts: None }
    }
}
