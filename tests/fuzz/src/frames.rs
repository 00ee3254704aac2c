//! Bytes of a data stream, and of what is said before one: [`wire::data`], [`wire::purpose`].

use wire::data::{Frame, HEAD_MAX, PAYLOAD_MAX, PREFIX_LEN, Parsed};
use wire::purpose::{PURPOSE_MAX, Purpose};

use crate::memory::bounded;

pub fn check(bytes: &[u8]) {
    stream(bytes);
    purpose(bytes);
}

/// Frame after frame, as a stream is read.
fn stream(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        // A head, its texts or runs, and an error that quotes one.
        let parsed = bounded(8 * HEAD_MAX, || Frame::parse(rest));
        match parsed {
            Ok(Parsed::Frame { frame, used, payload_len }) => {
                assert!((PREFIX_LEN..=PREFIX_LEN + HEAD_MAX).contains(&used), "{used} bytes");
                assert!(payload_len <= PAYLOAD_MAX, "a payload of {payload_len} bytes");
                let head = &rest[..used];
                assert_eq!(frame.encode(payload_len), head, "another way to write {frame:?}");
                no_less_will_do(head);
                let alone = Frame::parse(head);
                assert_eq!(alone, Ok(Parsed::Frame { frame, used, payload_len }));
                let payload = usize::try_from(payload_len).expect("32 bits fit");
                rest = &rest[rest.len().min(used + payload)..];
            }
            Ok(Parsed::Need(needed)) => {
                assert!(needed > rest.len(), "{needed} bytes are there");
                assert!(needed <= PREFIX_LEN + HEAD_MAX, "waits for {needed} bytes");
                return;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                let with_more = [rest, &[0; 16]].concat();
                assert_eq!(Frame::parse(&with_more), Err(error), "what follows counts");
                return;
            }
        }
    }
}

/// A frame that was cut off is not there yet, and never another one.
fn no_less_will_do(head: &[u8]) {
    // Of long ones the two ends: each step costs as much as it is long.
    let cuts = (0..head.len()).filter(|cut| *cut < 64 || head.len() - cut < 8);
    for cut in cuts {
        match Frame::parse(&head[..cut]) {
            Ok(Parsed::Need(needed)) => assert!(cut < needed && needed <= head.len()),
            other => panic!("{cut} of {} bytes are {other:?}", head.len()),
        }
    }
}

fn purpose(bytes: &[u8]) {
    match bounded(4096, || Purpose::decode(bytes)) {
        Ok(Some((purpose, used))) => {
            assert_eq!(purpose.encode(), bytes[..used], "another way to write {purpose:?}");
            for cut in 0..used {
                assert_eq!(Purpose::decode(&bytes[..cut]), Ok(None));
            }
        }
        Ok(None) => assert!(bytes.len() <= usize::from(PURPOSE_MAX), "waits for more"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
