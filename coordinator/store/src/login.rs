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

impl std::fmt::Display for GuestLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}", self.user, self.host, self.port)?;
        match &self.identity {
            Some(file) => write!(f, " with the key {}", file.display())?,
            None => f.write_str(" with your keys")?,
        }
        match (&self.host_key, &self.known_hosts) {
            (Some(key), _) => write!(f, "; its host key is {key}"),
            (None, Some(file)) => write!(f, "; its host key is in {}", file.display()),
            (None, None) => f.write_str("; its host key is in your known_hosts"),
        }
    }
}

impl GuestLogin {
    /// Nobody knows the way in: it is to be said with `--guest`.
    pub fn unknown() -> Self {
        let (user, host) = ("root".to_owned(), "unknown.invalid".to_owned());
        Self { user, host, port: 22, identity: None, host_key: None, known_hosts: None }
    }
}
