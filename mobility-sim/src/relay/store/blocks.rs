//! Where the receiving end keeps blocks of disks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::codec::{PAGE, Page};

#[derive(Debug)]
pub(super) enum Blocks {
    Memory(Vec<Box<Page>>),
    /// As many of them in a file, one after the other.
    File(File, u32),
}

impl Blocks {
    /// Keeps one more, and says its number.
    pub(super) fn push(&mut self, block: &Page) -> io::Result<u32> {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        match self {
            Self::Memory(blocks) => {
                let number = u32::try_from(blocks.len()).map_err(|_| full())?;
                blocks.push(Box::new(*block));
                Ok(number)
            }
            Self::File(file, len) => {
                let number = *len;
                let next = number.checked_add(1).ok_or_else(full)?;
                file.write_all_at(block, u64::from(number) * PAGE as u64)?;
                *len = next;
                Ok(number)
            }
        }
    }

    /// Appends the block of a number that [`Blocks::push`] said.
    pub(super) fn append(&self, number: u32, to: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Memory(blocks) => {
                let at = usize::try_from(number).map_err(io::Error::other)?;
                to.extend_from_slice(&blocks[at][..]);
            }
            Self::File(file, _) => {
                let mut block = [0; PAGE];
                file.read_exact_at(&mut block, u64::from(number) * PAGE as u64)?;
                to.extend_from_slice(&block);
            }
        }
        Ok(())
    }
}
