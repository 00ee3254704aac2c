//! Block devices and image files.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use thiserror::Error;
use units::Bytes;

use super::{BlockRead, BlockWrite};
use crate::buffer::ALIGNMENT;

/// A block device or an image file.
///
/// Read and written past the page cache where possible: a copy of a whole disk would push
/// everything else out of it, and at the source the cache of the *device* does not see what file
/// systems write, so a page that was once read through it would stay stale.
///
/// The tail of an image file whose size is no multiple of 4 KiB goes through the page cache, which
/// for a file is the file's own and never stale. The tail of a device goes by sectors.
#[derive(Debug)]
pub struct FileDisk {
    size: Bytes,
    direct: Option<File>,
    /// `None` for devices that are read directly.
    cached: Option<File>,
}

/// Past the page cache or through it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Past it, except for files on file systems that cannot (tmpfs).
    Direct,
    /// Through it: for image files that other programs have just read or written.
    Cached,
}

#[derive(Debug, Error)]
pub enum OpenDiskError {
    #[error("cannot open {}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },

    #[error("{} is neither a block device nor a file", .path.display())]
    NoDisk { path: PathBuf },
}

impl FileDisk {
    pub fn open_source(path: &Path, caching: Caching) -> Result<Self, OpenDiskError> {
        Self::open(path, caching, OpenOptions::new().read(true))
    }

    pub fn open_target(path: &Path, caching: Caching) -> Result<Self, OpenDiskError> {
        Self::open(path, caching, OpenOptions::new().read(true).write(true))
    }

    fn open(path: &Path, caching: Caching, how: &OpenOptions) -> Result<Self, OpenDiskError> {
        let error = |cause| OpenDiskError::Open { path: path.to_owned(), cause };
        let kind = std::fs::metadata(path).map_err(error)?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(OpenDiskError::NoDisk { path: path.to_owned() });
        }
        let open = |flags: OFlags| {
            let flags = i32::try_from(flags.bits()).expect("flags of open(2) are an int");
            how.clone().custom_flags(flags).open(path)
        };
        let mut cached = None;
        let mut direct = None;
        match caching {
            Caching::Direct => match open(OFlags::DIRECT) {
                Ok(file) => direct = Some(file),
                Err(cause) if kind.is_file() && cause.kind() == io::ErrorKind::InvalidInput => {}
                Err(cause) => return Err(error(cause)),
            },
            Caching::Cached => {}
        }
        if direct.is_none() || kind.is_file() {
            cached = Some(open(OFlags::empty()).map_err(error)?);
        }
        let mut any = direct.as_ref().or(cached.as_ref()).expect("one of them was opened");
        let size = any.seek(SeekFrom::End(0)).map_err(error)?;
        Ok(Self { size: Bytes(size), direct, cached })
    }

    /// How much of a transfer from a page boundary may go past the page cache in one go.
    fn direct_part(&self, memory: &[u8]) -> usize {
        let aligned = memory.as_ptr().align_offset(ALIGNMENT) == 0;
        match &self.direct {
            Some(_) if aligned => memory.len() - memory.len() % ALIGNMENT,
            _ => 0,
        }
    }

    /// Reads less than a page of a device: its last sectors, or, where the device is larger and
    /// has sectors of 4 KiB, a part of one.
    fn read_sectors(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut page = Page([0; ALIGNMENT]);
        let sectors = page.around(into.len())?;
        let device = open_one(self.direct.as_ref())?;
        match device.read_exact_at(sectors, offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                device.read_exact_at(&mut page.0, offset)?;
            }
            read => read?,
        }
        into.copy_from_slice(&page.0[..into.len()]);
        Ok(())
    }

    /// Writes less than a page of a device, likewise; what follows in the same sector stays.
    fn write_sectors(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let mut page = Page([0; ALIGNMENT]);
        page.around(from.len())?.copy_from_slice(from);
        let device = open_one(self.direct.as_ref())?;
        match device.write_all_at(page.around(from.len())?, offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                device.read_exact_at(&mut page.0, offset)?;
                page.around(from.len())?.copy_from_slice(from);
                device.write_all_at(&page.0, offset)
            }
            written => written,
        }
    }

    fn any(&self) -> &File {
        self.direct.as_ref().or(self.cached.as_ref()).expect("one of them was opened")
    }
}

/// The file to use for a part that is not empty.
fn open_one(file: Option<&File>) -> io::Result<&File> {
    file.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

impl BlockRead for FileDisk {
    fn size(&self) -> Bytes {
        self.size
    }

    fn read_at(&self, offset: Bytes, into: &mut [u8]) -> io::Result<()> {
        let direct_len = self.direct_part(into);
        let (direct, tail) = into.split_at_mut(direct_len);
        if !direct.is_empty() {
            open_one(self.direct.as_ref())?.read_exact_at(direct, offset.0)?;
        }
        if tail.is_empty() {
            return Ok(());
        }
        let tail_at = offset.0 + direct.len() as u64;
        match &self.cached {
            Some(cached) => cached.read_exact_at(tail, tail_at),
            None => self.read_sectors(tail_at, tail),
        }
    }

    fn next_data(&self, from: Bytes) -> io::Result<Option<Bytes>> {
        match rustix::fs::seek(self.any(), rustix::fs::SeekFrom::Data(from.0)) {
            Ok(at) => Ok(Some(Bytes(at))),
            Err(Errno::NXIO) => Ok(None),
            // Devices, and file systems that do not know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(from)),
            Err(error) => Err(error.into()),
        }
    }
}

impl BlockWrite for FileDisk {
    fn write_at(&self, offset: Bytes, from: &[u8]) -> io::Result<()> {
        let (direct, tail) = from.split_at(self.direct_part(from));
        if !direct.is_empty() {
            open_one(self.direct.as_ref())?.write_all_at(direct, offset.0)?;
        }
        if tail.is_empty() {
            return Ok(());
        }
        let tail_at = offset.0 + direct.len() as u64;
        match &self.cached {
            Some(cached) => cached.write_all_at(tail, tail_at),
            None => self.write_sectors(tail_at, tail),
        }
    }

    fn zero(&self, offset: Bytes, len: Bytes) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero_range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        for how in [punch, zero_range] {
            match rustix::fs::fallocate(self.any(), how, offset.0, len.0) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::NODEV) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let zeros = ZeroPages([0; ZERO_PIECE]);
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let piece = usize::try_from((end.0 - at.0).min(ZERO_PIECE as u64))
                .expect("at most the piece's length");
            self.write_at(at, &zeros.0[..piece])?;
            at += Bytes(piece as u64);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.any().sync_data()
    }
}

#[repr(align(4096))]
struct Page([u8; ALIGNMENT]);

impl Page {
    /// The first `len` bytes of it. A transfer that is longer was not aligned in memory.
    fn around(&mut self, len: usize) -> io::Result<&mut [u8]> {
        self.0.get_mut(..len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

const ZERO_PIECE: usize = 64 << 10;

#[repr(align(4096))]
struct ZeroPages([u8; ZERO_PIECE]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;

    fn disk(size: u64, caching: Caching) -> (FileDisk, tempfile::TempDir) {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size).unwrap();
        (FileDisk::open_target(&path, caching).unwrap(), dir)
    }

    /// Sizes that are no multiple of a page, nor of a sector.
    #[test]
    fn the_tail_of_an_odd_sized_file_is_read_and_written() {
        for caching in [Caching::Direct, Caching::Cached] {
            for size in [1, 511, 4097, 262_144 + 513, 3 * 4096] {
                let (disk, _dir) = disk(size, caching);
                assert_eq!(disk.size(), Bytes(size));
                let pool = Pool::new(1 << 20);
                let mut written = pool.take(usize::try_from(size).unwrap());
                for (byte, n) in written.iter_mut().zip(1_u32..) {
                    *byte = n.to_le_bytes()[0] ^ 0x5a;
                }
                disk.write_at(Bytes::ZERO, &written).unwrap();
                disk.sync().unwrap();
                let mut read = pool.take(written.len());
                disk.read_at(Bytes::ZERO, &mut read).unwrap();
                assert_eq!(&read[..], &written[..], "{size} {caching:?}");
                assert_eq!(disk.any().metadata().unwrap().len(), size);
            }
        }
    }

    #[test]
    fn zeroed_blocks_read_as_zeros_and_become_holes() {
        let (disk, _dir) = disk(1 << 20, Caching::Direct);
        let pool = Pool::new(1 << 20);
        let mut block = pool.take(262_144);
        block.fill(7);
        for at in [0, 262_144, 524_288] {
            disk.write_at(Bytes(at), &block).unwrap();
        }
        disk.zero(Bytes(262_144), Bytes(262_144)).unwrap();
        disk.read_at(Bytes(262_144), &mut block).unwrap();
        assert!(block.iter().all(|byte| *byte == 0));
        assert_eq!(disk.next_data(Bytes(262_144)).unwrap(), Some(Bytes(524_288)));
        assert_eq!(disk.next_data(Bytes(786_432)).unwrap(), None);
    }

    #[test]
    fn a_directory_is_no_disk() {
        let opened = FileDisk::open_source(Path::new("."), Caching::Direct);
        assert!(matches!(opened, Err(OpenDiskError::NoDisk { .. })));
    }
}
