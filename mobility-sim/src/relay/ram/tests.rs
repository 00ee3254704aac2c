use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A stream as QEMU makes it, and its pages by name of their block, number and content.
#[derive(Debug, Clone, Default)]
pub(in crate::relay) struct Stream {
    pub(in crate::relay) bytes: Vec<u8>,
    block: Option<&'static str>,
}

impl Stream {
    pub(in crate::relay) fn begin() -> Self {
        let mut stream = Self::default();
        stream.put(b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-7.2x");
        // A command, as with a return path.
        stream.put(b"\x08\0\x01\0\x04\0\0\0\x01");
        stream.put(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        stream.put(&(0x8000_0000_u64 | 0x04).to_be_bytes());
        stream.put(b"\x06pc.ram\0\0\0\0\x7f\xff\0\0");
        stream.put(b"\x03rom\0\0\0\0\0\x01\0\0");
        stream.end_section();
        stream
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(in crate::relay) fn section(&mut self, kind: u8) {
        self.put(&[kind, 0, 0, 0, 2]);
        self.block = None;
    }

    pub(in crate::relay) fn end_section(&mut self) {
        self.put(&0x10_u64.to_be_bytes());
        self.put(b"\x7e\0\0\0\x02");
    }

    fn header(&mut self, block: &'static str, page: u64, flag: u64) {
        let same = if self.block == Some(block) { 0x20 } else { 0 };
        self.put(&(page << 12 | flag | same).to_be_bytes());
        if same == 0 {
            self.put(&[u8::try_from(block.len()).unwrap()]);
            self.put(block.as_bytes());
        }
        self.block = Some(block);
    }

    pub(in crate::relay) fn page(&mut self, block: &'static str, page: u64, content: &[u8]) {
        assert_eq!(content.len(), PAGE);
        self.header(block, page, 0x08);
        self.put(content);
    }

    pub(in crate::relay) fn zero(&mut self, block: &'static str, page: u64) {
        self.header(block, page, 0x02);
        self.put(&[0]);
    }

    fn xbzrle(&mut self, block: &'static str, page: u64, delta: &[u8]) {
        self.header(block, page, 0x40);
        self.put(&[1]);
        self.put(&u16::try_from(delta.len()).unwrap().to_be_bytes());
        self.put(delta);
    }
}

/// All pieces, when so many bytes come at a time.
fn pieces(bytes: &[u8], mut cut: impl FnMut() -> usize) -> Vec<(Piece, usize)> {
    let (mut parser, mut found) = (RamParser::new(), Vec::new());
    let (mut at, mut have) = (0, 0);
    while have < bytes.len() {
        have = (have + cut().max(1)).min(bytes.len());
        while let Some(piece) = parser.next(&bytes[at..have]) {
            let len = match piece {
                Piece::Bytes(len) => len,
                Piece::Header(_) => 8,
                Piece::Page { .. } => PAGE,
            };
            assert!(len > 0 && at + len <= have, "{piece:?} at {at} of {have}");
            found.push((piece, at));
            at += len;
        }
        assert!(have - at < PAGE, "it waits for more than a page");
    }
    found
}

fn pages(pieces: &[(Piece, usize)]) -> Vec<((usize, u64), usize)> {
    let page = |(piece, at): &(Piece, usize)| match piece {
        Piece::Page { place } => Some((*place, *at)),
        Piece::Bytes(_) | Piece::Header(_) => None,
    };
    pieces.iter().filter_map(page).collect()
}

fn sample() -> Stream {
    let mut stream = Stream::begin();
    stream.section(2);
    stream.page("pc.ram", 1, &[1; PAGE]);
    stream.page("pc.ram", 2, &[2; PAGE]);
    stream.zero("pc.ram", 3);
    stream.xbzrle("pc.ram", 4, &[9; 700]);
    stream.page("rom", 7, &[3; PAGE]);
    stream.bytes.extend(0x200_u64.to_be_bytes());
    stream.page("pc.ram", 9, &[4; PAGE]);
    stream.end_section();
    stream.section(3);
    stream.page("rom", 8, &[5; PAGE]);
    stream.end_section();
    // The state of a device.
    stream.bytes.extend(b"\x04\0\0\0\x03\x05timer\0\0\0\0\0\0\0\x02");
    stream.bytes.extend([0x11; 9000]);
    stream
}

/// What one of multifd's channels says: two packets with pages, one between them with none.
fn channel(flags: u32) -> Vec<u8> {
    let mut bytes = multifd::MAGIC.to_vec();
    bytes.resize(multifd::BEGIN, 7);
    for (block, pages) in [("pc.ram", &[3_u64, 9][..]), ("", &[]), ("rom", &[4, 5])] {
        bytes.extend(multifd::MAGIC);
        let count = u32::try_from(pages.len()).unwrap();
        // With no pages QEMU says the size of the packet before.
        for number in [flags, 128, count, count.max(2) * 4096] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend([1; 8 + 32]);
        let mut rest = vec![0; 256 + 128 * 8];
        rest[..block.len()].copy_from_slice(block.as_bytes());
        for (number, page) in pages.iter().enumerate() {
            rest[256 + number * 8..][..8].copy_from_slice(&(page << 12).to_be_bytes());
        }
        bytes.extend(rest);
        bytes.extend(pages.iter().flat_map(|page| [u8::try_from(*page).unwrap(); PAGE]));
    }
    bytes
}

#[test]
fn pages_of_a_channel_are_found_wherever_it_is_cut() {
    let bytes = channel(1);
    let expected = pages(&pieces(&bytes, || usize::MAX / 2));
    let places: Vec<_> = expected.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, [(0, 3), (0, 9), (2, 4), (2, 5)]);
    for ((_, at), content) in expected.iter().zip([3, 9, 4, 5]) {
        assert_eq!(bytes[*at..*at + PAGE], [content; PAGE]);
    }
    for cut in 0..bytes.len() {
        let mut first = Some(cut);
        assert_eq!(pages(&pieces(&bytes, || first.take().unwrap_or(bytes.len()))), expected);
    }
}

#[test]
fn every_page_is_found_with_its_place() {
    let bytes = sample().bytes;
    let found = pages(&pieces(&bytes, || usize::MAX / 2));
    let places: Vec<_> = found.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, [(0, 1), (0, 2), (1, 7), (0, 9), (1, 8)]);
    for ((_, at), content) in found.iter().zip([1, 2, 3, 4, 5]) {
        assert_eq!(bytes[*at..*at + PAGE], [content; PAGE]);
    }
}

#[test]
fn it_is_the_same_wherever_the_stream_is_cut() {
    let bytes = sample().bytes;
    let expected = pages(&pieces(&bytes, || usize::MAX / 2));
    assert_eq!(pages(&pieces(&bytes, || 1)), expected);
    for cut in 0..bytes.len() {
        let mut first = Some(cut);
        assert_eq!(pages(&pieces(&bytes, || first.take().unwrap_or(bytes.len()))), expected);
    }
}

#[test]
fn what_is_not_understood_is_bytes_for_good() {
    let honest = sample().bytes;
    let version_4 = [b"QEVM\0\0\0\x04", &honest[8..]].concat();
    let begin = Stream::begin().bytes;
    let later = &honest[begin.len()..];
    let multifd = [&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1], &honest[..]].concat();
    let compressed = channel(4);
    let other_section = [&begin[..], &[2, 0, 0, 0, 3], &later[5..]].concat();
    let unknown_flag = [&begin[..], &[2, 0, 0, 0, 2], &0x480_u64.to_be_bytes(), later].concat();
    for bytes in [version_4, multifd, compressed, other_section, unknown_flag] {
        assert_eq!(pages(&pieces(&bytes, || 1000)), []);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_wait_for_more_than_a_page(
        bytes in vec(any::<u8>(), 0..2000),
        begins in any::<bool>(),
        cut in 1_usize..300,
    ) {
        let begin = if begins { Stream::begin().bytes } else { Vec::new() };
        pieces(&[&begin[..], &bytes].concat(), || cut);
        pieces(&[&channel(0)[..multifd::BEGIN + 8], &bytes].concat(), || cut);
    }

    #[test]
    fn a_bent_stream_does_not_either(at in 0_usize..20_000, to in any::<u8>(), cut in 1_usize..5000) {
        for mut bytes in [sample().bytes, channel(0)] {
            let at = at % bytes.len();
            bytes[at] = to;
            pieces(&bytes, || cut);
        }
    }
}
