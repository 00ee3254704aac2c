//! Which host keys a guest may show. Decided before the connection; nothing is learnt from it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ring::hmac;
use russh::keys::ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use russh::keys::ssh_key::{Algorithm, EcdsaCurve, Fingerprint, HashAlg, PublicKey};
use thiserror::Error;
use tracing::warn;

use crate::error::{SeenKey, SshError, known_hosts_name};
use crate::target::Endpoint;

/// Where the expected host key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKeyPolicy {
    /// Any of these.
    Pinned(Vec<PinnedKey>),
    /// Any that these files have for the host. A file that does not exist has none.
    KnownHosts(Vec<PathBuf>),
}

/// One key that is trusted. Written as an OpenSSH public key line or as `SHA256:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinnedKey {
    Key(PublicKey),
    /// Its SHA-256.
    Fingerprint(Fingerprint),
}

#[derive(Debug, Error)]
#[error("not a host key (`ssh-ed25519 AAAA…` or `SHA256:…`): {text:?}")]
pub struct PinnedKeyError {
    pub text: String,
    #[source]
    pub cause: russh::keys::ssh_key::Error,
}

impl PinnedKey {
    fn is(&self, key: &PublicKey) -> bool {
        match self {
            Self::Key(pinned) => pinned.key_data() == key.key_data(),
            Self::Fingerprint(pinned) => *pinned == key.fingerprint(HashAlg::Sha256),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::Key(key) => key.fingerprint(HashAlg::Sha256),
            Self::Fingerprint(fingerprint) => *fingerprint,
        }
    }
}

impl FromStr for PinnedKey {
    type Err = PinnedKeyError;

    fn from_str(text: &str) -> Result<Self, PinnedKeyError> {
        let error = |cause| PinnedKeyError { text: text.to_owned(), cause };
        let text = text.trim();
        if text.contains(char::is_whitespace) {
            return PublicKey::from_openssh(text).map(Self::Key).map_err(error);
        }
        let fingerprint: Fingerprint = text.parse().map_err(error)?;
        if fingerprint.is_sha256() {
            Ok(Self::Fingerprint(fingerprint))
        } else {
            Err(error(russh::keys::ssh_key::Error::FormatEncoding))
        }
    }
}

impl fmt::Display for PinnedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.write_str(&key.to_openssh().unwrap_or_default()),
            Self::Fingerprint(fingerprint) => fingerprint.fmt(f),
        }
    }
}

/// What a policy says of one host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    trusted: Vec<PinnedKey>,
    revoked: Vec<PublicKey>,
    looked_in: Vec<PathBuf>,
}

impl Expected {
    pub(crate) async fn of(policy: &HostKeyPolicy, endpoint: &Endpoint) -> Result<Self, SshError> {
        let files = match policy {
            HostKeyPolicy::Pinned(keys) => {
                return Ok(Self { trusted: keys.clone(), ..Self::default() });
            }
            HostKeyPolicy::KnownHosts(files) => files,
        };
        let name = known_hosts_name(&endpoint.host, endpoint.port);
        let mut expected = Self { looked_in: files.clone(), ..Self::default() };
        for path in files {
            match tokio::fs::read(path).await {
                Ok(bytes) => expected.learn(&String::from_utf8_lossy(&bytes), &name),
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {}
                Err(cause) => return Err(SshError::KnownHosts { path: path.clone(), cause }),
            }
        }
        Ok(expected)
    }

    fn learn(&mut self, known_hosts: &str, name: &str) {
        for (number, line) in known_hosts.lines().enumerate() {
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = match line.parse::<Entry>() {
                Ok(entry) => entry,
                Err(error) => {
                    warn!(line = number + 1, %error, "passed over a line of known hosts");
                    continue;
                }
            };
            if !names(entry.host_patterns(), name) {
                continue;
            }
            match entry.marker() {
                None => self.trusted.push(PinnedKey::Key(entry.public_key().clone())),
                Some(Marker::Revoked) => self.revoked.push(entry.public_key().clone()),
                // We ask for plain keys only, so an authority never comes into play.
                Some(Marker::CertAuthority) => {}
            }
        }
    }

    /// The kinds of key to ask for, one connection each. A server shows the first kind that we
    /// list and it has. A pinned key tells its kind; a fingerprint does not, so every kind is
    /// asked for in turn.
    pub(crate) fn offers(&self) -> Vec<Vec<Algorithm>> {
        let kinds = [
            vec![Algorithm::Ed25519],
            [EcdsaCurve::NistP256, EcdsaCurve::NistP384, EcdsaCurve::NistP521]
                .map(|curve| Algorithm::Ecdsa { curve })
                .to_vec(),
            // Signatures with SHA-1 are not accepted.
            [HashAlg::Sha512, HashAlg::Sha256]
                .map(|hash| Algorithm::Rsa { hash: Some(hash) })
                .to_vec(),
        ];
        if self.trusted.iter().any(|pinned| matches!(pinned, PinnedKey::Fingerprint(_))) {
            return kinds.to_vec();
        }
        let known = |algorithm: &Algorithm| {
            self.trusted.iter().any(|pinned| match pinned {
                PinnedKey::Key(key) => same_kind(&key.algorithm(), algorithm),
                PinnedKey::Fingerprint(_) => false,
            })
        };
        let (first, rest): (Vec<_>, Vec<_>) = kinds.into_iter().flatten().partition(known);
        vec![first.into_iter().chain(rest).collect()]
    }

    pub(crate) fn judge(&self, endpoint: &Endpoint, seen: &PublicKey) -> Result<(), SshError> {
        let seen_fingerprint = seen.fingerprint(HashAlg::Sha256).to_string();
        if self.revoked.iter().any(|revoked| revoked.key_data() == seen.key_data()) {
            return Err(SshError::RevokedHostKey { endpoint: endpoint.clone(), seen_fingerprint });
        }
        if self.trusted.iter().any(|pinned| pinned.is(seen)) {
            return Ok(());
        }
        if self.trusted.is_empty() {
            let mut bare = seen.clone();
            bare.set_comment("");
            return Err(SshError::UnknownHostKey {
                endpoint: endpoint.clone(),
                seen: Box::new(SeenKey {
                    fingerprint: seen_fingerprint,
                    line: bare.to_openssh().unwrap_or_default(),
                    looked_in: self.looked_in.clone(),
                }),
            });
        }
        Err(SshError::ChangedHostKey {
            endpoint: endpoint.clone(),
            seen_fingerprints: vec![seen_fingerprint],
            expected: self.trusted.iter().map(|pinned| pinned.fingerprint().to_string()).collect(),
        })
    }
}

fn same_kind(key: &Algorithm, offered: &Algorithm) -> bool {
    match (key, offered) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
        (key, offered) => key == offered,
    }
}

/// Whether the first field of a known hosts line names this host (`host` or `[host]:port`).
fn names(patterns: &HostPatterns, name: &str) -> bool {
    match patterns {
        HostPatterns::HashedName { salt, hash } => {
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
            hmac::verify(&key, name.as_bytes(), hash).is_ok()
        }
        HostPatterns::Patterns(patterns) => {
            let mut named = false;
            for pattern in patterns {
                match pattern.strip_prefix('!') {
                    Some(pattern) if glob(&pattern.to_lowercase(), name) => return false,
                    Some(_) => {}
                    None => named |= glob(&pattern.to_lowercase(), name),
                }
            }
            named
        }
    }
}

/// `*` is any run of characters, `?` any one.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            // Let the last `*` take one character more.
            _ => match star.as_mut() {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, t) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
#[path = "host_key_tests.rs"]
mod tests;
