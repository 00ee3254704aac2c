use proptest::collection::vec;
use proptest::prelude::*;
use units::{BlockIndex, BlockSize, Bytes, Digest, DiskNo};

use super::*;

/// Frames as the first release wrote them. Never edited: a new layout is a new version with its
/// own bytes.
const V1: &[(&str, u32, &str)] = &[
    ("hello", 0, "0100120000000000010002007731070000000000000002000400"),
    ("hello_ack", 0, "02001400000000000100070000000000000002000000400000000000"),
    (
        "full",
        262144,
        "0300380000000400050000000000000001000900000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa010100000400",
    ),
    (
        "full_zstd",
        1000,
        "03003800e8030000050000000000000001000900000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa010200000400",
    ),
    (
        "zero",
        0,
        "0300380000000000050000000000000001000900000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa020100000000",
    ),
    (
        "patch",
        12288,
        "0300400000300000050000000000000001000900000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa030100300000010002003f000100",
    ),
    ("credit", 0, "040010000000000000100000000000000020000000000000"),
    ("ack", 0, "05000800000000000900000000000000"),
    ("nack", 0, "0600090000000000090000000000000001"),
    ("flush", 0, "07000800000000000300000000000000"),
    ("flushed", 0, "08000800000000000300000000000000"),
    ("table_query", 0, "09000200000000000100"),
    (
        "table",
        128,
        "0a00320080000000010000000040000000000000040000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ),
    ("span_query", 0, "0b000a000000000001000300000000000000"),
    ("span", 32768, "0c000a000080000001000300000000000000"),
    ("error", 0, "0d0007000000000005040066756c6c"),
    ("bye", 0, "0e00000000000000"),
    ("alive", 0, "0f00000000000000"),
];

fn samples() -> Vec<(&'static str, Frame, u32)> {
    let block_size = BlockSize::MIN;
    let hash = Digest([0xaa; 32]);
    let block = |content, encoding, raw_len| {
        Frame::Block(Block {
            seq: 5,
            disk: DiskNo(1),
            block: BlockIndex(9),
            hash,
            content,
            encoding,
            raw_len,
        })
    };
    let runs = vec![PageRun { first: 1, count: 2 }, PageRun { first: 63, count: 1 }];
    vec![
        (
            "hello",
            Frame::Hello {
                version: 1,
                migration: "w1".parse().unwrap(),
                generation: 7,
                stream: 2,
                streams: 4,
            },
            0,
        ),
        (
            "hello_ack",
            Frame::HelloAck { version: 1, generation: 7, stream: 2, credit: Bytes(4 << 20) },
            0,
        ),
        ("full", block(Content::Full, Encoding::Raw, 262_144), 262_144),
        ("full_zstd", block(Content::Full, Encoding::Zstd, 262_144), 1000),
        ("zero", block(Content::Zero, Encoding::Raw, 0), 0),
        ("patch", block(Content::Patch(runs), Encoding::Raw, 3 * 4096), 3 * 4096),
        ("credit", Frame::Credit { bytes: Bytes(4096), waiting: Bytes(8192) }, 0),
        ("ack", Frame::Ack { upto: 9 }, 0),
        ("nack", Frame::Nack { seq: 9, reason: NackReason::HashMismatch }, 0),
        ("flush", Frame::Flush { token: 3 }, 0),
        ("flushed", Frame::Flushed { token: 3 }, 0),
        ("table_query", Frame::TableQuery { disk: DiskNo(1) }, 0),
        (
            "table",
            Frame::Table { disk: DiskNo(1), size: Bytes(1 << 30), block_size, root: hash },
            128,
        ),
        ("span_query", Frame::SpanQuery { disk: DiskNo(1), span: 3 }, 0),
        ("span", Frame::Span { disk: DiskNo(1), span: 3 }, 32 * 1024),
        ("error", Frame::Error { code: ErrorCode::Target, text: "full".to_owned() }, 0),
        ("bye", Frame::Bye, 0),
        ("alive", Frame::Alive, 0),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn v1_frames_are_written_and_read_as_released() {
    let written: Vec<(&str, u32, String)> = samples()
        .iter()
        .map(|(name, frame, len)| (*name, *len, hex(&frame.encode(*len))))
        .collect();
    let released: Vec<(&str, u32, String)> =
        V1.iter().map(|(name, len, hex)| (*name, *len, (*hex).to_owned())).collect();
    assert_eq!(written, released);
    for (name, frame, payload_len) in samples() {
        let bytes = frame.encode(payload_len);
        let used = bytes.len();
        assert_eq!(Frame::parse(&bytes), Ok(Parsed::Frame { frame, used, payload_len }), "{name}");
    }
}

#[test]
fn lengths_over_their_limit_are_refused_before_they_are_used() {
    let head = [3, 0, 1, 9, 0, 0, 0, 0];
    assert_eq!(Frame::parse(&head), Err(FrameError::HeadLimit { len: 2305 }));
    let payload = [3, 0, 0, 0, 1, 0, 64, 0];
    let limit = PAYLOAD_MAX;
    assert_eq!(Frame::parse(&payload), Err(FrameError::PayloadLimit { len: limit + 1, limit }));
    let ack_with_payload = [5, 0, 8, 0, 1, 0, 0, 0];
    assert_eq!(Frame::parse(&ack_with_payload), Err(FrameError::PayloadLimit { len: 1, limit: 0 }));
}

#[test]
fn tag_zero_and_tags_to_come_are_refused() {
    for tag in [0, 16, 255] {
        let bytes = [tag, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Frame::parse(&bytes), Err(FrameError::UnknownFrame { tag }));
    }
}

#[test]
fn a_head_with_bytes_to_spare_is_refused() {
    let mut bytes = Frame::Ack { upto: 1 }.encode(0);
    bytes.push(0);
    bytes[2] += 1;
    assert_eq!(Frame::parse(&bytes), Err(FrameError::HeadTooLong));
}

fn block_with(
    content: Content,
    encoding: Encoding,
    raw_len: u32,
    payload_len: u32,
) -> Result<Parsed, FrameError> {
    let block = Block {
        seq: 1,
        disk: DiskNo(0),
        block: BlockIndex(0),
        hash: UNKNOWN,
        content,
        encoding,
        raw_len,
    };
    Frame::parse(&Frame::Block(block).encode(payload_len))
}

#[test]
fn a_block_whose_lengths_contradict_each_other_is_refused() {
    let run = |first, count| PageRun { first, count };
    let one_page = || Content::Patch(vec![run(3, 1)]);
    for (content, encoding, raw_len, payload_len) in [
        (Content::Full, Encoding::Raw, 10, 11),
        (Content::Full, Encoding::Raw, 0, 0),
        (Content::Full, Encoding::Zstd, 10, 10),
        (Content::Full, Encoding::Zstd, 10, 0),
        (Content::Zero, Encoding::Raw, 1, 1),
        (Content::Zero, Encoding::Zstd, 1, 0),
        (Content::Full, Encoding::Zstd, PAYLOAD_MAX + 1, 10),
        (one_page(), Encoding::Raw, 4097, 4097),
        (one_page(), Encoding::Raw, 0, 0),
    ] {
        let refused = Err(FrameError::BlockLengths { raw_len, payload_len });
        assert_eq!(block_with(content, encoding, raw_len, payload_len), refused);
    }
    for runs in [
        vec![],
        vec![run(0, 0)],
        vec![run(4, 1), run(2, 1)],
        vec![run(0, 2), run(1, 1)],
        vec![run(0, 1), run(1, 1)],
        vec![run(1023, 2)],
        vec![run(u16::MAX, u16::MAX)],
    ] {
        let refused = block_with(Content::Patch(runs.clone()), Encoding::Raw, 4096, 4096);
        assert_eq!(refused, Err(FrameError::Runs), "{runs:?}");
    }
}

#[test]
fn credit_costs_the_memory_that_holds_a_payload() {
    assert_eq!(credit_cost(0), 4096);
    assert_eq!(credit_cost(4097), 8192);
    assert_eq!(credit_cost(PAYLOAD_MAX), u64::from(PAYLOAD_MAX));
}

#[test]
fn the_longest_patch_fits_the_longest_head() {
    let runs: Vec<PageRun> = (0..512).map(|i| PageRun { first: 2 * i, count: 1 }).collect();
    let parsed = block_with(Content::Patch(runs), Encoding::Raw, 512 * 4096, 512 * 4096);
    assert!(matches!(parsed, Ok(Parsed::Frame { .. })), "{parsed:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = Frame::parse(&bytes);
    }

    #[test]
    fn no_head_behind_a_valid_prefix_makes_the_parser_panic(tag in 1_u8..=15, payload in 0_u32..70_000, head in vec(any::<u8>(), 0..200)) {
        let len = u16::try_from(head.len()).unwrap().to_le_bytes();
        let bytes = [&[tag, 0, len[0], len[1]][..], &payload.to_le_bytes(), &head].concat();
        let _ = Frame::parse(&bytes);
    }

    #[test]
    fn frames_do_not_depend_on_how_the_stream_was_cut(which in 0_usize..18, cut in 0_usize..200, tail in vec(any::<u8>(), 0..20)) {
        let (_, frame, payload_len) = samples().swap_remove(which);
        let bytes = frame.encode(payload_len);
        if cut < bytes.len() {
            let parsed = Frame::parse(&bytes[..cut]);
            let Ok(Parsed::Need(needed)) = parsed else { panic!("{parsed:?}") };
            prop_assert!(cut < needed && needed <= bytes.len());
        }
        let used = bytes.len();
        let with_tail = [&bytes[..], &tail].concat();
        prop_assert_eq!(Frame::parse(&with_tail), Ok(Parsed::Frame { frame, used, payload_len }));
    }

    #[test]
    fn an_errors_text_is_cut_not_refused(text in ".{0,2000}") {
        let bytes = Frame::Error { code: ErrorCode::Protocol, text: text.clone() }.encode(0);
        let Ok(Parsed::Frame { frame: Frame::Error { text: read, .. }, .. }) = Frame::parse(&bytes) else {
            panic!("an error reads back");
        };
        prop_assert!(text.starts_with(&read) && (read == text || read.len() > TEXT_MAX - 4));
    }
}
