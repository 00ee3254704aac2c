//! Connections between all that takes part, in memory: they break, fall silent and end with whoever
//! holds them, at the byte at which the world wants it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use causeway_mobility::libvirt::Endpoint;
use causeway_mobility::net::{Carries, Listener, Net, Peer};
use site::ByteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use crate::world::{Who, World};

/// Where a connection leads, by which it is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Between the agents.
    Wan,
    /// From the source's libvirt to its agent.
    Calls,
    /// From an agent to its libvirtd.
    Daemon,
    Data,
}

impl Way {
    fn of(to: SocketAddr, carries: Carries) -> Self {
        match (carries, to.ip().to_string().as_str()) {
            (Carries::Words, _) => Self::Wan,
            (Carries::Calls, "10.1.0.1") => Self::Calls,
            (Carries::Calls, _) => Self::Daemon,
            (Carries::Data, _) => Self::Data,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Wan => "wan",
            Self::Calls => "calls",
            Self::Daemon => "daemon",
            Self::Data => "data",
        }
    }
}

/// Bytes that are under way in one direction.
const ROOM: usize = 64 << 10;
/// Writes of a connection before which something may strike; further ones are keepalives and data.
const STRUCK_MAX: u32 = 12;

struct Link {
    way: Way,
    /// The how manieth of its way.
    no: u32,
    ends: [Who; 2],
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By who reads it.
    bytes: [VecDeque<u8>; 2],
    /// Nothing more is written by this end.
    shut: [bool; 2],
    dropped: [bool; 2],
    /// Who held this end is dead.
    dead: [bool; 2],
    broken: bool,
    silent: bool,
    wakers: Vec<Waker>,
    writes: [u32; 2],
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let wakers = {
            let mut inner = self.lock();
            change(&mut inner);
            std::mem::take(&mut inner.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One end of a connection.
struct End {
    world: Arc<World>,
    link: Arc<Link>,
    side: usize,
}

impl End {
    fn strike(&self) {
        let Link { way, no, ends, .. } = &*self.link;
        if *way == Way::Data {
            return;
        }
        let writes = {
            let mut inner = self.link.lock();
            inner.writes[self.side] += 1;
            inner.writes[self.side]
        };
        if writes <= STRUCK_MAX {
            let (from, name) = (ends[self.side].name(), way.name());
            self.world.hit(&format!("{name} {no}, {from}'s write {writes}"));
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.link.lock();
        if inner.broken || inner.dead[self.side] {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !inner.silent {
            let waiting = &mut inner.bytes[self.side];
            let len = waiting.len().min(buffer.remaining());
            if len > 0 {
                let taken: Vec<u8> = waiting.drain(..len).collect();
                buffer.put_slice(&taken);
                let wakers = std::mem::take(&mut inner.wakers);
                drop(inner);
                wakers.into_iter().for_each(Waker::wake);
                return Poll::Ready(Ok(()));
            }
            if inner.shut[1 - self.side] {
                return Poll::Ready(Ok(()));
            }
        }
        inner.wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.strike();
        let mut inner = self.link.lock();
        if inner.broken || inner.dead[self.side] || inner.shut[self.side] {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if inner.dropped[1 - self.side] {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let there = &mut inner.bytes[1 - self.side];
        let len = (ROOM - there.len()).min(bytes.len());
        if len > 0 {
            there.extend(&bytes[..len]);
            let wakers = std::mem::take(&mut inner.wakers);
            drop(inner);
            wakers.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(len));
        }
        inner.wakers.push(cx.waker().clone());
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.link.change(|inner| inner.shut[self.side] = true);
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.link.change(|inner| {
            inner.shut[self.side] = true;
            inner.dropped[self.side] = true;
        });
    }
}

type Comer = (ByteStream, Peer);

/// Who listens where, and every connection.
#[derive(Default)]
pub struct Wires {
    doors: Mutex<BTreeMap<SocketAddr, (Who, mpsc::Sender<Comer>)>>,
    links: Mutex<Vec<Weak<Link>>>,
    made: Mutex<BTreeMap<Way, u32>>,
    wan: Mutex<Wan>,
    healed: tokio::sync::Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wan {
    #[default]
    Up,
    /// Everything is reset, and nothing connects.
    Cut,
    /// Nothing gets through, and nobody is told.
    Silent,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wires {
    fn each(&self, which: impl Fn(&Link) -> bool, change: impl Fn(&Link, &mut Inner)) {
        let links: Vec<_> = held(&self.links).iter().filter_map(Weak::upgrade).collect();
        for link in links.iter().filter(|link| which(link)) {
            link.change(|inner| change(link, inner));
        }
    }

    /// All connections of a way break, at both ends.
    pub fn break_all(&self, way: Way) {
        self.each(|link| link.way == way, |_, inner| inner.broken = true);
    }

    /// Whoever is dead says nothing more; what was said is still heard, and then the end.
    pub fn dies(&self, who: Who) {
        held(&self.doors).retain(|_, (whose, _)| *whose != who);
        let all = |link: &Link| link.ends.contains(&who);
        self.each(all, |link, inner| {
            for side in 0..2 {
                if link.ends[side] == who {
                    inner.dead[side] = true;
                    inner.shut[side] = true;
                    inner.dropped[side] = true;
                }
            }
        });
    }

    /// Whoever listens there is found elsewhere from now on.
    pub fn moves(&self, from: SocketAddr, to: SocketAddr) {
        let mut doors = held(&self.doors);
        if let Some(door) = doors.remove(&from) {
            doors.insert(to, door);
        }
    }

    /// Nobody listens any more, and whoever waited to be heard is gone.
    pub fn ends(&self) {
        held(&self.doors).clear();
    }

    pub fn set_wan(&self, wan: Wan) {
        *held(&self.wan) = wan;
        match wan {
            Wan::Cut => self.break_all(Way::Wan),
            Wan::Silent => self.each(|link| link.way == Way::Wan, |_, inner| inner.silent = true),
            Wan::Up => self.each(|link| link.way == Way::Wan, |_, inner| inner.silent = false),
        }
        self.healed.notify_waiters();
    }

    pub fn wan(&self) -> Wan {
        *held(&self.wan)
    }

    /// Until something gets through between the agents, or it is said that nothing does.
    async fn carries(&self) -> io::Result<()> {
        loop {
            let healed = self.healed.notified();
            match self.wan() {
                Wan::Up => return Ok(()),
                Wan::Cut => return Err(io::ErrorKind::NetworkUnreachable.into()),
                Wan::Silent => healed.await,
            }
        }
    }

    /// What a socket does by itself with what nobody acknowledges.
    pub fn gives_up_silent(&self) {
        if self.wan() == Wan::Silent {
            self.each(
                |link| link.way == Way::Wan && link.lock().silent,
                |_, inner| inner.broken = true,
            );
        }
    }
}

/// The network as one of them has it.
pub struct Reach {
    pub world: Arc<World>,
    pub who: Who,
}

#[async_trait]
impl Net for Reach {
    async fn connect(&self, to: &Endpoint, carries: Carries) -> io::Result<ByteStream> {
        let Endpoint::Tcp(to) = *to else { return Err(io::ErrorKind::Unsupported.into()) };
        let way = Way::of(to, carries);
        let wires = &self.world.wires;
        let place = format!("{} connects: {}", self.who.name(), way.name());
        if matches!(self.who, Who::Qemu(..)) {
            // Whoever asked it to is told.
            self.world.hit(&place);
            if self.world.is_dead(self.who) {
                return Err(io::ErrorKind::NotConnected.into());
            }
        } else {
            self.world.at(self.who, &place).await;
        }
        if way == Way::Wan {
            wires.carries().await?;
        }
        let door = held(&wires.doors).get(&to).cloned();
        let Some((whose, door)) = door else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        let no = {
            let mut made = held(&wires.made);
            let no = made.entry(way).or_default();
            *no += 1;
            *no
        };
        let link = Link { way, no, ends: [self.who, whose], inner: Mutex::default() };
        let link = Arc::new(link);
        held(&wires.links).push(Arc::downgrade(&link));
        let end = |side| -> ByteStream {
            Box::new(End { world: Arc::clone(&self.world), link: Arc::clone(&link), side })
        };
        let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
        let is_own_libvirtd = way == Way::Calls && self.world.kind.near;
        let peer = Peer { name: self.who.name().to_owned(), is_own_libvirtd };
        door.try_send((end(1), peer)).map_err(refused)?;
        Ok(end(0))
    }

    fn listen(&self, at: &Endpoint, _: Carries) -> io::Result<Box<dyn Listener>> {
        let Endpoint::Tcp(at) = *at else { return Err(io::ErrorKind::Unsupported.into()) };
        let mut doors = held(&self.world.wires.doors);
        if doors.get(&at).is_some_and(|(_, door)| !door.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (door, comers) = mpsc::channel(64);
        doors.insert(at, (self.who, door));
        Ok(Box::new(Door(AsyncMutex::new(comers))))
    }
}

struct Door(AsyncMutex<mpsc::Receiver<Comer>>);

#[async_trait]
impl Listener for Door {
    async fn accept(&self) -> io::Result<Comer> {
        match self.0.lock().await.recv().await {
            Some(comer) => Ok(comer),
            // Its holder is dead.
            None => std::future::pending().await,
        }
    }
}
