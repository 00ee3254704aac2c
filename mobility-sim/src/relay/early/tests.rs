use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::timeout;

use super::*;

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
/// What does not come by then never comes.
const PATIENCE: Duration = Duration::from_secs(60);
const WRITE: u16 = 1;
const READ: u16 = 0;
const FLUSH: u16 = 3;

fn option(number: u32) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &2_u32.to_be_bytes(), b"ab"].concat()
}

/// What a client says from its beginning on, with the option that comes first there.
fn options(number: u32) -> Vec<u8> {
    let begins: &[u8] = if number == 8 { &[0, 0, 0, 3] } else { &[] };
    [begins, &option(number)].concat()
}

/// To `NBD_OPT_GO` (7) with what the export can: flush, if nothing else is said.
fn answer(number: u32) -> Vec<u8> {
    answer_with(number, 0b101)
}

fn answer_with(number: u32, flags: u16) -> Vec<u8> {
    let answer = |kind: u32, data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap();
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let numbers = [number, kind, len].map(u32::to_be_bytes).concat();
        [&magic[..], &numbers, data].concat()
    };
    let export = [&[0, 0][..], &(1_u64 << 30).to_be_bytes(), &flags.to_be_bytes()].concat();
    let block_size = [&[0, 3][..], &[7; 12]].concat();
    let ends = answer(1, b"xyz");
    if number == 7 { [answer(3, &export), answer(3, &block_size), ends].concat() } else { ends }
}

fn request(kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let payload = if kind == WRITE { vec![7; length as usize] } else { vec![] };
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &0_u16.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
        &payload,
    ]
    .concat()
}

/// The last one of its answer if there is nothing else.
fn chunk(kind: u16, cookie: u64, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_be_bytes();
    let magic = 0x668e_33ef_u32.to_be_bytes();
    let numbers = [1_u16, kind].map(u16::to_be_bytes).concat();
    [&magic[..], &numbers, &cookie.to_be_bytes(), &len, data].concat()
}

fn failed(cookie: u64) -> [u8; 16] {
    let mut reply = replies::done(cookie);
    reply[7] = 5;
    reply
}

/// Nothing more comes, of what can come by now.
async fn nothing_comes(out: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0];
    tokio::select! {
        biased;
        read = out.read(&mut byte) => panic!("{read:?} {byte:?}"),
        () = tokio::task::yield_now() => {}
    }
}

async fn hears(ear: &mut (impl AsyncRead + Unpin), bytes: &[u8]) {
    let mut heard = vec![0; bytes.len()];
    timeout(PATIENCE, ear.read_exact(&mut heard)).await.expect("something comes").unwrap();
    assert_eq!(heard, bytes);
}

/// A client, what is beside it, and a server far away; the options are behind them.
struct Between {
    owed: Arc<AtomicU64>,
    client: DuplexStream,
    out: ReadHalf<Early<DuplexStream>>,
    back: WriteHalf<Early<DuplexStream>>,
}

impl Between {
    async fn new() -> Self {
        Self::with(0b101).await
    }

    /// Flags of the export.
    async fn with(flags: u16) -> Self {
        let (client, local) = duplex(1 << 20);
        let owed = Arc::default();
        let (out, back) = split(Early::new(local, Arc::clone(&owed)));
        let mut between = Self { owed, client, out, back };
        between.says(GREETING).await;
        between.client_hears(GREETING).await;
        for number in [8, 7] {
            let said = options(number);
            between.client.write_all(&said).await.unwrap();
            between.server_hears(&said).await;
            let answer = answer_with(number, flags);
            between.says(&answer).await;
            between.client_hears(&answer).await;
        }
        between
    }

    fn owed(&self) -> u64 {
        self.owed.load(Ordering::Relaxed)
    }

    /// The server does.
    async fn says(&mut self, bytes: &[u8]) {
        self.back.write_all(bytes).await.unwrap();
    }

    async fn server_hears(&mut self, bytes: &[u8]) {
        hears(&mut self.out, bytes).await;
    }

    async fn client_hears(&mut self, bytes: &[u8]) {
        hears(&mut self.client, bytes).await;
    }

    /// Whatever came is on the line then.
    async fn nothing_comes(&mut self) {
        nothing_comes(&mut self.out).await;
    }

    async fn asks(&mut self, kind: u16, cookie: u64, offset: u64, length: u32) {
        self.client.write_all(&request(kind, cookie, offset, length)).await.unwrap();
    }
}

/// A client far away, what is beside the server, and that.
struct Beside {
    out: WriteHalf<InOrder<DuplexStream>>,
    back: ReadHalf<InOrder<DuplexStream>>,
    server: DuplexStream,
}

impl Beside {
    async fn new() -> Self {
        let (server, disk) = duplex(1 << 20);
        let (back, out) = split(InOrder::new(disk));
        let mut beside = Self { out, back, server };
        beside.says(GREETING).await;
        beside.client_hears(GREETING).await;
        for number in [8, 7] {
            let said = options(number);
            beside.out.write_all(&said).await.unwrap();
            beside.server_hears(&said).await;
            beside.says(&answer(number)).await;
            beside.client_hears(&answer(number)).await;
        }
        beside
    }

    async fn says(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).await.unwrap();
    }

    async fn server_hears(&mut self, bytes: &[u8]) {
        hears(&mut self.server, bytes).await;
    }

    async fn client_hears(&mut self, bytes: &[u8]) {
        hears(&mut self.back, bytes).await;
    }

    async fn nothing_comes(&mut self) {
        nothing_comes(&mut self.server).await;
    }

    async fn asks(&mut self, kind: u16, cookie: u64, offset: u64, length: u32) {
        self.out.write_all(&request(kind, cookie, offset, length)).await.unwrap();
    }
}

#[tokio::test]
async fn writes_are_acknowledged_as_they_go_and_a_flush_when_it_is_answered() {
    let mut between = Between::new().await;
    // Wherever to.
    for (number, cookie) in [(0, 77), (1, 77), (2, 78)] {
        between.asks(WRITE, cookie, 4096, 4096).await;
        between.server_hears(&request(WRITE, number, 4096, 4096)).await;
        between.nothing_comes().await;
        between.client_hears(&replies::done(cookie)).await;
    }
    between.asks(FLUSH, 79, 0, 0).await;
    between.asks(WRITE, 80, 1 << 20, 512).await;
    between.server_hears(&request(FLUSH, 3, 0, 0)).await;
    between.server_hears(&request(WRITE, 4, 1 << 20, 512)).await;
    between.nothing_comes().await;
    between.client_hears(&replies::done(80)).await;
    for (number, owed) in [(2, 4), (0, 3), (1, 2), (4, 1)] {
        assert_eq!(between.owed(), owed);
        between.says(&replies::done(number)).await;
        nothing_comes(&mut between.client).await;
    }
    assert_eq!(between.owed(), 0);
    between.says(&replies::done(3)).await;
    between.client_hears(&replies::done(79)).await;
}

#[tokio::test]
async fn a_flush_reaches_the_disk_when_all_before_it_is_done() {
    let mut beside = Beside::new().await;
    for number in 0..3 {
        beside.asks(WRITE, 70 + number, number * 4096, 4096).await;
        beside.server_hears(&request(WRITE, number, number * 4096, 4096)).await;
    }
    beside.asks(FLUSH, 79, 0, 0).await;
    beside.asks(WRITE, 80, 1 << 20, 512).await;
    for number in [2, 0, 1] {
        nothing_comes(&mut beside.back).await;
        beside.nothing_comes().await;
        beside.says(&replies::done(number)).await;
        beside.client_hears(&replies::done(70 + number)).await;
    }
    nothing_comes(&mut beside.back).await;
    beside.server_hears(&request(FLUSH, 3, 0, 0)).await;
    beside.server_hears(&request(WRITE, 4, 1 << 20, 512)).await;
    beside.says(&replies::done(3)).await;
    beside.client_hears(&replies::done(79)).await;
}

#[tokio::test]
async fn a_write_to_where_one_is_under_way_waits_for_it() {
    let mut beside = Beside::new().await;
    beside.asks(WRITE, 1, 4096, 8192).await;
    beside.server_hears(&request(WRITE, 0, 4096, 8192)).await;
    beside.asks(WRITE, 2, 0, 4096).await;
    beside.server_hears(&request(WRITE, 1, 0, 4096)).await;
    beside.asks(WRITE, 3, 12_287, 1).await;
    beside.says(&replies::done(1)).await;
    beside.client_hears(&replies::done(2)).await;
    nothing_comes(&mut beside.back).await;
    beside.nothing_comes().await;
    beside.says(&replies::done(0)).await;
    beside.client_hears(&replies::done(1)).await;
    nothing_comes(&mut beside.back).await;
    beside.server_hears(&request(WRITE, 2, 12_287, 1)).await;
}

#[tokio::test]
async fn who_waits_for_a_server_that_has_gone_waits_no_longer() {
    let mut beside = Beside::new().await;
    beside.asks(WRITE, 1, 0, 4096).await;
    beside.server_hears(&request(WRITE, 0, 0, 4096)).await;
    beside.asks(FLUSH, 2, 0, 0).await;
    beside.nothing_comes().await;
    let Beside { mut out, mut back, server } = beside;
    let shut = tokio::spawn(async move { out.shutdown().await });
    tokio::task::yield_now().await;
    assert!(!shut.is_finished(), "a flush is on its way");
    drop(server);
    assert_eq!(back.read(&mut [0]).await.unwrap(), 0);
    timeout(PATIENCE, shut).await.expect("it ends").unwrap().unwrap_err();
}

#[tokio::test]
async fn one_that_fails_afterwards_ends_the_connection_and_before_is_told() {
    let mut between = Between::new().await;
    between.asks(WRITE, 5, 0, 512).await;
    between.server_hears(&request(WRITE, 0, 0, 512)).await;
    // It is quicker than the line is asked for more.
    between.says(&failed(0)).await;
    between.client_hears(&failed(5)).await;
    between.asks(WRITE, 6, 0, 512).await;
    between.server_hears(&request(WRITE, 1, 0, 512)).await;
    between.nothing_comes().await;
    let error = between.back.write_all(&failed(1)).await.unwrap_err();
    assert!(error.to_string().contains("acknowledged, at byte 0: input/output error"), "{error}");
    assert_eq!(between.owed(), 1, "whoever asks then is told that it was not done");

    // In chunks, with the reason and words about it in what follows.
    let mut between = Between::new().await;
    between.asks(WRITE, 5, 0, 512).await;
    between.server_hears(&request(WRITE, 0, 0, 512)).await;
    between.nothing_comes().await;
    for byte in chunk(0x8001, 0, &[0, 0, 0, 28, 0, 2, b'n', b'o']).chunks(3) {
        if let Err(error) = between.back.write_all(byte).await {
            assert!(error.to_string().contains("no space left"), "{error}");
            return;
        }
    }
    panic!("it was passed over");
}

#[tokio::test]
async fn what_is_read_is_not_interrupted_by_an_acknowledgement() {
    let mut between = Between::new().await;
    between.asks(READ, 5, 0, 500).await;
    between.server_hears(&request(READ, 0, 0, 500)).await;
    between.asks(WRITE, 6, 4096, 512).await;
    let mut answer = chunk(1, 0, &[9; 508]);
    let (begins, ends) = answer.split_at(26);
    between.says(begins).await;
    between.server_hears(&request(WRITE, 1, 4096, 512)).await;
    between.nothing_comes().await;
    between.says(ends).await;
    answer[8..16].copy_from_slice(&5_u64.to_be_bytes());
    between.client_hears(&[&answer[..], &replies::done(6)].concat()).await;
}

#[tokio::test]
async fn a_disk_that_does_not_flush_has_nothing_acknowledged_early() {
    let mut between = Between::with(0b1).await;
    between.asks(WRITE, 5, 0, 512).await;
    between.server_hears(&request(WRITE, 0, 0, 512)).await;
    between.nothing_comes().await;
    nothing_comes(&mut between.client).await;
    between.says(&replies::done(0)).await;
    between.client_hears(&replies::done(5)).await;
}

#[tokio::test]
async fn connections_are_not_told_that_they_share_a_flush() {
    let (mut client, local) = duplex(1 << 20);
    let (_out, mut back) = split(Early::new(local, Arc::default()));
    back.write_all(&[GREETING, &answer_with(7, 0b1_0000_0101)].concat()).await.unwrap();
    hears(&mut client, &[GREETING, &answer_with(7, 0b101)].concat()).await;
}

#[tokio::test]
async fn a_server_is_never_answered_for() {
    let mut between = Between::new().await;
    between.asks(WRITE, 5, 0, 512).await;
    let error = between.back.write_all(&replies::done(9)).await.unwrap_err();
    assert!(error.to_string().contains("what was not asked"), "{error}");
}

#[tokio::test]
async fn what_is_no_nbd_passes_as_it_is() {
    let (mut client, local) = duplex(1 << 20);
    let (mut out, mut back) = split(Early::new(local, Arc::default()));
    let said = [&[0, 0, 0, 3][..], &option(5), b"\x16\x03\x01 and so on"].concat();
    client.write_all(&said).await.unwrap();
    back.write_all(&[GREETING, &answer(5), b"\x16\x03\x03 and so on"].concat()).await.unwrap();
    client.shutdown().await.unwrap();
    back.shutdown().await.unwrap();
    let (mut heard, mut answered) = (vec![], vec![]);
    out.read_to_end(&mut heard).await.unwrap();
    client.read_to_end(&mut answered).await.unwrap();
    let (mut client, local) = duplex(1 << 20);
    let (_out, mut back) = split(Early::new(local, Arc::default()));
    back.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
    assert_eq!(heard, said);
    assert_eq!(answered, [GREETING, &answer(5), b"\x16\x03\x03 and so on"].concat());
}

/// Some of what is there.
async fn some_of(
    random: &mut fastrand::Rng,
    from: &mut (impl AsyncRead + Unpin),
    into: &mut impl for<'a> Extend<&'a u8>,
) {
    let mut piece = vec![0; random.usize(1..60)];
    tokio::select! {
        biased;
        read = from.read(&mut piece) => into.extend(&piece[..read.unwrap()]),
        () = tokio::task::yield_now() => {}
    }
}

/// Some of it, if there is room.
async fn some_to(
    random: &mut fastrand::Rng,
    from: &mut VecDeque<u8>,
    to: &mut (impl AsyncWrite + Unpin),
) {
    let len = from.len().min(random.usize(1..60));
    let piece = &from.make_contiguous()[..len];
    let written = tokio::select! {
        biased;
        written = to.write(piece) => written.unwrap(),
        () = tokio::task::yield_now() => 0,
    };
    from.drain(..written);
}

/// A client that uses its cookies again, 16 at once, a line that is slow, and a server that answers in any order;
/// bytes come in pieces of any size. In the end the disk is what the client believes, at each flush as well.
#[tokio::test]
async fn whatever_the_order_the_disk_is_what_the_client_was_told() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut between, mut beside) = (Between::new().await, Beside::new().await);
        let (mut line, mut line_back) = (VecDeque::new(), VecDeque::new());
        let (mut believed, mut disk) = ([0_u8; 32], [0_u8; 32]);
        let mut free: Vec<u64> = (100..116).collect();
        let mut asked: HashMap<u64, Option<(usize, u8)>> = HashMap::new();
        let mut under_way: Vec<(u64, u16, usize, u8)> = Vec::new();
        let (mut heard, mut answered) = (Vec::<u8>::new(), Vec::<u8>::new());
        // Of each flush, by its number on the line: what was believed, but for what was written since.
        let mut flushes: HashMap<u64, [Option<u8>; 32]> = HashMap::new();
        let mut number = 0;
        let mut to_client: VecDeque<u8> = VecDeque::new();
        for step in 0..3000 {
            let is_ending = step > 2000;
            if !is_ending && !free.is_empty() && random.u8(..) < 90 {
                let cookie = free.swap_remove(random.usize(..free.len()));
                if random.u8(..) < 20 {
                    let mut before = believed.map(Some);
                    for (block, _) in asked.values().flatten() {
                        before[*block] = None;
                    }
                    flushes.insert(number, before);
                    number += 1;
                    asked.insert(cookie, None);
                    between.asks(FLUSH, cookie, 0, 0).await;
                } else {
                    let (block, value) = (random.usize(..32), random.u8(1..));
                    // One at a time to a place, as QEMU does.
                    if asked.values().flatten().any(|(other, _)| *other == block) {
                        free.push(cookie);
                    } else {
                        asked.insert(cookie, Some((block, value)));
                        flushes.values_mut().for_each(|before| before[block] = None);
                        number += 1;
                        let mut said = request(WRITE, cookie, block as u64 * 8, 8);
                        said[28..].fill(value);
                        between.client.write_all(&said).await.unwrap();
                    }
                }
            }
            some_of(&mut random, &mut between.out, &mut line).await;
            some_to(&mut random, &mut line, &mut beside.out).await;
            some_of(&mut random, &mut beside.server, &mut heard).await;
            while heard.len() >= 28 {
                let kind = u16::from_be_bytes([heard[6], heard[7]]);
                let len = if kind == WRITE { 36 } else { 28 };
                if heard.len() < len {
                    break;
                }
                let cookie = u64::from_be_bytes(heard[8..16].try_into().unwrap());
                let at = usize::from(heard[23]) / 8;
                under_way.push((cookie, kind, at, *heard[..len].last().unwrap()));
                heard.drain(..len);
            }
            // It does one of them, whichever.
            if !under_way.is_empty() && (is_ending || random.u8(..) < 60) {
                let (cookie, kind, at, value) =
                    under_way.swap_remove(random.usize(..under_way.len()));
                if kind == WRITE {
                    disk[at] = value;
                } else {
                    for (before, now) in flushes[&cookie].iter().zip(disk) {
                        assert!(before.is_none_or(|before| before == now), "seed {seed}");
                    }
                }
                to_client.extend(replies::done(cookie));
            }
            some_to(&mut random, &mut to_client, &mut beside.server).await;
            some_of(&mut random, &mut beside.back, &mut line_back).await;
            some_to(&mut random, &mut line_back, &mut between.back).await;
            some_of(&mut random, &mut between.client, &mut answered).await;
            while answered.len() >= 16 {
                let cookie = u64::from_be_bytes(answered[8..16].try_into().unwrap());
                assert_eq!(answered[4..8], [0; 4]);
                if let Some((block, value)) = asked.remove(&cookie).unwrap() {
                    believed[block] = value;
                }
                free.push(cookie);
                answered.drain(..16);
            }
        }
        assert!(asked.is_empty() && under_way.is_empty(), "seed {seed}: {asked:?}");
        assert_eq!(disk, believed, "seed {seed}");
    }
}
