//! A stretch of a stream as a program: what the other end has is named, the rest is enclosed.
//!
//! ```text
//! varint  length of the instructions
//! the instructions, then what they enclose, in their order
//!
//! 0 ENCLOSED  varint len                  len bytes
//! 1 HEADER    (8 enclosed)                they are a header, big endian: page number and flags (12 bits)
//! 2 STEP      varint flags, zigzag pages  a header so many pages from the last one
//! 3 PAGE      (4096 enclosed)             a page, to be kept
//! 4 SAME      zigzag slot                 the page in the slot
//! 5 BLOCK     varint disk, zigzag slot    the block in that slot of the disk
//! 6 DELTA     zigzag slot (4096 enclosed) the page in the slot, XOR; it takes its place
//! 7 ZEROS                                 a page of zeros
//! 8 MEMORY    varint room                 pages of this connection are kept in a ring of so many
//! 9 DISK      varint number               pages of this connection are blocks of that disk
//! ```
//! Slots are relative to the one that the same instruction would name next: the last one and one.
//! The end that plays a program knows nothing of what streams mean: what the other end misunderstood
//! comes out all the same.

mod compose;
mod play;
#[cfg(test)]
mod tests;

use super::block::BLOCK_MAX;
pub(super) use compose::Composer;
pub(super) use play::Player;

pub(super) const PAGE: usize = 4096;
pub(super) type Page = [u8; PAGE];

/// The longest program: a header of eight bytes takes at most nine, a byte between two of them three.
pub(super) const PROGRAM_MAX: usize = 2 * BLOCK_MAX;

const ENCLOSED: u8 = 0;
const HEADER: u8 = 1;
const STEP: u8 = 2;
const PAGE_KEPT: u8 = 3;
const SAME: u8 = 4;
const BLOCK: u8 = 5;
const DELTA: u8 = 6;
const ZEROS: u8 = 7;
pub(super) const MEMORY: u8 = 8;
const DISK: u8 = 9;

const SHORT: &str = "a program that ends too early";

fn relative(slot: u64, next: &mut u64) -> u64 {
    let distance = zigzag(slot.wrapping_sub(*next).cast_signed());
    *next = slot.wrapping_add(1);
    distance
}

fn absolute(distance: u64, next: &mut u64) -> u64 {
    let slot = next.wrapping_add_signed(unzigzag(distance));
    *next = slot.wrapping_add(1);
    slot
}

const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    to.push(number.to_le_bytes()[0]);
}

fn take_varint(from: &mut &[u8]) -> Result<u64, &'static str> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first().ok_or(SHORT)?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number that is too large")
}

fn take<'a, const N: usize>(from: &mut &'a [u8]) -> Result<&'a [u8; N], &'static str> {
    let (taken, rest) = from.split_first_chunk().ok_or(SHORT)?;
    *from = rest;
    Ok(taken)
}
