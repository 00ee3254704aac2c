//! Keys of this installation: made at first use, kept in the state directory, 0600.

use std::collections::BTreeMap;
use std::fs;

use ed25519_dalek::SigningKey;
use handover::{Identity, InstallKey, SiteKey};
use model::SiteName;
use transfer::secure;
use units::MigrationId;
use zeroize::Zeroizing;

use crate::failure::{Failure, Kind};
use crate::store::Store;

/// Signs the migration receipts, and names this installation in every ledger record.
pub fn install_key(store: &Store) -> Result<SigningKey, Failure> {
    signing_key(store, "install.key", "ledger")
}

/// Signs what a site's role says. The roles run inside this program, each with its own key, as
/// they will when a mobility agent takes them over.
pub fn site_key(store: &Store, site: &SiteName) -> Result<SigningKey, Failure> {
    signing_key(store, &format!("keys/site-{site}.key"), &format!("ledger/{site}"))
}

/// Who the two site roles are, each believing the other.
pub fn identities(
    store: &Store,
    from: &SiteName,
    to: &SiteName,
) -> Result<(Identity, Identity), Failure> {
    let install_name = hex::encode(&install_key(store)?.verifying_key().to_bytes()[..16]);
    let install: InstallKey = parsed(&install_name)?;
    let (source, destination): (SiteKey, SiteKey) = (parsed(from.as_str())?, parsed(to.as_str())?);
    let (source_key, destination_key) = (site_key(store, from)?, site_key(store, to)?);
    let identity =
        |site: &SiteKey, key: &SigningKey, peer: &SiteKey, peer_key: &SigningKey| Identity {
            install: install.clone(),
            site: site.clone(),
            key: key.clone(),
            peers: BTreeMap::from([(peer.clone(), peer_key.verifying_key())]),
        };
    Ok((
        identity(&source, &source_key, &destination, &destination_key),
        identity(&destination, &destination_key, &source, &source_key),
    ))
}

fn parsed<T: std::str::FromStr<Err = handover::KeyError>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error: handover::KeyError| {
        Failure::new(Kind::Refused, "a name that ledgers cannot hold").caused_by(&error)
    })
}

/// `used` holds something once something was signed with it. A new key then would make every receipt
/// and mark of the lost one look forged, and let who owns a VM look unknown.
fn signing_key(store: &Store, name: &str, used: &str) -> Result<SigningKey, Failure> {
    let seed = stored(store, name, || {
        let (key, used) = (store.path().join(name), store.path().join(used));
        let is_used = match fs::read_dir(&used) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            // What cannot be looked at may well hold something.
            Err(error) => {
                let what =
                    format!("{} is missing, and {} cannot be read", key.display(), used.display());
                return Err(Failure::new(Kind::Refused, what).caused_by(&error));
            }
        };
        if is_used {
            let (key, used) = (key.display(), used.display());
            return Err(Failure::new(
                Kind::Refused,
                format!("{key} is missing, and {used} was made with it"),
            )
            .hint("restore it from a backup"));
        }
        let mut seed = Zeroizing::new(vec![0; 32]);
        getrandom::fill(&mut seed).map_err(|error| {
            Failure::new(Kind::Refused, format!("the system gives no random bytes: {error}"))
        })?;
        Ok(seed)
    })?;
    let bytes: Option<[u8; 32]> = seed.as_slice().try_into().ok();
    bytes.map(|bytes| SigningKey::from_bytes(&bytes)).ok_or_else(|| {
        Failure::new(Kind::Refused, format!("{} is not a key", store.path().join(name).display()))
            .hint("restore it from a backup: it names this installation, and open attempts are refused under another")
    })
}

/// What the file holds, made where there is none. Only a missing one is made anew.
fn stored(
    store: &Store,
    name: &str,
    make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, Failure>,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let path = store.path().join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Zeroizing::new(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let bytes = make()?;
            store.write_private(name, &bytes)?;
            Ok(bytes)
        }
        Err(error) => Err(Failure::new(Kind::Refused, format!("cannot read {}", path.display()))
            .caused_by(&error)),
    }
}

fn coordinator_file(id: &MigrationId) -> String {
    format!("keys/{id}.key")
}

/// The key that the agents of a migration know the coordinator by, the same after a crash.
pub fn of_coordinator(store: &Store, id: &MigrationId) -> Result<secure::Identity, Failure> {
    let name = coordinator_file(id);
    let bytes = stored(store, &name, || Ok(Zeroizing::new(secure::Identity::generate_pkcs8())))?;
    secure::Identity::from_pkcs8(&bytes).map_err(|error| {
        let what = format!("{} is not a key", store.path().join(&name).display());
        Failure::new(Kind::Refused, what).caused_by(&error)
    })
}

/// No agent knows it any more.
pub fn forget_coordinator(store: &Store, id: &MigrationId) {
    let path = store.path().join(coordinator_file(id));
    if let Err(error) = fs::remove_file(&path) {
        tracing::warn!(%error, path = %path.display(), "a key that nobody needs is left");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_something_was_signed_with_is_never_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (east, west): (SiteName, SiteName) = ("east".parse().unwrap(), "west".parse().unwrap());
        let before = site_key(&store, &east).unwrap();
        let install = install_key(&store).unwrap();
        assert_eq!(site_key(&store, &east).unwrap(), before);
        fs::create_dir(dir.path().join("ledger/east")).unwrap();
        fs::write(dir.path().join("ledger/east/ledger"), "").unwrap();
        assert_eq!(site_key(&store, &east).unwrap(), before);
        assert_eq!(install_key(&store).unwrap(), install);

        fs::remove_file(dir.path().join("keys/site-east.key")).unwrap();
        fs::remove_file(dir.path().join("install.key")).unwrap();
        assert!(site_key(&store, &east).is_err());
        assert!(install_key(&store).is_err());
        site_key(&store, &west).unwrap();
    }
}
