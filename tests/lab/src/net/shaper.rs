//! Delay and loss in user space: a line of packets with the time at which each is due.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::Wan;

/// Packets in the line of one direction; more are dropped as a full router would. Holds 0.2 s of
/// 1 Gbit/s and bounds the memory to some 25 MB.
const LINE: usize = 16_384;

/// How often a thread that waits for packets looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// An Ethernet frame and some room for tags.
const FRAME: usize = 2048;

/// What went through one direction of a shaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    pub passed: u64,
    /// By the chance that was asked for.
    pub lost: u64,
    /// Because the line was full.
    pub overflowed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    passed: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
}

impl Counters {
    fn read(&self) -> Traffic {
        Traffic {
            passed: self.passed.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
        }
    }
}

/// Two TAP devices and the threads that carry frames between them.
#[derive(Debug)]
pub(crate) struct Shaper {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    counters: [Arc<Counters>; 2],
}

impl Shaper {
    /// Makes the devices `names` in the calling thread's network namespace.
    pub fn start(names: [&str; 2], wan: Wan) -> Result<Self> {
        let taps = [tap(names[0])?, tap(names[1])?];
        let stop = Arc::new(AtomicBool::new(false));
        let counters = [Arc::<Counters>::default(), Arc::<Counters>::default()];
        let mut threads = Vec::new();
        for (from, to, direction) in [(0, 1, 0), (1, 0, 1)] {
            let (line, due) = sync_channel(LINE);
            let entry = Entry {
                tap: Arc::clone(&taps[from]),
                wan,
                // Both directions with the same seed would lose the same packets.
                random: fastrand::Rng::with_seed(wan.seed.wrapping_mul(2) + direction),
                line,
                counters: Arc::clone(&counters[from]),
                stop: Arc::clone(&stop),
            };
            let exit = Arc::clone(&taps[to]);
            let stop = Arc::clone(&stop);
            threads.push(spawn("shaper-in", move || entry.run())?);
            threads.push(spawn("shaper-out", move || deliver(&exit, &due, &stop))?);
        }
        Ok(Self { stop, threads, counters })
    }

    /// From the first end to the second, and back.
    pub fn traffic(&self) -> [Traffic; 2] {
        [self.counters[0].read(), self.counters[1].read()]
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in there was printed; the devices are gone all the same.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run).context("cannot start a thread")
}

/// One of that name that was closed just now is busy for a moment more where another thread forks: its
/// child has the descriptor until it executes something.
const FORKS_TAKE: Duration = Duration::from_secs(10);

fn tap(name: &str) -> Result<Arc<SyncDevice>> {
    let began = Instant::now();
    let tap = loop {
        let made = DeviceBuilder::new().name(name).layer(Layer::L2).enable(false).build_sync();
        match made {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && began.elapsed() < FORKS_TAKE =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            made => break made.with_context(|| format!("cannot make the TAP device {name}"))?,
        }
    };
    tap.set_nonblocking(true)?;
    Ok(Arc::new(tap))
}

struct Packet {
    due: Instant,
    frame: Box<[u8]>,
}

/// Where packets enter the line.
struct Entry {
    tap: Arc<SyncDevice>,
    wan: Wan,
    random: fastrand::Rng,
    line: SyncSender<Packet>,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
}

impl Entry {
    fn run(mut self) {
        let mut buffer = [0; FRAME];
        while !self.stop.load(Ordering::Relaxed) {
            match self.tap.recv(&mut buffer) {
                Ok(length) => {
                    if !self.take(&buffer[..length]) {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(&self.tap),
                // The device is not up yet, or was taken down: nothing comes for a while.
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    /// Whether anybody still waits at the other end.
    fn take(&mut self, frame: &[u8]) -> bool {
        if self.random.f64() < self.wan.loss {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let packet = Packet { due: Instant::now() + self.wan.delay, frame: frame.into() };
        match self.line.try_send(packet) {
            Ok(()) => self.counters.passed.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Full(_)) => self.counters.overflowed.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Disconnected(_)) => return false,
        };
        true
    }
}

/// Where packets leave the line. Every packet waits equally long, so the first in is the first due.
fn deliver(tap: &SyncDevice, line: &Receiver<Packet>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let packet = match line.recv_timeout(LOOK) {
            Ok(packet) => packet,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Some(early) = packet.due.checked_duration_since(Instant::now()) {
            if early.is_zero() || stop.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep(early.min(LOOK));
        }
        // A device that is down or full drops, as a wire does.
        let _ = tap.send(&packet.frame);
    }
}

fn wait(tap: &SyncDevice) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
    let _ = poll(&mut [PollFd::new(tap, PollFlags::IN)], Some(&timeout));
}
