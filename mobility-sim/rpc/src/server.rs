//! One connection of a client that takes us for a libvirtd: bytes and times in, events and bytes
//! out.
//!
//! ```text
//!           Open            Prepare             answered          Finish
//!  +-----+ -----> +------+ ---------> +-----------+ ---> +----------+ ---> +-----------+
//!  | new |        | open |            | preparing |      | prepared |      | finishing |
//!  +-----+        +------+ <--------- +-----------+      +----------+      +-----------+
//!                    ^       refused                                             |
//!                    +------------------------- answered ------------------------+
//!  Close, the end of the stream, silence, a violation: over, from everywhere
//! ```
//!
//! The session answers by itself whatever needs nobody: ways to authenticate (none), features, the
//! opening, who this host is, pings; and VMs by name, of which it has none. Two calls it hands on,
//! [`Event::Prepare`] and [`Event::Finish`]; they are answered later, and meanwhile everything
//! else goes on. A call in the wrong phase, a flag that is not wanted, a parameter that nobody
//! knows and a procedure that is not served are answered with an error, and the connection is
//! kept. What no client does ends it: [`Violation`].
//!
//! # The end of the source's VM
//! After Finish was answered with a VM, the source ends its own, and only then says goodbye
//! ([`Event::Closing`]): a libvirtd in peer-to-peer migration unregisters its callback, virsh in a
//! direct one closes the connection. Either says that Confirm was over, so that the source's VM
//! does not run any more; if Confirm failed it may be left there, paused. After an error, or after
//! no Finish at all, the same goodbye says nothing, and [`Event::Closed`] without a goodbye never
//! does. A program that keeps its connection for other VMs may say goodbye late or never.
//!
//! # Memory
//! What is held is bounded by [`Limits`]: a frame as far as it has come, [`OUTPUT_MAX`] and one
//! reply, [`EVENTS_MAX`] events of which one carries arguments. Frames that have come while output
//! waits are not looked at before it is taken, and more is not wanted ([`Session::wants_input`]);
//! whoever pushes more than [`READ_AHEAD`] nevertheless ends the session.

mod calls;
mod event;
mod migration;

use std::time::Duration;

pub use event::{AnswerError, Ended, Event, Goodbye, Violation};

use crate::error::RemoteError;
use crate::flags::Flags;
use crate::frame::{FRAME_MAX, FRAME_MAX_BEFORE_OPEN, Frame, Kind, Program};
use crate::keepalive::{self, Keepalive};
use crate::line::Line;
use crate::procedures::{COOKIE_MAX, Finished, Prepared, Reply};
use crate::xdr::TEXT_MAX;
use migration::Migration;

/// Who we say that we are.
#[derive(Clone, Debug)]
pub struct Host {
    pub hostname: String,
    /// The one name under which a connection is opened, `qemu:///system`.
    pub uri: String,
    /// 1 000 000 × major + 1000 × minor + release.
    pub hypervisor_version: u64,
    /// In the same form.
    pub libvirt_version: u64,
    /// XML. At most [`TEXT_MAX`] bytes.
    pub capabilities: String,
    /// Is the connection encrypted, or local?
    pub secure: bool,
    /// Migrations with any of these are refused at Prepare; so are flags without a name.
    pub refused_flags: Flags,
}

#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest frame until the connection is open, in bytes.
    pub frame_before_open: usize,
    /// The longest frame afterwards, in bytes. Arguments of a Prepare that libvirt can make are
    /// below 9 MiB unless parameters are long: a definition and a cookie of 4 MiB each.
    pub frame: usize,
    /// How long a client may take to open the connection.
    pub open_within: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_count: u32,
}

impl Default for Limits {
    /// libvirt's own, and a tight one for whoever has not opened the connection.
    fn default() -> Self {
        Self {
            frame_before_open: FRAME_MAX_BEFORE_OPEN,
            frame: FRAME_MAX,
            open_within: Duration::from_secs(30),
            keepalive_interval: keepalive::INTERVAL,
            keepalive_count: keepalive::COUNT,
        }
    }
}

pub use crate::line::{EVENTS_MAX, OUTPUT_MAX, READ_AHEAD};

/// One connection, seen from the server's end.
#[derive(Debug)]
pub struct Session {
    host: Host,
    limits: Limits,
    line: Line<Event>,
    began: Duration,
    stage: Stage,
    callback_registered: bool,
    handed_over: bool,
    migration: Migration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    New,
    Open { read_only: bool },
    Over,
}

impl Session {
    /// `now` is a time since any moment; later ones count from the same.
    pub fn new(host: Host, limits: Limits, now: Duration) -> Self {
        let keepalive = Keepalive::new(limits.keepalive_interval, limits.keepalive_count, now);
        Self {
            line: Line::new(limits.frame_before_open, keepalive, now),
            host,
            limits,
            began: now,
            stage: Stage::New,
            callback_registered: false,
            handed_over: false,
            migration: Migration::None,
        }
    }

    /// Bytes that came from the client.
    pub fn push(&mut self, bytes: &[u8], now: Duration) {
        self.line.set_now(now);
        if self.is_over() {
            return;
        }
        self.line.push(bytes);
        self.pump();
        if let Some(held) = self.line.overrun(self.frame_max()) {
            self.end(Violation::Overrun { held }.into());
        }
    }

    /// The client's end of the stream.
    pub fn hang_up(&mut self) {
        self.end(Ended::HungUp);
    }

    /// To be called at [`Session::next_tick`]; earlier does no harm.
    pub fn tick(&mut self, now: Duration) {
        self.line.set_now(now);
        match self.stage {
            Stage::Over => return,
            Stage::New if now >= self.began.saturating_add(self.limits.open_within) => {
                return self.end(Ended::NeverOpened);
            }
            Stage::New | Stage::Open { .. } => {}
        }
        if !self.line.tick() {
            self.end(Ended::Silent);
        }
    }

    /// When time alone changes something.
    pub fn next_tick(&self) -> Option<Duration> {
        let opening = match self.stage {
            Stage::Over => return None,
            Stage::New => Some(self.began.saturating_add(self.limits.open_within)),
            Stage::Open { .. } => None,
        };
        opening.into_iter().chain(self.line.next_tick()).min()
    }

    pub fn event(&mut self) -> Option<Event> {
        let event = self.line.take_event();
        self.pump();
        event
    }

    /// Bytes for the client, each once. Ask again until there are none.
    pub fn output(&mut self) -> Vec<u8> {
        let output = self.line.take_output();
        self.pump();
        output
    }

    /// May more bytes be pushed?
    pub fn wants_input(&self) -> bool {
        !self.is_over() && self.line.wants_input(self.frame_max())
    }

    /// There was, or will be as soon as it is asked for, [`Event::Closed`].
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// An error is shown to the operator at the source as it is, and nothing was begun.
    pub fn answer_prepare(
        &mut self,
        serial: u32,
        answer: Result<Prepared, RemoteError>,
    ) -> Result<(), AnswerError> {
        if let Ok(Prepared { cookie, uri }) = &answer {
            fits(cookie, uri.as_deref().unwrap_or_default())?;
        }
        let header = self.migration.prepare_answered(serial, answer.is_ok())?;
        self.answer(header, answer.map(Reply::Prepared));
        Ok(())
    }

    /// A VM ends the one at the source, as soon as this is read there; an error lets that run on.
    /// There is no VM for a cancelled migration. Its error is shown to the operator in place of
    /// the source's own if it is of [`Origin::QEMU`](crate::error::Origin::QEMU), with another
    /// code than [`RemoteError::migrate_finish_ok`]'s.
    pub fn answer_finish(
        &mut self,
        serial: u32,
        answer: Result<Finished, RemoteError>,
    ) -> Result<(), AnswerError> {
        if let Ok(Finished { domain, cookie }) = &answer {
            fits(cookie, &domain.name)?;
        }
        let header = self.migration.finish_answered(serial, answer.is_ok())?;
        self.handed_over = answer.is_ok();
        self.answer(header, answer.map(Reply::Finished));
        Ok(())
    }

    /// Frames are looked at as long as what they lead to has room.
    fn pump(&mut self) {
        while !self.is_over()
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
            (Program::Keepalive, Kind::Message) if !payload.is_empty() => {
                Err(Violation::Keepalive { len: payload.len() })
            }
            (Program::Keepalive, Kind::Message) => {
                self.line.hear_keepalive(header);
                Ok(())
            }
            (Program::Remote | Program::Qemu | Program::Lxc, Kind::Call) => {
                self.hear_call(*header, payload)
            }
            (program, kind) => Err(Violation::Kind { program, kind }),
        }
    }

    const fn frame_max(&self) -> usize {
        match self.stage {
            Stage::New => self.limits.frame_before_open,
            Stage::Open { .. } | Stage::Over => self.limits.frame,
        }
    }

    fn end(&mut self, why: Ended) {
        if !self.is_over() {
            self.stage = Stage::Over;
            self.migration = Migration::None;
            self.line.end(Event::Closed(why));
        }
    }
}

const fn fits(cookie: &[u8], text: &str) -> Result<(), AnswerError> {
    let (cookie, text) = (cookie.len(), text.len());
    if cookie > COOKIE_MAX || text > TEXT_MAX {
        Err(AnswerError::TooLong { cookie, text })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
