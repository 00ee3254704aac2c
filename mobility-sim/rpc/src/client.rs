//! One connection to a real libvirtd: calls and times in, replies and bytes out.
//!
//! A call gets a number, and its reply or error comes back with it, in whatever order the daemon
//! answers. The client does not know what may be called when; the daemon does. Events of the
//! daemon are read over. Pings are answered; the client pings by itself once the daemon has said
//! that it knows the feature ([`Feature::ProgramKeepalive`], to be asked before opening).
//!
//! The daemon is not trusted with our memory either: what is held is bounded by the longest frame,
//! by [`CALLS_MAX`] and by what the caller does not take.

use std::time::Duration;

use thiserror::Error;

use crate::error::RemoteError;
use crate::feature::Feature;
use crate::frame::{FRAME_MAX, Frame, FrameError, Header, Kind, Program, Status};
use crate::keepalive::{self, Keepalive};
use crate::line::Line;
use crate::procedures::{Call, Procedure, Reply};
use crate::xdr::XdrError;

/// How many calls may wait for their replies. libvirtd stops reading at its
/// `max_client_requests`, 5 unless configured and counting the one that is being read; pings
/// beyond that go unanswered, and the connection is lost.
pub const CALLS_MAX: usize = 4;

pub use crate::line::{EVENTS_MAX, OUTPUT_MAX, READ_AHEAD};

#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest frame that is taken, in bytes.
    pub frame: usize,
    pub keepalive_interval: Duration,
    pub keepalive_count: u32,
}

impl Default for Limits {
    /// libvirt's own.
    fn default() -> Self {
        Self {
            frame: FRAME_MAX,
            keepalive_interval: keepalive::INTERVAL,
            keepalive_count: keepalive::COUNT,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Reply {
        serial: u32,
        reply: Reply,
    },
    /// The daemon's error, which can be passed on as it came.
    Failed {
        serial: u32,
        error: RemoteError,
    },
    /// The last event. Whether calls without a reply were carried out is not known.
    Closed(Ended),
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Ended {
    #[error("the daemon closed the connection")]
    HungUp,

    #[error("the daemon answers no pings")]
    Silent,

    #[error("the daemon broke the protocol")]
    Violation(#[from] Violation),
}

/// What no libvirtd does.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    #[error("what came is no frame")]
    Frame(#[from] FrameError),

    #[error("a frame of kind {kind:?} of {program:?} from a daemon")]
    Kind { program: Program, kind: Kind },

    #[error("a reply to call {serial}, which nobody waits for")]
    NotCalled { serial: u32 },

    #[error("a reply to call {serial}, {called:?}, as if it were number {found}")]
    Procedure { serial: u32, called: Procedure, found: i32 },

    #[error("a reply with status {status:?}")]
    Status { status: Status },

    #[error("the reply to call {serial}, {called:?}, was not understood")]
    Reply {
        serial: u32,
        called: Procedure,
        #[source]
        cause: XdrError,
    },

    #[error("{held} bytes were pushed although none were wanted")]
    Overrun { held: usize },
}

/// Why nothing was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CallRefused {
    #[error("{CALLS_MAX} calls wait for their replies already")]
    TooMany,

    #[error("arguments of {len} bytes, more than libvirtd takes in a frame")]
    TooLong { len: usize },

    #[error("the connection is over")]
    Over,
}

/// One connection, seen from the client's end.
#[derive(Debug)]
pub struct Client {
    limits: Limits,
    line: Line<Event>,
    next_serial: u32,
    waiting: Vec<Waiting>,
    over: bool,
}

/// A call without a reply.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    serial: u32,
    called: Procedure,
    /// The reply says whether pings are answered.
    begins_keepalive: bool,
}

impl Client {
    /// `now` is a time since any moment; later ones count from the same.
    pub fn new(limits: Limits, now: Duration) -> Self {
        let keepalive = Keepalive::new(limits.keepalive_interval, limits.keepalive_count, now);
        let line = Line::new(limits.frame, keepalive, now);
        Self { limits, line, next_serial: 0, waiting: Vec::new(), over: false }
    }

    /// The number that the reply will have.
    pub fn call(&mut self, call: &Call) -> Result<u32, CallRefused> {
        if self.over {
            return Err(CallRefused::Over);
        }
        if self.waiting.len() == CALLS_MAX {
            return Err(CallRefused::TooMany);
        }
        let serial = self.next_serial;
        let (program, kind, status) = (Program::Remote, Kind::Call, Status::Ok);
        let procedure = call.procedure().number();
        let header = Header { program, procedure, kind, serial, status };
        let frame = header.with_payload(&call.encode());
        if frame.len() > FRAME_MAX {
            return Err(CallRefused::TooLong { len: frame.len() });
        }
        self.next_serial = self.next_serial.wrapping_add(1);
        let begins_keepalive = *call == Call::supports(Feature::ProgramKeepalive);
        self.waiting.push(Waiting { serial, called: call.procedure(), begins_keepalive });
        self.line.send(&frame);
        Ok(serial)
    }

    /// Bytes that came from the daemon.
    pub fn push(&mut self, bytes: &[u8], now: Duration) {
        self.line.set_now(now);
        if self.over {
            return;
        }
        self.line.push(bytes);
        self.pump();
        if let Some(held) = self.line.overrun(self.limits.frame) {
            self.end(Violation::Overrun { held }.into());
        }
    }

    /// The daemon's end of the stream.
    pub fn hang_up(&mut self) {
        self.end(Ended::HungUp);
    }

    /// To be called at [`Client::next_tick`]; earlier does no harm.
    pub fn tick(&mut self, now: Duration) {
        self.line.set_now(now);
        if !self.over && !self.line.tick() {
            self.end(Ended::Silent);
        }
    }

    /// When time alone changes something.
    pub fn next_tick(&self) -> Option<Duration> {
        if self.over { None } else { self.line.next_tick() }
    }

    pub fn event(&mut self) -> Option<Event> {
        let event = self.line.take_event();
        self.pump();
        event
    }

    /// Bytes for the daemon, each once.
    pub fn output(&mut self) -> Vec<u8> {
        let output = self.line.take_output();
        self.pump();
        output
    }

    /// May more bytes be pushed?
    pub fn wants_input(&self) -> bool {
        !self.over && self.line.wants_input(self.limits.frame)
    }

    pub const fn is_over(&self) -> bool {
        self.over
    }

    fn pump(&mut self) {
        while !self.over
            && let Some(frame) = self.line.next_frame()
        {
            let heard = frame.map_err(Violation::from).and_then(|frame| self.hear(&frame));
            if let Err(violation) = heard {
                self.end(violation.into());
            }
        }
    }

    fn hear(&mut self, frame: &Frame) -> Result<(), Violation> {
        let Frame { header, payload } = frame;
        self.line.heard();
        match (header.program, header.kind) {
            (Program::Keepalive, Kind::Message) => {
                self.line.hear_keepalive(header);
                Ok(())
            }
            // Of VMs and networks that nobody asked for.
            (Program::Remote | Program::Qemu | Program::Lxc, Kind::Message) => Ok(()),
            (Program::Remote, Kind::Reply) => self.hear_reply(header, payload),
            (program, kind) => Err(Violation::Kind { program, kind }),
        }
    }

    fn hear_reply(&mut self, header: &Header, payload: &[u8]) -> Result<(), Violation> {
        let serial = header.serial;
        let at = self.waiting.iter().position(|call| call.serial == serial);
        let call = self.waiting.swap_remove(at.ok_or(Violation::NotCalled { serial })?);
        let called = call.called;
        if header.procedure != called.number() {
            return Err(Violation::Procedure { serial, called, found: header.procedure });
        }
        let not_understood = |cause| Violation::Reply { serial, called, cause };
        let event = match header.status {
            Status::Ok => {
                let reply = Reply::decode(called, payload).map_err(not_understood)?;
                if call.begins_keepalive && reply == Reply::Supported(1) {
                    self.line.begin_keepalive();
                }
                Event::Reply { serial, reply }
            }
            Status::Error => {
                let error = RemoteError::decode(payload).map_err(not_understood)?;
                Event::Failed { serial, error }
            }
            Status::Continue => return Err(Violation::Status { status: header.status }),
        };
        self.line.tell(event);
        Ok(())
    }

    fn end(&mut self, why: Ended) {
        if !self.over {
            self.over = true;
            self.waiting.clear();
            self.line.end(Event::Closed(why));
        }
    }
}

#[cfg(test)]
mod tests;
