//! Cutting a stream of bytes into frames.

use bytes::{Buf, BytesMut};

use super::{Frame, FrameError, HEADER_LEN, Header, LENGTH_LEN};

/// The bytes of a stream that no frame was made of yet.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    max: usize,
    failed: Option<FrameError>,
}

impl Decoder {
    /// `max` is the longest frame, in bytes with its length word.
    pub fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), max, failed: None }
    }

    /// From the next frame on.
    pub const fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Bytes that came and are no frame yet.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame; `None`: not all of it is there.
    ///
    /// # Errors
    /// What is no frame: from then on always the same, because where the next one would begin is
    /// not known.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        match self.failed {
            Some(error) => Err(error),
            None => self.cut().inspect_err(|error| {
                self.failed = Some(*error);
                self.buffer = BytesMut::new();
            }),
        }
    }

    fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(said) = self.buffer.first_chunk().copied().map(u32::from_be_bytes) else {
            return Ok(None);
        };
        let len = match usize::try_from(said) {
            Ok(len) if len > self.max => {
                return Err(FrameError::TooLong { len: said, max: self.max });
            }
            Ok(len) if len >= LENGTH_LEN + HEADER_LEN => len,
            _ => return Err(FrameError::TooShort { len: said }),
        };
        if self.buffer.len() < len {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(len);
        frame.advance(LENGTH_LEN);
        let header = Header::decode(std::array::from_fn(|_| frame.get_u32()))?;
        Ok(Some(Frame { header, payload: frame.freeze() }))
    }
}
