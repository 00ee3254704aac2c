//! Data frames over a stream.

use std::io;
use std::time::Duration;

use bytes::Buf;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use wire::data::{Frame, FrameError, HEAD_MAX, PREFIX_LEN, Parsed};

#[derive(Debug, Error)]
pub enum StreamError {
    #[error("the stream broke")]
    Io {
        #[source]
        cause: io::Error,
    },

    #[error("the other end broke the protocol")]
    Frame {
        #[source]
        cause: FrameError,
    },
}

impl From<io::Error> for StreamError {
    fn from(cause: io::Error) -> Self {
        Self::Io { cause }
    }
}

/// The reading half of a data stream. Payloads are read where they belong: who has got a frame
/// reads all of its payload before the next one.
pub struct FrameReader {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    held: Vec<u8>,
    /// Where the unread part of `held` begins.
    at: usize,
}

/// Room for a few heads; a payload mostly goes past it.
const READ_AHEAD: usize = 16 << 10;
const _: () = assert!(READ_AHEAD > PREFIX_LEN + HEAD_MAX, "the longest head fits");

impl FrameReader {
    pub fn new(stream: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), held: Vec::with_capacity(READ_AHEAD), at: 0 }
    }

    /// The next frame and the length of the payload that follows it. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Result<(Frame, u32), StreamError> {
        loop {
            let parsed = Frame::parse(&self.held[self.at..]);
            match parsed.map_err(|cause| StreamError::Frame { cause })? {
                Parsed::Frame { frame, used, payload_len } => {
                    self.at += used;
                    return Ok((frame, payload_len));
                }
                Parsed::Need(_) => {
                    self.held.drain(..self.at);
                    self.at = 0;
                    if self.stream.read_buf(&mut self.held).await? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
            }
        }
    }

    /// Fills `into` with payload; `None`: nothing came for as long as `silence`.
    pub async fn payload(
        &mut self,
        into: &mut [u8],
        silence: Duration,
    ) -> Result<Option<()>, StreamError> {
        let ahead = (self.held.len() - self.at).min(into.len());
        let (from_held, mut from_stream) = into.split_at_mut(ahead);
        from_held.copy_from_slice(&self.held[self.at..self.at + ahead]);
        self.at += ahead;
        while !from_stream.is_empty() {
            let Ok(read) = timeout(silence, self.stream.read(from_stream)).await else {
                return Ok(None);
            };
            match read? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => from_stream = &mut from_stream[read..],
            }
        }
        Ok(Some(()))
    }
}

/// The writing half of a data stream. What was written may stay in the stream's own buffer until
/// [`Self::flush`].
pub struct FrameWriter(Box<dyn AsyncWrite + Send + Unpin>);

impl FrameWriter {
    pub fn new(stream: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(stream))
    }

    /// Writes a frame with the whole of its payload.
    pub async fn write(&mut self, frame: &Frame, payload: &[u8]) -> io::Result<()> {
        self.begin(frame, payload.len(), payload).await
    }

    /// Writes a frame whose payload has `payload_len` bytes, and the first piece of it.
    pub async fn begin(
        &mut self,
        frame: &Frame,
        payload_len: usize,
        first: &[u8],
    ) -> io::Result<()> {
        let len = u32::try_from(payload_len).expect("a payload is at most 4 MiB");
        let head = frame.encode(len);
        self.0.write_all_buf(&mut Buf::chain(head.as_slice(), first)).await
    }

    /// Writes the next piece of a payload.
    pub async fn piece(&mut self, piece: &[u8]) -> io::Result<()> {
        self.0.write_all(piece).await
    }

    pub async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }

    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

/// Both halves of a stream.
pub fn halves<S>(stream: S) -> (FrameReader, FrameWriter)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    (FrameReader::new(reader), FrameWriter::new(writer))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use units::{BlockIndex, Digest, DiskNo};
    use wire::data::{Block, Content, Encoding};

    use super::*;

    #[tokio::test]
    async fn frames_and_payloads_come_through_a_pipe_of_any_width() {
        for width in [1, 7, 100_000] {
            let (here, there) = duplex(width);
            let (_, mut writer) = halves(here);
            let (mut reader, _) = halves(there);
            let content: Vec<u8> = (0_u32..70_000).map(|n| n.to_le_bytes()[0]).collect();
            let block = Frame::Block(Block {
                seq: 1,
                disk: DiskNo(0),
                block: BlockIndex(0),
                hash: Digest([7; 32]),
                content: Content::Full,
                encoding: Encoding::Raw,
                raw_len: 70_000,
            });
            let write = async {
                writer.write(&block, &content).await.unwrap();
                writer.write(&Frame::Ack { upto: 3 }, &[]).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let read = async {
                assert_eq!(reader.next().await.unwrap(), (block.clone(), 70_000));
                let mut got = vec![0; 70_000];
                reader.payload(&mut got, Duration::from_secs(60)).await.unwrap().unwrap();
                assert_eq!(got, content);
                assert_eq!(reader.next().await.unwrap(), (Frame::Ack { upto: 3 }, 0));
                assert!(matches!(reader.next().await, Err(StreamError::Io { .. })));
            };
            tokio::join!(write, read);
        }
    }
}
