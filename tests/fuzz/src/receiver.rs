//! Sequences of frames from a source that may be anybody, told to the destination's half:
//! [`transfer::Receiver`]. Honest blocks among them are written, acknowledged and durable; whatever
//! else comes, no block ever holds what no header named.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;
use transfer::{
    BlockWrite, Holds, Receiver, ReceiverError, ReceiverLimits, StreamError, TargetDisk,
};
use units::{BlockIndex, BlockSize, Bytes, Digest, DiskNo};
use wire::data::{
    Block, Content, Encoding, ErrorCode, Frame, NackReason, PageRun, Parsed, credit_cost,
};

use crate::disk::{Disk, blocks, hash, place};
use crate::script::Script;

/// Of the targets: one of a short block alone, and one of a block and a short one. Bytes.
const SIZES: [usize; 2] = [3 * 4096 + 100, 262_144 + 4096 + 5];

/// Of all of a script's streams together, so that nobody ever waits for room in a pipe.
const BYTES_MAX: usize = 1 << 20;

const STREAMS_MAX: usize = 5;

/// An end that has not said its last word by then never will. Far above what a loaded machine
/// needs, and far below the 30 s after which either end gives the other up.
const PATIENCE: Duration = Duration::from_secs(4);

/// Where a block belongs.
type Place = (u16, u64);

pub fn check(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: LazyCell<Runtime> = LazyCell::new(|| {
            let runtime = Builder::new_current_thread().enable_time().build();
            runtime.expect("the machine has room for it")
        });
    }
    RUNTIME.with(|runtime| runtime.block_on(run(Script(bytes))));
}

async fn run(mut script: Script<'_>) {
    let holds = if script.byte() & 1 == 0 { Holds::Zeros } else { Holds::Anything };
    let mut world = World::new(holds);
    while world.sent < BYTES_MAX
        && let Some(act) = script.next()
    {
        match act % 16 {
            0 => world.greet(&mut script).await,
            1 | 2 => world.honest_block(&mut script).await,
            3 => world.lying_block(&mut script).await,
            4 | 5 => world.flush().await,
            6 => {
                let disk = DiskNo(script.byte().into());
                world.say(&Frame::TableQuery { disk }, &[]).await;
            }
            7 => {
                let (disk, span) = (DiskNo(script.byte().into()), script.byte().into());
                world.say(&Frame::SpanQuery { disk, span }, &[]).await;
            }
            8 => world.say(&other_frame(&mut script), &[]).await,
            9 => world.head(&mut script).await,
            10 => world.raw(&mut script).await,
            11 => world.hang_up(),
            12 => world.current = script.below(STREAMS_MAX),
            13 => world.receiver.disconnect().await,
            14 => world.index().await,
            _ => world.ask_for_digests().await,
        }
    }
    world.end().await;
}

/// Frames without a payload, right and wrong ones.
fn other_frame(script: &mut Script<'_>) -> Frame {
    match script.byte() % 9 {
        0 => Frame::Bye,
        1 => Frame::Alive,
        2 => Frame::Error { code: ErrorCode::Stopped, text: "stopped".to_owned() },
        3 => Frame::Ack { upto: script.long() },
        4 => Frame::Nack { seq: script.long(), reason: NackReason::NeedFull },
        5 => Frame::Credit { bytes: Bytes(script.long()), waiting: Bytes(script.long()) },
        6 => Frame::Flushed { token: script.long() },
        7 => hello(1, 0, 1),
        _ => Frame::Flush { token: script.long() },
    }
}

fn hello(generation: u64, stream: u16, streams: u16) -> Frame {
    let migration = "web1-1".parse().expect("an id");
    Frame::Hello { version: 1, migration, generation, stream, streams }
}

/// A receiver, its targets, and the streams that lead to it.
struct World {
    receiver: Receiver,
    targets: Vec<Arc<Disk>>,
    holds: Holds,
    streams: Vec<Option<Stream>>,
    current: usize,
    serving: JoinSet<Result<(), ReceiverError>>,
    /// Every hash that a header named for a place, and those of the beginning.
    named: BTreeMap<Place, BTreeSet<Digest>>,
    /// What an honest source would hold there.
    model: Vec<Vec<u8>>,
    /// The stream that alone wrote there, as far as is known.
    writer: BTreeMap<Place, Option<usize>>,
    /// How many streams there were.
    opened: usize,
    sent: usize,
    /// Something was sent of which nobody knows what it was.
    is_muddled: bool,
}

/// The source's end of one stream.
struct Stream {
    no: usize,
    pipe: DuplexStream,
    held: Vec<u8>,
    seq: u64,
    credit: u64,
    /// Something was sent of which nobody knows where it ends.
    is_muddled: bool,
    token: u64,
    blocks: BTreeMap<u64, (Place, Digest)>,
    refused: BTreeSet<u64>,
    acked: u64,
}

impl World {
    fn new(holds: Holds) -> Self {
        let first = if holds == Holds::Zeros { 0 } else { 0x11 };
        let model: Vec<Vec<u8>> = SIZES.iter().map(|size| vec![first; *size]).collect();
        let targets: Vec<_> =
            model.iter().map(|content| Arc::new(Disk::holding(content.clone()))).collect();
        let disks = (0..).zip(&targets).map(|(no, target)| TargetDisk {
            no: DiskNo(no),
            size: Bytes(target.content().len() as u64),
            block_size: BlockSize::MIN,
            disk: Arc::clone(target) as Arc<dyn BlockWrite>,
            holds,
        });
        let limits = ReceiverLimits {
            credit: Bytes::mib(1),
            writers: 2,
            sync_bytes: Bytes::mib(1),
            sync_after: Duration::from_millis(1),
        };
        let migration = "web1-1".parse().expect("an id");
        let receiver = Receiver::new(migration, disks.collect(), limits).expect("two disks");
        let mut named = BTreeMap::new();
        for (disk, content) in (0..).zip(&model) {
            for (block, content) in (0..).zip(blocks(content)) {
                named.insert((disk, block), BTreeSet::from([hash(content)]));
            }
        }
        Self {
            receiver,
            targets,
            holds,
            streams: (0..STREAMS_MAX).map(|_| None).collect(),
            current: 0,
            serving: JoinSet::new(),
            named,
            model,
            writer: BTreeMap::new(),
            opened: 0,
            sent: 0,
            is_muddled: false,
        }
    }

    /// A new stream in the current one's place.
    async fn greet(&mut self, script: &mut Script<'_>) {
        if self.opened >= 2 * STREAMS_MAX {
            return;
        }
        let (generation, shape) = (1 + script.below(4) as u64, script.byte());
        let (stream, streams) = (u16::from(shape & 3), u16::from(shape >> 2 & 3) + 1);
        // Hello could not be read if it contradicted itself; `head` and `raw` have such ones.
        let frame = hello(generation, stream.min(streams - 1), streams);
        let (here, there) = duplex(2 * BYTES_MAX);
        let receiver = self.receiver.clone();
        self.serving.spawn(async move { receiver.serve(there).await });
        self.opened += 1;
        self.streams[self.current] = Some(Stream {
            no: self.opened,
            pipe: here,
            held: Vec::new(),
            seq: 0,
            credit: 0,
            is_muddled: false,
            token: 0,
            blocks: BTreeMap::new(),
            refused: BTreeSet::new(),
            acked: 0,
        });
        self.say(&frame, &[]).await;
        if let Some(stream) = &mut self.streams[self.current] {
            // A greeting that is refused shows as an error, and the pipe ends.
            if let Some(Frame::HelloAck { credit, .. }) = stream.next_frame().await {
                stream.credit = credit.0;
            }
        }
    }

    async fn honest_block(&mut self, script: &mut Script<'_>) {
        let Some((block, payload)) = self.block(script) else { return };
        let cost = credit_cost(u32::try_from(payload.len()).expect("small"));
        let Some(stream) = &mut self.streams[self.current] else { return };
        // An honest source keeps to its credit.
        while stream.credit < cost {
            if stream.is_muddled || stream.next_frame().await.is_none() {
                return;
            }
        }
        stream.credit -= cost;
        self.send_block(block, &payload).await;
    }

    /// A block with something wrong about it.
    async fn lying_block(&mut self, script: &mut Script<'_>) {
        let Some((mut block, mut payload)) = self.block(script) else { return };
        let n = script.byte();
        match n % 9 {
            0 => block.hash.0[0] ^= 1,
            1 => block.seq = block.seq.wrapping_add(u64::from(n)),
            2 => block.raw_len = block.raw_len.wrapping_add(u32::from(n)),
            3 => block.block = BlockIndex(script.long()),
            4 => block.disk = DiskNo(script.short()),
            5 => {
                let runs = script.bytes().as_chunks::<2>().0.iter();
                let run = |[first, count]: &[u8; 2]| PageRun {
                    first: u16::from(*first),
                    count: u16::from(*count),
                };
                block.content = Content::Patch(runs.map(run).collect());
            }
            6 => payload = script.bytes().to_vec(),
            7 => block.encoding = Encoding::Zstd,
            _ => {
                if let Some(byte) = payload.get_mut(usize::from(script.short())) {
                    *byte ^= 1;
                }
            }
        }
        self.send_block(block, &payload).await;
    }

    async fn send_block(&mut self, block: Block, payload: &[u8]) {
        let place = (block.disk.0, block.block.0);
        let Some(stream) = &mut self.streams[self.current] else { return };
        stream.seq = block.seq;
        stream.blocks.insert(block.seq, (place, block.hash));
        let no = stream.no;
        self.named.entry(place).or_default().insert(block.hash);
        let writer = self.writer.entry(place).or_insert(Some(no));
        *writer = writer.filter(|writer| *writer == no);
        self.say(&Frame::Block(block), payload).await;
    }

    /// New content for some block, and how a source would send it.
    fn block(&mut self, script: &mut Script<'_>) -> Option<(Block, Vec<u8>)> {
        let seq = self.streams[self.current].as_ref()?.seq + 1;
        let (shape, fill) = (script.byte(), script.byte());
        let disk = usize::from(shape & 1);
        let block = BlockIndex(u64::from(shape >> 1 & 1) * u64::from(shape & 1));
        let place = place(block, SIZES[disk]);
        let (content, raw) = match shape >> 2 & 3 {
            0 => {
                self.model[disk][place.clone()].fill(0);
                (Content::Zero, Vec::new())
            }
            1 => {
                // Pages from this one on; the last one may be short.
                let first = usize::from(fill) % place.len().div_ceil(4096);
                let pages = 1 + usize::from(fill >> 6) % (place.len().div_ceil(4096) - first);
                let from = place.start + first * 4096;
                let to = (from + pages * 4096).min(place.end);
                let model = &mut self.model[disk][from..to];
                model.fill(fill);
                let small = |n| u16::try_from(n).expect("a block has 64 pages");
                let run = PageRun { first: small(first), count: small(pages) };
                (Content::Patch(vec![run]), model.to_vec())
            }
            _ => {
                let model = &mut self.model[disk][place.clone()];
                model.fill(fill);
                model[0] = shape;
                (Content::Full, model.to_vec())
            }
        };
        let raw_len = u32::try_from(raw.len()).expect("a block is below 4 MiB");
        let packed = zstd::bulk::compress(&raw, 1).ok();
        // The large ones always, or a script would be over after four of them.
        let wanted = shape >> 4 & 1 == 1 || raw.len() > 1 << 16;
        let packed = packed.filter(|packed| wanted && packed.len() < raw.len());
        let (encoding, payload) = match packed {
            Some(packed) => (Encoding::Zstd, packed),
            None => (Encoding::Raw, raw),
        };
        let hash = hash(&self.model[disk][place]);
        let disk = DiskNo(u16::from(shape & 1));
        Some((Block { seq, disk, block, hash, content, encoding, raw_len }, payload))
    }

    /// After Flushed everything that this stream sent and that was not refused is durable.
    async fn flush(&mut self) {
        let Some(stream) = &mut self.streams[self.current] else { return };
        stream.token += 1;
        let token = stream.token;
        self.say(&Frame::Flush { token }, &[]).await;
        let Some(stream) = &mut self.streams[self.current] else { return };
        if stream.is_muddled {
            return;
        }
        loop {
            match stream.next_frame().await {
                None => return,
                Some(Frame::Flushed { token: done }) if done == token => break,
                Some(_) => {}
            }
        }
        assert_eq!(stream.acked, stream.seq, "flushed and not acknowledged");
        let mut written = BTreeMap::new();
        for (seq, (place, hash)) in &stream.blocks {
            if !stream.refused.contains(seq) && self.writer[place] == Some(stream.no) {
                written.insert(*place, *hash);
            }
        }
        for ((disk, block), expected) in written {
            let durable = self.targets[usize::from(disk)].durable();
            let found = hash(&durable[place(BlockIndex(block), durable.len())]);
            assert_eq!(found, expected, "block {block} of disk {disk} is not durable");
        }
    }

    /// A frame whose prefix fits a head of anything.
    async fn head(&mut self, script: &mut Script<'_>) {
        let (tag, payload, head) = (script.byte() % 17, script.byte(), script.bytes());
        let len = u8::try_from(head.len()).expect("as many as a byte says");
        let frame = [&[tag, 0, len, 0, payload, 0, 0, 0], head, &vec![0; payload.into()]].concat();
        // It may be a block or a flush of any number.
        self.say_bytes(&frame, Muddled::Yes).await;
    }

    async fn raw(&mut self, script: &mut Script<'_>) {
        self.say_bytes(script.bytes(), Muddled::Yes).await;
    }

    async fn say(&mut self, frame: &Frame, payload: &[u8]) {
        let len = u32::try_from(payload.len()).expect("a block is below 4 MiB");
        let bytes = [&frame.encode(len), payload].concat();
        let muddled = match frame {
            // Not ours to count.
            Frame::Flush { token } if self.token() != Some(*token) => Muddled::Yes,
            _ => Muddled::No,
        };
        self.say_bytes(&bytes, muddled).await;
    }

    fn token(&self) -> Option<u64> {
        self.streams[self.current].as_ref().map(|stream| stream.token)
    }

    async fn say_bytes(&mut self, bytes: &[u8], muddled: Muddled) {
        let Some(stream) = &mut self.streams[self.current] else { return };
        self.sent += bytes.len();
        stream.is_muddled |= muddled == Muddled::Yes;
        self.is_muddled |= stream.is_muddled;
        // Whoever was given up reads no more.
        let _broken = stream.pipe.write_all(bytes).await;
    }

    fn hang_up(&mut self) {
        self.streams[self.current] = None;
    }

    /// As an agent does before anybody connects, and only then.
    async fn index(&mut self) {
        if self.receiver.generation().await.is_none() {
            self.receiver.disconnect().await;
            self.receiver.index(|_, _| {}).await.expect("these disks can be read");
        }
    }

    async fn ask_for_digests(&mut self) {
        match self.receiver.digests().await {
            Ok(digests) => assert_eq!(digests.len(), self.targets.len()),
            Err(ReceiverError::InFlight) => {}
            Err(error) => self.only_unknown(&error),
        }
    }

    fn only_unknown(&self, error: &ReceiverError) {
        let is_known = matches!(error, ReceiverError::NotWhole { .. });
        // What is being written is not known either, and a stream's last block may come meanwhile.
        let may_be = self.holds == Holds::Anything || !self.writer.is_empty() || self.is_muddled;
        assert!(is_known && may_be, "{error:?}");
    }

    /// Every stream ends, and what is there was sent.
    async fn end(mut self) {
        for stream in self.streams.iter_mut().flatten() {
            let _broken = stream.pipe.shutdown().await;
            while stream.next_frame().await.is_some() {}
        }
        self.streams.clear();
        while let Some(served) =
            timeout(PATIENCE, self.serving.join_next()).await.expect("a stream does not end")
        {
            if let Err(error) = served.expect("serving does not panic") {
                assert!(!error.to_string().is_empty());
                if let ReceiverError::Stream(StreamError::Frame { cause }) = error {
                    assert!(!cause.to_string().is_empty());
                }
            }
        }
        self.receiver.disconnect().await;
        for (disk, target) in (0..).zip(&self.targets) {
            for (block, content) in (0..).zip(blocks(&target.content())) {
                let named = &self.named[&(disk, block)];
                assert!(named.contains(&hash(content)), "block {block} of disk {disk} is nobody's");
            }
        }
        match self.receiver.digests().await {
            Ok(digests) => {
                let read = self.receiver.reread(|_, _| {}).await.expect("these disks can be read");
                assert_eq!(read, digests, "it does not hold what it says");
                for target in &self.targets {
                    assert!(target.content() == target.durable(), "named and not durable");
                }
            }
            Err(error) => self.only_unknown(&error),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Muddled {
    Yes,
    No,
}

impl Stream {
    /// The next frame from the receiver, which never breaks the protocol; `None`: it has ended.
    async fn next_frame(&mut self) -> Option<Frame> {
        let reading = timeout(PATIENCE, self.read_frame());
        let frame = reading.await.expect("the receiver is silent")?;
        match &frame {
            Frame::Ack { upto } => {
                assert!(self.acked < *upto || self.is_muddled, "acknowledged twice");
                assert!(*upto <= self.seq || self.is_muddled, "acknowledged and not sent");
                self.acked = *upto;
            }
            Frame::Nack { seq, .. } => {
                assert!(self.blocks.contains_key(seq) || self.is_muddled, "refused, not sent");
                self.refused.insert(*seq);
            }
            Frame::Credit { bytes, .. } => self.credit += bytes.0,
            Frame::HelloAck { .. }
            | Frame::Flushed { .. }
            | Frame::Table { .. }
            | Frame::Span { .. }
            | Frame::Error { .. }
            | Frame::Bye
            | Frame::Alive => {}
            frame => panic!("a receiver never says {frame:?}"),
        }
        Some(frame)
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        loop {
            match Frame::parse(&self.held).expect("the receiver keeps to the protocol") {
                Parsed::Frame { frame, used, payload_len } => {
                    let all = used + usize::try_from(payload_len).expect("32 bits fit");
                    if all <= self.held.len() {
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
