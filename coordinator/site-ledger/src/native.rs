//! What both sites keep of a live migration by their platforms' own workflow, for whoever asks who may
//! run the VM: `recover` and `status` of a coordinator that had no part in it.

use std::collections::BTreeMap;

use handover::{
    Attempt, Identity, InstallKey, KeyError, PlanDigest, SigningKey, VerifyingKey, VmKey,
};
use model::{SiteName, VmId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use site::{LiveJob, RecordKey, Site, SiteError};
use thiserror::Error;
use units::{Bytes, Digest, Epoch, MigrationId};

use crate::copy::{key, of_key};
use crate::error::CustodyError;

/// In the name of the record that holds it: `vm/VM/native-EPOCH`.
const NATIVE: &str = "native-";

/// The only layout so far.
const VERSION: u32 = 1;

/// Its bytes are the attempt's plan: both ledgers have their digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativePaper {
    version: u32,
    pub id: MigrationId,
    pub vm: VmId,
    pub name: String,
    pub from: SiteName,
    pub to: SiteName,
    /// Wall clock of the source's agent, milliseconds since 1970.
    pub began_ms: i64,
    /// The public keys of both sites' roles, hexadecimal.
    keys: BTreeMap<SiteName, String>,
}

#[derive(Debug, Error)]
pub enum NativeError {
    #[error("they are of version {0}, which this causeway does not know")]
    Version(u32),
    #[error("they cannot be read")]
    Unreadable(#[from] serde_json::Error),
    #[error("they name no key of {0}")]
    Key(SiteName),
    #[error("they hold characters that change what a terminal shows")]
    Unprintable,
    #[error("they are about another VM")]
    OtherVm,
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error("a name in them does not fit into a ledger")]
    Name(#[from] KeyError),
}

impl NativePaper {
    pub fn new(
        id: MigrationId,
        (vm, name): (VmId, String),
        from: (SiteName, VerifyingKey),
        to: (SiteName, VerifyingKey),
        began_ms: i64,
    ) -> Self {
        let keys = [&from, &to].map(|(site, key)| (site.clone(), hex::encode(key.to_bytes())));
        let (from, to) = (from.0, to.0);
        Self { version: VERSION, id, vm, name, from, to, began_ms, keys: keys.into() }
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, NativeError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(NativeError::Version(version));
        }
        let paper: Self = serde_json::from_slice(bytes)?;
        // Whoever administers a site can write there what they like, and people read it.
        if !paper.name.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
            return Err(NativeError::Unprintable);
        }
        Ok(paper)
    }

    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers can be written")
    }

    pub fn digest(&self) -> Digest {
        Digest(*blake3::hash(&self.bytes()).as_bytes())
    }

    pub fn key(&self, site: &SiteName) -> Result<VerifyingKey, NativeError> {
        let bytes = self.keys.get(site).and_then(|text| hex::decode(text).ok()?.try_into().ok());
        let key = bytes.and_then(|bytes: [u8; 32]| VerifyingKey::from_bytes(&bytes).ok());
        key.ok_or_else(|| NativeError::Key(site.clone()))
    }

    pub fn vm_key(&self) -> Result<VmKey, NativeError> {
        Ok(self.vm.to_string().parse()?)
    }

    pub fn attempt(&self, epoch: Epoch) -> Result<Attempt, NativeError> {
        Ok(Attempt {
            install: install(),
            vm: self.vm_key()?,
            epoch,
            source: self.from.as_str().parse()?,
            destination: self.to.as_str().parse()?,
            plan: PlanDigest(self.digest()),
        })
    }

    /// One of the two, believing the other; without a key it can be read, and convinces nobody.
    pub fn identity(
        &self,
        site: &SiteName,
        key: Option<SigningKey>,
    ) -> Result<Identity, NativeError> {
        let mut pinned = BTreeMap::new();
        for site in [&self.from, &self.to] {
            pinned.insert(site.as_str().parse()?, self.key(site)?);
        }
        let (install, site) = (install(), site.as_str().parse()?);
        Ok(Identity { install, site, key, pinned, former: BTreeMap::new() })
    }
}

/// Where a site keeps it.
///
/// # Errors
/// None that is known: a VM's key and a number fit.
pub fn native_key(vm: &VmKey, epoch: Epoch) -> Result<RecordKey, CustodyError> {
    key(vm, &format!("{NATIVE}{epoch}"))
}

/// What agents tell of an attempt for people; of the last one alone.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfAttempt<T> {
    epoch: Epoch,
    told: T,
}

fn told_key(vm: &VmKey, what: &str) -> RecordKey {
    key(vm, what).expect("what is a key beside a longer one is one")
}

async fn keep_told<T: Serialize + Sync>(
    site: &dyn Site,
    (vm, what): (&VmKey, &str),
    of: &OfAttempt<T>,
) -> Result<(), SiteError> {
    let key = told_key(vm, what);
    let body = serde_json::to_vec(of).expect("it is made of numbers");
    let before = site.kept(&key).await?;
    site.keep(&key, before.as_deref(), &body).await
}

async fn kept_told<T: DeserializeOwned>(
    site: &dyn Site,
    (vm, what): (&VmKey, &str),
) -> Option<OfAttempt<T>> {
    let body = site.kept(&told_key(vm, what)).await.ok()??;
    serde_json::from_slice(&body).ok()
}

const JOB: &str = "live-job";
const WIRE: &str = "live-wire";

/// How the platform's own migration went, as the destination's counted. A VM that waits is held by another
/// one of libvirt's jobs, and libvirt forgets the one before.
///
/// # Errors
/// Where the site does not take it.
pub async fn keep_job(
    site: &dyn Site,
    vm: &VmKey,
    epoch: Epoch,
    job: LiveJob,
) -> Result<(), SiteError> {
    keep_told(site, (vm, JOB), &OfAttempt { epoch, told: job }).await
}

/// `None`: of this attempt nothing is known.
pub async fn kept_job(site: &dyn Site, vm: &VmKey, epoch: Epoch) -> Option<LiveJob> {
    let kept = kept_told(site, (vm, JOB)).await?;
    (kept.epoch == epoch).then_some(kept.told)
}

/// What a live migration's data amounts to, and to how much of it on the line between the agents, as the source's
/// counts: disks and memory, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveWire {
    pub carried: Bytes,
    pub wire: Bytes,
}

/// # Errors
/// Where the site does not take it.
pub async fn keep_wire(
    site: &dyn Site,
    vm: &VmKey,
    epoch: Epoch,
    counted: LiveWire,
) -> Result<(), SiteError> {
    keep_told(site, (vm, WIRE), &OfAttempt { epoch, told: counted }).await
}

/// With the attempt that it is of. `None`: nothing is known.
pub async fn kept_wire(site: &dyn Site, vm: &VmKey) -> Option<(Epoch, LiveWire)> {
    let kept = kept_told(site, (vm, WIRE)).await?;
    Some((kept.epoch, kept.told))
}

/// The last one of each VM that a site keeps, with its epoch; those that cannot be read with the reason.
///
/// # Errors
/// Where the site does not answer.
pub async fn natives(
    site: &dyn Site,
) -> Result<Vec<(Epoch, Result<NativePaper, NativeError>)>, SiteError> {
    let mut last: BTreeMap<String, (Epoch, RecordKey)> = BTreeMap::new();
    for key in site.kept_keys().await? {
        let Some((vm, what)) = of_key(&key) else { continue };
        let epoch = what.strip_prefix(NATIVE).and_then(|epoch| epoch.parse().ok()).map(Epoch);
        if let Some(epoch) = epoch
            && last.get(vm).is_none_or(|(before, _)| *before < epoch)
        {
            last.insert(vm.to_owned(), (epoch, key.clone()));
        }
    }
    let mut found = Vec::new();
    for (vm, (epoch, key)) in last {
        let paper = match site.kept(&key).await {
            Ok(None) => continue,
            Ok(Some(body)) => NativePaper::parse(&body).and_then(|paper| {
                let is_its = paper.vm.to_string() == vm;
                is_its.then_some(paper).ok_or(NativeError::OtherVm)
            }),
            // One that cannot be read does not hide the others.
            Err(error) => Err(error.into()),
        };
        found.push((epoch, paper));
    }
    Ok(found)
}

/// Mobility agents know one another by the keys of their sites, and are of no coordinator's installation.
fn install() -> InstallKey {
    "native".parse().expect("visible text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> NativePaper {
        let site = |name: &str, seed| {
            (name.parse().unwrap(), SigningKey::from_bytes(&[seed; 32]).verifying_key())
        };
        let vm = VmId("12862f30-84d5-483d-b466-3fe4fdd1048f".parse().unwrap());
        let id = "native-1".parse().unwrap();
        NativePaper::new(id, (vm, "web 1".to_owned()), site("east", 1), site("west", 2), 1)
    }

    #[test]
    fn a_paper_is_read_as_it_was_written_or_not_at_all() {
        let paper = paper();
        assert_eq!(NativePaper::parse(&paper.bytes()).unwrap(), paper);
        assert!(NativePaper::parse(b"").is_err());
        let text = String::from_utf8(paper.bytes()).unwrap();
        let newer = text.replace("\"version\":1", "\"version\":2");
        assert!(matches!(NativePaper::parse(newer.as_bytes()), Err(NativeError::Version(2))));
        let lies = text.replace("web 1", "web\\u202e1");
        let lies = NativePaper::parse(lies.as_bytes());
        assert!(matches!(lies, Err(NativeError::Unprintable)), "{lies:?}");
    }

    #[test]
    fn both_sites_mean_the_same_attempt_and_another_paper_is_another_one() {
        let (one, mut other) = (paper(), paper());
        assert_eq!(one.attempt(Epoch(3)).unwrap(), other.attempt(Epoch(3)).unwrap());
        other.began_ms += 1;
        assert_ne!(one.attempt(Epoch(3)).unwrap(), other.attempt(Epoch(3)).unwrap());
        let key = one.key(&"west".parse().unwrap()).unwrap();
        assert_eq!(key, SigningKey::from_bytes(&[2; 32]).verifying_key());
        assert!(one.key(&"north".parse().unwrap()).is_err());
    }
}
