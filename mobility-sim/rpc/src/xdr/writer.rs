//! Writing. What is written can be read by [`Reader`](super::Reader) with the same limits.

use bytes::BufMut;

/// A payload that is being written.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub fn into_payload(self) -> Vec<u8> {
        self.0
    }

    pub fn u32(&mut self, value: u32) {
        self.0.put_u32(value);
    }

    pub fn i32(&mut self, value: i32) {
        self.0.put_i32(value);
    }

    pub fn u64(&mut self, value: u64) {
        self.0.put_u64(value);
    }

    pub fn i64(&mut self, value: i64) {
        self.0.put_i64(value);
    }

    pub fn f64(&mut self, value: f64) {
        self.0.put_f64(value);
    }

    pub fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// Bytes whose number both ends know.
    pub fn fixed<const LEN: usize>(&mut self, bytes: &[u8; LEN]) {
        const { assert!(LEN.is_multiple_of(4)) };
        self.0.put_slice(bytes);
    }

    /// # Panics
    /// If there are 4 GiB or more. Whoever hands bytes in keeps to the field's limit; the other
    /// end refuses what is beyond.
    pub fn opaque(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("limits of fields are far below 4 GiB"));
        self.0.put_slice(bytes);
        self.0.put_bytes(0, bytes.len().next_multiple_of(4) - bytes.len());
    }

    pub fn text(&mut self, text: &str) {
        self.opaque(text.as_bytes());
    }

    pub fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub fn optional_text(&mut self, text: Option<&str>) {
        self.optional(text, Self::text);
    }

    /// # Panics
    /// As for [`Writer::opaque`].
    pub fn list<T>(&mut self, list: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u32(u32::try_from(list.len()).expect("limits of lists are far below 4 Gi"));
        for element in list {
            write(self, element);
        }
    }
}
