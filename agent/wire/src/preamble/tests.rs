use proptest::collection::vec;
use proptest::prelude::*;

use super::message::{Kind, Message, Scanner};
use super::*;

/// As the first release wrote it. Never edited.
const V1_OPEN: [u8; MESSAGE_LEN] = [
    196, 155, 19, 238, 7, 90, 209, 134, 63, 168, 98, 181, 12, 153, 113, 224, 1, 0, 1, 0, 9, 9, 9,
    9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 127,
    175, 57, 80,
];

/// Both ends and the bytes under way between them, delivered in pieces.
struct Pair {
    opener: Opener,
    acceptor: Acceptor,
    to_acceptor: Vec<u8>,
    to_opener: Vec<u8>,
    opener_goes: bool,
    acceptor_goes: bool,
    /// What each end was left with for its session.
    opener_got: Vec<u8>,
    acceptor_got: Vec<u8>,
}

impl Pair {
    fn new(stale_to_acceptor: &[u8], stale_to_opener: &[u8]) -> Self {
        Self {
            opener: Opener::new([1; 16]),
            acceptor: Acceptor::new([2; 16]),
            to_acceptor: stale_to_acceptor.to_vec(),
            to_opener: stale_to_opener.to_vec(),
            opener_goes: false,
            acceptor_goes: false,
            opener_got: Vec::new(),
            acceptor_got: Vec::new(),
        }
    }

    fn deliver_to_acceptor(&mut self, len: usize) {
        let len = len.min(self.to_acceptor.len());
        let piece: Vec<u8> = self.to_acceptor.drain(..len).collect();
        let mut input = piece.as_slice();
        while !self.acceptor_goes {
            match self.acceptor.push(&mut input) {
                Accepting::Wait => return,
                Accepting::Send(bytes) => self.to_opener.extend(bytes),
                Accepting::Go(bytes) => {
                    self.to_opener.extend(bytes);
                    self.to_opener.extend(b"from acceptor");
                    self.acceptor_goes = true;
                }
            }
        }
        self.acceptor_got.extend(input);
    }

    fn deliver_to_opener(&mut self, len: usize) {
        let len = len.min(self.to_opener.len());
        let piece: Vec<u8> = self.to_opener.drain(..len).collect();
        let mut input = piece.as_slice();
        while !self.opener_goes {
            match self.opener.push(&mut input).unwrap() {
                Opening::Wait => return,
                Opening::Send(bytes) => self.to_acceptor.extend(bytes),
                Opening::Go => {
                    self.opener_goes = true;
                    self.to_acceptor.extend(b"from opener");
                }
            }
        }
        self.opener_got.extend(input);
    }

    /// Delivers everything in pieces of these sizes, with an OPEN now and then.
    fn run(&mut self, pieces: &[usize]) {
        for (step, piece) in pieces.iter().cycle().take(20_000).enumerate() {
            if step % 64 == 0 {
                self.to_acceptor.extend(self.opener.open());
            }
            self.deliver_to_acceptor(*piece);
            self.deliver_to_opener(*piece);
            if self.opener_goes && self.to_opener.is_empty() && self.to_acceptor.is_empty() {
                return;
            }
        }
        panic!("no session after 20000 pieces");
    }

    fn assert_session(&self) {
        assert_eq!(self.acceptor_got, b"from opener");
        assert_eq!(self.opener_got, b"from acceptor");
    }
}

/// What a session that died leaves in the pipe to the acceptor, and in the pipe to the opener.
fn dead_session(opener: Nonce, acceptor: Nonce, tail: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let message = |kind| Message { kind, version: PREAMBLE_VERSION, opener, acceptor }.encode();
    let forth = [&message(Kind::Open)[..], &message(Kind::Start), tail].concat();
    let back = [&message(Kind::Accept)[..], &message(Kind::Go), tail].concat();
    (forth, back)
}

#[test]
fn v1_open_reads_and_writes_as_released() {
    let open = Message { kind: Kind::Open, version: 1, opener: [9; 16], acceptor: [0; 16] };
    assert_eq!(open.encode(), V1_OPEN);
    assert_eq!(Scanner::default().next(&mut V1_OPEN.as_slice()), Some(open));
}

#[test]
fn a_second_answer_does_not_reach_the_session() {
    let mut pair = Pair::new(&[], &[]);
    for _ in 0..3 {
        pair.to_acceptor.extend(pair.opener.open());
    }
    pair.run(&[1000]);
    pair.assert_session();
}

#[test]
fn a_start_of_a_dead_session_starts_nothing() {
    let (stale, _) = dead_session([7; 16], [8; 16], b"secrets of another session");
    let mut acceptor = Acceptor::new([2; 16]);
    let mut input = stale.as_slice();
    assert!(matches!(acceptor.push(&mut input), Accepting::Send(_)));
    assert_eq!(acceptor.push(&mut input), Accepting::Wait);
}

#[test]
fn an_acceptor_that_was_restarted_after_its_answer_is_started_anew() {
    let mut pair = Pair::new(&[], &[]);
    pair.to_acceptor.extend(pair.opener.open());
    pair.to_acceptor.extend(pair.opener.open());
    pair.deliver_to_acceptor(MESSAGE_LEN);
    pair.acceptor = Acceptor::new([3; 16]);
    pair.run(&[1000]);
    pair.assert_session();
}

#[test]
fn a_version_that_is_not_spoken_is_told_to_the_opener() {
    let mut newer = Message { kind: Kind::Open, version: 2, opener: [1; 16], acceptor: [0; 16] };
    let mut acceptor = Acceptor::new([2; 16]);
    let Accepting::Send(answer) = acceptor.push(&mut newer.encode().as_slice()) else {
        panic!("an OPEN is answered");
    };
    let mut opener = Opener::new([1; 16]);
    let told = opener.push(&mut answer.as_slice());
    assert_eq!(told, Err(PreambleVersionError { theirs: PREAMBLE_VERSION }));
    newer.version = PREAMBLE_VERSION;
    assert!(matches!(acceptor.push(&mut newer.encode().as_slice()), Accepting::Send(_)));
}

proptest! {
    #[test]
    fn a_session_begins_behind_any_garbage_however_it_is_cut(
        garbage_forth in vec(any::<u8>(), 0..300),
        garbage_back in vec(any::<u8>(), 0..300),
        pieces in vec(1_usize..100, 1..20),
    ) {
        let mut pair = Pair::new(&garbage_forth, &garbage_back);
        pair.run(&pieces);
        pair.assert_session();
    }

    /// Dead sessions of the same and of other openers, of which any part may have been lost.
    #[test]
    fn a_session_begins_behind_the_remains_of_dead_ones(
        remains in vec((3_u8..6, 3_u8..6, vec(any::<u8>(), 0..20), 0_usize..180, 0_usize..180), 0..6),
        pieces in vec(1_usize..100, 1..20),
    ) {
        let (mut forth, mut back) = (Vec::new(), Vec::new());
        for (opener, acceptor, tail, lost, len) in remains {
            let (stale_forth, stale_back) = dead_session([opener; 16], [acceptor; 16], &tail);
            forth.extend(stale_forth.into_iter().skip(lost).take(len));
            back.extend(stale_back.into_iter().skip(lost).take(len));
        }
        let mut pair = Pair::new(&forth, &back);
        pair.run(&pieces);
        pair.assert_session();
    }

    #[test]
    fn a_message_cut_off_by_another_does_not_hide_it(cut in 0_usize..MESSAGE_LEN) {
        let open = |n: u8| Message { kind: Kind::Open, version: 1, opener: [n; 16], acceptor: [0; 16] };
        let bytes = [&open(1).encode()[..cut], &open(2).encode()].concat();
        prop_assert_eq!(Scanner::default().next(&mut bytes.as_slice()), Some(open(2)));
    }
}
