//! Bytes through a guest's command, and every way in which that ends.

use std::sync::Arc;
use std::time::Duration;

use guest_ssh::{ByteStream, Exit, Guest, Lost, SshError, StreamError, Timing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::path::Path;
use super::world::{Kind, Server};

const MIB: usize = 1024 * 1024;
const KINDS: [Kind; 2] = [Kind::OpenSsh, Kind::Dropbear];
/// Notices a dead path in about a second.
const NERVOUS: Timing = Timing {
    connect: Duration::from_secs(60),
    keepalive: Duration::from_millis(300),
    keepalive_count: 2,
};

/// Byte `at` of a sequence that does not repeat where buffers do.
fn byte(at: usize) -> u8 {
    let mixed = u64::try_from(at / 8).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_le_bytes()[at % 8]
}

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

/// Sends `total` bytes and reads them back, the reader resting now and then.
async fn echo(stream: ByteStream, total: usize) {
    let (mut read, mut write) = tokio::io::split(stream);
    let writer = async {
        for at in (0..total).step_by(MIB) {
            write.write_all(&bytes(at, MIB.min(total - at))).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let reader = async {
        let (mut at, mut buffer) = (0, vec![0; 300_000]);
        loop {
            let n = read.read(&mut buffer).await.unwrap();
            if n == 0 {
                break at;
            }
            assert!(buffer[..n] == bytes(at, n), "wrong byte in {at}..{}", at + n);
            if (at + n) / (4 * MIB) != at / (4 * MIB) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            at += n;
        }
    };
    let ((), got) = tokio::join!(writer, reader);
    assert_eq!(got, total);
}

#[tokio::test]
async fn an_echo_of_64_mib_with_a_slow_reader_is_exact() {
    for kind in KINDS {
        let server = Server::start(kind);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        echo(guest.open("cat").await.unwrap(), 64 * MIB).await;
    }
}

#[tokio::test]
async fn streams_run_side_by_side_and_none_waits_for_a_reader_that_sleeps() {
    for kind in KINDS {
        let server = Server::start(kind);
        let guest = Arc::new(Guest::connect(&server.target("root")).await.unwrap());
        let asleep = guest.open("cat /dev/zero").await.unwrap();
        let mut echoes = JoinSet::new();
        // All at once, though the server drops logins beyond 5 that come at the same time.
        for _ in 0..8 {
            let guest = Arc::clone(&guest);
            echoes.spawn(async move { echo(guest.open("cat").await.unwrap(), 2 * MIB + 17).await });
        }
        assert_eq!(echoes.join_all().await.len(), 8);
        // Nor does the control connection.
        assert_eq!(guest.exec("echo on", "").await.unwrap().stdout, b"on\n");
        drop(asleep);
    }
}

#[tokio::test]
async fn a_reader_that_stops_holds_the_sender_back() {
    for kind in KINDS {
        let server = Server::start(kind);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        // It counts on stderr what it got rid of.
        let mut stream = guest.open("dd if=/dev/zero bs=65536 count=100000").await.unwrap();
        let mut first = [1; 1];
        stream.read_exact(&mut first).await.unwrap();
        // The writing side of a stream nobody reads: `cat` stops reading when nobody takes its
        // output, and then so do we.
        let mut full = guest.open("cat").await.unwrap();
        let piece = vec![0; 64 * 1024];
        let mut accepted = 0;
        while tokio::time::timeout(Duration::from_secs(3), full.write_all(&piece)).await.is_ok() {
            accepted += piece.len();
            assert!(accepted < 32 * MIB, "{kind:?}: nobody holds the writer back");
        }
        // Give the silent reader the same chance to be flooded, then see how far the guest got.
        let written = guest.exec("cat /proc/$(pidof dd)/io", "").await.unwrap();
        let written = String::from_utf8(written.stdout).unwrap();
        let written = written.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
        let written: usize = written.parse().unwrap();
        assert!((1..32 * MIB).contains(&written), "{kind:?}: {written}");
    }
}

#[tokio::test]
async fn a_command_that_dies_gives_its_stderr_after_its_output() {
    for kind in KINDS {
        let server = Server::start(kind);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        let command = "echo half; echo 'agent: no such disk' >&2; exit 7";
        let mut stream = guest.open(command).await.unwrap();
        let mut out = Vec::new();
        let error = stream.read_to_end(&mut out).await.unwrap_err();
        assert_eq!(out, b"half\n", "{kind:?}");
        assert_eq!(
            *StreamError::of(&error).unwrap(),
            StreamError::Ended {
                command: command.to_owned(),
                exit: Exit::Status(7),
                stderr: "agent: no such disk".to_owned()
            }
        );
    }
}

#[tokio::test]
async fn a_writer_learns_that_the_command_was_killed() {
    for kind in KINDS {
        let server = Server::start(kind);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        // Never reads, so that the writer waits for credit when the end comes.
        let mut stream = guest.open("echo $$; exec sleep 1000").await.unwrap();
        let mut pid = vec![0; 20];
        let n = stream.read(&mut pid).await.unwrap();
        let pid = String::from_utf8(pid[..n].to_vec()).unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let writer = async {
            loop {
                if let Err(error) = write.write_all(&[0; 65536]).await {
                    break error;
                }
            }
        };
        let killer = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            guest.exec(&format!("kill -9 {pid}"), "").await.unwrap().success("kill").unwrap();
        };
        let (error, ()) = tokio::join!(writer, killer);
        let error = StreamError::of(&error).unwrap_or_else(|| panic!("{error}")).clone();
        assert!(
            matches!(&error, StreamError::Ended { exit: Exit::Signal(s), .. } if s == "KILL"),
            "{error}"
        );
        let error = read.read(&mut [0; 1]).await.unwrap_err();
        assert!(StreamError::of(&error).is_some());
    }
}

#[tokio::test]
async fn only_the_end_of_stderr_is_kept() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let stream = guest.open("yes x | head -c 5000000 >&2; echo last >&2").await.unwrap();
    let mut stream = stream;
    let mut nothing = Vec::new();
    stream.read_to_end(&mut nothing).await.unwrap();
    assert!(stream.stderr().ends_with("\nlast"));
    assert!(stream.stderr().len() <= 16 * 1024);
}

#[tokio::test]
async fn finish_waits_until_everything_arrived() {
    let server = Server::start(Kind::OpenSsh);
    let guest = Guest::connect(&server.target("root")).await.unwrap();
    let file = server.path("copy");
    let mut stream = guest.open(&format!("sleep 0.3; cat >{}", file.display())).await.unwrap();
    stream.write_all(&bytes(0, 5 * MIB)).await.unwrap();
    stream.finish().await.unwrap();
    assert!(std::fs::read(file).unwrap() == bytes(0, 5 * MIB));
}

#[tokio::test]
async fn a_dropped_stream_ends_its_command() {
    for kind in KINDS {
        let server = Server::start(kind);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        let stream = guest.open("cat").await.unwrap();
        while guest.exec("pidof cat", "").await.unwrap().exit != Exit::Status(0) {}
        drop(stream);
        while guest.exec("pidof cat", "").await.unwrap().exit == Exit::Status(0) {}
    }
}

#[tokio::test]
async fn a_cut_path_is_noticed_by_reader_writer_and_command() {
    for kind in KINDS {
        // A window larger than what TCP buffers: a writer is stuck in writing, not waiting for
        // credit. OpenSSH's is smaller.
        let server = Server::start_with(kind, "options='-W 10000000'");
        let path = Path::to(server.port).await;
        let mut target = path.target(server.target("root"));
        target.timing = NERVOUS;
        let guest = Guest::connect(&target).await.unwrap();
        let mut reading = guest.open("sleep 1000").await.unwrap();
        let mut writing = guest.open("cat >/dev/null").await.unwrap();
        writing.write_all(&[0; 1000]).await.unwrap();
        path.cut();

        let command = guest.exec("true", "");
        let reader = async { reading.read(&mut [0; 1]).await.unwrap_err() };
        let writer = async {
            loop {
                if let Err(error) = writing.write_all(&[0; 65536]).await {
                    break error;
                }
            }
        };
        let (command, read, written) = tokio::join!(command, reader, writer);
        let command = command.unwrap_err();
        assert!(
            matches!(command, SshError::Lost { reason: Lost::Silent, .. }),
            "{kind:?} {command:?}"
        );
        for error in [read, written] {
            let error = StreamError::of(&error).unwrap_or_else(|| panic!("{error}"));
            assert!(
                matches!(error, StreamError::Lost { reason: Lost::Silent, .. }),
                "{kind:?} {error:?}"
            );
        }
        // And when the path is back, so is the guest.
        path.mend();
        assert_eq!(guest.exec("echo on", "").await.unwrap().stdout, b"on\n");
    }
}

#[tokio::test]
async fn a_server_that_dies_is_noticed() {
    for kind in KINDS {
        let server = Server::start(kind);
        let guest = Guest::connect(&server.target("root")).await.unwrap();
        let mut stream = guest.open("sleep 1000").await.unwrap();
        drop(server);
        let error = stream.read(&mut [0; 1]).await.unwrap_err();
        assert!(matches!(StreamError::of(&error), Some(StreamError::Lost { .. })), "{error}");
        assert!(guest.exec("true", "").await.is_err());
    }
}
