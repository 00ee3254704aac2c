//! What agents say to each other on one connection: blocks of it.
//!
//! ```text
//! 0  u8   what: 0 as it is, 1 zstd, 2 the end, 3 alive
//! 1  u24  little endian: bytes that follow
//! 4  u32  little endian: bytes that they amount to
//! 8  the bytes
//! ```
//! A block of zstd goes on from where the one before it ended: what repeats within the last 8 MiB costs
//! next to nothing. Blocks that are sent as they are do not count for that.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use zstd::stream::raw::{CParameter, DParameter, InBuffer, Operation, OutBuffer};

use super::{DEAD_AFTER, RelayError};

/// What one block amounts to, in bytes.
pub const BLOCK_MAX: usize = 256 << 10;
/// Frame, block headers and literals of what does not compress.
const PACKED_MAX: usize = BLOCK_MAX + (16 << 10);
const HEAD: usize = 8;
/// Fast enough for a line that hypervisors migrate over, on one core.
const LEVEL: i32 = 1;
/// 8 MiB.
const WINDOW_LOG: u32 = 23;
/// Blocks after which it is looked at again whether compressing is of use.
const TRY_AGAIN_AFTER: u32 = 8;

const AS_IT_IS: u8 = 0;
const ZSTD: u8 = 1;
const END: u8 = 2;
const ALIVE: u8 = 3;

pub(super) struct Encoder {
    zstd: zstd::stream::raw::Encoder<'static>,
    out: Vec<u8>,
    /// Blocks that go as they are before one is compressed again.
    skip: u32,
}

impl Encoder {
    pub(super) fn new() -> Self {
        let mut zstd = zstd::stream::raw::Encoder::new(LEVEL).expect("there is memory for it");
        zstd.set_parameter(CParameter::WindowLog(WINDOW_LOG)).expect("it is in zstd's bounds");
        Self { zstd, out: Vec::new(), skip: 0 }
    }

    pub(super) const fn end() -> &'static [u8] {
        &[END, 0, 0, 0, 0, 0, 0, 0]
    }

    pub(super) const fn alive() -> &'static [u8] {
        &[ALIVE, 0, 0, 0, 0, 0, 0, 0]
    }

    /// At most [`BLOCK_MAX`] bytes.
    pub(super) fn block(&mut self, raw: &[u8]) -> &[u8] {
        self.out.clear();
        self.out.resize(HEAD, 0);
        if self.skip > 0 {
            self.skip -= 1;
            self.out.extend_from_slice(raw);
            return self.headed(AS_IT_IS, raw.len());
        }
        self.out.resize(HEAD + PACKED_MAX, 0);
        let mut output = OutBuffer::around_pos(&mut self.out, HEAD);
        let mut input = InBuffer::around(raw);
        while input.pos() < raw.len() {
            self.zstd.run(&mut input, &mut output).expect("what fits is packed");
        }
        while self.zstd.flush(&mut output).expect("what is packed fits") > 0 {}
        let len = output.pos();
        self.out.truncate(len);
        if len - HEAD > raw.len() / 16 * 15 {
            self.skip = TRY_AGAIN_AFTER;
        }
        self.headed(ZSTD, raw.len())
    }

    fn headed(&mut self, what: u8, amounts_to: usize) -> &[u8] {
        let len = u32::try_from(self.out.len() - HEAD).unwrap_or(u32::MAX).to_le_bytes();
        let raw = u32::try_from(amounts_to).unwrap_or(u32::MAX).to_le_bytes();
        self.out[..4].copy_from_slice(&[what, len[0], len[1], len[2]]);
        self.out[4..HEAD].copy_from_slice(&raw);
        &self.out
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Bytes(&'a [u8]),
    End,
    Alive,
}

pub(super) struct Decoder {
    zstd: zstd::stream::raw::Decoder<'static>,
    packed: Vec<u8>,
    raw: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        let mut zstd = zstd::stream::raw::Decoder::new().expect("there is memory for it");
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).expect("it is in zstd's bounds");
        Self { zstd, packed: Vec::new(), raw: Vec::new() }
    }

    /// The next block, and how many bytes it was on the line.
    pub(super) async fn next<F>(&mut self, far: &mut F) -> Result<(Said<'_>, usize), RelayError>
    where
        F: AsyncRead + Unpin,
    {
        let broken = |what| RelayError::Protocol { what };
        let mut head = [0; HEAD];
        fill(far, &mut head).await?;
        let len = u32::from_le_bytes([head[1], head[2], head[3], 0]) as usize;
        let raw = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        match head[0] {
            END | ALIVE if len != 0 || raw != 0 => return Err(broken("a word with content")),
            END => return Ok((Said::End, HEAD)),
            ALIVE => return Ok((Said::Alive, HEAD)),
            AS_IT_IS if len == raw && (1..=BLOCK_MAX).contains(&len) => {}
            ZSTD if (1..=PACKED_MAX).contains(&len) && (1..=BLOCK_MAX).contains(&raw) => {}
            AS_IT_IS | ZSTD => return Err(broken("a block of a size that none has")),
            _ => return Err(broken("a block of no kind that there is")),
        }
        self.packed.resize(len, 0);
        fill(far, &mut self.packed).await?;
        if head[0] == AS_IT_IS {
            return Ok((Said::Bytes(&self.packed), HEAD + len));
        }
        // One more shows that there would be more.
        self.raw.resize(raw + 1, 0);
        let mut input = InBuffer::around(&self.packed);
        let mut output = OutBuffer::around(&mut self.raw);
        loop {
            let before = (input.pos(), output.pos());
            self.zstd
                .run(&mut input, &mut output)
                .map_err(|_| broken("a block that is no zstd"))?;
            if output.pos() > raw {
                return Err(broken("a block that amounts to more than it says"));
            }
            if before == (input.pos(), output.pos()) {
                break;
            }
        }
        if input.pos() != len || output.pos() != raw {
            return Err(broken("a block that amounts to less than it says"));
        }
        self.raw.truncate(raw);
        Ok((Said::Bytes(&self.raw), HEAD + len))
    }
}

/// However slowly it comes: only where nothing comes the other end is gone.
async fn fill<F>(far: &mut F, mut buffer: &mut [u8]) -> Result<(), RelayError>
where
    F: AsyncRead + Unpin,
{
    while !buffer.is_empty() {
        let read = timeout(DEAD_AFTER, far.read(buffer)).await;
        match read.map_err(|_| RelayError::Silent)?.map_err(RelayError::Far)? {
            0 => return Err(RelayError::Far(io::ErrorKind::UnexpectedEof.into())),
            len => buffer = &mut buffer[len..],
        }
    }
    Ok(())
}
