//! What agents say to each other on one connection: blocks of it.
//!
//! ```text
//! 0  u8   what: 0 as it is, 1 zstd, 2 the end, 3 alive, 4 a program, 5 a program in zstd, 6 kept, 7 busy
//! 1  u24  little endian: bytes that follow
//! 4  u32  little endian: bytes that they amount to; kept: how many; busy: for how many ms
//! 8  the bytes
//! ```
//! A block of zstd goes on from where the one before it ended: what repeats within the last 8 MiB costs
//! next to nothing. Blocks that are sent as they are do not count for that.
//!
//! A program (`codec.rs`) amounts to bytes of the connection, as a block does, but names what the other
//! end has already; its zstd may begin anew, at another level, and goes back 128 MiB. *Kept* says of the other direction
//! how many blocks of its disk there are now, *busy* how long it took in all to unpack what came and to hand it on.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use zstd::stream::raw::{CParameter, DParameter, InBuffer, Operation, OutBuffer};

use super::codec::PROGRAM_MAX;
use super::pace::{self, Level};
use super::{DEAD_AFTER, RelayError};

/// What one block amounts to, in bytes.
pub const BLOCK_MAX: usize = 256 << 10;
/// Frame, block headers and literals of what does not compress.
const PACKED_MAX: usize = PROGRAM_MAX + (16 << 10);
/// The end of one frame, the beginning of another, and what a flush adds.
const FRAMES_MAX: usize = 1 << 10;
const HEAD: usize = 8;
/// Fast enough for a line that hypervisors migrate over, on one core.
const LEVEL: i32 = 1;
/// 8 MiB.
const WINDOW_LOG: u32 = 23;
/// 128 MiB, in which only what is long is looked for: parts of pages, as whole ones are named. It takes
/// 4 % off what is sent of a guest's memory, more would cost more than it takes. At the lowest level it would
/// take longer than all the rest, and is left out.
const LONG_WINDOW_LOG: u32 = 27;
/// Blocks after which it is looked at again whether compressing is of use.
const TRY_AGAIN_AFTER: u32 = 8;

const AS_IT_IS: u8 = 0;
const ZSTD: u8 = 1;
const END: u8 = 2;
const ALIVE: u8 = 3;
const PROGRAM: u8 = 4;
const PROGRAM_ZSTD: u8 = 5;
const KEPT: u8 = 6;
const BUSY: u8 = 7;

/// How far back it is looked for what repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Near,
    Far,
}

type Packer = zstd::stream::raw::Encoder<'static>;

/// Between frames.
fn tune(zstd: &mut Packer, level: i32, reach: Reach) {
    let reach = if level <= LEVEL { Reach::Near } else { reach };
    let (window_log, looks_far) = match reach {
        Reach::Near => (WINDOW_LOG, false),
        Reach::Far => (LONG_WINDOW_LOG, true),
    };
    for parameter in [
        CParameter::CompressionLevel(level),
        CParameter::WindowLog(window_log),
        CParameter::EnableLongDistanceMatching(looks_far),
    ] {
        zstd.set_parameter(parameter).expect("it is in zstd's bounds");
    }
}

pub(super) struct Encoder {
    zstd: Packer,
    reach: Reach,
    /// The level at which it begins anew.
    anew: Option<i32>,
    /// Nothing is packed.
    idle: bool,
    /// The last block was not passed over.
    packed: bool,
    out: Vec<u8>,
    /// Blocks that go as they are before one is compressed again.
    skip: u32,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self::of(LEVEL, Reach::Near)
    }

    pub(super) fn of_programs(reach: Reach) -> Self {
        Self::of(pace::BEGIN, reach)
    }

    fn of(level: i32, reach: Reach) -> Self {
        let mut zstd = Packer::new(level).expect("there is memory for it");
        tune(&mut zstd, level, reach);
        Self { zstd, reach, anew: None, idle: false, packed: false, out: Vec::new(), skip: 0 }
    }

    /// The next block begins anew at another level.
    pub(super) const fn set_level(&mut self, level: Level) {
        self.idle = matches!(level, Level::AsItIs);
        if let Level::Zstd(level) = level {
            self.anew = Some(level);
        }
        self.skip = 0;
    }

    /// Whether the last block is as its level has it, and not passed over.
    pub(super) const fn is_judged(&self) -> bool {
        self.packed || self.idle
    }

    /// Of the last block.
    pub(super) const fn len(&self) -> usize {
        self.out.len()
    }

    pub(super) const fn end() -> &'static [u8] {
        &[END, 0, 0, 0, 0, 0, 0, 0]
    }

    pub(super) const fn alive() -> &'static [u8] {
        &[ALIVE, 0, 0, 0, 0, 0, 0, 0]
    }

    pub(super) const fn kept(blocks: u32) -> [u8; HEAD] {
        word(KEPT, blocks)
    }

    pub(super) const fn busy(ms: u32) -> [u8; HEAD] {
        word(BUSY, ms)
    }

    /// At most [`BLOCK_MAX`] bytes.
    pub(super) fn block(&mut self, raw: &[u8]) -> &[u8] {
        self.pack(raw, [AS_IT_IS, ZSTD])
    }

    /// At most [`PROGRAM_MAX`] bytes.
    pub(super) fn program(&mut self, program: &[u8]) -> &[u8] {
        self.pack(program, [PROGRAM, PROGRAM_ZSTD])
    }

    fn pack(&mut self, raw: &[u8], [as_it_is, packed]: [u8; 2]) -> &[u8] {
        self.out.clear();
        self.out.resize(HEAD, 0);
        self.packed = self.skip == 0 && !self.idle;
        if !self.packed {
            self.skip = self.skip.saturating_sub(1);
            self.out.extend_from_slice(raw);
            return self.headed(as_it_is, raw.len());
        }
        self.out.resize(HEAD + zstd::zstd_safe::compress_bound(raw.len()) + FRAMES_MAX, 0);
        let mut output = OutBuffer::around_pos(&mut self.out, HEAD);
        if let Some(level) = self.anew.take() {
            while self.zstd.finish(&mut output, true).expect("an end fits") > 0 {}
            tune(&mut self.zstd, level, self.reach);
        }
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
        self.headed(packed, raw.len())
    }

    fn headed(&mut self, what: u8, amounts_to: usize) -> &[u8] {
        let len = u32::try_from(self.out.len() - HEAD).unwrap_or(u32::MAX).to_le_bytes();
        let raw = u32::try_from(amounts_to).unwrap_or(u32::MAX).to_le_bytes();
        self.out[..4].copy_from_slice(&[what, len[0], len[1], len[2]]);
        self.out[4..HEAD].copy_from_slice(&raw);
        &self.out
    }
}

/// A block without content.
const fn word(what: u8, number: u32) -> [u8; HEAD] {
    let [a, b, c, d] = number.to_le_bytes();
    [what, 0, 0, 0, a, b, c, d]
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Bytes(&'a [u8]),
    Program(&'a [u8]),
    End,
    Alive,
    Kept(u32),
    /// In ms.
    Busy(u32),
}

pub(super) struct Decoder {
    zstd: zstd::stream::raw::Decoder<'static>,
    packed: Vec<u8>,
    raw: Vec<u8>,
}

impl Decoder {
    pub(super) fn new(reach: Reach) -> Self {
        let window_log = match reach {
            Reach::Near => WINDOW_LOG,
            Reach::Far => LONG_WINDOW_LOG,
        };
        let mut zstd = zstd::stream::raw::Decoder::new().expect("there is memory for it");
        zstd.set_parameter(DParameter::WindowLogMax(window_log)).expect("it is in zstd's bounds");
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
        let max = if matches!(head[0], PROGRAM | PROGRAM_ZSTD) { PROGRAM_MAX } else { BLOCK_MAX };
        match head[0] {
            KEPT | BUSY if len == 0 => {
                let number = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
                let said = if head[0] == KEPT { Said::Kept(number) } else { Said::Busy(number) };
                return Ok((said, HEAD));
            }
            KEPT | BUSY => return Err(broken("a word with content")),
            END | ALIVE if len != 0 || raw != 0 => return Err(broken("a word with content")),
            END => return Ok((Said::End, HEAD)),
            ALIVE => return Ok((Said::Alive, HEAD)),
            AS_IT_IS | PROGRAM if len == raw && (1..=max).contains(&len) => {}
            ZSTD | PROGRAM_ZSTD if (1..=PACKED_MAX).contains(&len) && (1..=max).contains(&raw) => {}
            AS_IT_IS | ZSTD | PROGRAM | PROGRAM_ZSTD => {
                return Err(broken("a block of a size that none has"));
            }
            _ => return Err(broken("a block of no kind that there is")),
        }
        self.packed.resize(len, 0);
        fill(far, &mut self.packed).await?;
        let said = if max == PROGRAM_MAX { Said::Program } else { Said::Bytes };
        if matches!(head[0], AS_IT_IS | PROGRAM) {
            return Ok((said(&self.packed), HEAD + len));
        }
        // One more shows that there would be more.
        self.raw.resize(raw + 1, 0);
        let mut input = InBuffer::around(&self.packed);
        let mut output = OutBuffer::around(&mut self.raw);
        loop {
            let before = (input.pos(), output.pos());
            self.zstd.run(&mut input, &mut output).map_err(|cause| {
                tracing::debug!(%cause, "what zstd says");
                broken("a block that is no zstd, or wants more memory than there is")
            })?;
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
        Ok((said(&self.raw), HEAD + len))
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
