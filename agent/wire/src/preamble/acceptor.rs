//! The end that listens.

use super::PREAMBLE_VERSION;
use super::message::{Kind, Message, Nonce, Scanner};

/// The end that listens. See the [module](super).
#[derive(Debug)]
pub struct Acceptor {
    nonce: Nonce,
    /// The number of the latest OPEN.
    opener: Option<Nonce>,
    scanner: Scanner,
}

/// What to do after some input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepting {
    /// Read on.
    Wait,
    /// Send these bytes, then push the rest of the input.
    Send(Vec<u8>),
    /// Send these bytes; then the session begins: what is left of the input belongs to it.
    Go(Vec<u8>),
}

impl Acceptor {
    /// `nonce` is fresh and random for every attempt.
    pub fn new(nonce: Nonce) -> Self {
        Self { nonce, opener: None, scanner: Scanner::default() }
    }

    /// Takes input; `input` is shortened by what was used. Call until it answers
    /// [`Accepting::Wait`] or [`Accepting::Go`].
    pub fn push(&mut self, input: &mut &[u8]) -> Accepting {
        while let Some(message) = self.scanner.next(input) {
            match message.kind {
                Kind::Open if message.version != PREAMBLE_VERSION => {
                    return Accepting::Send(self.message(Kind::Refuse, message.opener));
                }
                Kind::Open => {
                    self.opener = Some(message.opener);
                    return Accepting::Send(self.message(Kind::Accept, message.opener));
                }
                Kind::Start
                    if self.opener == Some(message.opener) && message.acceptor == self.nonce =>
                {
                    return Accepting::Go(self.message(Kind::Go, message.opener));
                }
                // Of a session that died, or our own, echoed.
                Kind::Start | Kind::Accept | Kind::Go | Kind::Refuse => {}
            }
        }
        Accepting::Wait
    }

    fn message(&self, kind: Kind, opener: Nonce) -> Vec<u8> {
        let acceptor = self.nonce;
        Message { kind, version: PREAMBLE_VERSION, opener, acceptor }.encode().to_vec()
    }
}
