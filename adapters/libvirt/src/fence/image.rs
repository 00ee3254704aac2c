//! An image as a volume, even if no pool of the operator's knows it.

use virt::connect::Connect;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use crate::LibvirtConfig;
use crate::fault::{Fault, maybe};
use crate::placeholder::unwritable;
use crate::xml::{FencedDisk, VolumeXml, new_pool};

/// A volume, with the pool that we made to see it.
pub(super) struct Image {
    pub volume: StorageVol,
    pub xml: VolumeXml,
    _borrowed: Option<Borrowed>,
}

/// A transient pool over somebody's directory: gone when dropped, files untouched.
struct Borrowed(StoragePool);

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Err(said) = self.0.destroy() {
            tracing::warn!(%said, "a transient pool could not be closed");
        }
    }
}

impl Image {
    pub(super) fn is_file(&self) -> bool {
        self.xml.kind == "file"
    }
}

/// The image of a disk that may be fenced already, under whichever name it has now.
pub(super) fn find(
    connection: &Connect,
    config: &LibvirtConfig,
    disk: &FencedDisk,
) -> Result<Option<Image>, Fault> {
    if let Some(image) = open(connection, &disk.path)? {
        return Ok(Some(image));
    }
    if config.host.is_some() {
        return open(connection, &super::host::renamed(&disk.path));
    }
    Ok(None)
}

/// `None`: there is no such file, or no pool can hold it.
pub(super) fn open(connection: &Connect, path: &str) -> Result<Option<Image>, Fault> {
    if let Some(volume) = maybe(connection.lookup_storage_vol_by_path(path))? {
        // libvirt goes by what it saw when it last looked.
        return look_again(connection, &volume.lookup_storage_pool()?, path);
    }
    let Some((directory, _)) = path.rsplit_once('/') else { return Ok(None) };
    let directory = if directory.is_empty() { "/" } else { directory };
    if let Some(pool) = maybe(connection.lookup_storage_pool_by_target_path(directory))?
        && pool.is_active()?
    {
        return look_again(connection, &pool, path);
    }
    borrow(connection, directory, path)
}

fn look_again(
    connection: &Connect,
    pool: &StoragePool,
    path: &str,
) -> Result<Option<Image>, Fault> {
    pool.refresh(0)?;
    match maybe(connection.lookup_storage_vol_by_path(path))? {
        Some(volume) => image(volume, None).map(Some),
        None => Ok(None),
    }
}

fn borrow(connection: &Connect, directory: &str, path: &str) -> Result<Option<Image>, Fault> {
    // Devices are no files of a directory, and a pool over `/dev` would open every one of them.
    if directory.starts_with("/dev") {
        return Ok(None);
    }
    let digest = blake3::hash(directory.as_bytes()).to_hex();
    let name = format!("causeway-{}", digest.chars().take(12).collect::<String>());
    let xml = new_pool(&name, directory).map_err(unwritable)?;
    let pool = match connection.create_storage_pool_xml(&xml, 0) {
        Ok(pool) => pool,
        // One that an earlier run left, or a call at the same time: it shows the same files.
        Err(said) => match maybe(connection.lookup_storage_pool_by_name(&name))? {
            Some(pool) => {
                pool.refresh(0)?;
                pool
            }
            None => return Err(said.into()),
        },
    };
    let borrowed = Borrowed(pool);
    match maybe(connection.lookup_storage_vol_by_path(path))? {
        Some(volume) => image(volume, Some(borrowed)).map(Some),
        None => Ok(None),
    }
}

fn image(volume: StorageVol, borrowed: Option<Borrowed>) -> Result<Image, Fault> {
    let xml = VolumeXml::parse(&volume.xml_desc(0)?)?;
    Ok(Image { volume, xml, _borrowed: borrowed })
}
