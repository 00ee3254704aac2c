//! Reading and writing the fields of a head.

use bytes::{Buf, BufMut};
use units::{Digest, DiskNo};

use super::frame::FrameError;

/// The fields of a head that are still to be read.
pub struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub fn u8(&mut self) -> Result<u8, FrameError> {
        self.0.try_get_u8().map_err(|_| FrameError::HeadTooShort)
    }

    pub fn u16(&mut self) -> Result<u16, FrameError> {
        self.0.try_get_u16_le().map_err(|_| FrameError::HeadTooShort)
    }

    pub fn u32(&mut self) -> Result<u32, FrameError> {
        self.0.try_get_u32_le().map_err(|_| FrameError::HeadTooShort)
    }

    pub fn u64(&mut self) -> Result<u64, FrameError> {
        self.0.try_get_u64_le().map_err(|_| FrameError::HeadTooShort)
    }

    pub fn disk(&mut self) -> Result<DiskNo, FrameError> {
        self.u16().map(DiskNo)
    }

    pub fn digest(&mut self) -> Result<Digest, FrameError> {
        let mut digest = [0; 32];
        self.0.try_copy_to_slice(&mut digest).map_err(|_| FrameError::HeadTooShort)?;
        Ok(Digest(digest))
    }

    /// Text with its length before it, of at most `max` bytes.
    pub fn text(&mut self, max: usize) -> Result<String, FrameError> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(FrameError::TextTooLong { len });
        }
        let (text, rest) = self.0.split_at_checked(len).ok_or(FrameError::HeadTooShort)?;
        self.0 = rest;
        str::from_utf8(text).map(str::to_owned).map_err(|_| FrameError::TextNotUtf8)
    }

    /// Every byte of a head means something.
    pub const fn end(&self) -> Result<(), FrameError> {
        if self.0.is_empty() { Ok(()) } else { Err(FrameError::HeadTooLong) }
    }
}

/// Text with its length before it, cut at `max` bytes.
pub fn put_text(out: &mut Vec<u8>, text: &str, max: usize) {
    let text = &text[..text.floor_char_boundary(max)];
    out.put_u16_le(u16::try_from(text.len()).expect("limits of texts are below 64 KiB"));
    out.put_slice(text.as_bytes());
}
