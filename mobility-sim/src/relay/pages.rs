//! Memory for pages that are kept: one piece for all of them, which the kernel gives as it is written to and
//! takes back as a whole. Page by page from the allocator, the kernel is asked for a little more every few pages,
//! and what is given back stays with the agent.

use std::io;

use memmap2::{MmapMut, MmapOptions};

use super::codec::{PAGE, Page};

#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Where there are any.
    memory: Option<MmapMut>,
    room: u32,
    len: u32,
}

impl Pages {
    /// So many at most.
    pub(super) fn new(room: u32) -> io::Result<Self> {
        let bytes = usize::try_from(u64::from(room) * PAGE as u64).map_err(io::Error::other)?;
        let memory = match bytes {
            0 => None,
            _ => Some(MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?),
        };
        Ok(Self { memory, room, len: 0 })
    }

    pub(super) const fn room(&self) -> u32 {
        self.room
    }

    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    fn all(&self) -> &[Page] {
        self.memory.as_deref().map_or(&[], |memory| memory.as_chunks().0)
    }

    pub(super) fn get(&self, index: u32) -> Option<&Page> {
        self.all()[..self.len as usize].get(index as usize)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Page> {
        let pages = self.memory.as_deref_mut()?.as_chunks_mut().0;
        pages[..self.len as usize].get_mut(index as usize)
    }

    /// Where it is put; `None` where there are as many as there is room for.
    pub(super) fn push(&mut self, page: &Page) -> Option<u32> {
        let index = self.len;
        if index == self.room {
            return None;
        }
        self.len += 1;
        self.get_mut(index)?.copy_from_slice(page);
        Some(index)
    }
}
