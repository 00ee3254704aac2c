//! What both ends of a connection have: bytes each way, events for whoever holds the end, and who still
//! answers.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use crate::frame::{Decoder, Frame, FrameError, Header};
use crate::keepalive::{self, Due, Keepalive, Said};

/// Bytes that may wait to be sent before no further frame is looked at.
pub const OUTPUT_MAX: usize = 256 << 10;

/// Events that may wait to be taken before no further frame is looked at.
pub const EVENTS_MAX: usize = 8;

/// How much more than the longest frame may be pushed before it is looked at, in bytes.
pub const READ_AHEAD: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Line<E> {
    decoder: Decoder,
    keepalive: Keepalive,
    now: Duration,
    output: Vec<u8>,
    events: VecDeque<E>,
}

impl<E> Line<E> {
    /// `frame_max` as [`Decoder::new`] takes it.
    pub(crate) fn new(frame_max: usize, keepalive: Keepalive, now: Duration) -> Self {
        Self {
            decoder: Decoder::new(frame_max),
            keepalive,
            now,
            output: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// From the next frame on.
    pub(crate) const fn set_frame_max(&mut self, max: usize) {
        self.decoder.set_max(max);
    }

    pub(crate) const fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next frame, if it is there, and there is room for what it leads to.
    pub(crate) fn next_frame(&mut self) -> Option<Result<Frame, FrameError>> {
        if self.has_room() { self.decoder.next_frame().transpose() } else { None }
    }

    /// Bytes that were pushed although none were wanted.
    pub(crate) fn overrun(&self, frame_max: usize) -> Option<usize> {
        Some(self.decoder.held()).filter(|held| *held > frame_max + READ_AHEAD)
    }

    pub(crate) fn wants_input(&self, frame_max: usize) -> bool {
        self.has_room() && self.decoder.held() < frame_max
    }

    fn has_room(&self) -> bool {
        self.output_len() < OUTPUT_MAX && self.events.len() < EVENTS_MAX
    }

    /// Bytes that wait to be sent.
    pub(crate) const fn output_len(&self) -> usize {
        self.output.len()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    pub(crate) fn tell(&mut self, event: E) {
        self.events.push_back(event);
    }

    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        mem::take(&mut self.output)
    }

    pub(crate) fn take_event(&mut self) -> Option<E> {
        self.events.pop_front()
    }

    /// The other end is there.
    pub(crate) const fn heard(&mut self) {
        self.keepalive.heard(self.now);
    }

    pub(crate) fn hear_keepalive(&mut self, header: &Header) {
        match Said::in_frame(header) {
            Said::Ping => self.output.extend(keepalive::pong()),
            Said::Pong | Said::Other => {}
        }
    }

    pub(crate) const fn begin_keepalive(&mut self) {
        self.keepalive.begin();
    }

    pub(crate) fn next_tick(&self) -> Option<Duration> {
        self.keepalive.next_tick()
    }

    /// Answers whether the other end is still there.
    pub(crate) fn tick(&mut self) -> bool {
        match self.keepalive.tick(self.now) {
            Due::Nothing => true,
            Due::Ping => {
                self.output.extend(keepalive::ping());
                true
            }
            Due::Dead => false,
        }
    }

    /// Nothing more is taken; what was said before goes out.
    pub(crate) fn end(&mut self, last: E) {
        self.decoder = Decoder::new(0);
        self.events.push_back(last);
    }
}
