//! How two ends find each other on a pipe that may hold anything: [`wire::preamble`].

use wire::preamble::{Accepting, Acceptor, MESSAGE_LEN, Nonce, Opener, Opening};

use crate::memory::bounded;
use crate::script::Script;

const ACCEPTOR: Nonce = [0xa0; 16];
const OPENER: Nonce = [0x0e; 16];
const LATER_OPENER: Nonce = [0x1a; 16];

/// What an acceptor that holds a part of a message and answers one may take.
const MEMORY: usize = 16 * MESSAGE_LEN;

/// Acts on two ends that hear what the script lets them, of themselves, of earlier attempts and of
/// nobody; then a new opener comes and has to be understood.
pub fn check(bytes: &[u8]) {
    let mut script = Script(bytes);
    let mut acceptor = Ears::new();
    let mut opener = Opener::new(OPENER);
    let mut said = of_dead_sessions();
    while let Some(act) = script.next() {
        let heard = match act % 6 {
            0 => opener.open(),
            1 => piece_of(&said, &mut script),
            2 => script.bytes().to_vec(),
            3 => {
                let mut message = piece_of(&said, &mut script);
                if let Some(byte) = message.get_mut(script.below(MESSAGE_LEN)) {
                    *byte ^= script.byte();
                }
                message
            }
            act => {
                let heard =
                    if act == 4 { piece_of(&said, &mut script) } else { script.bytes().to_vec() };
                match answer_of(&mut opener, &heard) {
                    // The opener goes only after a GO for its own START, so there was one.
                    None => return,
                    Some(answers) => said.extend(answers),
                }
                continue;
            }
        };
        match acceptor.hear(&heard) {
            Heard::Answers(answers) => said.extend(answers),
            Heard::Goes => return,
        }
    }
    find_each_other(acceptor);
}

/// All messages of a preamble between others than these.
fn of_dead_sessions() -> Vec<Vec<u8>> {
    let (mut opener, mut acceptor) = (Opener::new([7; 16]), Acceptor::new([8; 16]));
    let mut said = vec![opener.open()];
    loop {
        let message = said.last().expect("begins with one").clone();
        match acceptor.push(&mut &message[..]) {
            Accepting::Wait => unreachable!("the acceptor is asked in order"),
            Accepting::Go(go) => {
                said.push(go);
                return said;
            }
            Accepting::Send(accept) => {
                said.push(accept.clone());
                match opener.push(&mut &accept[..]) {
                    Ok(Opening::Send(start)) => said.push(start),
                    other => unreachable!("an ACCEPT is answered, not {other:?}"),
                }
            }
        }
    }
}

/// A message that was said once, or a part of it.
fn piece_of(said: &[Vec<u8>], script: &mut Script<'_>) -> Vec<u8> {
    let message = &said[script.below(said.len())];
    let from = script.below(message.len() + 1);
    let left_out = script.below(message.len() - from + 1);
    message[from..message.len() - left_out].to_vec()
}

/// `None`: the session begins.
fn answer_of(opener: &mut Opener, heard: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut input, mut answers) = (heard, Vec::new());
    loop {
        match bounded(MEMORY, || opener.push(&mut input)) {
            Ok(Opening::Wait) => {
                assert!(input.is_empty(), "it waits with input left");
                return Some(answers);
            }
            Ok(Opening::Send(answer)) => {
                assert_eq!(answer.len(), MESSAGE_LEN);
                answers.push(answer);
            }
            Ok(Opening::Go) => return None,
            // A version that we do not speak; the attempt is over.
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return Some(answers);
            }
        }
    }
}

enum Heard {
    Answers(Vec<Vec<u8>>),
    Goes,
}

/// One acceptor that hears everything at once, and one that hears it byte by byte.
struct Ears {
    at_once: Acceptor,
    by_bytes: Acceptor,
    heard: Vec<u8>,
}

impl Ears {
    fn new() -> Self {
        let (at_once, by_bytes) = (Acceptor::new(ACCEPTOR), Acceptor::new(ACCEPTOR));
        Self { at_once, by_bytes, heard: Vec::new() }
    }

    /// Both understand the same.
    fn hear(&mut self, bytes: &[u8]) -> Heard {
        self.heard.extend(bytes);
        let (answers, left) = hear(&mut self.at_once, bytes);
        let (mut by_bytes, mut left_by_bytes) = (Vec::new(), None);
        for (at, byte) in bytes.iter().enumerate() {
            let (answers, goes) = hear(&mut self.by_bytes, std::slice::from_ref(byte));
            by_bytes.extend(answers);
            if goes.is_some() {
                left_by_bytes = Some(bytes.len() - at - 1);
                break;
            }
        }
        assert_eq!((&answers, left), (&by_bytes, left_by_bytes));
        if left.is_none() {
            return Heard::Answers(answers);
        }
        // Nobody else's START names this attempt.
        let named = self.heard.windows(ACCEPTOR.len()).any(|bytes| bytes == ACCEPTOR);
        assert!(named, "it goes with a dead session");
        Heard::Goes
    }
}

/// What is answered, and if the session begins, how many bytes are left for it.
fn hear(acceptor: &mut Acceptor, bytes: &[u8]) -> (Vec<Vec<u8>>, Option<usize>) {
    let (mut input, mut answers) = (bytes, Vec::new());
    loop {
        match bounded(MEMORY, || acceptor.push(&mut input)) {
            Accepting::Wait => {
                assert!(input.is_empty(), "it waits with input left");
                return (answers, None);
            }
            Accepting::Send(answer) => {
                assert_eq!(answer.len(), MESSAGE_LEN);
                answers.push(answer);
            }
            Accepting::Go(answer) => {
                assert_eq!(answer.len(), MESSAGE_LEN);
                answers.push(answer);
                return (answers, Some(input.len()));
            }
        }
    }
}

/// Whatever went before: OPEN, ACCEPT, START, GO, and the session's bytes are the session's.
fn find_each_other(mut acceptor: Ears) {
    let mut opener = Opener::new(LATER_OPENER);
    let Heard::Answers(accepts) = acceptor.hear(&opener.open()) else {
        panic!("an OPEN is no START");
    };
    let accept = accepts.last().expect("an OPEN is answered");
    let Ok(Opening::Send(start)) = opener.push(&mut &accept[..]) else {
        panic!("an ACCEPT is answered by START");
    };
    let with_session = [&start[..], b"session"].concat();
    let (answers, left) = hear(&mut acceptor.at_once, &with_session);
    assert_eq!(left, Some(7), "the acceptor takes bytes of the session");
    let with_session = [&answers[0][..], b"session"].concat();
    let mut input = &with_session[..];
    assert_eq!(opener.push(&mut input), Ok(Opening::Go));
    assert_eq!(input, b"session");
}
