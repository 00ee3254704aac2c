//! What a parser of one direction of a connection says about it.

use super::nbd::NbdParser;
use super::ram::{Progress, RamParser};

/// What comes next in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// So many bytes, of which nothing is known. At least one, and no more than are there.
    Bytes(usize),
    /// Eight bytes, big endian: an address with flags in its lowest twelve bits.
    Header(u64),
    /// One page of content, and where it belongs: something that is the same for its next version.
    Page { place: (usize, u64) },
}

/// Takes a stream apart as it comes.
pub(super) trait Parser {
    /// What the bytes begin with; `None` where more of them have to come first: a page of them is
    /// always enough. After a piece it is asked about the bytes behind it.
    fn next(&mut self, bytes: &[u8]) -> Option<Piece>;
}

/// The parser of one kind of stream.
pub(super) enum AnyParser {
    Ram(RamParser),
    Nbd(NbdParser),
}

impl AnyParser {
    /// What of memory it has seen since it was asked last, if it is there for memory.
    pub(super) fn take_progress(&mut self) -> Option<Progress> {
        match self {
            Self::Ram(parser) => Some(parser.take_progress()),
            Self::Nbd(_) => None,
        }
    }
}

impl Parser for AnyParser {
    fn next(&mut self, bytes: &[u8]) -> Option<Piece> {
        match self {
            Self::Ram(parser) => parser.next(bytes),
            Self::Nbd(parser) => parser.next(bytes),
        }
    }
}

/// `N` bytes from there on, where they are all there.
pub(super) fn at<const N: usize>(bytes: &[u8], from: usize) -> Option<&[u8; N]> {
    bytes.get(from..)?.first_chunk()
}
