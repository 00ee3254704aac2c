//! Reading, with budgets.

use thiserror::Error;

use super::DEPTH_MAX;

/// What is left of a payload.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    depth: u8,
}

/// Why a payload is not what it should be. `what` is the field that was being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum XdrError {
    #[error("{what} wants {wanted} bytes, {left} are left")]
    TooShort { what: &'static str, wanted: u64, left: usize },

    #[error("{left} bytes are left over")]
    TooLong { left: usize },

    #[error("{what} is {len} bytes long, {max} are allowed")]
    Length { what: &'static str, len: u32, max: usize },

    #[error("{what} has {count} elements, {max} are allowed")]
    Count { what: &'static str, count: u32, max: usize },

    #[error("{what} is padded with something else than zeros")]
    Padding { what: &'static str },

    #[error("{what} is not UTF-8")]
    NotUtf8 { what: &'static str },

    #[error("{what} holds a NUL")]
    Nul { what: &'static str },

    #[error("{what} is {found}, neither 0 nor 1")]
    NotBoolean { what: &'static str, found: u32 },

    #[error("{what} may not be {found}")]
    Value { what: &'static str, found: u32 },

    #[error("{what} lies deeper than {DEPTH_MAX} levels")]
    Depth { what: &'static str },
}

impl<'a> Reader<'a> {
    pub const fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload, depth: 0 }
    }

    /// How many bytes are left.
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// Every byte of a payload means something.
    pub const fn end(&self) -> Result<(), XdrError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(XdrError::TooLong { left }),
        }
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, XdrError> {
        self.take(what).map(u32::from_be_bytes)
    }

    pub fn i32(&mut self, what: &'static str) -> Result<i32, XdrError> {
        self.take(what).map(i32::from_be_bytes)
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, XdrError> {
        self.take(what).map(u64::from_be_bytes)
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64, XdrError> {
        self.take(what).map(i64::from_be_bytes)
    }

    pub fn f64(&mut self, what: &'static str) -> Result<f64, XdrError> {
        self.take(what).map(f64::from_be_bytes)
    }

    pub fn bool(&mut self, what: &'static str) -> Result<bool, XdrError> {
        match self.u32(what)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(XdrError::NotBoolean { what, found }),
        }
    }

    /// Bytes whose number both ends know; a multiple of four, so there is no padding.
    pub fn fixed<const LEN: usize>(&mut self, what: &'static str) -> Result<[u8; LEN], XdrError> {
        const { assert!(LEN.is_multiple_of(4)) };
        self.take(what)
    }

    /// At most `max` bytes.
    pub fn opaque(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], XdrError> {
        let said = self.u32(what)?;
        let len = match usize::try_from(said) {
            Ok(len) if len <= max => len,
            _ => return Err(XdrError::Length { what, len: said, max }),
        };
        let padded = u64::from(said).next_multiple_of(4);
        let left = self.left();
        let short = XdrError::TooShort { what, wanted: padded, left };
        let padded = usize::try_from(padded).map_err(|_| short)?;
        let (field, rest) = self.rest.split_at_checked(padded).ok_or(short)?;
        self.rest = rest;
        let (bytes, padding) = field.split_at(len);
        if padding.iter().any(|byte| *byte != 0) {
            return Err(XdrError::Padding { what });
        }
        Ok(bytes)
    }

    /// UTF-8 of at most `max` bytes, without a NUL: libvirt's texts are C strings, and what comes
    /// after a NUL would be there for one reader and not for the other.
    pub fn text(&mut self, what: &'static str, max: usize) -> Result<&'a str, XdrError> {
        let bytes = self.opaque(what, max)?;
        let text = str::from_utf8(bytes).map_err(|_| XdrError::NotUtf8 { what })?;
        if text.contains('\0') { Err(XdrError::Nul { what }) } else { Ok(text) }
    }

    /// A value that may be missing.
    pub fn optional<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, XdrError>,
    ) -> Result<Option<T>, XdrError> {
        if self.bool(what)? { self.below(what, read).map(Some) } else { Ok(None) }
    }

    /// At most `max` elements, none of which is written in less than `least` bytes.
    ///
    /// # Panics
    /// If `least` is 0: elements that take no bytes could be as many as one likes.
    pub fn list<T>(
        &mut self,
        what: &'static str,
        max: usize,
        least: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, XdrError>,
    ) -> Result<Vec<T>, XdrError> {
        assert!(least > 0, "an element of {what} takes bytes");
        let said = self.u32(what)?;
        let count = match usize::try_from(said) {
            Ok(count) if count <= max => count,
            _ => return Err(XdrError::Count { what, count: said, max }),
        };
        let left = self.left();
        if count.checked_mul(least).is_none_or(|wanted| wanted > left) {
            let wanted = u64::from(said).saturating_mul(u64::try_from(least).unwrap_or(u64::MAX));
            return Err(XdrError::TooShort { what, wanted, left });
        }
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(self.below(what, &mut read)?);
        }
        Ok(list)
    }

    fn below<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, XdrError>,
    ) -> Result<T, XdrError> {
        if self.depth == DEPTH_MAX {
            return Err(XdrError::Depth { what });
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn take<const LEN: usize>(&mut self, what: &'static str) -> Result<[u8; LEN], XdrError> {
        let Some((bytes, rest)) = self.rest.split_first_chunk() else {
            let wanted = const { LEN as u64 };
            return Err(XdrError::TooShort { what, wanted, left: self.left() });
        };
        self.rest = rest;
        Ok(*bytes)
    }
}
