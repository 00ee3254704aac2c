//! Is the other end still there? After a while without a frame it is asked; after so many
//! questions without any frame it is taken for dead. Every frame counts as an answer.
//!
//! Times are lengths since any moment that the caller keeps to.

use std::time::Duration;

use crate::frame::{Header, Kind, Program, Status};

/// `keepalive_interval` of libvirtd's configuration.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// `keepalive_count` of libvirtd's configuration.
pub const COUNT: u32 = 5;

const PING: i32 = 1;
const PONG: i32 = 2;

/// What a frame of the program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Ping,
    Pong,
    /// Numbers to come: libvirt ignores them.
    Other,
}

impl Said {
    pub(crate) const fn in_frame(header: &Header) -> Self {
        match header.procedure {
            PING => Self::Ping,
            PONG => Self::Pong,
            _ => Self::Other,
        }
    }
}

pub(crate) fn ping() -> Vec<u8> {
    header(PING).with_payload(&[])
}

pub(crate) fn pong() -> Vec<u8> {
    header(PONG).with_payload(&[])
}

const fn header(procedure: i32) -> Header {
    let (program, kind, status) = (Program::Keepalive, Kind::Message, Status::Ok);
    Header { program, procedure, kind, serial: 0, status }
}

/// One end's patience with the other.
#[derive(Clone, Debug)]
pub struct Keepalive {
    interval: Duration,
    count: u32,
    /// It begins when the other end is known to answer.
    begun: bool,
    /// When something was last heard, or asked.
    since: Duration,
    asked: u32,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    Ping,
    /// `count` questions and as many intervals and one more without a frame: 30 s by default.
    Dead,
}

impl Keepalive {
    /// `count` of 0: dead after the first interval.
    pub const fn new(interval: Duration, count: u32, now: Duration) -> Self {
        Self { interval, count, begun: false, since: now, asked: 0 }
    }

    pub const fn begin(&mut self) {
        self.begun = true;
    }

    pub const fn heard(&mut self, now: Duration) {
        self.since = now;
        self.asked = 0;
    }

    /// One question for each interval at most, however late it is: who slept asks first and does
    /// not conclude from its own sleep that the other end is dead.
    pub fn tick(&mut self, now: Duration) -> Due {
        if self.next_tick().is_none_or(|due| now < due) {
            return Due::Nothing;
        }
        if self.asked == self.count {
            return Due::Dead;
        }
        self.asked += 1;
        self.since = now;
        Due::Ping
    }

    /// When the next [`Keepalive::tick`] does something; `None`: it has not begun.
    pub fn next_tick(&self) -> Option<Duration> {
        self.begun.then(|| self.since.saturating_add(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn begun() -> Keepalive {
        let mut keepalive = Keepalive::new(INTERVAL, COUNT, s(0));
        keepalive.begin();
        keepalive
    }

    #[test]
    fn five_questions_without_a_frame_and_it_is_dead_after_30_seconds() {
        let mut keepalive = begun();
        let due: Vec<Due> = (1..=30).map(|second| keepalive.tick(s(second))).collect();
        for (second, due) in (1..).zip(&due) {
            let expected = match second {
                30 => Due::Dead,
                second if second % 5 == 0 => Due::Ping,
                _ => Due::Nothing,
            };
            assert_eq!(*due, expected, "at {second} s");
        }
    }

    #[test]
    fn any_frame_begins_it_anew() {
        let mut keepalive = begun();
        for second in 1..=29 {
            keepalive.tick(s(second));
        }
        keepalive.heard(s(29));
        assert_eq!(keepalive.tick(s(33)), Due::Nothing);
        assert_eq!(keepalive.next_tick(), Some(s(34)));
        for second in [34, 39, 44, 49, 54] {
            assert_eq!(keepalive.tick(s(second)), Due::Ping);
        }
        assert_eq!(keepalive.tick(s(59)), Due::Dead);
    }

    #[test]
    fn who_slept_for_an_hour_asks_first() {
        let mut keepalive = begun();
        assert_eq!(keepalive.tick(s(3600)), Due::Ping);
        assert_eq!(keepalive.tick(s(3600)), Due::Nothing);
        assert_eq!(keepalive.tick(s(3605)), Due::Ping);
    }

    #[test]
    fn nobody_is_asked_who_was_not_known_to_answer() {
        let mut keepalive = Keepalive::new(INTERVAL, COUNT, s(0));
        assert_eq!(keepalive.tick(s(3600)), Due::Nothing);
        assert_eq!(keepalive.next_tick(), None);
    }
}
