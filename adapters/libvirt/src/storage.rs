//! Pools, volumes, and bytes of volumes.

use std::io::{self, Read};

use virt::connect::Connect;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;

use crate::fault::{Fault, maybe};
use crate::xml::PoolXml;

/// One packet of a stream: libvirt's protocol carries 256 KiB less a header.
pub(crate) const PACKET: usize = 256 * 1024;

pub(crate) fn pool(connection: &Connect, name: &str) -> Result<StoragePool, Fault> {
    let pool = maybe(connection.lookup_storage_pool_by_name(name))?;
    let Some(pool) = pool else {
        let mut names = Vec::new();
        for pool in connection.list_all_storage_pools(0)? {
            names.push(pool.name()?);
        }
        let missing = Fault::not_found(format!("there is no storage pool {name:?}"));
        return Err(missing.hint(format!("the pools there are: {}", names.join(", "))));
    };
    if !pool.is_active()? {
        let inactive = Fault::wrong_state(format!("storage pool {name:?} is not active"));
        return Err(inactive.hint(format!("start it: `virsh pool-start {name}`")));
    }
    Ok(pool)
}

pub(crate) fn pool_xml(pool: &StoragePool) -> Result<PoolXml, Fault> {
    PoolXml::parse(&pool.xml_desc(0)?)
}

/// A volume of a pool, by name. The pool is looked through anew if it does not know it: files
/// may have come since.
pub(crate) fn volume(pool: &StoragePool, name: &str) -> Result<Option<StorageVol>, Fault> {
    if let Some(volume) = maybe(pool.lookup_storage_vol_by_name(name))? {
        return Ok(Some(volume));
    }
    pool.refresh(0)?;
    maybe(pool.lookup_storage_vol_by_name(name))
}

/// `length` bytes of what is stored, which for an image with a format is not what a guest reads.
pub(crate) fn read(
    connection: &Connect,
    volume: &StorageVol,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    read_each(connection, volume, offset, length, |chunk| bytes.extend_from_slice(chunk))?;
    Ok(bytes)
}

/// As [`read`], a piece at a time.
pub(crate) fn read_each(
    connection: &Connect,
    volume: &StorageVol,
    offset: u64,
    length: u64,
    mut take: impl FnMut(&[u8]),
) -> Result<(), Fault> {
    let stream = Stream::new(connection, 0)?;
    volume.download(&stream, offset, length, 0)?;
    let mut buffer = vec![0; PACKET];
    let mut total = 0_u64;
    loop {
        let read = match stream.recv(&mut buffer) {
            Ok(read) => usize::try_from(read).unwrap_or(0),
            Err(said) => {
                // The stream is broken already; what it said is the better error.
                let _ = stream.abort();
                return Err(said.into());
            }
        };
        if read == 0 {
            break;
        }
        total += u64::try_from(read).unwrap_or(u64::MAX);
        take(&buffer[..read]);
    }
    stream.finish()?;
    if total == length {
        Ok(())
    } else {
        let what = format!("libvirt sent {total} bytes of a volume where {length} were asked for");
        Err(Fault::found(site::SiteErrorKind::Platform, what))
    }
}

/// Writes what `source` holds, exactly `length` bytes, into what is stored.
///
/// libvirt does not refuse this under a running VM: the caller has looked.
pub(crate) fn write(
    connection: &Connect,
    volume: &StorageVol,
    offset: u64,
    length: u64,
    source: &mut dyn Read,
) -> Result<(), Fault> {
    let stream = Stream::new(connection, 0)?;
    volume.upload(&stream, offset, length, 0)?;
    match send(&stream, length, source) {
        // Only `finish` says whether the last bytes arrived.
        Ok(()) => Ok(stream.finish()?),
        Err(fault) => {
            let _ = stream.abort();
            Err(fault)
        }
    }
}

fn send(stream: &Stream, length: u64, source: &mut dyn Read) -> Result<(), Fault> {
    let mut buffer = vec![0; PACKET];
    let mut left = length;
    while left > 0 {
        let want = usize::try_from(left).map_or(PACKET, |left| left.min(PACKET));
        let got = match source.read(&mut buffer[..want]) {
            Ok(0) => return Err(unreadable(&io::ErrorKind::UnexpectedEof.into())),
            Ok(got) => got,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => return Err(unreadable(&cause)),
        };
        let mut sent = 0;
        while sent < got {
            let step = stream.send(&buffer[sent..got])?;
            sent += usize::try_from(step).unwrap_or(0);
        }
        left -= u64::try_from(got).unwrap_or(left);
    }
    Ok(())
}

fn unreadable(cause: &io::Error) -> Fault {
    Fault::internal(format!("what is to be uploaded cannot be read: {cause}"))
}
