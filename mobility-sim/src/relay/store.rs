//! Pages that both ends of a connection have, so that one may name them to the other.
//!
//! **What may be named.** A connection is in order: what was sent on it before, the other end has. The
//! last pages of memory are kept by each connection for itself, in a ring of which both ends know the
//! size, so that both forget the same page at the same moment. Blocks of disks are for all connections
//! of a migration, which overtake each other: they are kept until nothing more fits and never
//! forgotten, and one is named on another connection only after the other end has said that it has it.
//! So nobody ever waits for another connection, and none can hold another up. What the receiving end had before, its
//! [templates](super::templates), may be named on any from when the other end has been told of it.
//!
//! **What it costs.** At most the [`Room`] at the receiving end, of the agent's [budget](super::Budget), plus indices. The sending end keeps pages of memory, against which it compares, and of the blocks of disks only
//! their hashes. On a slow line zstd has 128 MiB of its own for each of the first connections of
//! memory ([`CHANNELS`] and the one before them), at either end.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::codec::{PAGE, Page};
use super::pace::Line;
use super::pages::Pages;
use super::ram::Progress;
use super::templates::{self, Index};
use super::{RelayError, Share};

/// Of a page's content. Guests choose their content, so that it has to be one that they cannot forge.
/// Whole, since blocks of disks are named by it alone.
pub type Hash = [u8; 32];

pub(super) fn hash(page: &Page) -> Hash {
    *blake3::hash(page).as_bytes()
}

/// How much one end keeps for one migration, in bytes. The sending end's is not more than the
/// receiving end's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Room {
    /// Of memory, to name it again and to send only what changed in it.
    pub memory: u64,
    /// Of disks, which a guest has in its page cache.
    pub disks: u64,
}

/// Channels among which the room for memory is shared; others, if there are more, have none.
pub(super) const CHANNELS: u32 = 4;

impl Default for Room {
    /// 1 GiB together.
    fn default() -> Self {
        Self { memory: 512 << 20, disks: 512 << 20 }
    }
}

impl Room {
    pub const NONE: Self = Self { memory: 0, disks: 0 };

    fn pages(bytes: u64) -> u32 {
        u32::try_from(bytes / PAGE as u64).unwrap_or(u32::MAX)
    }
}

/// Blocks of templates are named as those of a disk of that number, which there is not.
const TEMPLATES: u16 = u16::MAX;

/// What all connections of one migration share at one end.
#[derive(Debug)]
pub struct Migration {
    room: Room,
    _share: Option<Share>,
    /// Of memory: pages there are, and pages that went.
    progress: [AtomicU64; 2],
    /// Those that carry pages of memory.
    connections: AtomicU64,
    line: Mutex<Line>,
    sent: Mutex<Sent>,
    received: Mutex<Received>,
    /// Of the receiving end.
    templates: Option<Arc<Index>>,
}

#[derive(Debug)]
struct Sent {
    memory_left: u32,
    disks_left: u32,
    /// Disk and slot of each block.
    blocks: HashMap<Hash, (u16, u32)>,
    /// By their numbers.
    disks: Vec<DiskSent>,
    /// Number of each block that the other end has of its templates.
    templates: HashMap<Hash, u32>,
}

/// Blocks of one disk.
#[derive(Debug, Default)]
struct DiskSent {
    to_keep: u32,
    /// The other end has so many of them.
    confirmed: u32,
}

#[derive(Debug)]
struct Received {
    memory_left: u32,
    /// Where the blocks of each disk are, by slot.
    disks: HashMap<u16, Vec<u32>>,
    /// Of all of them; `None` before the first.
    blocks: Option<Pages>,
}

impl Migration {
    /// With its share of what the agent keeps.
    pub fn of(share: Share) -> Self {
        let migration = Self::new(share.room());
        Self { _share: Some(share), ..migration }
    }

    pub fn new(room: Room) -> Self {
        let (memory_left, disks_left) = (Room::pages(room.memory), Room::pages(room.disks));
        let (blocks, disks, templates) = (HashMap::new(), Vec::new(), HashMap::new());
        Self {
            room,
            _share: None,
            progress: [AtomicU64::new(0), AtomicU64::new(0)],
            connections: AtomicU64::new(0),
            line: Mutex::default(),
            sent: Mutex::new(Sent { memory_left, disks_left, blocks, disks, templates }),
            received: Mutex::new(Received { memory_left, disks: HashMap::new(), blocks: None }),
            templates: None,
        }
    }

    /// The receiving end, with what it had before.
    pub fn with_templates(self, templates: Option<Arc<Index>>) -> Self {
        Self { templates, ..self }
    }

    pub fn templates(&self) -> Option<&Arc<Index>> {
        self.templates.as_ref()
    }

    /// The other end has these blocks of templates as well; they may be named from now on. `false`: no end has so
    /// many, or one of them twice; then none is named any more.
    pub fn add_templates(&self, hashes: &[Hash]) -> bool {
        let templates = &mut self.sent().templates;
        for hash in hashes {
            let number = u32::try_from(templates.len()).unwrap_or(u32::MAX);
            // One that is there twice would shift all others.
            if number >= templates::BLOCKS_MAX || templates.insert(*hash, number).is_some() {
                templates.clear();
                return false;
            }
        }
        true
    }

    /// Whether it was made to keep anything.
    pub fn has_room(&self) -> bool {
        self.room != Room::NONE
    }

    /// One of its connections went so far. Its share of the pages of memory that none has sent yet; any
    /// number, as long as it is not known how many there are.
    pub(super) fn went(&self, progress: Progress) -> u64 {
        let [all, sent] = [progress.all, progress.sent];
        let [all_before, sent_before] = [(0, all), (1, sent)]
            .map(|(at, new)| self.progress[at].fetch_add(new, Ordering::Relaxed));
        let (all, sent) = (all_before.wrapping_add(all), sent_before.wrapping_add(sent));
        // Connections that carry them at once are as fast together.
        let connections = self.connections.load(Ordering::Relaxed).max(1);
        if all == 0 { u64::MAX } else { all.saturating_sub(sent) / connections }
    }

    /// What its connections have found out last.
    pub(super) fn line(&self) -> Line {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn learned(&self, line: Line) {
        if line != Line::Unknown {
            *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
        }
    }

    // Nothing below panics while it holds one of them.
    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for pages of memory of a connection: all that is left, or for one of several a share of
    /// it.
    pub(super) fn take_memory(&self, of_several: bool) -> u32 {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let mut sent = self.sent();
        let all = Room::pages(self.room.memory);
        let taken =
            if of_several { (all / CHANNELS).min(sent.memory_left) } else { sent.memory_left };
        sent.memory_left -= taken;
        taken
    }

    /// A number for a disk that is sent; `None` where there are as many as can be counted.
    pub(super) fn add_disk(&self) -> Option<u16> {
        let disks = &mut self.sent().disks;
        let number = u16::try_from(disks.len()).ok().filter(|number| *number != TEMPLATES)?;
        disks.push(DiskSent::default());
        Some(number)
    }

    /// Disk and slot of a block that may be named on the connection of `disk`, or on one of none.
    pub(super) fn find(&self, hash: &Hash, disk: Option<u16>) -> Option<(u16, u32)> {
        let sent = self.sent();
        let there = |(of, slot): &(u16, u32)| {
            disk == Some(*of) || *slot < sent.disks[usize::from(*of)].confirmed
        };
        let sent_before = sent.blocks.get(hash).copied().filter(there);
        sent_before.or_else(|| Some((TEMPLATES, *sent.templates.get(hash)?)))
    }

    /// Whether the next slot of the disk takes this block; then it has to be sent as one to keep.
    pub(super) fn keep(&self, hash: Hash, disk: u16) -> bool {
        let mut sent = self.sent();
        let sent = &mut *sent;
        let to_keep = &mut sent.disks[usize::from(disk)].to_keep;
        // Another disk may have it, unconfirmed as yet.
        let Entry::Vacant(free) = sent.blocks.entry(hash) else { return false };
        let Some(left) = sent.disks_left.checked_sub(1) else { return false };
        free.insert((disk, *to_keep));
        *to_keep += 1;
        sent.disks_left = left;
        true
    }

    /// The other end has so many blocks of the disk; `false` where it was not told to keep as many.
    pub(super) fn confirm(&self, disk: u16, blocks: u32) -> bool {
        let disk = &mut self.sent().disks[usize::from(disk)];
        let is_so = blocks <= disk.to_keep;
        if is_so {
            disk.confirmed = disk.confirmed.max(blocks);
        }
        is_so
    }

    /// Room for so many pages of memory that come in; `false` where it is not there.
    pub(super) fn grant_memory(&self, pages: u32) -> bool {
        let left = &mut self.received().memory_left;
        let Some(rest) = left.checked_sub(pages) else { return false };
        *left = rest;
        true
    }

    /// `false` where there is one of that number.
    pub(super) fn receive_disk(&self, number: u16) -> bool {
        if number == TEMPLATES {
            return false;
        }
        match self.received().disks.entry(number) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(Vec::new());
                true
            }
        }
    }

    /// The slot that the block is in now; `None` where there is no room.
    pub(super) fn receive_block(&self, disk: u16, block: &Page) -> Option<u32> {
        let mut received = self.received();
        let received = &mut *received;
        let slots = received.disks.get_mut(&disk)?;
        let slot = u32::try_from(slots.len()).ok()?;
        if received.blocks.is_none() {
            let pages = Pages::new(Room::pages(self.room.disks));
            received.blocks = pages.inspect_err(no_memory).ok();
        }
        slots.push(received.blocks.as_mut()?.push(block)?);
        Some(slot)
    }

    /// Appends a block that came in, or was there; `false` where there is none.
    ///
    /// # Errors
    /// It was there, and is not any more.
    pub(super) fn append_block(
        &self,
        disk: u16,
        slot: u32,
        to: &mut Vec<u8>,
    ) -> Result<bool, RelayError> {
        if disk == TEMPLATES {
            let Some(block) = self.templates.as_ref().and_then(|index| index.block(slot)) else {
                return Ok(false);
            };
            // Why, its index has said.
            let block = block.map_err(|_| RelayError::Template)?;
            to.extend_from_slice(&block);
            return Ok(true);
        }
        let received = self.received();
        let find = || {
            let index = received.disks.get(&disk)?.get(usize::try_from(slot).ok()?)?;
            received.blocks.as_ref()?.get(*index)
        };
        Ok(find().is_some_and(|block| {
            to.extend_from_slice(block);
            true
        }))
    }
}

fn no_memory(error: &io::Error) {
    tracing::warn!(%error, "there is no memory for what is to be kept of a migration");
}

/// The last pages of one connection. A slot is the number of a page, counted from the first.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pages: Pages,
    next: u64,
}

impl Ring {
    /// `None` where there is no memory for it.
    pub(super) fn new(room: u32) -> Option<Self> {
        let pages = Pages::new(room).inspect_err(no_memory).ok()?;
        Some(Self { pages, next: 0 })
    }

    fn room(&self) -> u64 {
        u64::from(self.pages.room())
    }

    /// The slot that the next page is put in.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    fn index(&self, slot: u64) -> Option<u32> {
        let in_it = slot < self.next && self.next - slot <= u64::from(self.pages.len());
        u32::try_from(slot % self.room().max(1)).ok().filter(|_| in_it)
    }

    pub(super) fn get(&self, slot: u64) -> Option<&Page> {
        self.pages.get(self.index(slot)?)
    }

    pub(super) fn get_mut(&mut self, slot: u64) -> Option<&mut Page> {
        let index = self.index(slot)?;
        self.pages.get_mut(index)
    }

    /// Forgets the oldest page where there are as many as there is room for; `false` where there is
    /// room for none.
    pub(super) fn push(&mut self, page: &Page) -> bool {
        if self.pages.push(page).is_none() {
            // The oldest, where there is one.
            let oldest = self.next.wrapping_sub(self.room());
            let Some(oldest) = self.get_mut(oldest) else { return false };
            oldest.copy_from_slice(page);
        }
        self.next += 1;
        true
    }
}

/// A ring of pages that knows which of them has a content, and which was last at a place.
#[derive(Debug, Default)]
pub(super) struct IndexedRing {
    ring: Ring,
    /// Of each page, and where it was when it was put in.
    known: Vec<(Hash, (usize, u64))>,
    by_hash: HashMap<Hash, u64>,
    by_place: HashMap<(usize, u64), u64>,
}

impl IndexedRing {
    /// `None` where there is no memory for it.
    pub(super) fn new(room: u32) -> Option<Self> {
        Some(Self { ring: Ring::new(room)?, ..Self::default() })
    }

    /// A slot with this content.
    pub(super) fn find(&self, hash: &Hash, page: &Page) -> Option<u64> {
        let slot = *self.by_hash.get(hash)?;
        (self.ring.get(slot)? == page).then_some(slot)
    }

    /// What was at this place, if it is still there.
    pub(super) fn before(&self, place: (usize, u64)) -> Option<(u64, &Page)> {
        let slot = *self.by_place.get(&place)?;
        Some((slot, self.ring.get(slot)?))
    }

    /// The page that is in the slot is now at this place too. As many places are known as there may be
    /// pages and as many again: one content can be at any number of them.
    pub(super) fn place(&mut self, place: (usize, u64), slot: u64) {
        let is_full = self.by_place.len() as u64 / 2 > self.ring.room();
        match self.by_place.entry(place) {
            Entry::Occupied(mut known) => drop(known.insert(slot)),
            Entry::Vacant(free) if !is_full => drop(free.insert(slot)),
            Entry::Vacant(_) => {}
        }
    }

    fn forget_hash(&mut self, index: usize, slot: u64) {
        let (hash, _) = &self.known[index];
        if self.by_hash.get(hash) == Some(&slot) {
            self.by_hash.remove(hash);
        }
    }

    /// The page gets a slot, if there is room for any.
    pub(super) fn push(&mut self, place: (usize, u64), hash: Hash, page: &Page) -> bool {
        let (slot, room) = (self.ring.next(), self.ring.room());
        if room == 0 {
            return false;
        }
        let index = usize::try_from(slot % room).expect("it is an index");
        if slot >= room {
            let oldest = slot - room;
            self.forget_hash(index, oldest);
            let (_, was_at) = self.known[index];
            if self.by_place.get(&was_at) == Some(&oldest) {
                self.by_place.remove(&was_at);
            }
            self.known[index] = (hash, place);
        } else {
            self.known.push((hash, place));
        }
        self.ring.push(page);
        self.by_hash.insert(hash, slot);
        self.place(place, slot);
        true
    }

    /// Another page takes the slot, which there is.
    pub(super) fn replace(&mut self, slot: u64, hash: Hash, page: &Page) {
        let Some(index) = self.ring.index(slot) else { return };
        let index = index as usize;
        self.forget_hash(index, slot);
        if let Some(before) = self.ring.get_mut(slot) {
            before.copy_from_slice(page);
        }
        self.known[index].0 = hash;
        self.by_hash.insert(hash, slot);
    }
}
