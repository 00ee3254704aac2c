mod known;

use std::sync::Arc;

use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

struct Line {
    source: DuplexStream,
    destination: DuplexStream,
    at_source: Arc<Meter>,
    ends: [JoinHandle<Result<(), RelayError>>; 2],
}

/// Two agents with a line of `room` bytes between them.
fn line(room: usize) -> Line {
    line_of(room, [Part::Opaque, Part::Opaque])
}

/// The parts of both ends of a migration's first connection.
fn parts(kind: StreamKind, migration: &[Arc<Migration>; 2]) -> [Part; 2] {
    let [from, to] = migration.clone();
    let index = 0;
    [Part::Sends { kind, index, migration: from }, Part::Takes { kind, index, migration: to }]
}

fn line_of(room: usize, [sends, takes]: [Part; 2]) -> Line {
    let (source, a) = duplex(64 << 10);
    let (destination, b) = duplex(64 << 10);
    let (a_far, b_far) = duplex(room);
    let [at_source, at_destination] = [(), ()].map(|()| Arc::new(Meter::default()));
    let meter = Arc::clone(&at_source);
    let one = tokio::spawn(async move { relay(a, a_far, sends, &meter).await });
    let other = tokio::spawn(async move { relay(b, b_far, takes, &at_destination).await });
    Line { source, destination, at_source, ends: [one, other] }
}

pub(super) fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    (0..len)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()[0]
        })
        .collect()
}

#[tokio::test]
async fn every_byte_arrives_and_each_half_ends_by_itself() {
    let Line { source, destination, at_source, ends } = line(8 << 10);
    let page = noise(4096, 7);
    let mut sent = noise(600_000, 1);
    sent.extend(std::iter::repeat_n(&page, 300).flatten());
    sent.extend(vec![0; 2_000_000]);
    let expected = sent.clone();
    let (mut from_source, mut to_source) = split(source);
    let (mut from_destination, mut to_destination) = split(destination);
    let said = tokio::spawn(async move {
        to_source.write_all(&sent).await.unwrap();
        to_source.shutdown().await.unwrap();
        to_source
    });
    let mut got = Vec::new();
    from_destination.read_to_end(&mut got).await.unwrap();
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    let to_source = said.await.unwrap();
    // The other half is open still, as QEMU's return path is.
    to_destination.write_all(b"SHUT").await.unwrap();
    to_destination.shutdown().await.unwrap();
    let mut back = Vec::new();
    from_source.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"SHUT");
    drop(to_source);
    for end in ends {
        end.await.unwrap().unwrap();
    }
    let (taken, wire) =
        (at_source.taken.load(Ordering::Relaxed), at_source.sent.load(Ordering::Relaxed));
    assert_eq!(taken, expected.len() as u64);
    assert!(wire < 1_400_000, "what repeats is sent again: {wire}");
}

#[tokio::test]
async fn a_single_byte_does_not_wait_for_more() {
    let Line { mut source, mut destination, .. } = line(1 << 20);
    for byte in 0..50 {
        source.write_u8(byte).await.unwrap();
        assert_eq!(destination.read_u8().await.unwrap(), byte);
        destination.write_u8(byte).await.unwrap();
        assert_eq!(source.read_u8().await.unwrap(), byte);
    }
}

#[tokio::test]
async fn who_does_not_take_holds_who_sends() {
    let Line { mut source, destination, at_source, .. } = line(8 << 10);
    let sends = tokio::spawn(async move { source.write_all(&noise(16 << 20, 3)).await });
    // Nobody reads: what is under way is what the pipes and one block at each end hold.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!sends.is_finished());
    let taken = at_source.taken.load(Ordering::Relaxed);
    assert!(taken < 1 << 20, "{taken} bytes are kept");
    drop(destination);
    assert!(sends.await.unwrap().is_err(), "it is not told");
}

#[tokio::test(start_paused = true)]
async fn a_far_side_that_falls_silent_ends_the_local_connection() {
    let (mut source, local) = duplex(64 << 10);
    let (far, mut peer) = duplex(64 << 10);
    let meter = Arc::new(Meter::default());
    let relayed = tokio::spawn(async move { relay(local, far, Part::Opaque, &meter).await });
    // It says that it is there, and then nothing.
    let began = Instant::now();
    for _ in 0..10 {
        tokio::time::sleep(ALIVE_EVERY).await;
        peer.write_all(block::Encoder::alive()).await.unwrap();
    }
    let error = relayed.await.unwrap().unwrap_err();
    assert!(matches!(error, RelayError::Silent), "{error}");
    assert_eq!(began.elapsed(), 10 * ALIVE_EVERY + DEAD_AFTER);
    assert_eq!(source.read(&mut [0; 8]).await.unwrap(), 0, "its connection is open");
    // And it has heard of us all the while.
    let mut heard = vec![0; 8 * 10];
    peer.read_exact(&mut heard).await.unwrap();
    assert!(heard.chunks(8).all(|word| word == block::Encoder::alive()));
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_slow_is_not_silent() {
    let (mut source, local) = duplex(64 << 10);
    let (far, mut peer) = duplex(64 << 10);
    tokio::spawn(async move { relay(local, far, Part::Opaque, &Meter::default()).await });
    // One block, for which the line needs minutes.
    for byte in block::Encoder::new().block(b"QEVM").to_vec() {
        tokio::time::sleep(DEAD_AFTER - Duration::from_secs(1)).await;
        peer.write_u8(byte).await.unwrap();
    }
    let mut got = [0; 4];
    source.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"QEVM");
}

#[tokio::test]
async fn a_line_that_breaks_ends_both_connections() {
    let (mut source, local) = duplex(64 << 10);
    let (far, peer) = duplex(64 << 10);
    let meter = Arc::new(Meter::default());
    let relayed = tokio::spawn(async move { relay(local, far, Part::Opaque, &meter).await });
    source.write_all(b"QEVM").await.unwrap();
    drop(peer);
    assert!(matches!(relayed.await.unwrap(), Err(RelayError::Far(_))));
    assert_eq!(source.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn blocks_that_lie_are_refused_with_bounded_memory() {
    let honest = block::Encoder::new().block(&[7; 1000]).to_vec();
    let mut more = honest.clone();
    more[4..8].copy_from_slice(&999_u32.to_le_bytes());
    let mut less = honest.clone();
    less[4..8].copy_from_slice(&1001_u32.to_le_bytes());
    let mut bent = honest.clone();
    bent[8..12].copy_from_slice(&[0xff; 4]);
    let bomb = {
        let frame = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        let len = u32::try_from(frame.len()).unwrap().to_le_bytes();
        [&[1, len[0], len[1], len[2]][..], &262_144_u32.to_le_bytes(), &frame].concat()
    };
    for (lie, what) in [
        (vec![9, 0, 0, 0, 0, 0, 0, 0], "no kind"),
        (vec![2, 1, 0, 0, 0, 0, 0, 0], "content"),
        (vec![0, 0, 0, 0, 0, 0, 0, 0], "size"),
        (vec![0, 255, 255, 255, 255, 255, 255, 0], "size"),
        (vec![1, 4, 0, 0, 0xff, 0xff, 0xff, 0xff], "size"),
        (more, "more"),
        (less, "less"),
        (bent, "zstd"),
        (bomb, "more"),
    ] {
        let (_source, local) = duplex(64 << 10);
        let (far, mut peer) = duplex(64 << 10);
        let relayed =
            tokio::spawn(async move { relay(local, far, Part::Opaque, &Meter::default()).await });
        peer.write_all(&lie).await.unwrap();
        match relayed.await.unwrap() {
            Err(RelayError::Protocol { what: found }) => {
                assert!(found.contains(what), "{found}: {what}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    let mut decoder = Decoder::new(Reach::Near);
    let (said, _) = decoder.next(&mut &honest[..]).await.unwrap();
    assert_eq!(said, Said::Bytes(&[7; 1000]));
}
