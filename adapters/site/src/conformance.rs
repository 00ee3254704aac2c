//! What every implementation of [`Site`] must do, run against a real or an imitated cloud.
//!
//! A cloud's author prepares a [`Fixture`] at a site of their own and calls [`run`]. Each rule is
//! one function below; the first that is broken is returned as a [`Breach`]. Afterwards the site
//! is as the fixture found it, except that the placeholder bears its mark and runs: that cannot be
//! taken back through [`Site`].
//!
//! The rules are about what makes crashes harmless: everything may be done twice, a half-done
//! thing may be done again or undone, and what is not ours is never touched.

mod destination;
mod records;
mod source;

use std::fmt;

use model::{Disk, VmId};
use units::{MigrationId, chain};

use crate::{ApplianceFiles, PlaceholderSpec, Remedy, Site, SiteError, SiteErrorKind};

/// Reads a whole disk past the adapter: in RAM, or from the file behind it.
pub type ReadDisk = Box<dyn Fn(&Disk) -> Vec<u8> + Send + Sync>;

/// What the suite needs at the site.
pub struct Fixture {
    /// A running, persistent VM with a writable disk, which may be powered off and fenced.
    pub source: VmId,
    /// A VM that does not exist here: other id and name than any VM's, disks in a pool with room.
    /// Its `appliance` is filled in by the suite, its `migration` owns what is made.
    pub placeholder: PlaceholderSpec,
    pub appliance: ApplianceFiles,
    /// A migration that has nothing to do with the placeholder's.
    pub stranger: MigrationId,
    /// What is on a disk of `source`, read past the adapter.
    pub content: ReadDisk,
}

/// A rule that does not hold.
#[derive(Debug)]
pub struct Breach {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// What was seen instead.
    pub found: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken rule: {}; found: {}", self.rule, self.found)
    }
}

impl std::error::Error for Breach {}

/// Runs every rule, in an order in which a migration meets them.
///
/// # Errors
/// The first rule that does not hold.
pub async fn run(site: &dyn Site, fixture: &Fixture) -> Result<(), Breach> {
    source::inventory(site, fixture).await?;
    records::records(site).await?;
    source::power(site, fixture).await?;
    source::fence_of_the_definition(site, fixture).await?;
    source::fence_of_the_disks(site, fixture).await?;
    source::retirement(site, fixture).await?;

    let spec = destination::appliance(site, fixture).await?;
    destination::disks(site, fixture).await?;
    destination::held(site, fixture, &spec).await?;
    destination::removal(site, fixture, &spec).await?;
    destination::channel(site, &spec).await?;
    destination::mark(site, &spec).await?;
    destination::release(site, &spec).await?;
    source::discarding(site, fixture).await
}

/// `rule` holds if `holds`; `found` says what was seen.
fn check(rule: &'static str, holds: bool, found: impl fmt::Debug) -> Result<(), Breach> {
    if holds { Ok(()) } else { Err(Breach { rule, found: format!("{found:?}") }) }
}

/// What succeeded because `rule` says that it must.
fn succeeds<T>(rule: &'static str, result: Result<T, SiteError>) -> Result<T, Breach> {
    result.map_err(|error| Breach { rule, found: chain(&error) })
}

/// `rule` says that this is refused, for one of these reasons, and for good.
fn refused<T>(
    rule: &'static str,
    result: Result<T, SiteError>,
    kinds: &[SiteErrorKind],
) -> Result<SiteError, Breach> {
    match result {
        Ok(_) => Err(Breach { rule, found: "it was done".to_owned() }),
        Err(error) if kinds.contains(&error.kind) && error.remedy != Remedy::Reconcile => Ok(error),
        Err(error) => {
            let found = format!("{:?}, {:?}: {}", error.kind, error.remedy, chain(&error));
            Err(Breach { rule, found })
        }
    }
}
