//! Peers that lie. Each end is spoken to by hand.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::watch;
use transfer::{Holds, Receiver, ReceiverError, RoundOptions, Sender, SenderError, SenderLimits};
use units::{BlockIndex, BlockSize, Bytes, Digest, DiskNo};
use wire::data::{Block, Content, Encoding, ErrorCode, Frame, NackReason, PageRun, Parsed};

use crate::world::disk::{Marks, MemoryDisk};
use crate::world::{self, BLOCK, migration};

fn hello(generation: u64) -> Frame {
    Frame::Hello { version: 1, migration: migration(), generation, stream: 0, streams: 1 }
}

fn block(seq: u64, block: u64, content: &[u8]) -> Block {
    Block {
        seq,
        disk: DiskNo(0),
        block: BlockIndex(block),
        hash: Digest(blake3::hash(content).into()),
        content: Content::Full,
        encoding: Encoding::Raw,
        raw_len: u32::try_from(content.len()).unwrap(),
    }
}

fn encode(frame: &Frame, payload: &[u8]) -> Vec<u8> {
    [frame.encode(u32::try_from(payload.len()).unwrap()), payload.to_vec()].concat()
}

/// The next frame from the other end, without its payload.
async fn read_frame(stream: &mut DuplexStream) -> Option<Frame> {
    let mut held = Vec::new();
    loop {
        match Frame::parse(&held).unwrap() {
            Parsed::Frame { frame, payload_len, .. } => {
                let mut payload = vec![0; usize::try_from(payload_len).unwrap()];
                stream.read_exact(&mut payload).await.ok()?;
                return Some(frame);
            }
            Parsed::Need(needed) => {
                let mut more = vec![0; needed - held.len()];
                stream.read_exact(&mut more).await.ok()?;
                held.extend(more);
            }
        }
    }
}

/// A receiver of one target of `3 * BLOCK + 100` bytes, the last word it said to a sender that
/// sent this, and its own error. The target is untouched, whatever was sent.
async fn tell_receiver(frames: &[(Frame, Vec<u8>)]) -> (Option<Frame>, ReceiverError) {
    let bytes: Vec<u8> =
        frames.iter().flat_map(|(frame, payload)| encode(frame, payload)).collect();
    tell_receiver_bytes(&bytes).await
}

async fn tell_receiver_bytes(bytes: &[u8]) -> (Option<Frame>, ReceiverError) {
    let target = Arc::new(MemoryDisk::zeros(3 * BLOCK + 100));
    let disks = world::target_disks(&[Arc::clone(&target)], Holds::Zeros);
    let receiver = Receiver::new(migration(), disks, world::small_limits()).unwrap();
    let (mut here, there) = duplex(4 << 20);
    here.write_all(bytes).await.unwrap();
    let serving = tokio::spawn(async move {
        let served = receiver.serve(there).await;
        receiver.disconnect().await;
        served
    });
    let mut last = None;
    while let Some(frame) = read_frame(&mut here).await {
        last = Some(frame);
    }
    let served = serving.await.unwrap();
    assert!(target.content().iter().all(|byte| *byte == 0), "something was written");
    (last, served.unwrap_err())
}

async fn assert_cut_off(frames: &[(Frame, Vec<u8>)], expected: ErrorCode) {
    let (last, error) = tell_receiver(frames).await;
    assert!(
        matches!(&last, Some(Frame::Error { code, .. }) if *code == expected),
        "{last:?}, {error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_that_is_none_is_refused() {
    let other = Frame::Hello {
        version: 1,
        migration: "other".parse().unwrap(),
        generation: 1,
        stream: 0,
        streams: 1,
    };
    let old =
        Frame::Hello { version: 0, migration: migration(), generation: 1, stream: 0, streams: 1 };
    assert_cut_off(&[(Frame::Alive, vec![])], ErrorCode::Protocol).await;
    assert_cut_off(&[(old, vec![])], ErrorCode::Version).await;
    assert_cut_off(&[(other, vec![])], ErrorCode::Foreign).await;
    assert_cut_off(&[(hello(0), vec![]), (hello(0), vec![])], ErrorCode::Protocol).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_do_not_fit_the_disk_are_refused_before_their_payload() {
    let content = vec![7; BLOCK];
    let short = vec![7; 100];
    let lie = |change: &dyn Fn(&mut Block), payload: &[u8]| {
        let mut lie = block(1, 1, payload);
        change(&mut lie);
        vec![(hello(1), vec![]), (Frame::Block(lie), payload.to_vec())]
    };
    let run = |first, count| Content::Patch(vec![PageRun { first, count }]);
    for lie in [
        lie(&|block| block.disk = DiskNo(1), &content),
        lie(&|block| block.block = BlockIndex(4), &content),
        lie(&|block| block.block = BlockIndex(u64::MAX), &content),
        // The last block is shorter, and the others are not.
        lie(&|block| block.block = BlockIndex(3), &content),
        lie(&|_| {}, &short),
        lie(&|block| block.seq = 2, &content),
        lie(&|block| block.seq = 0, &content),
        // A patch past the end of the block, and of the last block.
        lie(&|block| block.content = run(64, 1), &vec![7; 4096]),
        lie(
            &|block| {
                block.content = run(1, 1);
                block.block = BlockIndex(3);
            },
            &vec![7; 4096],
        ),
        lie(
            &|block| {
                block.content = run(0, 1);
                block.block = BlockIndex(3);
            },
            &[7; 101],
        ),
    ] {
        assert_cut_off(&lie, ErrorCode::Protocol).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_credit_is_refused() {
    let target = Arc::new(MemoryDisk::zeros(6 * BLOCK));
    target.close_gate();
    let disks = world::target_disks(&[Arc::clone(&target)], Holds::Zeros);
    let receiver = Receiver::new(migration(), disks, world::small_limits()).unwrap();
    let (mut here, there) = duplex(4 << 20);
    let content = vec![7; BLOCK];
    here.write_all(&encode(&hello(1), &[])).await.unwrap();
    // The credit of 1 MiB is four blocks.
    for seq in 1..=5 {
        here.write_all(&encode(&Frame::Block(block(seq, seq, &content)), &content)).await.unwrap();
    }
    let served = receiver.serve(there).await.unwrap_err();
    assert!(served.to_string().contains("credit exceeded"), "{served}");
    target.open_gate();
    receiver.disconnect().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_is_under_way_is_not_taken_twice() {
    let target = Arc::new(MemoryDisk::zeros(3 * BLOCK));
    target.close_gate();
    let disks = world::target_disks(&[Arc::clone(&target)], Holds::Zeros);
    let receiver = Receiver::new(migration(), disks, world::small_limits()).unwrap();
    let (mut here, there) = duplex(4 << 20);
    let content = vec![7; BLOCK];
    here.write_all(&encode(&hello(1), &[])).await.unwrap();
    for seq in 1..=2 {
        here.write_all(&encode(&Frame::Block(block(seq, 0, &content)), &content)).await.unwrap();
    }
    let served = receiver.serve(there).await.unwrap_err();
    assert!(served.to_string().contains("under way"), "{served}");
    target.open_gate();
    receiver.disconnect().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_not_what_its_hash_says_is_refused_and_not_written() {
    let content = vec![7; BLOCK];
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    let less = zstd::bulk::compress(&vec![7; BLOCK - 1], 3).unwrap();
    let zstd = |seq, at| Block { encoding: Encoding::Zstd, ..block(seq, at, &content) };
    let zero =
        Block { content: Content::Zero, raw_len: 0, block: BlockIndex(2), ..block(4, 2, &content) };
    let patch = Block {
        content: Content::Patch(vec![PageRun { first: 0, count: 1 }]),
        raw_len: 4096,
        hash: Digest([3; 32]),
        ..block(5, 1, &content)
    };
    let mut wrong = block(1, 0, &content);
    wrong.hash = Digest([1; 32]);
    for (lie, payload) in [
        (wrong, content.clone()),
        (zstd(1, 0), bomb),
        (zstd(1, 0), less),
        (zstd(1, 0), vec![1, 2, 3]),
        (Block { seq: 1, ..zero }, vec![]),
        (Block { seq: 1, ..patch }, vec![7; 4096]),
    ] {
        // Bye comes when everything before it was answered: the flush has to wait for the block.
        let frames =
            [(hello(1), vec![]), (Frame::Block(lie), payload), (Frame::Flush { token: 5 }, vec![])];
        let target = Arc::new(MemoryDisk::zeros(3 * BLOCK));
        let disks = world::target_disks(&[Arc::clone(&target)], Holds::Zeros);
        let receiver = Receiver::new(migration(), disks, world::small_limits()).unwrap();
        let (mut here, there) = duplex(4 << 20);
        for (frame, payload) in frames {
            here.write_all(&encode(&frame, &payload)).await.unwrap();
        }
        let serving = tokio::spawn(async move { receiver.serve(there).await });
        let mut refused = false;
        loop {
            match read_frame(&mut here).await.unwrap() {
                Frame::Nack { seq: 1, reason: NackReason::HashMismatch } => refused = true,
                Frame::Flushed { token: 5 } => break,
                _ => {}
            }
        }
        assert!(refused);
        here.write_all(&encode(&Frame::Bye, &[])).await.unwrap();
        serving.await.unwrap().unwrap();
        assert!(target.content().iter().all(|byte| *byte == 0), "something was written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_only_a_receiver_sends_are_refused() {
    for frame in [
        Frame::Ack { upto: 1 },
        Frame::Credit { bytes: Bytes(1 << 40), waiting: Bytes(0) },
        Frame::SpanQuery { disk: DiskNo(0), span: 1 },
        Frame::TableQuery { disk: DiskNo(7) },
        hello(1),
    ] {
        assert_cut_off(&[(hello(1), vec![]), (frame, vec![])], ErrorCode::Protocol).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_is_refused() {
    for n in 0..60_u8 {
        let mut noise = vec![0; 3000];
        blake3::Hasher::new_keyed(&[n; 32]).finalize_xof().fill(&mut noise);
        let bytes = if n % 2 == 0 { noise } else { [encode(&hello(1), &[]), noise].concat() };
        let (_, error) = tell_receiver_bytes(&bytes).await;
        assert!(matches!(error, ReceiverError::Stream(_)), "{error:?}");
    }
}

/// Time is virtual.
#[tokio::test(start_paused = true)]
async fn a_sender_that_says_nothing_is_given_up() {
    let disks = world::target_disks(&[Arc::new(MemoryDisk::zeros(BLOCK))], Holds::Zeros);
    let receiver = Receiver::new(migration(), disks, world::small_limits()).unwrap();
    let (mut here, there) = duplex(4 << 20);
    here.write_all(&encode(&hello(1), &[])).await.unwrap();
    assert!(matches!(receiver.serve(there).await, Err(ReceiverError::Silent)));
}

/// A receiver that answers by this script after its HelloAck, once per frame.
async fn sender_with(
    script: impl Fn(Frame) -> Vec<(Frame, Vec<u8>)> + Send + 'static,
) -> (Result<(), SenderError>, Option<SenderError>, Arc<Marks>) {
    let sizes = [3 * BLOCK];
    let marks = Arc::new(Marks::new(&sizes));
    let source = Arc::new(MemoryDisk::filled(sizes[0]));
    marks.write(0, &source, 0, &[1; 4096]);
    let disks = world::source_disks(&[Arc::clone(&source)]);
    let limits = SenderLimits { workers: 2 };
    let sender = Sender::new(migration(), disks, Arc::clone(&marks) as _, limits).unwrap();
    let (here, mut there) = duplex(4 << 20);
    let receiver = tokio::spawn(async move {
        while let Some(frame) = read_frame(&mut there).await {
            let answers = match frame {
                Frame::Hello { .. } => {
                    let (version, generation, stream) = (1, 1, 0);
                    let credit = Bytes(1 << 20);
                    vec![(Frame::HelloAck { version, generation, stream, credit }, vec![])]
                }
                frame => script(frame),
            };
            for (frame, payload) in answers {
                there.write_all(&encode(&frame, &payload)).await.unwrap();
            }
        }
    });
    let connected = sender.connect(1, vec![here]).await;
    let (progress, _) = watch::channel(Default::default());
    let round = sender.round(1, RoundOptions::default(), &progress).await;
    assert!(sender.seal(0).is_err());
    drop(sender);
    receiver.abort();
    (connected, round.failure, marks)
}

/// A table that differs in everything, so that its spans are asked for.
fn table(size: usize) -> Vec<(Frame, Vec<u8>)> {
    let table = Frame::Table {
        disk: DiskNo(0),
        size: Bytes(size as u64),
        block_size: BlockSize::MIN,
        root: Digest([9; 32]),
    };
    vec![(table, vec![9; 32])]
}

fn honest_table(frame: &Frame) -> Vec<(Frame, Vec<u8>)> {
    match frame {
        Frame::TableQuery { .. } => table(3 * BLOCK),
        Frame::SpanQuery { .. } => {
            vec![(Frame::Span { disk: DiskNo(0), span: 0 }, vec![9; 3 * 32])]
        }
        _ => vec![],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_with_another_disk_is_refused() {
    let (connected, ..) = sender_with(|_| table(4 * BLOCK)).await;
    assert!(matches!(connected, Err(SenderError::Shape { .. })), "{connected:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_answers_what_was_not_asked_is_given_up() {
    type Script = fn(Frame) -> Vec<(Frame, Vec<u8>)>;
    let lies: [Script; 4] = [
        |_| vec![(Frame::Span { disk: DiskNo(0), span: 0 }, vec![])],
        |frame| match frame {
            Frame::SpanQuery { .. } => {
                vec![(Frame::Span { disk: DiskNo(0), span: 0 }, vec![9; 2 * 32])]
            }
            _ => table(3 * BLOCK),
        },
        |_| {
            vec![(
                Frame::Hello {
                    version: 1,
                    migration: migration(),
                    generation: 1,
                    stream: 0,
                    streams: 1,
                },
                vec![],
            )]
        },
        |_| {
            let mut two_spans = table(3 * BLOCK);
            two_spans[0].1 = vec![9; 64];
            two_spans
        },
    ];
    for lie in lies {
        let (connected, ..) = sender_with(lie).await;
        assert!(matches!(connected, Err(SenderError::Protocol { .. })), "{connected:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_of_what_was_not_sent_are_not_believed() {
    for lie in [Frame::Ack { upto: 9 }, Frame::Nack { seq: 9, reason: NackReason::NeedFull }] {
        let (connected, failure, marks) = sender_with(move |frame| match &frame {
            Frame::Block(_) => vec![(lie.clone(), vec![])],
            frame => honest_table(frame),
        })
        .await;
        connected.unwrap();
        assert!(matches!(failure, Some(SenderError::Protocol { .. })), "{failure:?}");
        assert_eq!(marks.dirty_pages(0), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_is_refused_for_ever_ends_the_round() {
    let (_, failure, marks) = sender_with(|frame| match &frame {
        Frame::Block(block) => {
            let (bytes, waiting) = (Bytes(BLOCK as u64), Bytes(0));
            let reason = NackReason::HashMismatch;
            vec![
                (Frame::Credit { bytes, waiting }, vec![]),
                (Frame::Nack { seq: block.seq, reason }, vec![]),
            ]
        }
        frame => honest_table(frame),
    })
    .await;
    assert!(matches!(failure, Some(SenderError::Refused { times: 3, .. })), "{failure:?}");
    assert_eq!(marks.dirty_pages(0), 1);
}

/// Time is virtual.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_says_nothing_is_given_up() {
    let (connected, failure, marks) = sender_with(|frame| honest_table(&frame)).await;
    connected.unwrap();
    assert!(matches!(failure, Some(SenderError::Silent)), "{failure:?}");
    assert_eq!(marks.dirty_pages(0), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
}
