//! The end that asks.

use super::message::{Kind, Message, Nonce, Scanner};
use super::{PREAMBLE_VERSION, PreambleVersionError};

/// The end that asks. See the [module](super).
#[derive(Debug)]
pub struct Opener {
    nonce: Nonce,
    /// The acceptor's number that START was last sent for.
    started: Option<Nonce>,
    scanner: Scanner,
}

/// What to do after some input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Read on. Repeat [`Opener::open`] when it is time.
    Wait,
    /// Send these bytes, then push the rest of the input.
    Send(Vec<u8>),
    /// The session begins: what is left of the input belongs to it.
    Go,
}

impl Opener {
    /// `nonce` is fresh and random for every attempt.
    pub fn new(nonce: Nonce) -> Self {
        Self { nonce, started: None, scanner: Scanner::default() }
    }

    /// What to send now, at first and every [`super::OPEN_EVERY_MS`]. Empty once the acceptor has
    /// answered: it would read another OPEN as session bytes.
    pub fn open(&self) -> Vec<u8> {
        match self.started {
            None => self.message(Kind::Open, [0; 16]),
            Some(_) => Vec::new(),
        }
    }

    /// Takes input; `input` is shortened by what was used. Call until it answers
    /// [`Opening::Wait`] or [`Opening::Go`].
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Opening, PreambleVersionError> {
        while let Some(message) = self.scanner.next(input) {
            if message.opener != self.nonce {
                continue;
            }
            match message.kind {
                Kind::Refuse => return Err(PreambleVersionError { theirs: message.version }),
                // Once for each acceptor: one that was restarted in between has a new number.
                Kind::Accept if self.started != Some(message.acceptor) => {
                    self.started = Some(message.acceptor);
                    return Ok(Opening::Send(self.message(Kind::Start, message.acceptor)));
                }
                Kind::Go if self.started == Some(message.acceptor) => return Ok(Opening::Go),
                // Our own messages, echoed by a terminal; a second answer.
                Kind::Open | Kind::Start | Kind::Accept | Kind::Go => {}
            }
        }
        Ok(Opening::Wait)
    }

    fn message(&self, kind: Kind, acceptor: Nonce) -> Vec<u8> {
        let message = Message { kind, version: PREAMBLE_VERSION, opener: self.nonce, acceptor };
        message.encode().to_vec()
    }
}
