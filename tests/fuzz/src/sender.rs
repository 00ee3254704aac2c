//! Sequences of answers from a destination that may lie, told to the source's half:
//! [`transfer::Sender`]. Whatever comes, a page that was written stays dirty until its block was
//! acknowledged, and nothing is sealed that was not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::JoinSet;
use transfer::{BlockRead, Changes, RoundOptions, Sender, SenderLimits, SourceDisk};
use units::{BlockIndex, BlockSize, Bytes, Digest, DiskNo, PAGE_SIZE, PageMask};
use wire::control::RoundProgress;
use wire::data::{Content, ErrorCode, Frame, NackReason, Parsed, credit_cost};

use crate::disk::{Disk, blocks, hash};
use crate::script::Script;

/// In bytes: a short block alone, and a block and a short one.
const SIZES: [usize; 2] = [3 * 4096 + 100, 262_144 + 4096 + 5];

/// Answers to one sender; more of them say nothing new.
const ANSWERS_MAX: usize = 400;

/// Time is virtual: an end that waits for ever is given up at once.
pub fn check(bytes: &[u8]) {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("the machine has room for it").block_on(run(Script(bytes)));
}

async fn run(mut script: Script<'_>) {
    let shape = script.byte();
    let changes = Arc::new(Marks::written(script.long()));
    let before = changes.pages();
    let sender = Sender::new(
        "web1-1".parse().expect("an id"),
        source_disks(),
        Arc::clone(&changes) as Arc<dyn Changes>,
        SenderLimits { workers: 1 + usize::from(shape & 1) },
    );
    let sender = sender.expect("two disks");
    let told = Arc::new(Told::default());
    let streams = 1 + u16::from(shape >> 1 & 1);
    let options = RoundOptions { compress: i32::from(shape >> 2 & 3), ..RoundOptions::default() };
    let at_end = if shape >> 4 & 1 == 0 { AtEnd::Honest } else { AtEnd::HangUp };

    let (mut ends, mut peers) = (Vec::new(), JoinSet::new());
    for (no, script) in (0..streams).zip(parts(script.0, streams)) {
        let (here, there) = duplex(1 << 20);
        ends.push(here);
        let peer = Peer::new(no, there, Arc::clone(&told), at_end);
        peers.spawn(peer.answer(script));
    }
    let connected = sender.connect(1, ends).await;
    let (progress, _) = watch::channel(RoundProgress::default());
    let round = sender.round(1, options, &progress).await;
    for error in connected.as_ref().err().into_iter().chain(round.failure.as_ref()) {
        assert!(!error.to_string().is_empty());
    }
    let sealed = sender.seal(1);
    sender.disconnect().await;
    while let Some(ended) = peers.join_next().await {
        ended.expect("a peer does not panic");
    }
    if let Ok(digests) = sealed {
        assert!(connected.is_ok() && round.failure.is_none(), "sealed all the same");
        for &place in HASHES.keys() {
            assert!(told.has(place), "block {} of disk {} is sealed", place.1, place.0);
        }
        assert_eq!(digests.len(), SIZES.len());
        assert_eq!(round.remaining, Bytes::ZERO);
        let mut pages = changes.pages();
        pages.retain(|_, mask| *mask != 0);
        assert!(pages.is_empty(), "sealed and dirty: {pages:?}");
    }
    for (place, mask) in before {
        let left = changes.pages()[&place];
        assert!(left == mask || told.has(place), "pages of {place:?} are forgotten");
    }
}

/// A part of the script for each stream.
fn parts(script: &[u8], streams: u16) -> Vec<Vec<u8>> {
    let streams = usize::from(streams);
    (0..streams).map(|no| script.iter().skip(no).step_by(streams).copied().collect()).collect()
}

/// By disk and block.
type Place = (u16, u64);

/// What every block holds.
static HASHES: LazyLock<BTreeMap<Place, Digest>> = LazyLock::new(|| {
    let mut hashes = BTreeMap::new();
    for (no, disk) in (0..).zip(DISKS.iter()) {
        for (block, content) in (0..).zip(blocks(&disk.content())) {
            hashes.insert((no, block), hash(content));
        }
    }
    hashes
});

fn hashes_of(disk: DiskNo) -> Vec<Digest> {
    HASHES.range((disk.0, 0)..=(disk.0, u64::MAX)).map(|(_, hash)| *hash).collect()
}

/// What is copied, always the same.
static DISKS: LazyLock<[Arc<Disk>; 2]> = LazyLock::new(|| {
    SIZES.map(|size| {
        let text = b"what a guest has written ".iter().cycle();
        Arc::new(Disk::holding(text.take(size).copied().collect()))
    })
});

fn source_disks() -> Vec<SourceDisk> {
    let disk = |(no, disk): (u16, &Arc<Disk>)| SourceDisk {
        no: DiskNo(no),
        size: disk.size(),
        block_size: BlockSize::MIN,
        disk: Arc::clone(disk) as Arc<dyn BlockRead>,
    };
    (0..).zip(DISKS.iter()).map(disk).collect()
}

/// What the destination has said it holds, truly or not.
#[derive(Default)]
struct Told(Mutex<BTreeSet<Place>>);

impl Told {
    fn add(&self, places: impl IntoIterator<Item = Place>) {
        self.lock().extend(places);
    }

    fn has(&self, place: Place) -> bool {
        self.lock().contains(&place)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Honest,
    HangUp,
}

/// The destination's end of one stream.
struct Peer {
    no: u16,
    pipe: DuplexStream,
    held: Vec<u8>,
    told: Arc<Told>,
    at_end: AtEnd,
    /// By sequence number, what was received and not acknowledged.
    received: BTreeMap<u64, Place>,
    seq: u64,
}

impl Peer {
    fn new(no: u16, pipe: DuplexStream, told: Arc<Told>, at_end: AtEnd) -> Self {
        let (held, received, seq) = Default::default();
        Self { no, pipe, held, told, at_end, received, seq }
    }

    /// Answers each frame by the script's next act, and then as it was told to.
    async fn answer(mut self, script: Vec<u8>) {
        let mut script = Script(&script);
        for _ in 0..ANSWERS_MAX {
            let Some(frame) = self.read_frame().await else { return };
            if let Frame::Block(block) = &frame {
                self.seq = block.seq;
                self.received.insert(block.seq, (block.disk.0, block.block.0));
            }
            let answers = match script.next() {
                None if self.at_end == AtEnd::HangUp => return,
                None => self.honest(&frame),
                Some(act) => match self.act(act, &frame, &mut script) {
                    Some(answers) => answers,
                    None => return,
                },
            };
            if self.pipe.write_all(&answers).await.is_err() {
                return;
            }
        }
    }

    /// `None`: hang up.
    fn act(&mut self, act: u8, frame: &Frame, script: &mut Script<'_>) -> Option<Vec<u8>> {
        let answer = match act % 16 {
            0..=3 => return Some(self.honest(frame)),
            4 => return Some(Vec::new()),
            5 => return Some([self.honest(frame), self.honest(frame)].concat()),
            6 => {
                // Some of what it sent, all of it, or more.
                let upto = self.seq.saturating_add(script.byte().into()).saturating_sub(3);
                self.acknowledge(upto);
                Frame::Ack { upto }
            }
            7 => {
                let seq = self.seq.saturating_sub(script.byte().into());
                let reason = [NackReason::HashMismatch, NackReason::NeedFull][script.below(2)];
                Frame::Nack { seq, reason }
            }
            8 => Frame::Credit { bytes: Bytes(script.long()), waiting: Bytes(script.long()) },
            9 => return Some(self.says_equal(frame, script)),
            10 => {
                let (version, generation) = (script.byte().into(), script.byte().into());
                let (stream, credit) = (script.byte().into(), Bytes(script.long()));
                Frame::HelloAck { version, generation, stream, credit }
            }
            11 => Frame::Error { code: ErrorCode::Target, text: "full".to_owned() },
            12 => return Some(script.bytes().to_vec()),
            13 => {
                // A head of anything.
                let (tag, payload, head) = (script.byte() % 17, script.byte(), script.bytes());
                let len = u8::try_from(head.len()).expect("as many as a byte says");
                let prefix = [tag, 0, len, 0, payload, 0, 0, 0];
                return Some([&prefix, head, &vec![9; payload.into()]].concat());
            }
            14 => Frame::Flushed { token: script.long() },
            _ => return None,
        };
        Some(answer.encode(0))
    }

    /// As a destination answers whose targets hold something else everywhere.
    fn honest(&mut self, frame: &Frame) -> Vec<u8> {
        match frame {
            Frame::Hello { generation, .. } => {
                let (version, credit) = (1, Bytes(1 << 20));
                let (generation, stream) = (*generation, self.no);
                Frame::HelloAck { version, generation, stream, credit }.encode(0)
            }
            Frame::TableQuery { disk } => table(*disk, Digest([9; 32]), &[Digest([9; 32])]),
            Frame::SpanQuery { disk, span } => {
                span_of(*disk, *span, &vec![Digest([9; 32]); hashes_of(*disk).len()])
            }
            Frame::Block(block) => {
                let cost = credit_cost(block.raw_len);
                let credit = Frame::Credit { bytes: Bytes(cost), waiting: Bytes(0) };
                self.acknowledge(block.seq);
                [credit.encode(0), Frame::Ack { upto: block.seq }.encode(0)].concat()
            }
            Frame::Flush { token } => {
                let upto = self.seq;
                self.acknowledge(upto);
                let flushed = Frame::Flushed { token: *token }.encode(0);
                [Frame::Ack { upto }.encode(0), flushed].concat()
            }
            _ => Frame::Alive.encode(0),
        }
    }

    /// Claims to hold what the source has, in some blocks.
    fn says_equal(&mut self, frame: &Frame, script: &mut Script<'_>) -> Vec<u8> {
        let (Frame::SpanQuery { disk, span }, which) = (frame, script.byte()) else {
            return self.honest(frame);
        };
        let mut hashes = hashes_of(*disk);
        for (no, hash) in (0..).zip(&mut hashes) {
            if which >> (no % 8) & 1 == 0 {
                *hash = Digest([9; 32]);
            } else {
                self.told.add([(disk.0, no)]);
            }
        }
        span_of(*disk, *span, &hashes)
    }

    fn acknowledge(&mut self, upto: u64) {
        self.told.add(self.received.range(..=upto).map(|(_, place)| *place));
        // What is on its way may be among it.
        if upto > self.seq {
            self.told.add(HASHES.keys().copied());
        }
    }

    /// What the source sends is right, however it is answered.
    async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            match Frame::parse(&self.held).expect("the sender keeps to the protocol") {
                Parsed::Frame { frame, used, payload_len } => {
                    let all = used + usize::try_from(payload_len).expect("32 bits fit");
                    if all <= self.held.len() {
                        is_of_its_disk(&frame);
                        self.held.drain(..all);
                        return Some(frame);
                    }
                    self.more().await?;
                }
                Parsed::Need(_) => self.more().await?,
            }
        }
    }

    async fn more(&mut self) -> Option<()> {
        match self.pipe.read_buf(&mut self.held).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }
}

fn is_of_its_disk(frame: &Frame) {
    let Frame::Block(block) = frame else { return };
    let place = (block.disk.0, block.block.0);
    assert_eq!(Some(&block.hash), HASHES.get(&place), "another block's hash");
    assert!(block.content != Content::Zero, "it is not zero");
}

fn table(disk: DiskNo, root: Digest, spans: &[Digest]) -> Vec<u8> {
    let size = Bytes(SIZES.get(usize::from(disk.0)).map_or(0, |size| *size as u64));
    let block_size = BlockSize::MIN;
    with_hashes(&Frame::Table { disk, size, block_size, root }, spans)
}

fn span_of(disk: DiskNo, span: u64, hashes: &[Digest]) -> Vec<u8> {
    with_hashes(&Frame::Span { disk, span }, hashes)
}

fn with_hashes(frame: &Frame, hashes: &[Digest]) -> Vec<u8> {
    let payload: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
    [frame.encode(u32::try_from(payload.len()).expect("a few hashes")), payload].concat()
}

/// The pages that a guest has written: a word for each block.
struct Marks(Mutex<BTreeMap<Place, u64>>);

impl Marks {
    /// Some bits of `which` for each block.
    fn written(which: u64) -> Self {
        let masks = HASHES.keys().copied().zip([which & 0xf, which >> 4, which >> 62]);
        Self(Mutex::new(masks.collect()))
    }

    fn pages(&self) -> BTreeMap<Place, u64> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changes for Marks {
    fn next_dirty(&self, disk: DiskNo, from: BlockIndex) -> Option<BlockIndex> {
        let pages = self.lock();
        let mut behind = pages.range((disk.0, from.0)..(disk.0 + 1, 0));
        behind.find(|(_, mask)| **mask != 0).map(|((_, block), _)| BlockIndex(*block))
    }

    fn take(&self, disk: DiskNo, block: BlockIndex) -> PageMask {
        let taken = self.lock().get_mut(&(disk.0, block.0)).map(std::mem::take);
        PageMask::from_words(vec![taken.unwrap_or(0)])
    }

    fn put_back(&self, disk: DiskNo, block: BlockIndex, mask: &PageMask) {
        let mut pages = self.lock();
        *pages.entry((disk.0, block.0)).or_default() |= mask.words()[0];
    }

    fn dirty(&self, disk: DiskNo) -> Bytes {
        let pages = self.lock();
        let of_disk = pages.range((disk.0, 0)..(disk.0 + 1, 0));
        Bytes(of_disk.map(|(_, mask)| u64::from(mask.count_ones())).sum::<u64>() * PAGE_SIZE)
    }

    fn written(&self, _: DiskNo) -> Bytes {
        Bytes::ZERO
    }

    fn precise(&self) -> bool {
        true
    }
}
