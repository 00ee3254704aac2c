//! The end that receives: programs into a stream. What is played may be made up by anybody.

use std::sync::Arc;

use super::super::RelayError;
use super::super::block::BLOCK_MAX;
use super::super::store::{Migration, Ring};
use super::{
    BLOCK, DELTA, DISK, ENCLOSED, HEADER, MEMORY, PAGE, PAGE_KEPT, Page, SAME, SHORT, STEP, ZEROS,
    absolute, take, take_varint, unzigzag,
};

/// What a page plays into.
enum Playing {
    Nothing,
    Memory(Ring),
    Disk { number: u16, slots: u32 },
}

/// Plays the programs of one connection.
pub(in super::super) struct Player {
    migration: Arc<Migration>,
    kept: Playing,
    out: Vec<u8>,
    header: u64,
    slot: u64,
    block: u64,
}

impl Player {
    pub(in super::super) const fn new(migration: Arc<Migration>) -> Self {
        let kept = Playing::Nothing;
        Self { migration, kept, out: Vec::new(), header: 0, slot: 0, block: 0 }
    }

    /// Blocks of a disk that it has; `None` where it is none.
    pub(in super::super) const fn blocks(&self) -> Option<u32> {
        match self.kept {
            Playing::Disk { slots, .. } => Some(slots),
            Playing::Nothing | Playing::Memory(_) => None,
        }
    }

    /// What it amounts to, at most [`BLOCK_MAX`] bytes.
    pub(in super::super) fn play(&mut self, program: &[u8]) -> Result<&[u8], RelayError> {
        self.out.clear();
        self.run(program)?;
        Ok(&self.out)
    }

    fn run(&mut self, mut program: &[u8]) -> Result<(), RelayError> {
        let len = usize::try_from(take_varint(&mut program)?).map_err(|_| SHORT)?;
        let (mut instructions, mut enclosed) = program.split_at_checked(len).ok_or(SHORT)?;
        while let Some((instruction, rest)) = instructions.split_first() {
            instructions = rest;
            self.step(*instruction, &mut instructions, &mut enclosed)?;
            if self.out.len() > BLOCK_MAX {
                return Err("a program that amounts to more than a block".into());
            }
        }
        if enclosed.is_empty() {
            Ok(())
        } else {
            Err("a program that leaves something over".into())
        }
    }

    fn step(
        &mut self,
        instruction: u8,
        arguments: &mut &[u8],
        enclosed: &mut &[u8],
    ) -> Result<(), RelayError> {
        const UNKNOWN: &str = "a page that was never sent";
        match instruction {
            ENCLOSED => {
                let len = usize::try_from(take_varint(arguments)?).map_err(|_| SHORT)?;
                let (bytes, rest) = enclosed.split_at_checked(len).ok_or(SHORT)?;
                *enclosed = rest;
                self.out.extend_from_slice(bytes);
            }
            HEADER => {
                let header: &[u8; 8] = take(enclosed)?;
                self.header = u64::from_be_bytes(*header);
                self.out.extend_from_slice(header);
            }
            STEP => {
                let flags = take_varint(arguments)? & 0xfff;
                let pages = unzigzag(take_varint(arguments)?);
                let page = (self.header >> 12).wrapping_add_signed(pages);
                self.header = page << 12 | flags;
                self.out.extend_from_slice(&self.header.to_be_bytes());
            }
            PAGE_KEPT => {
                let page: &Page = take(enclosed)?;
                self.out.extend_from_slice(page);
                let kept = match &mut self.kept {
                    Playing::Nothing => false,
                    Playing::Memory(ring) => ring.push(page),
                    Playing::Disk { number, slots } => {
                        let slot = self.migration.receive_block(*number, page);
                        slot.is_some_and(|slot| {
                            *slots = slot + 1;
                            true
                        })
                    }
                };
                if !kept {
                    return Err("more pages to keep than there is room for".into());
                }
            }
            SAME => {
                let slot = absolute(take_varint(arguments)?, &mut self.slot);
                let Playing::Memory(ring) = &self.kept else { return Err(UNKNOWN.into()) };
                self.out.extend_from_slice(ring.get(slot).ok_or(UNKNOWN)?);
            }
            BLOCK => {
                let disk = u16::try_from(take_varint(arguments)?).map_err(|_| UNKNOWN)?;
                let slot = absolute(take_varint(arguments)?, &mut self.block);
                let slot = u32::try_from(slot).map_err(|_| UNKNOWN)?;
                if !self.migration.append_block(disk, slot, &mut self.out)? {
                    return Err(UNKNOWN.into());
                }
            }
            DELTA => {
                let slot = absolute(take_varint(arguments)?, &mut self.slot);
                let delta: &Page = take(enclosed)?;
                let Playing::Memory(ring) = &mut self.kept else { return Err(UNKNOWN.into()) };
                let page = ring.get_mut(slot).ok_or(UNKNOWN)?;
                page.iter_mut().zip(delta).for_each(|(byte, delta)| *byte ^= delta);
                self.out.extend_from_slice(page);
            }
            ZEROS => self.out.extend_from_slice(&[0; PAGE]),
            MEMORY | DISK if !matches!(self.kept, Playing::Nothing) => {
                return Err("a connection of two kinds".into());
            }
            MEMORY => {
                let room = u32::try_from(take_varint(arguments)?).map_err(|_| SHORT)?;
                if !self.migration.grant_memory(room) {
                    return Err("it wants more memory than it is given here".into());
                }
                let ring = Ring::new(room).ok_or("there is no memory to keep its pages in")?;
                self.kept = Playing::Memory(ring);
            }
            DISK => {
                let number = u16::try_from(take_varint(arguments)?).map_err(|_| SHORT)?;
                if !self.migration.receive_disk(number) {
                    return Err("two disks of one number".into());
                }
                self.kept = Playing::Disk { number, slots: 0 };
            }
            _ => return Err("an instruction that there is not".into()),
        }
        Ok(())
    }
}
