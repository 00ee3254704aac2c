//! The helper's kernel and initramfs, as volumes named after their content.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use site::{ApplianceFiles, ApplianceRef, SiteErrorKind};
use tracing::info;
use virt::connect::Connect;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use crate::fault::Fault;
use crate::storage;
use crate::xml::new_volume;

/// Uploads what is not there yet.
///
/// Volumes cannot be renamed, so a complete upload cannot be told by its name: an empty volume
/// beside them says that both were read back and compared.
pub(crate) fn put(connection: &Connect, files: &ApplianceFiles) -> Result<ApplianceRef, Fault> {
    let pool = storage::pool(connection, &files.pool)?;
    if !storage::pool_xml(&pool)?.holds_files() {
        let what = format!("pool {:?} does not hold files", files.pool);
        let unsupported = Fault::found(SiteErrorKind::Unsupported, what);
        return Err(unsupported.hint("name a pool of type `dir` for the appliance"));
    }
    // 16 of the digest's 64 digits: enough to tell builds apart, short enough to read.
    let digest: String = files.digest.to_string().chars().take(16).collect();
    let name = |part: &str| format!("causeway-appliance-{digest}.{part}");
    let (kernel, initrd, complete) = (name("kernel"), name("initrd"), name("complete"));

    let known = storage::volume(&pool, &complete)?.is_some();
    let kernel = put_file(connection, &pool, &kernel, &files.kernel, known)?;
    let initrd = put_file(connection, &pool, &initrd, &files.initrd, known)?;
    if !known {
        create(&pool, &complete, 0)?;
    }
    Ok(ApplianceRef { kernel: kernel.path()?, initrd: initrd.path()? })
}

fn put_file(
    connection: &Connect,
    pool: &StoragePool,
    name: &str,
    file: &Path,
    known: bool,
) -> Result<StorageVol, Fault> {
    let size = open(file)?.metadata().map_err(|cause| unreadable(file, &cause))?.len();
    if let Some(there) = storage::volume(pool, name)? {
        if there.info()?.capacity == size && (known || same(connection, &there, file, size)?) {
            return Ok(there);
        }
        // A piece of an upload that was cut off: ours by its name, and of no use.
        there.delete(0)?;
    }
    info!(volume = name, bytes = size, "uploading");
    let volume = create(pool, name, size)?;
    storage::write(connection, &volume, 0, size, &mut BufReader::new(open(file)?))?;
    if same(connection, &volume, file, size)? {
        Ok(volume)
    } else {
        Err(Fault::found(SiteErrorKind::Platform, format!("volume {name} reads back otherwise")))
    }
}

fn create(pool: &StoragePool, name: &str, size: u64) -> Result<StorageVol, Fault> {
    let xml =
        new_volume(name, size, "raw", true).map_err(|cause| Fault::internal(cause.to_string()))?;
    Ok(StorageVol::create_xml(pool, &xml, 0)?)
}

fn same(connection: &Connect, volume: &StorageVol, file: &Path, size: u64) -> Result<bool, Fault> {
    let mut there = blake3::Hasher::new();
    storage::read_each(connection, volume, 0, size, |chunk| {
        there.update(chunk);
    })?;
    let mut here = blake3::Hasher::new();
    let mut reader = open(file)?.take(size);
    here.update_reader(&mut reader).map_err(|cause| unreadable(file, &cause))?;
    Ok(there.finalize() == here.finalize())
}

fn open(file: &Path) -> Result<File, Fault> {
    File::open(file).map_err(|cause| unreadable(file, &cause))
}

fn unreadable(file: &Path, cause: &std::io::Error) -> Fault {
    let what = format!("the appliance's file {} cannot be read: {cause}", file.display());
    Fault::not_found(what).hint("build it: `causeway appliance build`")
}
