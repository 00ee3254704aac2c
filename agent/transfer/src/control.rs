//! Control messages over a stream: [`wire::control::frame`] for both ends.

use std::io;

use bytes::{Buf as _, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use wire::control::frame::{self, ControlFrameError};

#[derive(Debug, Error)]
pub enum ControlError {
    #[error("the control stream broke")]
    Io {
        #[source]
        cause: io::Error,
    },

    #[error("the other end broke the control protocol")]
    Frame {
        #[source]
        cause: ControlFrameError,
    },
}

/// Writes one message and flushes.
pub async fn write<T, W>(writer: &mut W, message: &T) -> Result<(), ControlError>
where
    T: Serialize,
    W: AsyncWrite + Unpin,
{
    let bytes = frame::encode(message).map_err(|cause| ControlError::Frame { cause })?;
    let write = async {
        writer.write_all(&bytes).await?;
        writer.flush().await
    };
    write.await.map_err(|cause| ControlError::Io { cause })
}

/// The reading half of a control stream.
#[derive(Debug)]
pub struct ControlReader<R> {
    reader: R,
    held: BytesMut,
}

impl<R: AsyncRead + Unpin> ControlReader<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, held: BytesMut::new() }
    }

    /// The next message; `None` when the other end has ended the stream between two messages.
    /// Dropping the future loses nothing.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        loop {
            let decoded = frame::decode(&self.held);
            if let Some((message, used)) = decoded.map_err(|cause| ControlError::Frame { cause })? {
                self.held.advance(used);
                return Ok(Some(message));
            }
            self.held.reserve(4096);
            let read = self.reader.read_buf(&mut self.held).await;
            match read.map_err(|cause| ControlError::Io { cause })? {
                0 if self.held.is_empty() => return Ok(None),
                0 => return Err(ControlError::Io { cause: io::ErrorKind::UnexpectedEof.into() }),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use wire::control::{Call, Request};

    use super::*;

    #[tokio::test]
    async fn messages_come_through_a_pipe_of_three_bytes() {
        let (mut here, there) = duplex(3);
        let mut reader = ControlReader::new(there);
        let sent =
            [Call { id: 1, request: Request::Status }, Call { id: 2, request: Request::Digests }];
        let write_both = async {
            for call in &sent {
                write(&mut here, call).await.unwrap();
            }
            drop(here);
        };
        let read_both = async {
            for call in &sent {
                assert_eq!(reader.next().await.unwrap().as_ref(), Some(call));
            }
            assert!(reader.next::<Call>().await.unwrap().is_none());
        };
        tokio::join!(write_both, read_both);
    }

    #[tokio::test]
    async fn a_stream_cut_in_a_message_is_an_error() {
        let (mut here, there) = duplex(64);
        here.write_all(&[9, 0, 0, 0, b'{']).await.unwrap();
        drop(here);
        let cut = ControlReader::new(there).next::<Call>().await;
        assert!(matches!(cut, Err(ControlError::Io { .. })));
    }
}
