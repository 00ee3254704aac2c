//! The names in a boot image: archives one after the other, each plain or compressed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use thiserror::Error;

/// Larger images than this, unpacked, are not looked through. The largest ones seen, with every
/// firmware file of a distribution, are near 600 MiB.
const UNPACKED_MAX: u64 = 2 << 30;

/// The longest name in an archive; the kernel's own limit.
const NAME_MAX: u64 = 4096;

/// What `lz4 -l`, which Linux uses, puts into one block at most.
const LZ4_BLOCK_MAX: usize = 8 << 20;

/// Memory for the dictionary of xz: that of `xz -9`, and a little.
const XZ_MEMORY_MAX: u64 = 72 << 20;

const TRAILER: &str = "TRAILER!!!";

#[derive(Debug, Error)]
pub enum CpioError {
    #[error("cannot read the boot image")]
    Read(#[from] io::Error),
    #[error(
        "part {part} of the boot image is packed in a way that is not known here: {magic:02x?}"
    )]
    Packing { part: usize, magic: Vec<u8> },
    #[error("the boot image's archive is damaged: {what}")]
    Damaged { what: &'static str },
}

/// Calls `each` with the name of every file in the image.
pub fn names(path: &Path, mut each: impl FnMut(&str)) -> Result<(), CpioError> {
    let file = BufReader::with_capacity(256 << 10, File::open(path)?);
    names_in(file, &mut each)
}

fn names_in(mut image: impl BufRead, each: &mut impl FnMut(&str)) -> Result<(), CpioError> {
    for part in 0.. {
        if !skip_zeros(&mut image)? {
            return Ok(());
        }
        let magic: Vec<u8> = image.fill_buf()?.iter().take(6).copied().collect();
        match magic.as_slice() {
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2'] => archive(&mut image, each)?,
            [0x1f, 0x8b, ..] => archives(flate2::bufread::GzDecoder::new(&mut image), each)?,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let decoder = zstd::stream::read::Decoder::with_buffer(&mut image)?;
                archives(decoder.single_frame(), each)?;
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_MAX, 0)
                    .map_err(io::Error::other)?;
                archives(liblzma::bufread::XzDecoder::new_stream(&mut image, stream), each)?;
            }
            [0x02, 0x21, 0x4c, 0x18, ..] => archives(Lz4Legacy::new(&mut image)?, each)?,
            _ if part > 0 && magic.len() < 6 => return Ok(()),
            _ => return Err(CpioError::Packing { part, magic }),
        }
    }
    Ok(())
}

/// Every archive in what was packed together, to its end.
fn archives(packed: impl Read, each: &mut impl FnMut(&str)) -> Result<(), CpioError> {
    let mut unpacked = BufReader::with_capacity(256 << 10, packed.take(UNPACKED_MAX));
    while skip_zeros(&mut unpacked)? {
        archive(&mut unpacked, each)?;
    }
    Ok(())
}

/// One archive in the `newc` form, to its trailer.
fn archive(input: &mut impl Read, each: &mut impl FnMut(&str)) -> Result<(), CpioError> {
    loop {
        let mut header = [0; 110];
        input.read_exact(&mut header)?;
        if !header.starts_with(b"07070") {
            return Err(CpioError::Damaged { what: "a header without its magic number" });
        }
        let field = |at: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * at..14 + 8 * at]).ok()?;
            u64::from_str_radix(digits, 16).ok()
        };
        let (Some(file_len), Some(name_len)) = (field(6), field(11)) else {
            return Err(CpioError::Damaged { what: "a header with no numbers in it" });
        };
        if name_len == 0 || name_len > NAME_MAX {
            return Err(CpioError::Damaged { what: "a name of impossible length" });
        }
        // Header with name, and content, each end on a multiple of four.
        let mut name = Vec::new();
        input.by_ref().take(name_len).read_to_end(&mut name)?;
        skip(input, (110 + name_len).next_multiple_of(4) - 110 - name_len)?;
        let name = name.strip_suffix(b"\0").unwrap_or(&name);
        let name = String::from_utf8_lossy(name);
        if name == TRAILER {
            return Ok(());
        }
        each(&name);
        skip(input, file_len.next_multiple_of(4))?;
    }
}

fn skip(input: &mut impl Read, len: u64) -> Result<(), CpioError> {
    let skipped = io::copy(&mut input.take(len), &mut io::sink())?;
    if skipped < len {
        return Err(CpioError::Damaged { what: "it ends in the middle of a file" });
    }
    Ok(())
}

/// Skips padding between archives; false at the end.
fn skip_zeros(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(false);
        }
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        let more = zeros < buffer.len();
        input.consume(zeros);
        if more {
            return Ok(true);
        }
    }
}

/// The old LZ4 container: a magic number, then blocks, each behind its packed length. Nothing
/// marks its end but a length that cannot be one.
struct Lz4Legacy<R> {
    input: R,
    block: Vec<u8>,
    at: usize,
}

impl<R: BufRead> Lz4Legacy<R> {
    fn new(mut input: R) -> io::Result<Self> {
        input.consume(4);
        Ok(Self { input, block: Vec::new(), at: 0 })
    }

    fn next_block(&mut self) -> io::Result<bool> {
        let mut len = [0; 4];
        let head = self.input.fill_buf()?;
        // The length may lie across the end of the buffer; then it is taken from the stream.
        if head.is_empty() {
            return Ok(false);
        }
        if let Some(whole) = head.get(..4) {
            let packed = u32::from_le_bytes([whole[0], whole[1], whole[2], whole[3]]);
            if packed == 0 || usize::try_from(packed).is_ok_and(|len| len > LZ4_BLOCK_MAX + 65536) {
                return Ok(false);
            }
        }
        self.input.read_exact(&mut len)?;
        let packed = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
        if packed > LZ4_BLOCK_MAX + 65536 {
            return Ok(false);
        }
        let mut bytes = vec![0; packed];
        self.input.read_exact(&mut bytes)?;
        self.block.resize(LZ4_BLOCK_MAX, 0);
        let unpacked = lz4_flex::block::decompress_into(&bytes, &mut self.block)
            .map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))?;
        self.block.truncate(unpacked);
        self.at = 0;
        Ok(unpacked > 0)
    }
}

impl<R: BufRead> Read for Lz4Legacy<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() && !self.next_block()? {
            return Ok(0);
        }
        let rest = &self.block[self.at..];
        let len = rest.len().min(out.len());
        out[..len].copy_from_slice(&rest[..len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use proptest::prelude::*;

    use super::*;

    fn newc(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, content) in files.iter().copied().chain([(TRAILER, &b""[..])]) {
            let mut fields = [0_usize; 13];
            fields[6] = content.len();
            fields[11] = name.len() + 1;
            out.extend(b"070701");
            for field in fields {
                write!(out, "{field:08X}").unwrap();
            }
            out.extend(name.as_bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(content);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for chunk in bytes.chunks(LZ4_BLOCK_MAX) {
            let packed = lz4_flex::block::compress(chunk);
            out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            out.extend(packed);
        }
        out
    }

    fn list(image: &[u8]) -> Result<Vec<String>, CpioError> {
        let mut names = Vec::new();
        names_in(Cursor::new(image), &mut |name: &str| names.push(name.to_owned()))?;
        Ok(names)
    }

    #[test]
    fn every_packing_and_what_is_appended_behind_it_is_read() {
        let main = newc(&[("init", &[7; 100_001]), ("lib/a.ko", b"xyz")]);
        let packed =
            [main.clone(), gzip(&main), zstd::encode_all(&main[..], 1).unwrap(), xz(&main)];
        for main in packed {
            let mut image = newc(&[("kernel/x86/microcode/GenuineIntel.bin", b"m")]);
            image.extend(&main);
            image.resize(image.len().next_multiple_of(4), 0);
            image.extend(newc(&[("conf/modules", b"nvme\n")]));
            assert_eq!(
                list(&image).unwrap(),
                ["kernel/x86/microcode/GenuineIntel.bin", "init", "lib/a.ko", "conf/modules"],
                "packed as {:02x?}",
                &main[..4]
            );
        }
    }

    #[test]
    fn lz4_of_more_than_one_block_is_read() {
        let content: Vec<u8> = (0_u32..3 << 20).flat_map(u32::to_le_bytes).collect();
        let image = lz4(&newc(&[("big", &content), ("last", b"")]));
        assert_eq!(list(&image).unwrap(), ["big", "last"]);
    }

    #[test]
    fn a_packing_that_is_not_known_is_named_and_not_guessed() {
        assert!(matches!(list(b"BZh91AY&SY"), Err(CpioError::Packing { part: 0, .. })));
    }

    #[test]
    fn an_image_cut_short_is_an_error() {
        let image = newc(&[("init", &[7; 4096])]);
        assert!(list(&image[..1000]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0_usize..5) {
            let start: [&[u8]; 5] = [b"070701", &[0x1f, 0x8b, 8], &[0x28, 0xb5, 0x2f, 0xfd], &[0xfd, b'7', b'z', b'X', b'Z', 0], &[2, 0x21, 0x4c, 0x18]];
            let image = [start[kind], &bytes].concat();
            let _either = list(&image);
        }
    }
}
