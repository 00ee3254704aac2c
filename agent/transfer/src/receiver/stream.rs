//! One data stream.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use units::{Bytes, DiskNo, chain};
use wire::data::{
    ALIVE_EVERY_MS, Block, Content, DATA_VERSION, DEAD_AFTER_MS, Frame, NackReason, credit_cost,
};

use super::generation::Generation;
use super::job::{Job, run_ranges};
use super::ledger::{Ledger, Settled};
use super::outbox::{End, Outbox, Reply};
use super::{ReceiverError, Shared};
use crate::frames::{FrameReader, FrameWriter, halves};

/// One stream, as the threads that write for it see it.
pub struct StreamState {
    pub no: u16,
    outbox: Outbox,
    ledger: Mutex<Ledger>,
}

impl StreamState {
    /// Blocks are durable.
    pub fn settle(&self, seqs: impl IntoIterator<Item = u64>) {
        let mut ledger = self.ledger();
        let settled = ledger.settle(seqs);
        self.say(settled);
    }

    /// A block was not written.
    pub fn refuse(&self, seq: u64, reason: NackReason) {
        self.outbox.nack(seq, reason);
        self.settle([seq]);
    }

    /// The memory of a block is free. Answers whether a flush waits for nothing but a sync.
    pub fn release(&self, cost: u64) -> bool {
        let released = self.ledger().release(cost);
        if released.tell {
            self.outbox.credit(cost);
        } else {
            self.outbox.credit_later(cost);
        }
        released.hurry
    }

    /// A flush has come. Answers whether it waits for nothing but a sync.
    fn flush(&self, token: u64) -> bool {
        let mut ledger = self.ledger();
        let (settled, hurry) = ledger.flush(token);
        self.say(settled);
        hurry
    }

    /// While the ledger is locked: else what one thread has settled could be said after what another
    /// settled later, and the lower number would take the higher one's place.
    fn say(&self, settled: Settled) {
        if let Some(upto) = settled.acked {
            self.outbox.ack(upto);
        }
        if let Some(token) = settled.flushed {
            self.outbox.flushed(token);
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the last word to a peer may take.
const LAST_WORD: Duration = Duration::from_secs(2);

/// From Hello to the end.
pub async fn serve<S>(shared: &Arc<Shared>, stream: S) -> Result<(), ReceiverError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut reader, mut writer) = halves(stream);
    let (generation, state, hello_ack) = match greet(shared, &mut reader).await {
        Ok(greeted) => greeted,
        Err(error) => {
            let frame = Frame::Error { code: error.code(), text: chain(&error) };
            let say = async {
                writer.write(&frame, &[]).await?;
                writer.shutdown().await
            };
            let _unheard = timeout(LAST_WORD, say).await;
            return Err(error);
        }
    };
    let mut speaking = pin!(speak(&mut writer, &state.outbox, &generation, hello_ack));
    let (ended, spoke) = tokio::select! {
        heard = listen(shared, &generation, &state, &mut reader) => (heard, false),
        said = &mut speaking => match said {
            Ok(()) => (Err(ReceiverError::Stopped), true),
            Err(cause) => (Err(ReceiverError::Stream(cause.into())), true),
        },
        () = generation.ended.cancelled() => (Err(ReceiverError::Stopped), false),
    };
    match &ended {
        Ok(()) => state.outbox.end(End::Orderly),
        Err(error) => {
            // The first failure of the generation is what every stream tells.
            let (code, text) = generation.fail(error);
            state.outbox.end(End::Error { code, text });
        }
    }
    if !spoke {
        let _unheard = timeout(LAST_WORD, speaking).await;
    }
    ended
}

/// Reads Hello, and begins the generation if it is a new one.
async fn greet(
    shared: &Shared,
    reader: &mut FrameReader,
) -> Result<(Arc<Generation>, Arc<StreamState>, Frame), ReceiverError> {
    let (frame, _) = hear(reader).await?;
    let Frame::Hello { version, migration, generation: number, stream, streams } = frame else {
        return Err(protocol("the first frame is not Hello"));
    };
    if version < DATA_VERSION {
        return Err(ReceiverError::Version { theirs: version });
    }
    if migration != shared.migration {
        return Err(ReceiverError::Foreign { theirs: migration });
    }
    let generation = shared.enter(number).await?;
    generation.join(stream)?;
    // Never less than the largest block costs: the sender waits for that much before it sends.
    let largest = shared.targets.iter().map(|target| target.block_size.bytes()).max();
    let share = generation.credit_total.0 / u64::from(streams);
    let credit = share.max(largest.unwrap_or(0));
    let state = StreamState {
        no: stream,
        outbox: Outbox::default(),
        ledger: Mutex::new(Ledger::new(credit)),
    };
    let (version, credit) = (DATA_VERSION, Bytes(credit));
    let ack = Frame::HelloAck { version, generation: number, stream, credit };
    Ok((generation, Arc::new(state), ack))
}

/// Says what there is to say, until the last word.
async fn speak(
    writer: &mut FrameWriter,
    outbox: &Outbox,
    generation: &Generation,
    hello_ack: Frame,
) -> std::io::Result<()> {
    writer.write(&hello_ack, &[]).await?;
    loop {
        let batch = outbox.take(generation.memory_waiting());
        for reply in &batch.frames {
            writer.write(&reply.frame, &reply.payload).await?;
        }
        if batch.is_last {
            return writer.shutdown().await;
        }
        writer.flush().await?;
        if timeout(Duration::from_millis(ALIVE_EVERY_MS), outbox.changed()).await.is_err() {
            writer.write(&Frame::Alive, &[]).await?;
        }
    }
}

/// Takes in frames until Bye.
async fn listen(
    shared: &Shared,
    generation: &Arc<Generation>,
    state: &Arc<StreamState>,
    reader: &mut FrameReader,
) -> Result<(), ReceiverError> {
    loop {
        match hear(reader).await? {
            (Frame::Block(block), payload_len) => {
                let job = accept(shared, generation, state, block, payload_len)?;
                receive(generation, reader, job).await?;
            }
            (Frame::Flush { token }, _) => {
                if state.flush(token) {
                    generation.syncs.hurry();
                }
            }
            (Frame::TableQuery { disk }, _) => reply(state, table(shared, disk)?)?,
            (Frame::SpanQuery { disk, span }, _) => reply(state, hashes(shared, disk, span)?)?,
            (Frame::Error { code, text }, _) => return Err(ReceiverError::Peer { code, text }),
            (Frame::Bye, _) => return Ok(()),
            (Frame::Alive, _) => {}
            (frame, _) => return Err(protocol(&format!("unexpected {frame:?}"))),
        }
    }
}

/// Checks a block before a byte of its payload is read. The job's payload is still to be filled.
fn accept(
    shared: &Shared,
    generation: &Generation,
    state: &Arc<StreamState>,
    block: Block,
    payload_len: u32,
) -> Result<Job, ReceiverError> {
    let broken = |what| ReceiverError::Protocol { what };
    let target = Arc::clone(shared.target(block.disk)?);
    let len = target
        .len_of(block.block)
        .ok_or_else(|| broken(format!("disk {} has no block {}", block.disk, block.block.0)))?;
    let raw_len = match &block.content {
        Content::Zero => Some(0),
        Content::Full => Some(len),
        Content::Patch(runs) => {
            run_ranges(runs, len).map(|ranges| ranges.iter().map(ExactSizeIterator::len).sum())
        }
    };
    if raw_len != usize::try_from(block.raw_len).ok() {
        return Err(broken(format!("block {} is no {} bytes long", block.block.0, block.raw_len)));
    }
    let cost = credit_cost(payload_len);
    state.ledger().receive(&block, cost).map_err(broken)?;
    generation.take_off(block.disk, block.block).map_err(broken)?;
    let payload = generation.pool.take(usize::try_from(payload_len).expect("32 bits fit"));
    Ok(Job { stream: Arc::clone(state), target, block, payload, cost })
}

async fn receive(
    generation: &Generation,
    reader: &mut FrameReader,
    mut job: Job,
) -> Result<(), ReceiverError> {
    let within = Duration::from_millis(DEAD_AFTER_MS);
    reader.payload(&mut job.payload, within).await?.ok_or(ReceiverError::Silent)?;
    generation.submit(job)
}

async fn hear(reader: &mut FrameReader) -> Result<(Frame, u32), ReceiverError> {
    let heard = timeout(Duration::from_millis(DEAD_AFTER_MS), reader.next()).await;
    heard.map_err(|_| ReceiverError::Silent)?.map_err(ReceiverError::Stream)
}

fn table(shared: &Shared, disk: DiskNo) -> Result<Reply, ReceiverError> {
    let target = shared.target(disk)?;
    let mut table = target.table();
    let root = table.root();
    let payload = (0..table.spans()).flat_map(|span| table.span_digest(span).0).collect();
    let (size, block_size) = (target.size, target.block_size);
    Ok(Reply { frame: Frame::Table { disk, size, block_size, root }, payload })
}

fn hashes(shared: &Shared, disk: DiskNo, span: u64) -> Result<Reply, ReceiverError> {
    let table = shared.target(disk)?.table();
    if span >= table.spans() {
        return Err(protocol(&format!("disk {disk} has no span {span}")));
    }
    let payload = table.span_hashes(span).iter().flat_map(|hash| hash.0).collect();
    Ok(Reply { frame: Frame::Span { disk, span }, payload })
}

fn reply(state: &StreamState, reply: Reply) -> Result<(), ReceiverError> {
    let took = state.outbox.reply(reply);
    took.then_some(()).ok_or_else(|| protocol("too many questions without reading the answers"))
}

fn protocol(what: &str) -> ReceiverError {
    ReceiverError::Protocol { what: what.to_owned() }
}
