//! Keys of this installation: made at first use, kept in the state directory, 0600. A site's own key is
//! at the site as well, among what it keeps for coordinators: whoever administers it acts for it, from
//! whichever machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ed25519_dalek::SigningKey;
use handover::{Identity, InstallKey, VerifyingKey};
use model::SiteName;
use site::{RecordKey, Site};
use transfer::secure;
use units::MigrationId;
use zeroize::Zeroizing;

use crate::failure::{Failure, Kind};
use crate::store::Store;

/// Signs the migration receipts, and names this installation in every ledger record.
pub fn install_key(store: &Store) -> Result<SigningKey, Failure> {
    signing_key(store, "install.key", "ledger")
}

/// How ledgers name this installation. One that took the place of a lost one bears its name.
pub fn install_name(store: &Store) -> Result<InstallKey, Failure> {
    let name = match read(store, INSTALL_NAME)? {
        Some(name) => String::from_utf8_lossy(&name).into_owned(),
        None => hex::encode(&install_key(store)?.verifying_key().to_bytes()[..16]),
    };
    parsed(&name)
}

/// Takes the place of a lost installation.
///
/// # Errors
/// Where this one has ledgers of its own already.
pub fn succeed(store: &Store, lost: &InstallKey) -> Result<(), Failure> {
    if install_name(store)? == *lost {
        return Ok(());
    }
    if in_use(&store.path().join("ledger"))? {
        let dir = store.path().display();
        return Err(Failure::new(
            Kind::Refused,
            format!(
                "{dir} has migrations of its own, and what was found is of another installation"
            ),
        )
        .hint("recover it into a state directory of its own: --state-dir"));
    }
    store.write_private(INSTALL_NAME, lost.as_str().as_bytes())?;
    Ok(())
}

const INSTALL_NAME: &str = "install.name";

fn site_file(site: &SiteName) -> String {
    format!("keys/site-{site}.key")
}

fn public_file(site: &SiteName) -> String {
    format!("keys/site-{site}.pub")
}

/// Signs what a site's role says. The roles run inside this program, each with its own key, as
/// they will when a mobility agent takes them over.
fn site_key(store: &Store, site: &SiteName) -> Result<SigningKey, Failure> {
    signing_key(store, &site_file(site), &format!("ledger/{site}"))
}

/// As [`site_key`]; none where it is at a site that could not be asked for it yet.
fn site_key_if_had(store: &Store, site: &SiteName) -> Result<Option<SigningKey>, Failure> {
    let is_learnt = read(store, &public_file(site))?.is_some();
    if is_learnt && read(store, &site_file(site))?.is_none() {
        return Ok(None);
    }
    site_key(store, site).map(Some)
}

/// Verifies what a site's role said.
pub fn public_key(store: &Store, site: &SiteName) -> Result<VerifyingKey, Failure> {
    match learnt(store, site)? {
        Some(key) if read(store, &site_file(site))?.is_none() => Ok(key),
        _ => Ok(site_key(store, site)?.verifying_key()),
    }
}

/// What is known of the key of a site that could not be asked for it yet.
fn learnt(store: &Store, site: &SiteName) -> Result<Option<VerifyingKey>, Failure> {
    let Some(bytes) = read(store, &public_file(site))? else { return Ok(None) };
    let bytes: Option<[u8; 32]> = bytes.as_slice().try_into().ok();
    let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
    key.map(Some).ok_or_else(|| {
        let path = store.path().join(public_file(site));
        Failure::new(Kind::Refused, format!("{} is not a key", path.display()))
    })
}

/// The key of a site that cannot be asked, as its peer's papers have it.
pub fn learn(store: &Store, site: &SiteName, key: &VerifyingKey) -> Result<(), Failure> {
    if read(store, &site_file(site))?.is_some() {
        return Ok(());
    }
    match learnt(store, site)? {
        None => {
            store.write_private(&public_file(site), key.as_bytes())?;
            Ok(())
        }
        Some(known) if known == *key => Ok(()),
        Some(_) => Err(another_key(store, site)),
    }
}

/// A site that is gone for good has taken its key with it: by its operator's word a new one speaks for
/// it. Should it come back, the two are told apart. Answers whether the key was made now.
pub fn speak_for(store: &Store, site: &SiteName) -> Result<bool, Failure> {
    if read(store, &site_file(site))?.is_some() {
        return Ok(false);
    }
    tracing::warn!(%site, "a new key speaks for the lost site");
    store.write_private(&site_file(site), random()?.as_slice())?;
    Ok(true)
}

/// Nothing was signed with the key that was to speak for it: should the site come back, it has its own.
pub fn unspeak(store: &Store, site: &SiteName) {
    forget_file(store, &site_file(site));
}

/// Makes this machine and the site have the same key for it: the site's, or where it has none ours.
///
/// # Errors
/// Where the two have different ones, and where the site cannot be asked and nothing is known of its
/// key here.
pub async fn settle(store: &Store, name: &SiteName, site: &dyn Site) -> Result<(), Failure> {
    let file = site_file(name);
    let failed = |error: &dyn std::error::Error| {
        Failure::new(Kind::Refused, format!("the key of {name} cannot be had")).caused_by(error)
    };
    let place: RecordKey =
        "site/key".parse().map_err(|error: site::RecordKeyError| failed(&error))?;
    let (here, learnt) = (read(store, &file)?, learnt(store, name)?);
    let there = match site.kept(&place).await {
        Ok(there) => there.map(Zeroizing::new),
        // Whatever is the matter with it, it must not hold up the other one.
        Err(error) if here.is_some() || learnt.is_some() => {
            tracing::warn!(%name, error = %units::chain(&error), "its key was not compared");
            return Ok(());
        }
        Err(error) => return Err(failed(&error)),
    };
    match (here, there) {
        (None, Some(there)) => {
            let bytes: [u8; 32] =
                there.as_slice().try_into().map_err(|_| another_key(store, name))?;
            let key = SigningKey::from_bytes(&bytes).verifying_key();
            if learnt.is_some_and(|learnt| learnt != key) {
                return Err(another_key(store, name));
            }
            store.write_private(&file, &there)?;
        }
        // What it said before could not be believed any more.
        (None, None) if learnt.is_some() => return Err(another_key(store, name)),
        (_, None) => {
            let ours = site_key(store, name)?.to_bytes();
            site.keep(&place, None, &ours).await.map_err(|error| failed(&error))?;
        }
        (Some(here), Some(there)) if here == there => {}
        (Some(_), Some(_)) => return Err(another_key(store, name)),
    }
    Ok(())
}

fn another_key(store: &Store, site: &SiteName) -> Failure {
    Failure::new(
        Kind::Refused,
        format!("{site} has another key than {} has for it", store.path().display()),
    )
    .hint("another site had this name before, or it was set up anew: register it under a name of its own (causeway site add), or use another --state-dir")
}

/// Who the two site roles are, each believing the other.
pub fn identities(
    store: &Store,
    from: &SiteName,
    to: &SiteName,
) -> Result<(Identity, Identity), Failure> {
    let install = install_name(store)?;
    let (mut pinned, mut former) = (BTreeMap::new(), BTreeMap::new());
    for site in [from, to] {
        let key = public_key(store, site)?;
        pinned.insert(parsed(site.as_str())?, key);
        if let Some(before) = learnt(store, site)?.filter(|before| *before != key) {
            former.insert(parsed(site.as_str())?, before);
        }
    }
    let identity = |site: &SiteName| -> Result<Identity, Failure> {
        Ok(Identity {
            install: install.clone(),
            site: parsed(site.as_str())?,
            key: site_key_if_had(store, site)?,
            pinned: pinned.clone(),
            former: former.clone(),
        })
    };
    Ok((identity(from)?, identity(to)?))
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
        if in_use(&used)? {
            let (key, used) = (key.display(), used.display());
            return Err(Failure::new(
                Kind::Refused,
                format!("{key} is missing, and {used} was made with it"),
            )
            .hint("restore it from a backup, or ask the sites with an empty --state-dir: causeway recover"));
        }
        Ok(Zeroizing::new(random()?.to_vec()))
    })?;
    let bytes: Option<[u8; 32]> = seed.as_slice().try_into().ok();
    bytes.map(|bytes| SigningKey::from_bytes(&bytes)).ok_or_else(|| {
        Failure::new(Kind::Refused, format!("{} is not a key", store.path().join(name).display()))
            .hint("restore it from a backup: it names this installation, and open attempts are refused under another")
    })
}

/// Does a folder of ledgers hold anything? What cannot be looked at may well do.
fn in_use(folder: &Path) -> Result<bool, Failure> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            let what = format!("a key is missing, and {} cannot be read", folder.display());
            Err(Failure::new(Kind::Refused, what).caused_by(&error))
        }
    }
}

fn random() -> Result<Zeroizing<[u8; 32]>, Failure> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).map_err(|error| {
        Failure::new(Kind::Refused, format!("the system gives no random bytes: {error}"))
    })?;
    Ok(seed)
}

fn read(store: &Store, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
    let path = store.path().join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::new(Kind::Refused, format!("cannot read {}", path.display()))
            .caused_by(&error)),
    }
}

/// What the file holds, made where there is none. Only a missing one is made anew.
fn stored(
    store: &Store,
    name: &str,
    make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, Failure>,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if let Some(bytes) = read(store, name)? {
        return Ok(bytes);
    }
    let bytes = make()?;
    store.write_private(name, &bytes)?;
    Ok(bytes)
}

fn coordinator_file(id: &MigrationId) -> String {
    format!("keys/move-{id}.key")
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

/// The same, for the site's keeping.
pub fn of_coordinator_in_full(
    store: &Store,
    id: &MigrationId,
) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
    read(store, &coordinator_file(id))
}

/// As a lost coordinator had it.
pub fn restore_coordinator(store: &Store, id: &MigrationId, pkcs8: &[u8]) -> Result<(), Failure> {
    secure::Identity::from_pkcs8(pkcs8).map_err(|error| {
        Failure::new(Kind::Refused, format!("the coordinator's key of {id} is none"))
            .caused_by(&error)
    })?;
    if read(store, &coordinator_file(id))?.is_none() {
        store.write_private(&coordinator_file(id), pkcs8)?;
    }
    Ok(())
}

/// No agent knows it any more.
pub fn forget_coordinator(store: &Store, id: &MigrationId) {
    forget_file(store, &coordinator_file(id));
}

fn forget_file(store: &Store, name: &str) {
    let path = store.path().join(name);
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
