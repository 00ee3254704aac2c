//! The volumes that a migration makes, and how they are known again.
//!
//! libvirt keeps no notes on volumes. So each of ours has an empty neighbour whose name says whose
//! it is: `causeway.<migration>.<volume>.owner`, made before it and removed after it.

use model::DiskFormat;
use site::{CreatedDisk, Leftover, NewDisk, SiteErrorKind};
use tracing::info;
use units::MigrationId;
use virt::connect::Connect;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use crate::fault::{Fault, maybe};
use crate::xml::{PoolXml, VolumeXml, new_volume};
use crate::{look, storage};

const OWNER_PREFIX: &str = "causeway.";
const OWNER_SUFFIX: &str = ".owner";

/// A file's name may have 255 bytes.
const NAME_MAX: usize = 255;

pub(crate) fn create(
    connection: &Connect,
    migration: &MigrationId,
    disk: &NewDisk,
) -> Result<CreatedDisk, Fault> {
    let format = format_word(&disk.format)?;
    let owner = owner_name(migration, &disk.volume)?;
    let pool = storage::pool(connection, &disk.pool)?;
    let kind = storage::pool_xml(&pool)?;
    let ours = storage::volume(&pool, &owner)?;
    if let Some(there) = storage::volume(&pool, &disk.volume)? {
        if ours.is_none() {
            let what = format!("volume {:?} is there already and is not ours", disk.volume);
            return Err(Fault::conflict(what).hint("remove it, or choose another pool"));
        }
        fits(&there, disk, &kind)?;
        return Ok(CreatedDisk { no: disk.no, location: there.path()?, fresh: false });
    }
    if ours.is_none() {
        make(&pool, &owner, 0, "raw", &kind)?;
    }
    let volume = make(&pool, &disk.volume, disk.size.0, format, &kind)?;
    if !kind.holds_files() {
        // What a block pool hands out holds whatever lay there before.
        info!(volume = disk.volume, "zeroing");
        volume.wipe(0)?;
    }
    Ok(CreatedDisk { no: disk.no, location: volume.path()?, fresh: true })
}

/// Is what is there as it was asked for?
fn fits(volume: &StorageVol, disk: &NewDisk, pool: &PoolXml) -> Result<(), Fault> {
    let xml = VolumeXml::parse(&volume.xml_desc(0)?)?;
    // Block pools round up to their extents.
    let size_fits = if pool.holds_files() {
        xml.capacity == disk.size.0
    } else {
        (disk.size.0..disk.size.0.saturating_add(ROUNDED_UP_MAX)).contains(&xml.capacity)
    };
    let format_fits = xml.format.as_ref().is_none_or(|format| *format == disk.format);
    if size_fits && format_fits {
        return Ok(());
    }
    let what = format!("volume {:?} is there with {} bytes", disk.volume, xml.capacity);
    Err(Fault::conflict(what).hint("abort the migration and begin again"))
}

/// The largest extent of a volume group in common use.
const ROUNDED_UP_MAX: u64 = 1 << 30;

fn make(
    pool: &StoragePool,
    name: &str,
    size: u64,
    format: &str,
    kind: &PoolXml,
) -> Result<StorageVol, Fault> {
    let size = if kind.holds_files() { size } else { size.max(1) };
    let xml = new_volume(name, size, format, kind.holds_files())
        .map_err(|cause| Fault::internal(cause.to_string()))?;
    Ok(StorageVol::create_xml(pool, &xml, 0)?)
}

fn format_word(format: &DiskFormat) -> Result<&'static str, Fault> {
    match format {
        DiskFormat::Raw => Ok("raw"),
        DiskFormat::Qcow2 => Ok("qcow2"),
        DiskFormat::Other(other) => {
            let what = format!("volumes of format {other} are not made here");
            Err(Fault::found(SiteErrorKind::Unsupported, what))
        }
    }
}

/// Names with a slash or a dot in front could leave the pool's directory or hide in it.
fn owner_name(migration: &MigrationId, volume: &str) -> Result<String, Fault> {
    let name = format!("{OWNER_PREFIX}{migration}.{volume}{OWNER_SUFFIX}");
    let fits = name.len() <= NAME_MAX
        && !volume.is_empty()
        && !volume.starts_with('.')
        && !volume.contains(['/', '\0']);
    if fits { Ok(name) } else { Err(Fault::internal(format!("no name for a volume: {volume:?}"))) }
}

/// The volume that a neighbour speaks of.
fn owned<'n>(name: &'n str, migration: &MigrationId) -> Option<&'n str> {
    name.strip_prefix(OWNER_PREFIX)?
        .strip_prefix(migration.as_str())?
        .strip_prefix('.')?
        .strip_suffix(OWNER_SUFFIX)
}

/// In every active pool; a pool that does not answer may hide some, so that is an error.
pub(crate) fn leftovers(
    connection: &Connect,
    migration: &MigrationId,
) -> Result<Vec<Leftover>, Fault> {
    let mut left = Vec::new();
    for pool in
        connection.list_all_storage_pools(virt_sys::VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)?
    {
        let pool_name = pool.name()?;
        for name in pool.list_volumes()? {
            let Some(volume) = owned(&name, migration) else { continue };
            let location = match storage::volume(&pool, volume)? {
                Some(volume) => volume.path()?,
                // Its neighbour was made, it was not: removing it removes the neighbour.
                None => format!("{pool_name}/{volume}"),
            };
            left.push(Leftover::Volume {
                pool: pool_name.clone(),
                volume: volume.to_owned(),
                location,
            });
        }
    }
    Ok(left)
}

/// Removes a volume that some migration made, unless a VM uses it.
pub(crate) fn remove(connection: &Connect, pool: &str, volume: &str) -> Result<(), Fault> {
    let Some(pool) = maybe(connection.lookup_storage_pool_by_name(pool))? else { return Ok(()) };
    let owners: Vec<_> = pool
        .list_volumes()?
        .into_iter()
        .filter(|name| {
            name.strip_prefix(OWNER_PREFIX)
                .and_then(|rest| rest.strip_suffix(OWNER_SUFFIX))
                .and_then(|rest| rest.split_once('.'))
                .is_some_and(|(_, of)| of == volume)
        })
        .collect();
    if let Some(there) = storage::volume(&pool, volume)? {
        if owners.is_empty() {
            return Err(Fault::conflict(format!("volume {volume:?} is not ours")));
        }
        refuse_if_used(connection, &pool.name()?, volume, &there.path()?)?;
        there.delete(0)?;
    }
    disown(&pool, &owners)
}

/// Forgets that the volumes are a migration's: they are the VM's own from now on.
pub(crate) fn hand_over(
    connection: &Connect,
    migration: &MigrationId,
    disks: &[NewDisk],
) -> Result<(), Fault> {
    for disk in disks {
        let pool = storage::pool(connection, &disk.pool)?;
        disown(&pool, &[owner_name(migration, &disk.volume)?])?;
    }
    Ok(())
}

fn disown(pool: &StoragePool, owners: &[String]) -> Result<(), Fault> {
    for name in owners {
        if let Some(owner) = maybe(pool.lookup_storage_vol_by_name(name))? {
            owner.delete(0)?;
        }
    }
    Ok(())
}

fn refuse_if_used(connection: &Connect, pool: &str, volume: &str, path: &str) -> Result<(), Fault> {
    for domain in look::all(connection)? {
        for xml in [look::config_xml(&domain)?, look::live_xml(&domain)?] {
            // A fenced definition names nothing that there is: its note does.
            let fenced = xml.fenced.iter().flat_map(|note| &note.disks);
            let used = xml.paths().any(|used| used == path)
                || xml.volumes().any(|used| used == (pool, volume))
                || fenced.into_iter().any(|disk| disk.path == path);
            if used {
                let what = format!("volume {volume:?} is in use by VM {:?}", xml.name);
                let hint =
                    "it is that VM's disk: it goes with the VM, if that is of no use any more";
                return Err(Fault::wrong_state(what).hint(hint));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_names_its_volume_and_no_other_migrations() {
        let ours: MigrationId = "web1-1".parse().unwrap();
        let longer: MigrationId = "web1-12".parse().unwrap();
        let name = owner_name(&ours, "web.1-vda.raw").unwrap();
        assert_eq!(owned(&name, &ours), Some("web.1-vda.raw"));
        assert_eq!(owned(&name, &longer), None);
        assert_eq!(owned(&owner_name(&longer, "x").unwrap(), &ours), None);
    }

    #[test]
    fn a_name_that_leaves_its_pool_is_refused() {
        let migration: MigrationId = "web1-1".parse().unwrap();
        for volume in ["", "../etc/passwd", "a/b", ".hidden", "a\0", &"a".repeat(240)] {
            assert!(owner_name(&migration, volume).is_err(), "{volume:?}");
        }
    }
}
