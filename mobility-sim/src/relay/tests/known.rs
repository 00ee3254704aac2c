//! Connections of which it is known what they carry.

use super::super::codec::{MEMORY, PAGE};
use super::super::nbd::tests::Client;
use super::super::pace::Level;
use super::super::ram::tests::Stream;
use super::super::templates::{BLOCKS_MAX, Index};
use super::*;

fn migration() -> [Arc<Migration>; 2] {
    [(); 2].map(|()| Arc::new(Migration::new(Room::default())))
}

fn sent(line: &Line) -> u64 {
    line.at_source.sent.load(Ordering::Relaxed)
}

/// Says it, and sees it arrive.
async fn carry(line: &mut Line, bytes: &[u8]) {
    let mut arrived = vec![0; bytes.len()];
    let (said, got) =
        tokio::join!(line.source.write_all(bytes), line.destination.read_exact(&mut arrived));
    said.unwrap();
    got.unwrap();
    assert!(arrived == bytes);
}

fn memory_of(pages: &[u8]) -> Vec<u8> {
    let mut stream = Stream::begin();
    stream.section(2);
    for (number, page) in pages.chunks(PAGE).enumerate() {
        stream.page("pc.ram", number as u64, page);
    }
    stream.end_section();
    stream.bytes
}

#[tokio::test]
async fn what_a_disk_brought_is_only_named_in_memory() {
    let (migration, content) = (migration(), noise(100 * PAGE, 5));
    let mut disk = line_of(64 << 10, parts(StreamKind::Disk, &migration));
    let mut client = Client::begin();
    client.write(1 << 20, &content);
    carry(&mut disk, &client.0).await;
    let as_much = content.len() as u64;
    assert!(sent(&disk) > as_much);
    // It is confirmed before the server answers.
    disk.destination.write_all(b"done").await.unwrap();
    disk.source.read_exact(&mut [0; 4]).await.unwrap();
    let mut memory = line_of(64 << 10, parts(StreamKind::Memory, &migration));
    carry(&mut memory, &memory_of(&content)).await;
    assert!(sent(&memory) < as_much / 50, "{} of {as_much}", sent(&memory));
    for Line { mut source, mut destination, ends, .. } in [disk, memory] {
        source.shutdown().await.unwrap();
        assert_eq!(destination.read(&mut [0; 8]).await.unwrap(), 0, "the end is not carried");
        destination.shutdown().await.unwrap();
        for end in ends {
            end.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn half_a_page_does_not_wait_for_the_other_half() {
    let mut line = line_of(1 << 20, parts(StreamKind::Memory, &migration()));
    let stream = memory_of(&noise(3 * PAGE, 9));
    for piece in stream.chunks(1000) {
        carry(&mut line, piece).await;
    }
    let ends_in_a_page = &memory_of(&noise(PAGE, 1))[..500];
    carry(&mut line, ends_in_a_page).await;
    line.source.shutdown().await.unwrap();
    assert_eq!(line.destination.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn who_does_not_take_memory_holds_who_sends_it() {
    let Line { mut source, destination, at_source, .. } =
        line_of(8 << 10, parts(StreamKind::Memory, &migration()));
    let stream = memory_of(&noise(16 << 20, 3));
    let sends = tokio::spawn(async move { source.write_all(&stream).await });
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!sends.is_finished());
    let taken = at_source.taken.load(Ordering::Relaxed);
    assert!(taken < 1 << 20, "{taken} bytes are kept");
    drop(destination);
    assert!(sends.await.unwrap().is_err(), "it is not told");
}

#[tokio::test]
async fn who_has_what_it_was_not_sent_is_refused() {
    let of = |kind| {
        let [sends, _] = parts(kind, &migration());
        sends
    };
    let parts = [0, 1].map(|blocks| {
        [Part::Opaque, of(StreamKind::Memory), of(StreamKind::Disk)].map(|part| (part, blocks))
    });
    for (part, blocks) in parts.into_iter().flatten() {
        let (_source, local) = duplex(64 << 10);
        let (far, mut peer) = duplex(64 << 10);
        let relayed = tokio::spawn(async move { relay(local, far, part, &Meter::default()).await });
        peer.write_all(&Encoder::kept(blocks)).await.unwrap();
        let error = relayed.await.unwrap().unwrap_err();
        assert!(matches!(error, RelayError::Protocol { what } if what.contains("not sent")));
    }
}

#[tokio::test]
async fn a_level_may_change_in_mid_stream() {
    let mut encoder = Encoder::of_programs(Reach::Far);
    let mut decoder = Decoder::new(Reach::Far);
    let levels = [Level::Zstd(3), Level::Zstd(6), Level::AsItIs, Level::Zstd(1), Level::AsItIs];
    for (round, level) in levels.into_iter().chain([Level::Zstd(3); 2]).enumerate() {
        let content = vec![u8::try_from(round).unwrap(); 100_000];
        let block = encoder.program(&content).to_vec();
        let (said, _) = decoder.next(&mut &block[..]).await.unwrap();
        assert_eq!(said, Said::Program(&content));
        encoder.set_level(level);
    }
}

/// What answers keep at the source, nobody asked for.
#[tokio::test]
async fn what_is_answered_keeps_nothing_at_the_source() {
    for kind in [StreamKind::Memory, StreamKind::Disk] {
        let [part, _] = parts(kind, &migration());
        let (_source, local) = duplex(64 << 10);
        let (far, mut peer) = duplex(64 << 10);
        let relayed = tokio::spawn(async move { relay(local, far, part, &Meter::default()).await });
        // A ring of one page of memory.
        let program = [2, MEMORY, 1];
        peer.write_all(Encoder::of_programs(Reach::Near).program(&program)).await.unwrap();
        let error = relayed.await.unwrap().unwrap_err();
        assert!(matches!(error, RelayError::Protocol { what } if what.contains("more memory")));
    }
}

#[test]
fn only_the_first_connections_of_memory_look_far() {
    let migration = migration();
    let reach = |kind, index| {
        let [from, to] = migration.clone();
        let ends = [
            Part::Sends { kind, index, migration: from },
            Part::Takes { kind, index, migration: to },
        ];
        let [one, other] = ends.map(|end| end.reach());
        assert_eq!(one, other, "the ends do not mean the same");
        one
    };
    assert_eq!(reach(StreamKind::Memory, 0), Reach::Far);
    assert_eq!(reach(StreamKind::Memory, store::CHANNELS), Reach::Far);
    assert_eq!(reach(StreamKind::Memory, store::CHANNELS + 1), Reach::Near);
    assert_eq!(reach(StreamKind::Disk, 0), Reach::Near);
}

/// The source's end is the smaller one, down to none, where that has kept less for it.
#[tokio::test]
async fn ends_that_keep_less_than_the_other_get_everything_through() {
    let content = noise(100 * PAGE, 6);
    for pages in [0, 7] {
        let little = Room { memory: pages * PAGE as u64, disks: pages * PAGE as u64 };
        let migration = [little, Room::default()].map(|room| Arc::new(Migration::new(room)));
        let mut disk = line_of(64 << 10, parts(StreamKind::Disk, &migration));
        let mut client = Client::begin();
        client.write(0, &content);
        client.write(1 << 20, &content);
        carry(&mut disk, &client.0).await;
        let mut memory = line_of(64 << 10, parts(StreamKind::Memory, &migration));
        carry(&mut memory, &memory_of(&[&content[..], &content].concat())).await;
    }
}

/// What comes is handed on piece by piece, with a pause before each.
async fn pass(from: impl AsyncRead, to: impl AsyncWrite, pause: Duration) {
    let (mut from, mut to) = (pin!(from), pin!(to));
    let mut piece = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        sleep(pause).await;
        if to.write_all(&piece[..len]).await.is_err() {
            return;
        }
    }
}

/// What went over the line of a stream, of which half is left when it is packed.
async fn share_sent(pause_of_line: Duration, pause_of_end: Duration) -> f64 {
    let content: Vec<_> = noise(40 << 20, 8).iter().map(|byte| byte & 0xf).collect();
    let stream = memory_of(&content);
    let [sends, takes] = parts(StreamKind::Memory, &migration());
    let [(mut source, a), (destination, b)] = [(); 2].map(|()| duplex(64 << 10));
    let [(a_far, line_begins), (line_ends, b_far)] = [(); 2].map(|()| duplex(64 << 10));
    let (at_source, at_destination) = (Meter::default(), Meter::default());
    let (from_a, to_a) = split(line_begins);
    let (from_b, to_b) = split(line_ends);
    let said = async {
        source.write_all(&stream).await.unwrap();
        source.shutdown().await.unwrap();
    };
    let taken = async {
        let (from, to) = split(destination);
        pass(from, tokio::io::sink(), pause_of_end).await;
        drop(to);
    };
    let carried = async {
        let (one, other) = tokio::join!(
            relay(a, a_far, sends, &at_source),
            relay(b, b_far, takes, &at_destination)
        );
        panic!("it ended: {one:?} {other:?}");
    };
    tokio::select! {
        _all_of_it = async { tokio::join!(said, taken) } => {}
        () = carried => {}
        _ends = async { tokio::join!(pass(from_a, to_b, pause_of_line), pass(from_b, to_a, Duration::ZERO)) } => {}
    }
    at_source.sent.load(Ordering::Relaxed) as f64 / stream.len() as f64
}

/// Both make the source's end wait.
#[tokio::test(start_paused = true)]
async fn it_is_packed_for_a_slow_line_and_not_for_another_end_that_is_slow() {
    let pause = Duration::from_millis(3);
    let line = share_sent(pause, Duration::ZERO).await;
    assert!(line < 0.7, "{line} of it were sent on a slow line");
    // The first 8 or 16 MiB are packed.
    let end = share_sent(Duration::ZERO, pause).await;
    assert!(end > 0.75, "{end} of it were sent to a slow end");
}

/// A site whose template has this content, and another one that was told of it.
fn with_template(content: &[u8]) -> ([Arc<Migration>; 2], tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let index = Index::read(&[file.path().to_owned()]);
    let from = Migration::new(Room::default());
    // As they come.
    let (some, more) = index.hashes().split_at(index.hashes().len() / 3);
    assert!(from.add_templates(some) && from.add_templates(more));
    let to = Migration::new(Room::default()).with_templates(Some(Arc::new(index)));
    ([Arc::new(from), Arc::new(to)], file)
}

#[tokio::test]
async fn what_a_template_has_is_only_named() {
    let content = noise(100 * PAGE, 6);
    let (migration, _file) = with_template(&content);
    let as_much = content.len() as u64;
    // Elsewhere on the disk than in the template.
    let mut client = Client::begin();
    client.write(7 << 20, &content[PAGE..]);
    client.write(1 << 20, &content);
    client.write(3 << 20, &noise(PAGE, 99));
    let mut disk = line_of(64 << 10, parts(StreamKind::Disk, &migration));
    carry(&mut disk, &client.0).await;
    assert!(sent(&disk) < as_much / 20, "{} of {as_much}", sent(&disk));
    let mut memory = line_of(64 << 10, parts(StreamKind::Memory, &migration));
    carry(&mut memory, &memory_of(&content)).await;
    assert!(sent(&memory) < as_much / 50, "{} of {as_much}", sent(&memory));
}

#[tokio::test]
async fn of_a_template_that_has_changed_nothing_is_passed_on() {
    let content = noise(10 * PAGE, 6);
    let (migration, file) = with_template(&content);
    std::fs::write(file.path(), noise(10 * PAGE, 7)).unwrap();
    let Line { mut source, mut destination, ends: [_, there], .. } =
        line_of(64 << 10, parts(StreamKind::Disk, &migration));
    let mut client = Client::begin();
    client.write(0, &content);
    source.write_all(&client.0).await.unwrap();
    let mut arrived = Vec::new();
    destination.read_to_end(&mut arrived).await.unwrap();
    assert!(client.0.starts_with(&arrived) && arrived.len() < PAGE, "{}", arrived.len());
    assert!(matches!(there.await.unwrap().unwrap_err(), RelayError::Template));
}

#[test]
fn an_end_that_tells_of_a_block_twice_or_of_too_many_is_not_believed() {
    let from = Migration::new(Room::NONE);
    let hash = |number: u32| {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_le_bytes());
        hash
    };
    assert!(from.add_templates(&[hash(1), hash(2)]));
    assert!(!from.add_templates(&[hash(3), hash(1)]));
    assert_eq!(from.find(&hash(2), None), None, "what it told before is in doubt");
    let from = Migration::new(Room::NONE);
    let most: Vec<_> = (0..BLOCKS_MAX).map(hash).collect();
    assert!(from.add_templates(&most));
    assert!(!from.add_templates(&[hash(BLOCKS_MAX)]));
}

/// By whoever says that it was told of them.
#[tokio::test]
async fn a_template_that_there_is_not_is_not_named() {
    let (migration, _file) = with_template(&noise(2 * PAGE, 6));
    let number = [0xff, 0xff, 0x03];
    let none_there = [&[5, 5][..], &number, &[4]].concat();
    let as_a_disk = [&[4, 9][..], &number].concat();
    for (migration, program, said) in [
        (Arc::new(Migration::new(Room::default())), none_there.clone(), "never sent"),
        (Arc::clone(&migration[1]), none_there, "never sent"),
        (Arc::clone(&migration[1]), as_a_disk, "of one number"),
    ] {
        let part = Part::Takes { kind: StreamKind::Disk, index: 0, migration };
        let (_destination, local) = duplex(64 << 10);
        let (far, mut peer) = duplex(64 << 10);
        let relayed = tokio::spawn(async move { relay(local, far, part, &Meter::default()).await });
        peer.write_all(Encoder::of_programs(Reach::Near).program(&program)).await.unwrap();
        let error = relayed.await.unwrap().unwrap_err();
        assert!(matches!(error, RelayError::Protocol { what } if what.contains(said)), "{error}");
    }
}
