//! One connection of QEMU's or libvirt's, carried to the other site and on to its real end.
//!
//! ```text
//!  source's QEMU ── local ──► relay ══ far: blocks, TLS ══► relay ── local ──► destination's QEMU
//!                ◄──                                                        ◄──
//! ```
//!
//! Both directions at once, each with an end of its own: QEMU closes the half that it does not need any
//! more. Not a byte is changed or kept back: what was read is sent at once, but for the beginning of a
//! page (`REST_OF_A_PAGE`), and no more is read than the other side takes, so that what QEMU measures is
//! the line and not a buffer. Where the far side falls silent or breaks, the local connection is closed
//! at once: QEMU then fails its migration and goes on at the source, while a peer that only hangs would
//! hold it for ever.
//!
//! What a connection carries may be known ([`StreamKind`]): then pages that the other end has are named
//! instead of sent. What arrives is the same.

mod block;
mod budget;
mod codec;
mod early;
mod multifd;
mod nbd;
mod pace;
mod pages;
mod parse;
mod ram;
mod store;
pub mod templates;
#[cfg(test)]
mod tests;
mod toll;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

pub use block::BLOCK_MAX;
use block::{Decoder, Encoder, Reach, Said};
pub use budget::{Budget, Share};
use codec::{Composer, Player};
pub use early::{Early, EarlyError, InOrder};
use nbd::NbdParser;
use pace::{Level, Pace, Went};
use parse::AnyParser;
use ram::RamParser;
pub use store::{Migration, Room};
use toll::Toll;

/// The other end says that it is there at least so often.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// One that has said nothing for so long is gone: below libvirt's own 30 s, so that its keepalive does
/// not end the connection that the source waits on first.
pub const DEAD_AFTER: Duration = Duration::from_secs(20);

/// How often the receiving end says how long it was busy.
const BUSY_EVERY: Duration = Duration::from_millis(5);

/// How long the beginning of a page waits for its rest. QEMU writes pages whole, and the rest is under
/// way; other content never waits.
const REST_OF_A_PAGE: Duration = Duration::from_millis(2);

#[derive(Debug, Error)]
pub enum RelayError {
    #[error("the connection of this site's hypervisor broke")]
    Local(#[source] io::Error),
    #[error("the line to the other agent broke")]
    Far(#[source] io::Error),
    #[error("the other agent has said nothing for {} s", DEAD_AFTER.as_secs())]
    Silent,
    #[error("a template of this site is not any more what it was when it was read")]
    Template,
    #[error("the other agent broke the protocol: {what}")]
    Protocol { what: &'static str },
}

impl From<&'static str> for RelayError {
    fn from(what: &'static str) -> Self {
        Self::Protocol { what }
    }
}

/// Bytes so far, of one connection or of several.
#[derive(Debug, Default)]
pub struct Meter {
    /// Read from this site's hypervisor.
    pub taken: AtomicU64,
    /// Written to it.
    pub given: AtomicU64,
    /// Of writes to disks, those that were acknowledged and are not done.
    pub owed: Arc<AtomicU64>,
    /// Sent to the other agent, with all that is around it but TLS.
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

/// What the source's hypervisor says on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// QEMU's migration stream, or one of multifd's channels.
    Memory,
    /// An NBD client's requests.
    Disk,
}

/// What an end is to a connection. Both ends mean the same one by kind and index: the one that so many to
/// that door came before.
#[derive(Debug, Clone)]
pub enum Part {
    /// It is of no use to know what is carried.
    Opaque,
    /// The source's end: what the other one has already is named to it.
    Sends { kind: StreamKind, index: u32, migration: Arc<Migration> },
    /// The destination's, which finds out by itself what comes.
    Takes { kind: StreamKind, index: u32, migration: Arc<Migration> },
}

impl Part {
    /// How far back the source's end may look on it: each that looks far costs 128 MiB at either end, once the line
    /// is slow.
    fn reach(&self) -> Reach {
        match self {
            Self::Sends { kind: StreamKind::Memory, index, migration }
            | Self::Takes { kind: StreamKind::Memory, index, migration }
                if *index <= store::CHANNELS && migration.has_room() =>
            {
                Reach::Far
            }
            _ => Reach::Near,
        }
    }
}

/// Carries a connection to its end: both sides have said that nothing more comes.
///
/// # Errors
/// Where either breaks. Both are closed then.
pub async fn relay<L, F>(local: L, far: F, part: Part, meter: &Meter) -> Result<(), RelayError>
where
    L: AsyncRead + AsyncWrite,
    F: AsyncRead + AsyncWrite,
{
    let ((from_local, to_local), (from_far, to_far)) = (split(local), split(far));
    let (news, heard) = watch::channel(News::default());
    let (disk, busy) = (OnceLock::new(), AtomicU32::new(0));
    let mut to_far =
        ToFar { far: to_far, meter, said: Instant::now(), told: News::default(), heard };
    let reach = part.reach();
    let nothing = || Arc::new(Migration::new(Room::NONE));
    // What is answered to the source's end names nothing, and may keep nothing.
    let (composer, player, taken) = match part {
        Part::Opaque => (None, Player::new(nothing()), Reach::Near),
        Part::Takes { migration, .. } => (None, Player::new(migration), reach),
        Part::Sends { kind, ref migration, .. } => {
            let parser = match kind {
                StreamKind::Memory => AnyParser::Ram(RamParser::new()),
                StreamKind::Disk => AnyParser::Nbd(NbdParser::new()),
            };
            let composer = Composer::new(parser, Arc::clone(migration));
            (Some((composer, Arc::clone(migration))), Player::new(nothing()), Reach::Near)
        }
    };
    let (composer, migration) = composer.unzip();
    let out = async {
        match composer {
            Some(composer) => {
                outwards_known(from_local, &mut to_far, composer, reach, (&disk, &busy)).await?;
            }
            None => outwards(from_local, &mut to_far).await?,
        }
        // Nothing more comes, and nobody waits for it any longer.
        to_far.send(Encoder::end()).await
    };
    let confirm = |blocks| {
        let sent = disk.get().zip(migration.as_ref());
        sent.is_some_and(|(disk, migration)| migration.confirm(*disk, blocks))
    };
    let hears = (confirm, &busy);
    let back = inwards(from_far, to_local, (player, Decoder::new(taken)), &news, hears, meter);
    // The first error drops the other direction, and with it both connections.
    tokio::try_join!(out, back)?;
    Ok(())
}

/// The line to the other agent.
struct ToFar<'a, F> {
    far: F,
    meter: &'a Meter,
    said: Instant,
    /// Of the other direction.
    heard: watch::Receiver<News>,
    told: News,
}

/// What the receiving end tells of what it receives.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct News {
    /// How many blocks of its disk are here.
    kept: u32,
    /// How long in all it took to take what came, in ms.
    busy: u32,
}

impl<F: AsyncWrite + Unpin> ToFar<'_, F> {
    /// As long as it takes: the far hypervisor may be slow, and its agent says meanwhile that it is
    /// there. A line that is cut the socket itself notices (`TCP_USER_TIMEOUT`).
    async fn send(&mut self, block: &[u8]) -> Result<(), RelayError> {
        self.far.write_all(block).await.map_err(RelayError::Far)?;
        self.far.flush().await.map_err(RelayError::Far)?;
        self.meter.sent.fetch_add(block.len() as u64, Ordering::Relaxed);
        self.said = Instant::now();
        Ok(())
    }

    async fn tell(&mut self) -> Result<(), RelayError> {
        let news = *self.heard.borrow_and_update();
        let before = std::mem::replace(&mut self.told, news);
        if before.kept != news.kept {
            self.send(&Encoder::kept(news.kept)).await?;
        }
        if before.busy != news.busy {
            self.send(&Encoder::busy(news.busy)).await?;
        }
        Ok(())
    }

    fn taken(&self, read: io::Result<usize>) -> Result<usize, RelayError> {
        let len = read.map_err(RelayError::Local)?;
        self.meter.taken.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }

    /// Reads, and says meanwhile what is to be said besides.
    async fn read<L>(&mut self, local: &mut L, buffer: &mut [u8]) -> Result<usize, RelayError>
    where
        L: AsyncRead + Unpin,
    {
        loop {
            tokio::select! {
                biased;
                Ok(()) = self.heard.changed() => self.tell().await?,
                read = local.read(buffer) => return self.taken(read),
                () = sleep_until(self.said + ALIVE_EVERY) => self.send(Encoder::alive()).await?,
            }
        }
    }
}

async fn outwards<L, F>(mut local: L, far: &mut ToFar<'_, F>) -> Result<(), RelayError>
where
    L: AsyncRead + Unpin,
    F: AsyncWrite + Unpin,
{
    let mut encoder = Encoder::new();
    let mut raw = vec![0; BLOCK_MAX];
    loop {
        match far.read(&mut local, &mut raw).await? {
            0 => return Ok(()),
            len => far.send(encoder.block(&raw[..len])).await?,
        }
    }
}

/// What a page is cannot be said before all of it is there. Its beginning, which is of no use to the
/// other end either, waits so long for the rest: a stream that pauses there is sent up to there.
async fn outwards_known<L, F>(
    mut local: L,
    far: &mut ToFar<'_, F>,
    mut composer: Composer,
    reach: Reach,
    (disk, busy): (&OnceLock<u16>, &AtomicU32),
) -> Result<(), RelayError>
where
    L: AsyncRead + Unpin,
    F: AsyncWrite + Unpin,
{
    let (mut encoder, mut pace) =
        (Encoder::of_programs(reach), Pace::new(composer.migration().line()));
    if pace.level() == Level::AsItIs {
        encoder.set_level(Level::AsItIs);
    }
    let (mut toll, mut done) = (Toll::default(), Instant::now());
    let mut raw = vec![0; BLOCK_MAX];
    let mut held = 0;
    loop {
        let read = if composer.has_rest(&raw[..held]) {
            tokio::select! {
                biased;
                read = local.read(&mut raw[held..]) => Some(far.taken(read)?),
                () = sleep(REST_OF_A_PAGE) => None,
            }
        } else {
            Some(far.read(&mut local, &mut raw[held..]).await?)
        };
        if let Some(len @ 1..) = read {
            let have = held + len;
            let composed = composer.compose(&raw[..have]);
            raw.copy_within(composed..have, 0);
            held = have - composed;
        } else {
            composer.rest(&raw[..held]);
        }
        // Before the other end can confirm anything of it.
        if let Some(number) = composer.disk() {
            disk.get_or_init(|| number);
        }
        let program = composer.program();
        if !program.is_empty() {
            let began = Instant::now();
            let block = encoder.program(program);
            let packed = Instant::now();
            let (sent, blocked) = blocked(far.send(block)).await;
            sent?;
            let (packing, sending) = (packed - began, packed.elapsed());
            let took = done.elapsed();
            let (bytes, carried) = (program.len() as u64, encoder.len() as u64);
            let mut went = Went { bytes, sent: carried, carried, packing, blocked, took };
            if !encoder.is_judged() {
                went = went.passed_over();
            }
            let busy = Duration::from_millis(busy.load(Ordering::Relaxed).into());
            let known = pace.line();
            if let Some(level) = pace.went(went, busy) {
                encoder.set_level(level);
            }
            if pace.line() != known {
                composer.migration().learned(pace.line());
            }
            let wait = toll.of(composer.pages(), packing + sending, took, composer.left());
            if !wait.is_zero() {
                sleep(wait).await;
            }
            done = Instant::now();
        }
        if read == Some(0) {
            return Ok(());
        }
    }
}

/// What comes of it, and how long it had to wait for others.
async fn blocked<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let mut work = pin!(work);
    let (mut blocked, mut since) = (Duration::ZERO, None::<Instant>);
    let done = poll_fn(|context| {
        blocked += since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            since = Some(Instant::now());
        }
        polled
    })
    .await;
    (done, blocked)
}

async fn inwards<F, L>(
    mut far: F,
    mut local: L,
    (mut player, mut decoder): (Player, Decoder),
    news: &watch::Sender<News>,
    (confirm, far_busy): (impl Fn(u32) -> bool, &AtomicU32),
    meter: &Meter,
) -> Result<(), RelayError>
where
    F: AsyncRead + Unpin,
    L: AsyncWrite + Unpin,
{
    let (mut busy, mut told) = (Duration::ZERO, Instant::now());
    loop {
        let began = Instant::now();
        let (said, waited) = blocked(decoder.next(&mut far)).await;
        let (said, len) = said?;
        meter.received.fetch_add(len as u64, Ordering::Relaxed);
        // Who sends others does not ask.
        let is_told = matches!(said, Said::Program(_)) && told.elapsed() > BUSY_EVERY;
        let bytes = match said {
            Said::Alive => continue,
            Said::End => break,
            Said::Busy(ms) => {
                far_busy.fetch_max(ms, Ordering::Relaxed);
                continue;
            }
            Said::Kept(blocks) if confirm(blocks) => continue,
            Said::Kept(_) => {
                return Err(RelayError::Protocol { what: "it has what it was not sent" });
            }
            Said::Bytes(bytes) => bytes,
            Said::Program(program) => player.play(program)?,
        };
        local.write_all(bytes).await.map_err(RelayError::Local)?;
        meter.given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        busy += began.elapsed().saturating_sub(waited);
        let mut now = News { kept: player.blocks().unwrap_or(0), ..*news.borrow() };
        if is_told {
            told = Instant::now();
            now.busy = u32::try_from(busy.as_millis()).unwrap_or(u32::MAX);
        }
        news.send_if_modified(|before| std::mem::replace(before, now) != now);
    }
    local.shutdown().await.map_err(RelayError::Local)
}
