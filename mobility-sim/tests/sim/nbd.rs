//! As much of NBD as a disk speaks that takes one write, and never says that it is done.

use std::io;

use site::ByteStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GREETING: &[u8; 18] = b"NBDMAGICIHAVEOPT\0\x03";
/// `NBD_OPT_GO`, with two bytes of data.
const GO: &[u8; 18] = b"IHAVEOPT\0\0\0\x07\0\0\0\x02ab";
/// Flags of the client's.
const FLAGS: [u8; 4] = [0, 0, 0, 3];
/// `NBD_INFO_EXPORT`: 1 MiB, which can be flushed.
const EXPORT: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0b101];

fn answer(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let numbers = [7, kind, len].map(u32::to_be_bytes).concat();
    [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &numbers, data].concat()
}

/// `NBD_CMD_WRITE`, of what is the last write that the disk then holds.
fn request(write: u64) -> Vec<u8> {
    let numbers = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1][..], &[7; 8], &[0; 8], &[0, 0, 0, 8]];
    [&numbers.concat()[..], &write.to_le_bytes()].concat()
}

/// The disk, until whoever writes has said all.
pub async fn takes(stream: &mut ByteStream) -> io::Result<u64> {
    stream.write_all(GREETING).await?;
    let mut asked = [0; FLAGS.len() + GO.len()];
    stream.read_exact(&mut asked).await?;
    assert_eq!(asked, *[&FLAGS[..], GO].concat());
    stream.write_all(&[answer(3, &EXPORT), answer(1, &[])].concat()).await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    let write = rest.last_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(u64::from_le_bytes(*write))
}

/// The hypervisor, until it hears that it is done.
pub async fn writes(stream: &mut ByteStream, write: u64) -> io::Result<()> {
    stream.read_exact(&mut [0; GREETING.len()]).await?;
    stream.write_all(&[&FLAGS[..], GO].concat()).await?;
    stream.read_exact(&mut vec![0; answer(3, &EXPORT).len() + answer(1, &[]).len()]).await?;
    stream.write_all(&request(write)).await?;
    let mut done = [0; 16];
    stream.read_exact(&mut done).await?;
    assert_eq!(done[8..], [7; 8]);
    stream.shutdown().await
}
