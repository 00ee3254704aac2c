//! Packets of one of multifd's channels.
//!
//! ```text
//! once:    u32 11223344, u32 version 1, 16 bytes uuid, u8 channel, 39 bytes reserved
//! packets: u32 11223344, u32 version 1, u32 flags, u32 room, u32 pages, u32 their bytes, u64 number,
//!          32 bytes reserved, 256 bytes name of the memory block, room times u64 address; the pages
//! ```
//! Big endian (QEMU 7.2 to 9.0, `migration/multifd.c`). What QEMU has compressed itself has a flag.

use super::codec::PAGE;
use super::parse::at;

/// What begins a connection, and a packet.
pub(super) const MAGIC: &[u8; 8] = &[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1];
pub(super) const BEGIN: usize = 64;

const HEAD: usize = 6 * 4 + 8 + 32 + NAME;
const NAME: usize = 256;
/// The only flag that changes nothing here: channels wait for each other.
const FLAG_SYNC: u32 = 1;
/// Addresses that a packet may have room for: QEMU has it for 128.
const ROOM_MAX: usize = (PAGE - HEAD) / 8;

/// What a packet has before its pages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) len: usize,
    pub(super) block: &'a [u8],
    /// Numbers of the pages in that block, in their order.
    pub(super) pages: Vec<u64>,
}

/// It is not understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown;

/// The packet that the bytes begin with, if all of it but its pages is there.
pub(super) fn packet(bytes: &[u8]) -> Result<Option<Packet<'_>>, Unknown> {
    let number = |from| Some(u32::from_be_bytes(*at(bytes, from)?));
    let Some(head) = at::<HEAD>(bytes, 0) else { return Ok(None) };
    let [Some(flags), Some(room), Some(pages), Some(size)] = [8, 12, 16, 20].map(number) else {
        return Ok(None);
    };
    let count = |number: u32| usize::try_from(number).map_err(|_| Unknown);
    let (room, pages, size) = (count(room)?, count(pages)?, count(size)?);
    let known = head.starts_with(MAGIC) && flags & !FLAG_SYNC == 0;
    // With no pages the size is of a packet before it.
    let sized = pages == 0 || size == pages * PAGE;
    if !known || room > ROOM_MAX || pages > room || !sized {
        return Err(Unknown);
    }
    let Some(addresses) = bytes.get(HEAD..HEAD + room * 8) else { return Ok(None) };
    let (addresses, _) = addresses.as_chunks();
    let pages = addresses[..pages].iter().map(|at| u64::from_be_bytes(*at) >> 12).collect();
    let name = &head[HEAD - NAME..];
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME);
    Ok(Some(Packet { len: HEAD + room * 8, block: &name[..end], pages }))
}
