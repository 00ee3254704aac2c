//! A connection: all streams of one generation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use units::{BlockIndex, Bytes, Digest, MigrationId};
use wire::data::{DATA_VERSION, DEAD_AFTER_MS, Frame, STREAMS_MAX};

use super::SenderError;
use super::limiter::Limiter;
use super::pending::{Outgoing, Pending};
use super::progress::{ReceiverMemory, Times};
use super::source::{Held, Source};
use super::stream::{self, Answer, Command, Stream};
use crate::frames::{FrameReader, FrameWriter, halves};

/// A connection: all streams of one generation. When one ends, all do.
pub struct Link {
    pub generation: u64,
    pub times: Times,
    pub pending: Pending,
    pub limiter: Arc<Limiter>,
    /// Cancelled: nothing is sent any more, and nothing that comes counts.
    pub ended: CancellationToken,
    /// What the receiver holds in memory, as it last said.
    pub receiver_waiting: AtomicU64,
    pub sources: Arc<[Source]>,
    credit_total: u64,
    queue: async_channel::Sender<Outgoing>,
    pub queued: async_channel::Receiver<Outgoing>,
    failure: Mutex<Option<SenderError>>,
    commands: Vec<mpsc::Sender<Command>>,
    answers: tokio::sync::Mutex<mpsc::Receiver<Answer>>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

/// What may wait between workers and streams. Enough that neither waits for the other's hiccups,
/// little enough to tell soon who is slower.
const QUEUE_BYTES: u64 = 3 << 20;

/// How many blocks that is: 12 of the smallest, 2 of the largest.
fn queue_len(sources: &[Source]) -> usize {
    let largest = sources.iter().map(|source| source.block_size.bytes()).max();
    let blocks = QUEUE_BYTES / largest.unwrap_or(QUEUE_BYTES);
    usize::try_from(blocks.max(2)).expect("a small number")
}

/// The receiver first waits for the writers of the generation before, and for its disks' caches.
const HELLO_WITHIN: Duration = Duration::from_secs(120);

/// Questions for tables that may be unanswered at a time.
const QUESTIONS: usize = 16;

/// How long an orderly end may take.
const BYE_WITHIN: Duration = Duration::from_secs(1);

/// A stream of which the receiver has said that it is ready.
struct Greeted {
    no: u16,
    reader: FrameReader,
    writer: FrameWriter,
    credit: u64,
}

impl Link {
    /// Greets on every stream. No stream sends anything else before all of them are answered: by
    /// then the receiver has stopped whatever wrote for a lower generation.
    pub async fn open<S>(
        migration: &MigrationId,
        generation: u64,
        streams: Vec<S>,
        limiter: Arc<Limiter>,
        sources: Arc<[Source]>,
    ) -> Result<Arc<Self>, SenderError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let asked = streams.len();
        let count = u16::try_from(asked).ok().filter(|count| (1..=STREAMS_MAX).contains(count));
        let count = count.ok_or(SenderError::Streams { asked })?;
        let mut greetings = JoinSet::new();
        for (no, stream) in (0..count).zip(streams) {
            let hello = Frame::Hello {
                version: DATA_VERSION,
                migration: migration.clone(),
                generation,
                stream: no,
                streams: count,
            };
            greetings.spawn(greet(hello, generation, no, stream));
        }
        let mut greeted = Vec::new();
        while let Some(one) = greetings.join_next().await {
            greeted.push(one.expect("a greeting does not panic and is not cancelled")?);
        }
        Ok(Self::start(generation, greeted, limiter, sources))
    }

    fn start(
        generation: u64,
        greeted: Vec<Greeted>,
        limiter: Arc<Limiter>,
        sources: Arc<[Source]>,
    ) -> Arc<Self> {
        let (queue, queued) = async_channel::bounded(queue_len(&sources));
        let (answers_in, answers) = mpsc::channel(QUESTIONS);
        let (commands, command_queues): (Vec<_>, Vec<_>) =
            greeted.iter().map(|_| mpsc::channel(QUESTIONS)).unzip();
        let link = Arc::new(Self {
            generation,
            times: Times::default(),
            pending: Pending::default(),
            limiter,
            ended: CancellationToken::new(),
            receiver_waiting: AtomicU64::new(0),
            sources,
            // The receiver's word, and it can say anything.
            credit_total: greeted.iter().map(|one| one.credit).fold(0, u64::saturating_add),
            queue,
            queued,
            failure: Mutex::default(),
            commands,
            answers: tokio::sync::Mutex::new(answers),
            tasks: tokio::sync::Mutex::default(),
        });
        let mut tasks = link.tasks.try_lock().expect("nobody else has seen it yet");
        for (one, commands) in greeted.into_iter().zip(command_queues) {
            let stream = Arc::new(Stream::new(Arc::clone(&link), one.no, one.credit));
            tasks.spawn(stream::run_sending(Arc::clone(&stream), one.writer, commands));
            tasks.spawn(stream::run_receiving(stream, one.reader, answers_in.clone()));
        }
        drop(tasks);
        link
    }

    pub fn is_open(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Queues a block, waiting for room; `false`: the connection has ended, and the block is dirty
    /// again.
    pub fn send(&self, outgoing: Outgoing) -> bool {
        self.pending.queued();
        self.queue.send_blocking(outgoing).is_ok()
    }

    pub fn receiver_memory(&self) -> ReceiverMemory {
        let waiting = self.receiver_waiting.load(Ordering::Relaxed);
        ReceiverMemory { waiting, credit: self.credit_total }
    }

    /// Asks for everything sent so far to be made durable now.
    pub async fn flush(&self) {
        for commands in &self.commands {
            // A stream that has ended has told why.
            let _ended = commands.send(Command::Flush).await;
        }
    }

    /// The end of the connection, because of this.
    pub fn fail(&self, error: SenderError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.end();
    }

    /// Why it has ended.
    pub fn failure(&self) -> SenderError {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.unwrap_or(SenderError::NotConnected)
    }

    /// Nothing is sent or received any more.
    pub fn end(&self) {
        self.ended.cancel();
        self.queue.close();
        self.pending.changed.notify_waiters();
    }

    /// Ends the connection, orderly if it still works, and gives up what is in flight. May be
    /// called again.
    pub async fn close(&self) {
        self.queue.close();
        let mut tasks = self.tasks.lock().await;
        if self.is_open() {
            for commands in &self.commands {
                let _full = commands.try_send(Command::Bye);
            }
            let _late =
                timeout(BYE_WITHIN, async { while tasks.join_next().await.is_some() {} }).await;
        }
        self.end();
        while tasks.join_next().await.is_some() {}
        while self.queued.try_recv().is_ok() {}
        self.pending.give_up();
    }

    /// Learns what the targets hold. What differs from what was believed is looked at again.
    pub async fn learn(&self) -> Result<(), SenderError> {
        let mut answers = self.answers.lock().await;
        for source in self.sources.iter() {
            let query = Frame::TableQuery { disk: source.no };
            self.ask(query).await?;
            let Answer { frame, payload } = self.answer(&mut answers).await?;
            let differing = compare_spans(source, &frame, &payload)?;
            let mut asked = differing.iter();
            for span in asked.by_ref().take(QUESTIONS / 2) {
                self.ask(Frame::SpanQuery { disk: source.no, span: *span }).await?;
            }
            for span in &differing {
                let Answer { frame, payload } = self.answer(&mut answers).await?;
                take_in_span(source, *span, &frame, &payload)?;
                if let Some(span) = asked.next() {
                    self.ask(Frame::SpanQuery { disk: source.no, span: *span }).await?;
                }
            }
        }
        Ok(())
    }

    async fn ask(&self, frame: Frame) -> Result<(), SenderError> {
        let sent = self.commands[0].send(Command::Ask(frame)).await;
        sent.map_err(|_| self.failure())
    }

    async fn answer(&self, answers: &mut mpsc::Receiver<Answer>) -> Result<Answer, SenderError> {
        let answer = timeout(Duration::from_millis(DEAD_AFTER_MS), async {
            tokio::select! {
                answer = answers.recv() => answer,
                () = self.ended.cancelled() => None,
            }
        });
        match answer.await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.failure()),
            Err(_) => Err(SenderError::Silent),
        }
    }
}

/// The spans of a table in which it differs from what was believed.
fn compare_spans(source: &Source, frame: &Frame, spans: &[u8]) -> Result<Vec<u64>, SenderError> {
    let Frame::Table { disk, size, block_size, root } = frame else {
        return Err(protocol(format!("{frame:?} is no answer to a question for a table")));
    };
    if *disk != source.no || *block_size != source.block_size || *size != source.size {
        return Err(SenderError::Shape { disk: source.no, theirs: *size, ours: source.size });
    }
    let mut held = source.held();
    if *root == held.root() {
        return Ok(Vec::new());
    }
    let theirs = digests(spans);
    let count = held.table().spans();
    if theirs.len() as u64 != count {
        return Err(protocol(format!("{} spans instead of {count}", theirs.len())));
    }
    Ok((0..count)
        .zip(theirs)
        .filter(|(n, span)| held.table().span_digest(*n) != *span)
        .map(|(n, _)| n)
        .collect())
}

/// Believes a span of a table.
fn take_in_span(
    source: &Source,
    span: u64,
    frame: &Frame,
    hashes: &[u8],
) -> Result<(), SenderError> {
    if *frame != (Frame::Span { disk: source.no, span }) {
        return Err(protocol(format!("{frame:?} is no answer to a question for span {span}")));
    }
    let mut held = source.held();
    let blocks = held.table().span_range(span);
    let theirs = digests(hashes);
    if theirs.len() as u64 != blocks.end - blocks.start {
        return Err(protocol(format!("{} hashes in span {span}", theirs.len())));
    }
    for (block, hash) in blocks.zip(theirs) {
        believe(&mut held, BlockIndex(block), hash);
    }
    Ok(())
}

fn believe(held: &mut Held, block: BlockIndex, hash: Digest) {
    if held.hash(block) != hash {
        held.contradict(block, hash);
    }
}

fn digests(bytes: &[u8]) -> Vec<Digest> {
    let (digests, _) = bytes.as_chunks::<32>();
    digests.iter().map(|digest| Digest(*digest)).collect()
}

/// Says Hello and waits for the answer.
async fn greet<S>(hello: Frame, generation: u64, no: u16, stream: S) -> Result<Greeted, SenderError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut reader, mut writer) = halves(stream);
    let io = |cause| SenderError::Stream(crate::StreamError::Io { cause });
    writer.write(&hello, &[]).await.map_err(io)?;
    writer.flush().await.map_err(io)?;
    let answer = timeout(HELLO_WITHIN, reader.next()).await.map_err(|_| SenderError::Silent)??;
    match answer.0 {
        Frame::HelloAck { version, generation: theirs, stream, credit: Bytes(credit) } => {
            if version != DATA_VERSION {
                return Err(SenderError::Version { theirs: version });
            }
            if (theirs, stream) != (generation, no) {
                return Err(protocol(format!("stream {stream} of generation {theirs} answered")));
            }
            Ok(Greeted { no, reader, writer, credit })
        }
        Frame::Error { code, text } => Err(SenderError::Peer { code, text }),
        frame => Err(protocol(format!("{frame:?} is no answer to Hello"))),
    }
}

pub fn protocol(what: String) -> SenderError {
    SenderError::Protocol { what }
}
