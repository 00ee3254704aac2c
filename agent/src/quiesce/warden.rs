//! The process that puts the guest back when nobody else does.
//!
//! It is started before anything is done to the guest, is told of every step before the step is
//! taken, and opens every file system itself before the first is frozen. When the deadline passes,
//! or when the agent dies, however it dies, it thaws. It is a process of its own because SIGKILL,
//! a crash or an exhausted memory takes a whole process, and it is locked into memory because what
//! is frozen cannot be read in again.
//!
//! ```text
//!  agent                              warden
//!    Opening(place), Doing(step) →      opens; remembers
//!                                 ←   Ready | Refused            for each
//!    Freezing(n), Frozen(n) ...  →      remembers
//!    Deadline(ms)                →      counts anew
//!                                 ←   Counting
//!                                 ←   Thawed                     the deadline passed
//!    Release                     →      ends: the agent has put the rest back itself
//!    (end of stream)             →      thaws, puts the rest back, ends
//! ```

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::guard::{Guard, Place};
use super::undo::{Done, Undo};
use crate::PROGRAM;

/// The hidden subcommand that makes this binary a warden; its standard input is the socket.
pub const SUBCOMMAND: &str = "warden";

/// The longest message either way: a step with the operator's hooks.
const MESSAGE_MAX: usize = 64 << 10;

const OPENING: u8 = 1;
const DOING: u8 = 2;
const FREEZING: u8 = 3;
const FROZEN: u8 = 4;
const DEADLINE: u8 = 5;
const RELEASE: u8 = 6;

const READY: u8 = 101;
const REFUSED: u8 = 102;
const COUNTING: u8 = 103;
const THAWED: u8 = 104;

#[derive(Debug, Error)]
pub enum WardenError {
    #[error("cannot start the process that thaws the guest at the deadline")]
    Start(#[source] io::Error),

    #[error("the process that thaws the guest at the deadline does not answer")]
    Silent(#[source] io::Error),

    #[error("the process that thaws the guest at the deadline refused: {why}")]
    Refused { why: String },

    #[error("a step of {len} bytes is too long to be remembered")]
    TooLong { len: usize },
}

/// The agent's end.
#[derive(Debug)]
pub struct Warden {
    socket: UnixStream,
    child: Child,
}

/// What the warden says unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It counts from the deadline that it was told last.
    Counting,
    /// The deadline passed: everything that it knew to be frozen is thawed.
    Thawed,
    /// It is gone: nobody guards the deadline any more.
    Gone,
}

/// Something that the agent is about to do.
#[derive(Serialize, Deserialize)]
struct Step<T>(T);

impl Warden {
    pub fn start() -> Result<Self, WardenError> {
        let (socket, theirs) = UnixStream::pair().map_err(WardenError::Start)?;
        // Works also when the file was removed in the meantime.
        let child = Command::new("/proc/self/exe")
            .arg0(PROGRAM)
            .arg(SUBCOMMAND)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(WardenError::Start)?;
        let mut warden = Self { socket, child };
        warden.expect_ready()?;
        Ok(warden)
    }

    /// A second end, on which [`hear`] waits for what the warden says unasked.
    pub fn ear(&self) -> Result<UnixStream, WardenError> {
        self.socket.try_clone().map_err(WardenError::Start)
    }

    /// Before the step is taken.
    pub fn doing(&mut self, step: &Done) -> Result<(), WardenError> {
        self.tell_step(DOING, step)
    }

    /// Before anything is frozen; places are counted from 0 in this order.
    pub fn opening(&mut self, place: &Place) -> Result<(), WardenError> {
        self.tell_step(OPENING, place)
    }

    pub fn freezing(&mut self, place: u64) -> Result<(), WardenError> {
        self.tell_number(FREEZING, place)
    }

    pub fn frozen(&mut self, place: u64) -> Result<(), WardenError> {
        self.tell_number(FROZEN, place)
    }

    /// From now on. Answered by [`Said::Counting`]; one that thawed before says so before.
    pub fn deadline(&mut self, after: Duration) -> Result<(), WardenError> {
        self.tell_number(DEADLINE, u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
    }

    /// Nothing is left to be put back: it may end.
    pub fn release(mut self) {
        // A warden that is gone already needs no release.
        let _told = self.tell_number(RELEASE, 0);
        let _ended = self.child.wait();
    }

    fn tell_step<T: Serialize>(&mut self, tag: u8, step: &T) -> Result<(), WardenError> {
        let bytes = serde_json::to_vec(&Step(step)).map_err(|e| WardenError::Start(e.into()))?;
        if bytes.len() > MESSAGE_MAX {
            return Err(WardenError::TooLong { len: bytes.len() });
        }
        self.tell(tag, &bytes)?;
        self.expect_ready()
    }

    fn tell_number(&mut self, tag: u8, number: u64) -> Result<(), WardenError> {
        self.tell(tag, &number.to_le_bytes())
    }

    fn tell(&mut self, tag: u8, bytes: &[u8]) -> Result<(), WardenError> {
        write_message(&mut self.socket, tag, bytes).map_err(WardenError::Silent)
    }

    fn expect_ready(&mut self) -> Result<(), WardenError> {
        let mut buffer = vec![0; MESSAGE_MAX];
        let (tag, len) =
            read_message(&mut self.socket, &mut buffer).map_err(WardenError::Silent)?;
        match tag {
            READY => Ok(()),
            _ => Err(WardenError::Refused { why: String::from_utf8_lossy(&buffer[..len]).into() }),
        }
    }
}

/// An agent that lets go of its warden without a release is gone for it. Closing alone would not
/// say so while an ear is open.
impl Drop for Warden {
    fn drop(&mut self) {
        // One that ended first has closed its end.
        let _closed = self.socket.shutdown(Shutdown::Both);
    }
}

/// Waits for the next thing the warden says. To be called after the last place was opened and the
/// last step told.
pub fn hear(ear: &mut UnixStream) -> Said {
    let mut buffer = [0; 64];
    match read_message(ear, &mut buffer) {
        Ok((COUNTING, _)) => Said::Counting,
        Ok((THAWED, _)) => Said::Thawed,
        _ => Said::Gone,
    }
}

/// The whole life of the warden.
pub fn run() -> io::Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let mut watch = Watch {
        socket: UnixStream::from(stdin),
        buffer: vec![0; MESSAGE_MAX],
        places: Vec::with_capacity(256),
        undo: Undo::default(),
        deadline: None,
    };
    settle_in();
    write_message(&mut watch.socket, READY, b"")?;
    watch.run();
    Ok(())
}

/// Takes this process out of reach of whatever may kill or stop the agent.
fn settle_in() {
    // Each is a safeguard of its own; lacking one, the others still hold.
    let _name = rustix::thread::set_name(c"causeway-warden");
    let _session = rustix::process::setsid();
    let _oom = fs::write("/proc/self/oom_score_adj", "-1000");
    let _memory = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
    let _prompt = rustix::process::setpriority_process(None, -10);
}

struct Watch {
    socket: UnixStream,
    /// All memory for messages, allocated before anything is frozen.
    buffer: Vec<u8>,
    places: Vec<Watched>,
    undo: Undo,
    deadline: Option<Instant>,
}

struct Watched {
    guard: Guard,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Freezing,
    Frozen,
}

impl Watch {
    fn run(&mut self) {
        loop {
            let agent_lives = match self.next_message() {
                Ok(None) => {
                    self.deadline = None;
                    self.thaw();
                    write_message(&mut self.socket, THAWED, b"")
                }
                Ok(Some((RELEASE, _))) => return,
                Ok(Some((tag, len))) => self.act(tag, len),
                Err(error) => Err(error),
            };
            // Whatever went wrong: an agent that cannot be heard or answered is gone.
            if agent_lives.is_err() {
                self.thaw();
                let _complaints = self.undo.put_back();
                return;
            }
        }
    }

    /// `None`: the deadline passed. An error: the agent is gone.
    fn next_message(&mut self) -> io::Result<Option<(u8, usize)>> {
        loop {
            let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            let timeout = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return read_message(&mut self.socket, &mut self.buffer).map(Some),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn act(&mut self, tag: u8, len: usize) -> io::Result<()> {
        let message = &self.buffer[..len];
        let number = || {
            let bytes: Option<[u8; 8]> = message.try_into().ok();
            bytes.map_or(u64::MAX, u64::from_le_bytes)
        };
        match tag {
            DOING => {
                let Step(done) = serde_json::from_slice(message)?;
                self.undo.record(done);
                write_message(&mut self.socket, READY, b"")
            }
            OPENING => {
                let Step(place): Step<Place> = serde_json::from_slice(message)?;
                match Guard::open(place) {
                    Ok(guard) => {
                        self.places.push(Watched { guard, state: State::Open });
                        write_message(&mut self.socket, READY, b"")
                    }
                    Err(error) => {
                        write_message(&mut self.socket, REFUSED, error.to_string().as_bytes())
                    }
                }
            }
            FREEZING => {
                self.mark(number(), State::Freezing);
                Ok(())
            }
            FROZEN => {
                self.mark(number(), State::Frozen);
                Ok(())
            }
            DEADLINE => {
                let after = Duration::from_millis(number());
                self.deadline = Instant::now().checked_add(after);
                write_message(&mut self.socket, COUNTING, b"")
            }
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }

    fn mark(&mut self, place: u64, state: State) {
        let watched = usize::try_from(place).ok().and_then(|place| self.places.get_mut(place));
        if let Some(watched) = watched {
            watched.state = state;
        }
    }

    /// The last one first. One that is still being frozen comes at the very end: thawing it waits
    /// for the freeze, which may wait for one of the others.
    fn thaw(&mut self) {
        for state in [State::Frozen, State::Freezing] {
            for watched in self.places.iter_mut().rev().filter(|watched| watched.state == state) {
                // Not frozen after all, or thawed by someone else: as wanted.
                let _thawed = watched.guard.thaw();
                watched.state = State::Open;
            }
        }
    }
}

/// Tag, length of four bytes, content.
fn write_message(socket: &mut UnixStream, tag: u8, content: &[u8]) -> io::Result<()> {
    let len = u32::try_from(content.len()).map_err(io::Error::other)?.to_le_bytes();
    // One write each: no buffer is built while the guest is frozen.
    socket.write_all(&[tag, len[0], len[1], len[2], len[3]])?;
    socket.write_all(content)
}

fn read_message(socket: &mut UnixStream, buffer: &mut [u8]) -> io::Result<(u8, usize)> {
    let mut head = [0; 5];
    socket.read_exact(&mut head)?;
    let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let content = buffer.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
    socket.read_exact(content)?;
    Ok((head[0], len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warden_that_is_dropped_hears_the_end_though_an_ear_is_open() {
        let (socket, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let warden = Warden { socket, child };
        let mut ear = warden.ear().unwrap();
        drop(warden);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        assert_eq!(hear(&mut ear), Said::Gone);
    }

    #[test]
    fn a_warden_that_is_released_hears_that_first() {
        let (socket, mut theirs) = UnixStream::pair().unwrap();
        let warden = Warden { socket, child: Command::new("true").spawn().unwrap() };
        let _ear = warden.ear().unwrap();
        warden.release();
        let mut buffer = [0; 64];
        assert_eq!(read_message(&mut theirs, &mut buffer).unwrap(), (RELEASE, 8));
    }
}
