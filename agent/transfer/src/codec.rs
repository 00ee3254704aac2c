//! Compressing payloads, and the other way round.

use std::io;

use zstd::bulk;

/// One thread's compressor.
pub struct Compressor {
    zstd: bulk::Compressor<'static>,
    level: i32,
    /// Blocks in a row that did not become shorter.
    misses: u32,
    /// Blocks to leave alone before trying again.
    skip: u32,
}

impl Compressor {
    pub fn new() -> io::Result<Self> {
        Ok(Self { zstd: bulk::Compressor::new(1)?, level: 1, misses: 0, skip: 0 })
    }

    /// Compresses `content` into the start of `into`, which is as long; `None`: not worth it. What
    /// is encrypted or compressed already comes in long stretches, so after a miss some blocks are
    /// left alone, up to 31, until the next try.
    pub fn compress(&mut self, level: i32, content: &[u8], into: &mut [u8]) -> Option<usize> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if level != self.level {
            self.zstd.set_compression_level(level).ok()?;
            self.level = level;
        }
        // A sixteenth less is the least that is worth decompressing.
        let worth = (content.len() - content.len() / 16).min(into.len());
        match self.zstd.compress_to_buffer(content, &mut into[..worth]) {
            Ok(len) if len < content.len() => {
                self.misses = 0;
                Some(len)
            }
            _ => {
                self.misses = (self.misses + 1).min(5);
                self.skip = (1 << self.misses) - 1;
                None
            }
        }
    }
}

/// One thread's decompressor.
pub struct Decompressor(bulk::Decompressor<'static>);

impl Decompressor {
    pub fn new() -> io::Result<Self> {
        Ok(Self(bulk::Decompressor::new()?))
    }

    /// Fills `into` exactly. Never writes past it and allocates nothing for it, whatever the
    /// payload claims of its length or its window.
    pub fn decompress(&mut self, payload: &[u8], into: &mut [u8]) -> io::Result<()> {
        let len = self.0.decompress_to_buffer(payload, into)?;
        if len == into.len() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_payload_that_unpacks_to_more_than_it_should_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        assert!(bomb.len() < 10_000);
        let mut into = vec![0; 262_144];
        assert!(Decompressor::new().unwrap().decompress(&bomb, &mut into).is_err());
    }

    #[test]
    fn a_payload_that_unpacks_to_less_is_refused() {
        let payload = zstd::bulk::compress(&[1; 1000], 1).unwrap();
        assert!(Decompressor::new().unwrap().decompress(&payload, &mut [0; 1001]).is_err());
        assert!(Decompressor::new().unwrap().decompress(&payload, &mut [0; 1000]).is_ok());
    }

    #[test]
    fn what_does_not_shrink_is_left_alone_for_a_while() {
        let mut random = vec![0; 65_536];
        blake3::Hasher::new().finalize_xof().fill(&mut random);
        let text = b"causeway ".repeat(7000);
        let mut into = vec![0; 65_536];
        let mut compressor = Compressor::new().unwrap();
        assert!(compressor.compress(1, &text, &mut into).is_some());
        assert!(compressor.compress(1, &random, &mut into).is_none());
        assert!(compressor.compress(1, &text, &mut into).is_none(), "one block is skipped");
        assert!(compressor.compress(1, &text, &mut into).is_some());
    }

    proptest! {
        #[test]
        fn no_payload_makes_the_decompressor_panic(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Decompressor::new().unwrap().decompress(&payload, &mut [0; 300]);
        }

        #[test]
        fn content_survives(content in proptest::collection::vec(0_u8..4, 100..5000), level in -5_i32..4) {
            let mut into = vec![0; content.len()];
            if let Some(len) = Compressor::new().unwrap().compress(level, &content, &mut into) {
                let mut back = vec![0; content.len()];
                Decompressor::new().unwrap().decompress(&into[..len], &mut back).unwrap();
                prop_assert_eq!(back, content);
            }
        }
    }
}
