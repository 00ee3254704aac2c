//! What is between two QEMUs: agents' relays, or nothing, and a line of a given rate over loopback.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use causeway_mobility::relay::{Meter, Migration, Part, Room, StreamKind, relay};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Nothing,
    /// Relays that do not know what they carry.
    Blocks,
    /// Relays that do.
    Names,
    /// Relays that know only memory, as where a disk is not copied.
    NamesOfMemory,
}

/// Bytes of a connection as they pass, in both directions.
struct Tap<S> {
    inner: S,
    read: blake3::Hasher,
    written: blake3::Hasher,
    into: Arc<Mutex<Heard>>,
}

/// Of one connection, at the source and at the destination.
type Ends = [Arc<Mutex<Heard>>; 2];

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Heard {
    read: Option<(u64, blake3::Hash)>,
    written: Option<(u64, blake3::Hash)>,
}

impl<S> Tap<S> {
    fn new(inner: S) -> (Self, Arc<Mutex<Heard>>) {
        let into = Arc::default();
        let (read, written) = (blake3::Hasher::new(), blake3::Hasher::new());
        (Self { inner, read, written, into: Arc::clone(&into) }, into)
    }
}

impl<S> Drop for Tap<S> {
    fn drop(&mut self) {
        let of = |hasher: &blake3::Hasher| Some((hasher.count(), hasher.finalize()));
        *held(&self.into) = Heard { read: of(&self.read), written: of(&self.written) };
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.read.update(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let len = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.written.update(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// The line's rate, shared by all connections, and what went over it.
#[derive(Debug)]
struct Wire {
    bytes_per_s: Option<u64>,
    free_at: Mutex<Instant>,
}

impl Wire {
    async fn send(&self, len: usize) {
        let Some(rate) = self.bytes_per_s else { return };
        let at = {
            let mut free_at = held(&self.free_at);
            let took = Duration::from_micros(len as u64 * 1_000_000 / rate);
            // Timers are late by some milliseconds, and the line is not slower for that.
            let late = Instant::now().checked_sub(Duration::from_millis(20));
            *free_at = late.map_or(*free_at, |late| late.max(*free_at)) + took;
            *free_at
        };
        sleep_until(at).await;
    }
}

/// The way of one migration: a socket for its memory, one for its disk.
pub struct Line {
    pub memory: PathBuf,
    pub disk: PathBuf,
    memory_bytes: Arc<AtomicU64>,
    disk_bytes: Arc<AtomicU64>,
    heard: Arc<Mutex<Vec<Ends>>>,
    _runtime: tokio::runtime::Runtime,
}

/// What went over the line, with all that is around it but TCP.
#[derive(Debug, Clone, Copy)]
pub struct Bytes {
    pub memory: u64,
    pub disk: u64,
}

impl Line {
    /// To where `destination` listens for memory and its disk is.
    pub fn new(dir: &Path, via: Via, bytes_per_s: Option<u64>, destination: [PathBuf; 2]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let wire = Arc::new(Wire { bytes_per_s, free_at: Mutex::new(Instant::now()) });
        let migration = [(); 2].map(|()| Arc::new(Migration::new(Room::default())));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let [memory_to, disk_to] = destination;
        let open = |name: &str, kind, to| {
            let (at, bytes) = (dir.join(name), Arc::<AtomicU64>::default());
            let _entered = runtime.enter();
            let way = Way {
                via,
                kind,
                to,
                wire: Arc::clone(&wire),
                bytes: Arc::clone(&bytes),
                migration: migration.clone(),
                heard: Arc::clone(&heard),
            };
            let _ = std::fs::remove_file(&at);
            runtime.spawn(way.serve(UnixListener::bind(&at).expect("a socket")));
            (at, bytes)
        };
        let (memory, memory_bytes) = open("memory.relay", StreamKind::Memory, memory_to);
        let (disk, disk_bytes) = open("disk.relay", StreamKind::Disk, disk_to);
        Self { memory, disk, memory_bytes, disk_bytes, heard, _runtime: runtime }
    }

    pub fn bytes(&self) -> Bytes {
        Bytes {
            memory: self.memory_bytes.load(Ordering::Relaxed),
            disk: self.disk_bytes.load(Ordering::Relaxed),
        }
    }

    /// Ends the line, and says how many bytes were carried from end to end; each as it was.
    pub fn must_have_carried_all(self) -> u64 {
        let heard = Arc::clone(&self.heard);
        let ended = || held(&heard).iter().flatten().all(|end| held(end).read.is_some());
        for _ in 0..100 {
            if ended() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(self);
        let heard = held(&heard);
        assert!(heard.len() >= 2, "memory and disk");
        heard
            .iter()
            .map(|ends| {
                let [source, destination] = [0, 1].map(|end| *held(&ends[end]));
                assert!(
                    source.read.is_some() && source.read == destination.written,
                    "{source:?} {destination:?}"
                );
                assert_eq!(source.written, destination.read);
                source.read.map_or(0, |(len, _)| len)
            })
            .sum()
    }
}

#[derive(Clone)]
struct Way {
    via: Via,
    kind: StreamKind,
    to: PathBuf,
    wire: Arc<Wire>,
    bytes: Arc<AtomicU64>,
    migration: [Arc<Migration>; 2],
    heard: Arc<Mutex<Vec<Ends>>>,
}

impl Way {
    async fn serve(self, listener: UnixListener) {
        let mut connections = JoinSet::new();
        while let Ok((from, _)) = listener.accept().await {
            // In their order: the first is the one that is not a channel.
            let Ok(to) = UnixStream::connect(&self.to).await else { continue };
            connections.spawn(self.clone().carry(from, to));
        }
    }

    async fn carry(self, from: UnixStream, to: UnixStream) -> io::Result<()> {
        let ((mut from, source), (mut to, destination)) = (Tap::new(from), Tap::new(to));
        held(&self.heard).push([source, destination]);
        let ((mut near, near_end), (mut far, far_end)) = (loopback().await?, loopback().await?);
        let line = self.clone().line(near_end, far_end);
        let [one, other] = [(); 2].map(|()| Meter::default());
        let ends = async {
            match self.via {
                Via::Nothing => {
                    let out = tokio::io::copy_bidirectional(&mut from, &mut near);
                    let back = tokio::io::copy_bidirectional(&mut to, &mut far);
                    tokio::try_join!(out, back)?;
                }
                via => {
                    let (kind, index) = (self.kind, 0);
                    let is_known = match via {
                        Via::Names => true,
                        Via::NamesOfMemory => kind == StreamKind::Memory,
                        _ => false,
                    };
                    let [sends, takes] = if is_known {
                        let [sender, receiver] = self.migration.clone();
                        [
                            Part::Sends { kind, index, migration: sender },
                            Part::Takes { kind, index, migration: receiver },
                        ]
                    } else {
                        [Part::Opaque, Part::Opaque]
                    };
                    let sends = relay(from, near, sends, &one);
                    let takes = relay(to, far, takes, &other);
                    tokio::try_join!(sends, takes).map_err(io::Error::other)?;
                }
            }
            Ok(())
        };
        if let Err(cause) = tokio::try_join!(ends, line) {
            eprintln!("{:?} ended: {cause}", self.kind);
        }
        Ok(())
    }

    async fn line(self, near: TcpStream, far: TcpStream) -> io::Result<()> {
        let ((near_out, near_in), (far_out, far_in)) = (near.into_split(), far.into_split());
        tokio::try_join!(self.pump(near_out, far_in), self.pump(far_out, near_in))?;
        Ok(())
    }

    async fn pump<R, W>(&self, mut from: R, mut to: W) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut piece = vec![0; 32 << 10];
        loop {
            let len = from.read(&mut piece).await?;
            if len == 0 {
                return to.shutdown().await;
            }
            self.bytes.fetch_add(len as u64, Ordering::Relaxed);
            self.wire.send(len).await;
            to.write_all(&piece[..len]).await?;
        }
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both ends of a connection that holds little, as a line does.
async fn loopback() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(256 << 10)?;
    let one = socket.connect(listener.local_addr()?).await?;
    let (other, _) = listener.accept().await?;
    Ok((one, other))
}
