use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const BLOCK: usize = super::super::codec::PAGE;

/// What a client says.
#[derive(Debug, Clone)]
pub(in crate::relay) struct Client(pub(in crate::relay) Vec<u8>);

impl Client {
    pub(in crate::relay) fn begin() -> Self {
        let mut said = vec![0, 0, 0, 3];
        for (option, data) in
            [(8_u32, &b""[..]), (10, b"\0\0\0\x04disk"), (7, b"\0\0\0\x04disk\0\0")]
        {
            said.extend(OPTION);
            said.extend(option.to_be_bytes());
            said.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            said.extend(data);
        }
        Self(said)
    }

    fn request(&mut self, kind: u16, offset: u64, len: u32) {
        self.0.extend(REQUEST.to_be_bytes());
        self.0.extend([0, 0]);
        self.0.extend(kind.to_be_bytes());
        self.0.extend([7; 8]);
        self.0.extend(offset.to_be_bytes());
        self.0.extend(len.to_be_bytes());
    }

    pub(in crate::relay) fn write(&mut self, offset: u64, data: &[u8]) {
        self.request(WRITE, offset, u32::try_from(data.len()).unwrap());
        self.0.extend(data);
    }

    fn long_write(&mut self, offset: u64, data: &[u8]) {
        self.0.extend(LONG_REQUEST.to_be_bytes());
        self.0.extend([0, 0x20, 0, 1]);
        self.0.extend([7; 8]);
        self.0.extend(offset.to_be_bytes());
        self.0.extend((data.len() as u64).to_be_bytes());
        self.0.extend(data);
    }
}

/// Places of blocks, and where in the stream they are.
fn blocks(bytes: &[u8], mut cut: impl FnMut() -> usize) -> Vec<(u64, usize)> {
    let (mut parser, mut found) = (NbdParser::new(), Vec::new());
    let (mut at, mut have) = (0, 0);
    while have < bytes.len() {
        have = (have + cut().max(1)).min(bytes.len());
        while let Some(piece) = parser.next(&bytes[at..have]) {
            let len = match piece {
                Piece::Bytes(len) => len,
                Piece::Header(_) => panic!("NBD has none"),
                Piece::Page { place } => {
                    found.push((place.1, at));
                    BLOCK
                }
            };
            assert!(len > 0 && at + len <= have, "{piece:?} at {at} of {have}");
            at += len;
        }
        assert!(have - at < BLOCK, "it waits for more than a block");
    }
    found
}

fn sample() -> Vec<u8> {
    let mut client = Client::begin();
    // Reads, flushes, zeros and questions carry nothing.
    for kind in [0, 3, 6, 7] {
        client.request(kind, 1 << 20, 1 << 16);
    }
    client.write(8192, &[1; 3 * BLOCK]);
    // Neither begins nor ends on a boundary.
    client.write(4096 - 512, &[2; 512 + BLOCK + 100]);
    client.write(0, &[3; 512]);
    client.long_write(1 << 40, &[4; BLOCK]);
    client.request(2, 0, 0);
    client.0
}

#[test]
fn every_block_is_found_with_its_place() {
    let bytes = sample();
    let found = blocks(&bytes, || bytes.len());
    let places: Vec<_> = found.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, [2, 3, 4, 1, 1 << 28]);
    for ((_, at), content) in found.iter().zip([1, 1, 1, 2, 4]) {
        assert_eq!(bytes[*at..*at + BLOCK], [content; BLOCK]);
    }
}

#[test]
fn it_is_the_same_wherever_the_stream_is_cut() {
    let bytes = sample();
    let expected = blocks(&bytes, || bytes.len());
    assert_eq!(blocks(&bytes, || 1), expected);
    for cut in 0..bytes.len() {
        let mut first = Some(cut);
        assert_eq!(blocks(&bytes, || first.take().unwrap_or(bytes.len())), expected);
    }
}

#[test]
fn what_is_not_understood_is_bytes_for_good() {
    let mut tls = Client::begin();
    tls.0.extend([0x16, 3, 1, 2, 0]);
    tls.write(0, &[1; BLOCK]);
    assert_eq!(blocks(&tls.0, || 100), []);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_wait_for_more_than_a_block(
        bytes in vec(any::<u8>(), 0..300),
        at in 0_usize..30_000,
        cut in 1_usize..5000,
    ) {
        let mut bent = sample();
        let at = at % bent.len();
        bent.splice(at.., bytes);
        bent.extend(sample());
        blocks(&bent, || cut);
    }

    #[test]
    fn no_offset_or_length_is_too_large(offset in any::<u64>(), len in any::<u64>(), kind in 0_u16..8) {
        let mut client = Client::begin();
        client.0.extend(LONG_REQUEST.to_be_bytes());
        client.0.extend([0, 0x20]);
        client.0.extend(kind.to_be_bytes());
        client.0.extend([7; 8]);
        client.0.extend(offset.to_be_bytes());
        client.0.extend(len.to_be_bytes());
        client.0.extend([5; 10_000]);
        blocks(&client.0, || 777);
    }
}
