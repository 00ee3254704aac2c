use proptest::collection::vec;
use proptest::prelude::*;

use std::sync::Arc;

use super::super::RelayError;
use super::super::nbd::{NbdParser, tests::Client};
use super::super::parse::AnyParser;
use super::super::ram::{RamParser, tests::Stream};
use super::super::store::{Migration, Room};
use super::super::tests::noise;
use super::*;

const SMALL: Room = Room { memory: 8 * PAGE as u64, disks: 8 * PAGE as u64 };

/// Both ends of the connections of one migration.
struct Ends {
    from: Arc<Migration>,
    to: Arc<Migration>,
}

impl Ends {
    fn of(room: Room) -> Self {
        let [from, to] = [(); 2].map(|()| Arc::new(Migration::new(room)));
        Self { from, to }
    }

    fn memory(&self) -> Connection {
        self.connection(AnyParser::Ram(RamParser::new()))
    }

    fn disk(&self) -> Connection {
        self.connection(AnyParser::Nbd(NbdParser::new()))
    }

    fn connection(&self, parser: AnyParser) -> Connection {
        let composer = Composer::new(parser, Arc::clone(&self.from));
        let player = Player::new(Arc::clone(&self.to));
        Connection { composer, player, held: Vec::new(), programs: 0, out: Vec::new() }
    }
}

struct Connection {
    composer: Composer,
    player: Player,
    held: Vec<u8>,
    /// Bytes of all programs so far.
    programs: usize,
    out: Vec<u8>,
}

impl Connection {
    fn push(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(BLOCK_MAX - PAGE) {
            self.held.extend_from_slice(bytes);
            let done = self.composer.compose(&self.held);
            self.held.drain(..done);
            self.play();
        }
    }

    /// Nothing more comes for now.
    fn pause(&mut self) {
        if self.composer.has_rest(&self.held) {
            self.composer.rest(&self.held);
            self.play();
        }
    }

    fn play(&mut self) {
        let program = self.composer.program();
        assert!(program.len() <= PROGRAM_MAX);
        self.programs += program.len();
        if !program.is_empty() {
            self.out.extend_from_slice(self.player.play(program).unwrap());
        }
    }
}

fn page(seed: u64) -> Vec<u8> {
    noise(PAGE, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
}

fn rounds() -> Vec<u8> {
    let mut stream = Stream::begin();
    for round in 0..3 {
        stream.section(2);
        for number in 0..6 {
            let mut content = page(number / 2);
            content[100] ^= round;
            stream.page("pc.ram", number, &content);
            stream.zero("pc.ram", 100 + number);
        }
        stream.page("rom", 1 << 40, &[0; PAGE]);
        stream.end_section();
    }
    stream.bytes.extend(b"\x04\0\0\0\x03\x05timer\0\0\0\0\0\0\0\x02\x11\x11");
    stream.bytes
}

#[test]
fn what_was_sent_is_named_and_what_changed_in_it_is_all_that_is_sent() {
    let stream = rounds();
    let mut memory = Ends::of(SMALL).memory();
    memory.push(&stream);
    memory.pause();
    assert!(memory.out == stream);
    // Three pages anew, three with their change each round; a change is mostly zeros, for zstd.
    assert!(memory.programs < (3 + 2 * 3) * PAGE + 1000, "{}", memory.programs);
}

#[test]
fn every_byte_comes_out_wherever_the_stream_is_cut() {
    let stream = rounds();
    // Every place in a round's beginning and in what comes after pages; few inside of pages.
    let (begin, end) = (9000, stream.len() - 100);
    for cut in (0..begin).chain((begin..end).step_by(211)).chain(end..stream.len()) {
        let mut memory = Ends::of(SMALL).memory();
        memory.push(&stream[..cut]);
        memory.pause();
        assert!(memory.out == stream[..cut], "something is kept back at {cut}");
        memory.push(&stream[cut..]);
        memory.pause();
        assert!(memory.out == stream, "cut at {cut}");
    }
}

#[test]
fn memory_names_blocks_of_a_disk_once_they_are_confirmed() {
    let ends = Ends::of(SMALL);
    let mut client = Client::begin();
    client.write(0, &[page(1), page(2), page(1)].concat());
    let mut disk = ends.disk();
    disk.push(&client.0);
    assert!(disk.out == client.0);
    assert!(disk.programs < 2 * PAGE + 300, "one is sent twice: {}", disk.programs);
    let mut stream = Stream::begin();
    stream.section(2);
    stream.page("pc.ram", 1, &page(1));
    let mut memory = ends.memory();
    memory.push(&stream.bytes);
    assert!(memory.programs > PAGE, "it is not confirmed yet");
    let (sent, number) = (memory.programs, disk.composer.disk().unwrap());
    assert!(ends.from.confirm(number, disk.player.blocks().unwrap()));
    let begun = stream.bytes.len();
    stream.page("pc.ram", 2, &page(2));
    memory.push(&stream.bytes[begun..]);
    assert!(memory.programs < sent + 50, "{} after {sent}", memory.programs);
    assert!(memory.out == stream.bytes);
}

#[test]
fn without_room_nothing_is_kept_and_everything_arrives() {
    let ends = Ends::of(Room::NONE);
    let (stream, mut memory) = (rounds(), ends.memory());
    memory.push(&stream);
    memory.pause();
    assert!(memory.out == stream);
    let mut client = Client::begin();
    client.write(0, &[page(1), page(1)].concat());
    let mut disk = ends.disk();
    disk.push(&client.0);
    assert!(disk.out == client.0);
}

#[test]
fn programs_that_lie_are_refused() {
    let program = |instructions: &[u8], enclosed: &[u8]| {
        let len = u8::try_from(instructions.len()).unwrap();
        [&[len], instructions, enclosed].concat()
    };
    let kept = [PAGE_KEPT; 9];
    for (lie, what) in [
        (vec![], "too early"),
        (program(&[200], &[]), "there is not"),
        (vec![9, ENCLOSED], "too early"),
        (program(&[ENCLOSED, 5], &[1, 2]), "too early"),
        (program(&[ENCLOSED, 1], &[1, 2]), "over"),
        (
            program(&[ENCLOSED, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], &[]),
            "early",
        ),
        (program(&[ENCLOSED, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255], &[]), "too large"),
        (program(&[HEADER], &[1; 7]), "too early"),
        (program(&[SAME, 0], &[]), "never sent"),
        (program(&[MEMORY, 8, SAME, 0], &[]), "never sent"),
        (program(&[MEMORY, 8, PAGE_KEPT, SAME, 4], &[1; PAGE]), "never sent"),
        (program(&[MEMORY, 8, DELTA, 1], &[1; PAGE]), "never sent"),
        (program(&[BLOCK, 0, 0], &[]), "never sent"),
        (program(&[DISK, 0, BLOCK, 0, 1], &[]), "never sent"),
        (program(&[PAGE_KEPT], &[1; PAGE]), "room"),
        (program(&[MEMORY, 9], &[]), "more memory"),
        (program(&[MEMORY, 1, DISK, 1], &[]), "two kinds"),
        (program(&[MEMORY, 1, MEMORY, 1], &[]), "two kinds"),
        (program(&[&[DISK, 1][..], &kept].concat(), &[7; 9 * PAGE]), "room"),
        (program(&[ZEROS; 65], &[]), "more than a block"),
    ] {
        let mut player = Player::new(Arc::new(Migration::new(SMALL)));
        match player.play(&lie) {
            Err(RelayError::Protocol { what: found }) => {
                assert!(found.contains(what), "{found}: {what}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    let shared = Arc::new(Migration::new(SMALL));
    let [mut one, mut other] = [(); 2].map(|()| Player::new(Arc::clone(&shared)));
    one.play(&program(&[DISK, 3], &[])).unwrap();
    assert!(other.play(&program(&[DISK, 3], &[])).is_err(), "two of one number");
    one.play(&program(&kept[..8], &[7; 8 * PAGE])).unwrap();
    other.play(&program(&[DISK, 4], &[])).unwrap();
    assert!(other.play(&program(&[PAGE_KEPT], &[7; PAGE])).is_err(), "more than both may have");
}

/// One thing that a guest and its host do.
#[derive(Debug, Clone)]
enum Act {
    Page { number: u64, content: u64, bent: u16 },
    Zero(u64),
    Write { block: u64, content: u64 },
    Confirm,
    Pause,
}

fn act() -> impl Strategy<Value = Act> {
    let page = (0_u64..12, 0_u64..20, prop_oneof![Just(0), 0_u16..4096]);
    prop_oneof![
        6 => page.prop_map(|(number, content, bent)| Act::Page { number, content, bent }),
        1 => (0_u64..12).prop_map(Act::Zero),
        3 => (0_u64..12, 0_u64..20).prop_map(|(block, content)| Act::Write { block, content }),
        1 => Just(Act::Confirm),
        1 => Just(Act::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_guest_does_arrives_as_it_was(
        acts in vec(act(), 1..120),
        cut in 1_usize..9000,
    ) {
        let ends = Ends::of(SMALL);
        let (mut memory, mut disk) = (ends.memory(), ends.disk());
        let (mut stream, mut client) = (Stream::begin(), Client::begin());
        let (mut said, mut written) = (0, 0);
        stream.section(2);
        for act in acts {
            match act {
                Act::Page { number, content, bent } => {
                    let mut content = page(content);
                    content[..usize::from(bent)].iter_mut().for_each(|byte| *byte ^= 0x55);
                    stream.page("pc.ram", number, &content);
                }
                Act::Zero(number) => stream.zero("pc.ram", number),
                Act::Write { block, content } => client.write(block * 4096, &page(content)),
                Act::Pause => {
                    memory.pause();
                    disk.pause();
                }
                Act::Confirm => {
                    if let Some(number) = disk.composer.disk() {
                        assert!(ends.from.confirm(number, disk.player.blocks().unwrap()));
                    }
                }
            }
            // Neither is ever where a piece ends.
            while stream.bytes.len() - said > cut {
                memory.push(&stream.bytes[said..said + cut]);
                said += cut;
            }
            while client.0.len() - written > cut {
                disk.push(&client.0[written..written + cut]);
                written += cut;
            }
        }
        memory.push(&stream.bytes[said..]);
        memory.pause();
        disk.push(&client.0[written..]);
        disk.pause();
        prop_assert!(memory.out == stream.bytes);
        prop_assert!(disk.out == client.0);
    }

    #[test]
    fn no_program_makes_a_player_panic(programs in vec(vec(any::<u8>(), 0..60), 1..20)) {
        let mut player = Player::new(Arc::new(Migration::new(SMALL)));
        for program in programs {
            let _ = player.play(&program);
        }
    }

    #[test]
    fn any_bytes_at_all_pass_unchanged(bytes in vec(any::<u8>(), 0..9000), cut in 1_usize..9000) {
        for begin in [Vec::new(), Stream::begin().bytes, Client::begin().0] {
            let bytes = [begin, bytes.clone()].concat();
            let ends = Ends::of(SMALL);
            for mut connection in [ends.memory(), ends.disk()] {
                for bytes in bytes.chunks(cut) {
                    connection.push(bytes);
                }
                connection.pause();
                prop_assert!(connection.out == bytes);
            }
        }
    }
}
