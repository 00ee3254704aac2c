//! One data stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use wire::data::{ALIVE_EVERY_MS, DEAD_AFTER_MS, Frame, UNACKED_MAX, UNKNOWN, credit_cost};

use super::SenderError;
use super::limiter::PIECE;
use super::link::{Link, protocol};
use super::pending::{Flight, Outgoing};
use crate::frames::{FrameReader, FrameWriter, StreamError};

/// What a stream is told to say besides blocks.
pub enum Command {
    Flush,
    Ask(Frame),
    Bye,
}

/// An answer to [`Command::Ask`].
pub struct Answer {
    pub frame: Frame,
    pub payload: Vec<u8>,
}

/// One data stream, shared by the task that sends and the task that receives.
pub struct Stream {
    link: Arc<Link>,
    no: u16,
    credit: AtomicU64,
    /// The number of the last block that was sent.
    sent: AtomicU64,
    acked: AtomicU64,
    /// Credit came, or an acknowledgement.
    room: Notify,
    /// What the largest block costs: with that much credit, any block may be sent.
    dearest: u64,
}

impl Stream {
    pub fn new(link: Arc<Link>, no: u16, credit: u64) -> Self {
        let dearest = link.sources.iter().map(|source| source.block_size.bytes()).max();
        Self {
            link,
            no,
            credit: AtomicU64::new(credit),
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            room: Notify::new(),
            dearest: dearest.unwrap_or(0),
        }
    }

    fn has_room(&self) -> bool {
        let unacked = self.sent.load(Ordering::Relaxed) - self.acked.load(Ordering::Relaxed);
        self.credit.load(Ordering::Relaxed) >= self.dearest && unacked < UNACKED_MAX
    }
}

/// How long to wait for the last word of a peer that does not read.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Sends until the connection ends.
pub async fn run_sending(
    stream: Arc<Stream>,
    mut writer: FrameWriter,
    commands: mpsc::Receiver<Command>,
) {
    let ended = stream.link.ended.clone();
    tokio::select! {
        sent = send(&stream, &mut writer, commands) => {
            if let Err(error) = sent {
                // The other end may have said why it does not read any more.
                let _silent = timeout(LAST_WORD, ended.cancelled()).await;
                stream.link.fail(error);
            }
        }
        () = ended.cancelled() => {}
    }
}

async fn send(
    stream: &Stream,
    writer: &mut FrameWriter,
    mut commands: mpsc::Receiver<Command>,
) -> Result<(), SenderError> {
    let times = &stream.link.times;
    // The queue closes before the connection ends, so that nothing more comes in.
    let mut queue_is_open = true;
    loop {
        let has_room = stream.has_room();
        if has_room && let Ok(outgoing) = stream.link.queued.try_recv() {
            send_block(stream, writer, outgoing).await?;
            continue;
        }
        writer.flush().await.map_err(io)?;
        let start = Instant::now();
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::Flush) => writer.write(&Frame::Flush { token: 1 }, &[]).await.map_err(io)?,
                Some(Command::Ask(frame)) => writer.write(&frame, &[]).await.map_err(io)?,
                Some(Command::Bye) | None => {
                    writer.write(&Frame::Bye, &[]).await.map_err(io)?;
                    return writer.shutdown().await.map_err(io);
                }
            },
            outgoing = stream.link.queued.recv(), if has_room && queue_is_open => {
                times.starved.add_since(start);
                match outgoing {
                    Ok(outgoing) => send_block(stream, writer, outgoing).await?,
                    Err(_) => queue_is_open = false,
                }
            }
            () = stream.room.notified(), if !has_room => times.credit.add_since(start),
            () = tokio::time::sleep(Duration::from_millis(ALIVE_EVERY_MS)) => {
                writer.write(&Frame::Alive, &[]).await.map_err(io)?;
            }
        }
    }
}

async fn send_block(
    stream: &Stream,
    writer: &mut FrameWriter,
    outgoing: Outgoing,
) -> Result<(), SenderError> {
    let link = &stream.link;
    let seq = stream.sent.fetch_add(1, Ordering::Relaxed) + 1;
    let source = &link.sources[outgoing.flight.disk];
    let frame = Frame::Block(outgoing.header(seq, source.no));
    let Outgoing { flight, raw_len, payload, .. } = outgoing;
    let payload = payload.as_deref().unwrap_or_default();
    let cost = credit_cost(u32::try_from(payload.len()).expect("a payload is at most 4 MiB"));
    stream.credit.fetch_sub(cost, Ordering::Relaxed);
    flight.stats.sent.add(raw_len.into());
    flight.stats.wire.add(payload.len() as u64 + HEAD_ABOUT);
    link.pending.departs(stream.no, seq, flight);

    // Under a limit in small pieces, so that it is kept in small times.
    let piece_len = if link.limiter.is_set() { PIECE } else { payload.len().max(1) };
    let (first, rest) = payload.split_at(payload.len().min(piece_len));
    pass(stream, first.len()).await;
    let start = Instant::now();
    writer.begin(&frame, payload.len(), first).await.map_err(io)?;
    link.times.socket.add_since(start);
    for piece in rest.chunks(piece_len) {
        pass(stream, piece.len()).await;
        let start = Instant::now();
        writer.piece(piece).await.map_err(io)?;
        link.times.socket.add_since(start);
    }
    link.pending.sent();
    Ok(())
}

/// Prefix and head of a block that is no patch.
const HEAD_ABOUT: u64 = 66;

async fn pass(stream: &Stream, len: usize) {
    let start = Instant::now();
    stream.link.limiter.pass(len).await;
    stream.link.times.limit.add_since(start);
}

/// Receives until the connection ends.
pub async fn run_receiving(
    stream: Arc<Stream>,
    mut reader: FrameReader,
    answers: mpsc::Sender<Answer>,
) {
    let ended = stream.link.ended.clone();
    tokio::select! {
        error = receive(&stream, &mut reader, &answers) => stream.link.fail(error),
        () = ended.cancelled() => {}
    }
}

/// Takes in what the receiver says; returns with why it ends.
async fn receive(
    stream: &Stream,
    reader: &mut FrameReader,
    answers: &mpsc::Sender<Answer>,
) -> SenderError {
    loop {
        let dead = Duration::from_millis(DEAD_AFTER_MS);
        let (frame, payload_len) = match timeout(dead, reader.next()).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return error.into(),
            Err(_) => return SenderError::Silent,
        };
        match frame {
            Frame::Credit { bytes, waiting } => {
                stream.credit.fetch_add(bytes.0, Ordering::Relaxed);
                stream.link.receiver_waiting.store(waiting.0, Ordering::Relaxed);
                stream.room.notify_one();
            }
            Frame::Ack { upto } => {
                if upto > stream.sent.load(Ordering::Relaxed) {
                    return protocol(format!("block {upto} is acknowledged and was not sent"));
                }
                acked(stream, upto);
            }
            Frame::Nack { seq, reason } => {
                let take_in = |flight: Flight| {
                    tracing::debug!(block = flight.block.0, ?reason, "block refused");
                    // What is there is not what was believed: it has to be sent in full.
                    let held = &stream.link.sources[flight.disk];
                    held.held().contradict(flight.block, UNKNOWN);
                };
                if !stream.link.pending.refused(stream.no, seq, take_in) {
                    return protocol(format!("block {seq} is refused and is not in flight"));
                }
            }
            Frame::Table { .. } | Frame::Span { .. } => {
                let mut payload = vec![0; usize::try_from(payload_len).expect("32 bits fit")];
                match reader.payload(&mut payload, dead).await {
                    Ok(Some(())) => {}
                    Ok(None) => return SenderError::Silent,
                    Err(error) => return error.into(),
                }
                if answers.try_send(Answer { frame, payload }).is_err() {
                    return protocol("an answer that nobody asked for".to_owned());
                }
            }
            Frame::Error { code, text } => return SenderError::Peer { code, text },
            Frame::Bye => return SenderError::NotConnected,
            Frame::Flushed { .. } | Frame::Alive => {}
            frame => return protocol(format!("unexpected {frame:?}")),
        }
    }
}

/// These blocks are on the destination's stable storage.
fn acked(stream: &Stream, upto: u64) {
    stream.link.pending.landed(stream.no, upto, |flight| {
        let source = &stream.link.sources[flight.disk];
        source.held().settle(flight.block, flight.hash);
        flight.stats.done.add(source.len_of(flight.block).0);
        flight.taken.settle();
    });
    stream.acked.store(upto, Ordering::Relaxed);
    stream.room.notify_one();
}

const fn io(cause: std::io::Error) -> SenderError {
    SenderError::Stream(StreamError::Io { cause })
}
