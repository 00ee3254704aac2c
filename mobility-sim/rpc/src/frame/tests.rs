use bytes::Bytes;

use super::*;

fn ask(payload: &'static [u8]) -> Frame {
    let header = Header {
        program: Program::Remote,
        procedure: 60,
        kind: Kind::Call,
        serial: 7,
        status: Status::Ok,
    };
    Frame { header, payload: Bytes::from_static(payload) }
}

/// A frame with one word of its header replaced; word 0 is the length.
fn with_word(at: usize, word: u32) -> Result<Option<Frame>, FrameError> {
    let mut bytes = ask(b"\0\0\0\x0a").encode();
    bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_be_bytes());
    let mut decoder = Decoder::new(FRAME_MAX_BEFORE_OPEN);
    decoder.push(&bytes);
    decoder.next_frame()
}

#[test]
fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
    let (first, second) = (ask(b"\0\0\0\x0a"), ask(b""));
    let stream = [first.encode(), second.encode()].concat();
    for size in 1..=stream.len() {
        let mut decoder = Decoder::new(FRAME_MAX_BEFORE_OPEN);
        let mut frames = vec![];
        for piece in stream.chunks(size) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        assert_eq!(frames, [first.clone(), second.clone()]);
        assert_eq!(decoder.held(), 0);
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_when_its_four_bytes_are_there() {
    let max = FRAME_MAX_BEFORE_OPEN;
    let mut decoder = Decoder::new(max);
    let len = u32::try_from(max).unwrap() + 1;
    decoder.push(&len.to_be_bytes()[..3]);
    assert_eq!(decoder.next_frame(), Ok(None));
    decoder.push(&len.to_be_bytes()[3..]);
    assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { len, max }));
    decoder.push(&ask(b"").encode());
    let again = decoder.next_frame();
    assert_eq!(again, Err(FrameError::TooLong { len, max }), "nobody knows where the next begins");
    for len in [0, 27] {
        assert_eq!(with_word(0, len), Err(FrameError::TooShort { len }));
    }
}

#[test]
fn unknown_numbers_are_errors_that_name_them() {
    let unknown = FrameError::UnknownProgram { program: 0x2000_8088, version: 1 };
    assert_eq!(with_word(1, 0x2000_8088), Err(unknown));
    assert_eq!(unknown.to_string(), "unknown program 0x20008088 in version 1");
    let program = 0x2000_8086;
    assert_eq!(with_word(2, 2), Err(FrameError::UnknownProgram { program, version: 2 }));
    assert_eq!(with_word(4, 7), Err(FrameError::UnknownKind { kind: 7 }));
    assert_eq!(with_word(6, 3), Err(FrameError::UnknownStatus { status: 3 }));
    for kind in [4, 5] {
        assert_eq!(with_word(4, kind), Err(FrameError::CarriesDescriptors { kind }));
    }
    for known in [0, 1, 2, 3, 6] {
        assert_eq!(with_word(4, known).map(|frame| frame.is_some()), Ok(true));
    }
}
