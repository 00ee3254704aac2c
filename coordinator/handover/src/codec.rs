//! The one encoding of receipts and ledger records: integers little-endian, every variable part
//! with its length in front, nothing optional in the layout. What is decoded encodes to the same
//! bytes again, so that a signature over it has one meaning.

use thiserror::Error;
use units::Digest;

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("it ends too early")]
    Short,
    #[error("{extra} bytes follow its end")]
    Trailing { extra: usize },
    #[error("{what} has the unknown tag {tag}")]
    Tag { what: &'static str, tag: u16 },
    #[error("{what} is {len} long, more than the limit of {limit}")]
    TooLong { what: &'static str, len: usize, limit: usize },
    #[error("{what} is empty")]
    Empty { what: &'static str },
    #[error("{what} is not valid text")]
    Text { what: &'static str },
    #[error("it has version {found}, this program reads version 1")]
    Version { found: u8 },
}

#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(&mut self, n: u8) {
        self.0.push(n);
    }

    pub fn u64(&mut self, n: u64) {
        self.0.extend(n.to_le_bytes());
    }

    pub fn array<const N: usize>(&mut self, bytes: &[u8; N]) {
        self.0.extend(bytes);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("every variable part has a limit below 1 MiB");
        self.0.extend(len.to_le_bytes());
        self.0.extend(bytes);
    }

    pub fn digests(&mut self, digests: &[Digest]) {
        let len = u32::try_from(digests.len()).expect("a VM has at most 256 disks");
        self.0.extend(len.to_le_bytes());
        digests.iter().for_each(|digest| self.array(&digest.0));
    }
}

pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*array)
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[n]| n)
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length, checked against its limit before anything is done with it.
    fn len(&mut self, what: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let len = usize::try_from(u32::from_le_bytes(self.array()?)).unwrap_or(usize::MAX);
        if len > limit { Err(DecodeError::TooLong { what, len, limit }) } else { Ok(len) }
    }

    pub fn bytes(&mut self, what: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.len(what, limit)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub fn text(&mut self, what: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what, limit)?).map_err(|_| DecodeError::Text { what })
    }

    pub fn digests(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<Vec<Digest>, DecodeError> {
        let len = self.len(what, limit)?;
        (0..len).map(|_| self.array().map(Digest)).collect()
    }

    pub fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { extra: self.0.len() }) }
    }
}
