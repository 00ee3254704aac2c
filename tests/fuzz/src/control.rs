//! Bytes of a control stream: [`wire::control`], and [`transfer::control`] that reads it in pieces.

use std::fmt::Debug;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, ReadBuf};
use transfer::control::{ControlError, ControlReader};
use wire::control::frame::{ControlFrameError, decode, encode};
use wire::control::{CONTROL_MAX, Call, Message};

use crate::memory::bounded;

/// Both directions, because nobody knows beforehand whose bytes these are.
pub fn check(bytes: &[u8]) {
    stream::<Call>(bytes);
    stream::<Message>(bytes);
}

fn stream<T>(bytes: &[u8])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut rest = bytes;
    let mut messages = Vec::new();
    let ended = loop {
        // Lists grow by doubling, and a string of two bytes costs 24.
        match bounded(64 * rest.len() + (64 << 10), || decode::<T>(rest)) {
            Ok(Some((message, used))) => {
                assert!((5..=4 + CONTROL_MAX).contains(&used), "{used} bytes");
                for cut in [0, 3, 4, used / 2, used - 1] {
                    assert!(matches!(decode::<T>(&rest[..cut]), Ok(None)), "{cut} of {used}");
                }
                says_the_same(&message);
                messages.push(message);
                rest = &rest[used..];
            }
            Ok(None) => {
                let announced = rest.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
                assert!(announced as usize <= CONTROL_MAX, "waits for {announced} bytes");
                break if rest.is_empty() { Ended::Orderly } else { Ended::Cut };
            }
            Err(error) => {
                says_why(&error);
                break Ended::Broken;
            }
        }
    };
    for piece in [1, 7, usize::MAX] {
        in_pieces(bytes, piece, &messages, ended);
    }
}

/// Written and read again it is what it was, and written once more it is the same bytes.
fn says_the_same<T>(message: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    match encode(message) {
        Ok(bytes) => {
            let (again, used) = decode::<T>(&bytes).expect("ours").expect("all of it");
            assert_eq!(used, bytes.len());
            assert_eq!(&again, message);
            assert_eq!(encode(&again).expect("it was written before"), bytes);
        }
        // What was left out is spelt out, so it can become longer than it was.
        Err(error) => assert!(matches!(error, ControlFrameError::TooLong { .. }), "{error}"),
    }
}

fn says_why(error: &ControlFrameError) {
    match error {
        // Mostly with line and column; of a word where more belongs there are none.
        ControlFrameError::Json { cause } => assert!(!cause.to_string().is_empty()),
        ControlFrameError::TooLong { len } => assert!(*len > CONTROL_MAX),
        ControlFrameError::Empty => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// Between two messages.
    Orderly,
    /// Within one.
    Cut,
    Broken,
}

/// The reader finds the same messages and the same end, however the stream comes.
fn in_pieces<T>(bytes: &[u8], piece: usize, expected: &[T], end: Ended)
where
    T: DeserializeOwned + PartialEq + Debug,
{
    let mut reader = ControlReader::new(Pieces { bytes, piece });
    for message in expected {
        assert_eq!(at_once(reader.next::<T>()).expect("as before").as_ref(), Some(message));
    }
    let ended = match at_once(reader.next::<T>()) {
        Ok(None) => Ended::Orderly,
        Err(ControlError::Io { .. }) => Ended::Cut,
        Err(ControlError::Frame { .. }) => Ended::Broken,
        Ok(Some(message)) => panic!("{message:?} comes of reading in pieces"),
    };
    assert_eq!(ended, end);
}

/// A stream of which so much at most is read at a time.
struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.piece.min(self.bytes.len()).min(into.remaining());
        let (piece, rest) = self.bytes.split_at(len);
        into.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

/// The result of what never waits.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits for what is there"),
    }
}
