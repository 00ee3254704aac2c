//! Who may run the VM: this site's ledger, with the copy that the site keeps, and its role.
//!
//! Every question goes to crate `handover`; what its roles put on record is at the site and on this
//! machine before anything is done on it. So whoever asks the sites (`causeway status`, `recover`)
//! learns the same of a live migration as of any other.
//!
//! ```text
//!  at the source:       begins ──► offers ──► is fenced ──► retires
//!                         └──────────┴──► is released
//!  at the destination:  begins ──► has it whole ──► grants ──► started
//!                         └────────────┴──► revokes
//! ```
//! *Offers* is the fence's intent: from then on the source's own libvirt may end its VM. Where its agent is going to see
//! the end of its process, its definition is made start-proof with that; elsewhere once it is off.

mod destination;
mod source;

pub use source::Death;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use handover::{
    Content, DestinationRole, FenceReceipt, Identity, Refusal, SigningKey, SourceRole,
    VerifyingKey, VmKey,
};
use journal::StoreId;
use model::{Power, VmId};
use serde::{Deserialize, Serialize};
use site::{RecordKey, Site, SiteError};
use site_ledger::{
    CustodyError, Folder, NativeError, NativePaper, Role, SiteLedger, native_key, own_mark,
};
use thiserror::Error;
use tokio::sync::{Mutex, OnceCell, OwnedMutexGuard};
use units::{Bytes, Digest, Epoch};
use zeroize::Zeroizing;

/// What came over, by which both ledgers mean the same: bytes of memory and of disks that left the
/// source's hypervisor, and as many that reached the destination's. In between lies TLS, which changes
/// and loses none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    pub memory: Bytes,
    pub disks: Bytes,
}

/// The ledgers of all VMs of this site.
pub struct Custody {
    site: Arc<dyn Site>,
    /// `FOLDER/SITE/VM/ledger`
    folder: PathBuf,
    key: OnceCell<SigningKey>,
    /// Of each VM: a ledger's file is one process's, and one task's.
    turns: StdMutex<HashMap<VmId, Arc<Mutex<()>>>>,
}

/// A source whose VM is dead.
pub enum Fenced {
    By(FenceReceipt),
    /// The destination's grant is on record already.
    Retired,
}

#[derive(Debug, Error)]
pub enum HandoverError {
    #[error(transparent)]
    Custody(#[from] CustodyError),
    #[error("the other agent's papers do not hold")]
    Paper(#[from] NativeError),
    #[error("the key of this site cannot be had")]
    Key(#[source] SiteError),
    #[error("this site keeps a key that is none")]
    NoKey,
    #[error("this site has lost the key that its ledgers were signed with: put it back")]
    KeyLost,
    #[error("the folder of the ledgers cannot be read")]
    Folder(#[source] io::Error),
    #[error("the other agent shows a receipt that cannot be read")]
    Receipt(#[from] handover::DecodeError),
    #[error("the platform does not do what the ledger has")]
    Site(#[from] SiteError),
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
    #[error("the ledger hands out nothing where there should be {what}")]
    Nothing { what: &'static str },
    /// Nothing was done to it.
    #[error("the VM is {found} at its source")]
    NotAsItShould { found: Power },
    #[error("a definition of the VM does not hold it back at its source")]
    FenceOpen,
    #[error("attempt {theirs} does not follow {ours}: one of the two ledgers is another VM's")]
    Epochs { ours: Epoch, theirs: Epoch },
}

impl HandoverError {
    /// Asking again changes nothing.
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Custody(CustodyError::Refused(refusal)) => {
                !matches!(refusal, Refusal::MarkUnknown)
            }
            Self::Custody(CustodyError::TwoStories { .. } | CustodyError::Ledger(_))
            | Self::Paper(_)
            | Self::Receipt(_)
            | Self::NoKey
            | Self::KeyLost => true,
            _ => false,
        }
    }
}

impl From<Refusal> for HandoverError {
    fn from(refusal: Refusal) -> Self {
        Self::Custody(refusal.into())
    }
}

impl Custody {
    pub fn new(site: Arc<dyn Site>, folder: PathBuf) -> Self {
        Self { site, folder, key: OnceCell::new(), turns: StdMutex::default() }
    }

    /// Signs what this site's roles say. The site keeps it: whoever runs them finds the same.
    pub async fn key(&self) -> Result<VerifyingKey, HandoverError> {
        Ok(self.signing_key().await?.verifying_key())
    }

    async fn signing_key(&self) -> Result<&SigningKey, HandoverError> {
        self.key
            .get_or_try_init(|| async {
                let place: RecordKey = "site/key".parse().expect("a key of a record");
                let failed = HandoverError::Key;
                let mut kept = self.site.kept(&place).await.map_err(failed)?.map(Zeroizing::new);
                if kept.is_none() {
                    // Under another key all that was signed here would look forged.
                    if self.has_ledgers()? {
                        return Err(HandoverError::KeyLost);
                    }
                    let mut seed = Zeroizing::new([0; 32]);
                    getrandom::fill(seed.as_mut_slice())?;
                    let made = self.site.keep(&place, None, seed.as_slice()).await;
                    // Somebody else may have made one meanwhile.
                    kept = self.site.kept(&place).await.map_err(failed)?.map(Zeroizing::new);
                    if kept.is_none() {
                        made.map_err(failed)?;
                    }
                }
                let bytes = kept.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
                Ok(SigningKey::from_bytes(&bytes.ok_or(HandoverError::NoKey)?))
            })
            .await
    }

    /// Was anything ever put on record here? What cannot be looked at may hold something.
    fn has_ledgers(&self) -> Result<bool, HandoverError> {
        match std::fs::read_dir(self.folder.join(self.site.name().as_str())) {
            Ok(mut ledgers) => Ok(ledgers.next().is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(HandoverError::Folder(error)),
        }
    }

    async fn turn(&self, vm: VmId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(vm).or_default())
        };
        turn.lock_owned().await
    }

    /// The last attempt that this site knows of to move the VM anywhere.
    pub async fn last_epoch(&self, vm: VmId) -> Result<Epoch, HandoverError> {
        let _turn = self.turn(vm).await;
        let vm: VmKey = vm.to_string().parse().map_err(NativeError::from)?;
        let records = site_ledger::copy_of_ledger(&*self.site, &vm).await?.unwrap_or_default();
        let here = site_ledger::read_ledger(&self.shelf(&vm), self.site.name())?;
        let epochs = records.iter().chain(here.iter().flatten()).map(|record| record.epoch);
        Ok(epochs.max().unwrap_or_default())
    }

    async fn open<R: Role>(&self, paper: &NativePaper) -> Result<Open<R>, HandoverError> {
        let key = self.signing_key().await?.clone();
        let me: Identity = paper.identity(self.site.name(), Some(key))?;
        let vm = paper.vm_key()?;
        let shelf = self.shelf(&vm);
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        let ledger = SiteLedger::open(&shelf, Arc::clone(&self.site), me, vm, StoreId(id))?;
        Ok(Open { shelf, ledger })
    }

    /// With all that the site knows of it.
    async fn looked_at<R: Role>(&self, paper: &NativePaper) -> Result<Open<R>, HandoverError> {
        let mut open = self.open(paper).await?;
        open.ledger.look().await?;
        Ok(open)
    }

    /// The attempt is in this site's ledger, in whichever role, and its papers lie beside.
    async fn take_up<R: Role>(
        &self,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<(), HandoverError> {
        let _turn = self.turn(paper.vm).await;
        let Open { mut ledger, .. } = self.open::<R>(paper).await?;
        ledger.look().await?;
        let attempt = paper.attempt(epoch)?;
        let mark = own_mark(&*self.site, paper.vm).await;
        let actions = ledger.ask(|role| role.open(&attempt, &mark)).await?;
        self.keep_paper(&ledger, paper, epoch).await?;
        ledger.carry(actions).await?;
        Ok(())
    }

    fn shelf(&self, vm: &VmKey) -> Folder {
        Folder { path: self.folder.clone(), vm: vm.clone() }
    }

    /// What `causeway` reads; that of an earlier attempt has had its time.
    async fn keep_paper<R: Role>(
        &self,
        ledger: &SiteLedger<R>,
        paper: &NativePaper,
        epoch: Epoch,
    ) -> Result<(), HandoverError> {
        ledger.keep(&native_key(ledger.vm(), epoch)?, &paper.bytes()).await?;
        for earlier in (epoch.0.saturating_sub(EARLIER)..epoch.0).map(Epoch) {
            // That it stays harms nobody: the last one is told.
            let _ = self.site.forget(&native_key(ledger.vm(), earlier)?).await;
        }
        Ok(())
    }
}

/// Nobody has made so many attempts that the other site has not heard of.
const AHEAD_MAX: u64 = 1 << 20;

/// A number from the other agent: one that is far ahead would use up all that there are.
fn follows(ours: Epoch, theirs: Epoch) -> Result<(), HandoverError> {
    if theirs.0 > ours.0.saturating_add(AHEAD_MAX) {
        return Err(HandoverError::Epochs { ours, theirs });
    }
    Ok(())
}

/// Papers of so many attempts before are looked for.
const EARLIER: u64 = 4;

struct Open<R> {
    shelf: Folder,
    ledger: SiteLedger<R>,
}

type AsSource = Open<SourceRole>;
type AsDestination = Open<DestinationRole>;

impl Carried {
    fn content(self) -> Result<Content, HandoverError> {
        let of = |what: &str, bytes: Bytes| {
            let text = format!("causeway native {what} {}", bytes.0);
            Digest(*blake3::hash(text.as_bytes()).as_bytes())
        };
        let content = Content::new(vec![of("memory", self.memory), of("disks", self.disks)]);
        content.map_err(|_| HandoverError::Nothing { what: "a content" })
    }
}
