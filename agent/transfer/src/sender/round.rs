//! One round, from start to end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use units::BlockIndex;
use wire::control::{Bottleneck, RoundProgress};

use super::cursor::{Cursor, Visit};
use super::level::{Interval, LevelControl};
use super::link::Link;
use super::progress::{RoundStats, Spent};
use super::worker::Worker;
use super::{Round, RoundOptions, SenderError, Shared};

/// What the workers of a round share.
pub struct RoundContext {
    pub shared: Arc<Shared>,
    pub link: Arc<Link>,
    pub stats: RoundStats,
    /// The compression level, or [`super::level::OFF`].
    pub level: AtomicI32,
    cursor: Mutex<Cursor>,
    stop: CancellationToken,
}

/// How often a block may be refused. Once is a write between take and read that no tracker saw in
/// time, twice a coincidence.
const REFUSALS_MAX: u32 = 3;

pub async fn run(
    shared: &Arc<Shared>,
    number: u32,
    options: RoundOptions,
    progress: &watch::Sender<RoundProgress>,
) -> Round {
    let turn = shared.turn.try_lock();
    let link = shared.link().clone().filter(|_| turn.is_ok());
    let stats = RoundStats::start(number, shared);
    let remaining = || super::remaining(shared);
    let Some(link) = link else {
        let failure = if turn.is_err() { SenderError::Busy } else { SenderError::NotConnected };
        let progress = stats.progress(shared, None);
        let failure = Some(failure);
        return Round { progress, failure, stopped: false, remaining: remaining() };
    };
    shared.completed.store(0, Ordering::Relaxed);
    shared.limiter.set(options.limit_rate);
    shared.reads.set(options.limit_read);
    let earlier = shared.levels.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut levels = LevelControl::again(earlier, options.compress);
    let round = Arc::new(RoundContext {
        shared: Arc::clone(shared),
        link,
        stats,
        level: AtomicI32::new(levels.level()),
        cursor: Mutex::default(),
        stop: CancellationToken::new(),
    });
    // Whoever drops this future ends its workers.
    let _stop_on_drop = round.stop.clone().drop_guard();
    *shared.stop.lock().unwrap_or_else(PoisonError::into_inner) = round.stop.clone();
    let mut watcher = Watcher::new(&round, progress, &mut levels);
    let ended = passes(&round, &mut watcher).await;
    let bottleneck = watcher.bottleneck;
    *shared.levels.lock().unwrap_or_else(PoisonError::into_inner) = Some(levels);
    let failure = match ended {
        Ok(()) => None,
        // What was in flight comes back before anybody is told.
        Err(error) => {
            if !round.link.is_open() {
                round.link.close().await;
            }
            Some(error)
        }
    };
    let stopped = round.stop.is_cancelled();
    if failure.is_none() && !stopped {
        shared.completed.store(number.saturating_add(1), Ordering::Relaxed);
    }
    let last = round.stats.progress(shared, bottleneck);
    progress.send_replace(last.clone());
    Round { progress: last, failure, stopped, remaining: remaining() }
}

/// Looks at everything, and again at what was refused, until all of it is acknowledged.
async fn passes(round: &Arc<RoundContext>, watcher: &mut Watcher<'_>) -> Result<(), SenderError> {
    let mut refusals: HashMap<(usize, BlockIndex), u32> = HashMap::new();
    loop {
        let looked = look(round, watcher).await;
        settle(round, watcher).await?;
        looked?;
        let refused = round.link.pending.take_refused();
        if refused.is_empty() {
            return Ok(());
        }
        for (disk, block) in &refused {
            let times = refusals.entry((*disk, *block)).or_default();
            *times += 1;
            if *times >= REFUSALS_MAX {
                let disk = round.shared.sources[*disk].no;
                return Err(SenderError::Refused { disk, block: *block, times: *times });
            }
        }
        round.cursor.lock().unwrap_or_else(PoisonError::into_inner).again(refused);
    }
}

/// Runs the workers until there is nothing more to look at.
async fn look(round: &Arc<RoundContext>, watcher: &mut Watcher<'_>) -> Result<(), SenderError> {
    let mut workers = JoinSet::new();
    for _ in 0..workers_for(&round.shared) {
        let round = Arc::clone(round);
        workers.spawn_blocking(move || Worker::new(round)?.run());
    }
    let mut ended = Ok(());
    loop {
        tokio::select! {
            worker = workers.join_next() => match worker {
                None => return ended,
                Some(worker) => {
                    let worker = worker.expect("a worker does not panic and is not cancelled");
                    if let Err(error) = worker {
                        // The others need not go on; what is in flight is still acknowledged.
                        round.stop.cancel();
                        ended = ended.and(Err(error));
                    }
                }
            },
            () = watcher.tick() => {}
        }
    }
}

/// As many as asked for, but no more than fit [`WORKER_BYTES`].
fn workers_for(shared: &Shared) -> usize {
    let largest = shared.sources.iter().map(|source| source.block_size.bytes()).max();
    let fit = (WORKER_BYTES / (2 * largest.unwrap_or(1))).max(2);
    shared.limits.workers.clamp(1, usize::try_from(fit).unwrap_or(usize::MAX))
}

/// What workers may hold: each a block, and the same compressed. Three of them with the largest
/// blocks.
const WORKER_BYTES: u64 = 24 << 20;

/// Waits until everything that was queued is acknowledged or refused.
async fn settle(round: &RoundContext, watcher: &mut Watcher<'_>) -> Result<(), SenderError> {
    let pending = &round.link.pending;
    let mut flushed = false;
    loop {
        let changed = pending.changed.notified();
        if !round.link.is_open() {
            return Err(round.link.failure());
        }
        if pending.all_landed() {
            return Ok(());
        }
        if !flushed && pending.all_sent() {
            flushed = true;
            round.link.flush().await;
            continue;
        }
        tokio::select! {
            () = changed => {}
            () = round.link.ended.cancelled() => {}
            () = watcher.tick() => {}
        }
    }
}

/// How often a worker that waits for the limit of reading looks whether the round is to end.
const STOP_POLL: Duration = Duration::from_millis(100);

impl RoundContext {
    /// The next block to look at, once what was read before has been paid for; `None`: none is left,
    /// or the round is to end.
    pub fn next_visit(&self) -> Option<Visit> {
        while !self.stop.is_cancelled() && self.link.is_open() {
            let Some(left) = self.shared.reads.unpaid() else { return self.take_visit() };
            std::thread::sleep(left.min(STOP_POLL));
        }
        None
    }

    fn take_visit(&self) -> Option<Visit> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner).next(&self.shared)
    }
}

/// Looks at a running round now and then: reports, and chooses the compression.
struct Watcher<'a> {
    round: Arc<RoundContext>,
    progress: &'a watch::Sender<RoundProgress>,
    levels: &'a mut LevelControl,
    ticks: u32,
    reported: Spent,
    bottleneck: Option<Bottleneck>,
    judged: Judged,
}

struct Judged {
    at: Instant,
    sent: u64,
    spent: Spent,
}

const TICK: Duration = Duration::from_millis(50);
const TICKS_PER_REPORT: u32 = 10;

impl<'a> Watcher<'a> {
    fn new(
        round: &Arc<RoundContext>,
        progress: &'a watch::Sender<RoundProgress>,
        levels: &'a mut LevelControl,
    ) -> Self {
        let spent = round.link.times.so_far();
        let judged = Judged { at: Instant::now(), sent: 0, spent };
        let round = Arc::clone(round);
        Self { round, progress, levels, ticks: 0, reported: spent, bottleneck: None, judged }
    }

    async fn tick(&mut self) {
        tokio::time::sleep(TICK).await;
        self.ticks += 1;
        let spent = self.round.link.times.so_far();
        if self.ticks.is_multiple_of(TICKS_PER_REPORT) {
            let memory = self.round.link.receiver_memory();
            self.bottleneck = spent.since(self.reported).bottleneck(memory).or(self.bottleneck);
            self.reported = spent;
            let now = self.round.stats.progress(&self.round.shared, self.bottleneck);
            self.progress.send_replace(now);
        }
        let (sent, took) = (self.round.stats.sent(), self.judged.at.elapsed());
        if LevelControl::is_due(sent - self.judged.sent, took) {
            let blocked_percent = spent.since(self.judged.spent).blocked_percent();
            self.levels.observe(Interval { bytes: sent - self.judged.sent, took, blocked_percent });
            self.round.level.store(self.levels.level(), Ordering::Relaxed);
            self.judged = Judged { at: Instant::now(), sent, spent };
        }
    }
}
