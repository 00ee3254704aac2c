//! Byte streams that adapters hand out.

use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways. Dropping it closes it.
pub trait ByteIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteIo for T {}

pub type ByteStream = Box<dyn ByteIo>;
