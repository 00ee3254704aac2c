//! How this agent reaches others, and is reached.

mod owner;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use rustix::net::sockopt;
use site::ByteStream;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

pub use crate::libvirt::Endpoint;
use crate::relay::DEAD_AFTER;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// libvirt's protocol.
    Calls,
    /// What agents say to each other.
    Words,
    /// Memory and disks of this site's hypervisors.
    Data,
}

/// A machine's network; a trait so that tests have one that breaks where and when they want it to.
#[async_trait]
pub trait Net: Send + Sync {
    async fn connect(&self, to: &Endpoint, carries: Carries) -> io::Result<ByteStream>;

    fn listen(&self, at: &Endpoint, carries: Carries) -> io::Result<Box<dyn Listener>>;
}

#[async_trait]
pub trait Listener: Send + Sync {
    async fn accept(&self) -> io::Result<(ByteStream, Peer)>;
}

/// Who connects.
#[derive(Clone, Debug)]
pub struct Peer {
    /// For the log.
    pub name: String,
    /// The libvirtd of this very machine, with nobody in between: that it has closed the connection is seen here
    /// before whatever it does afterwards.
    pub is_own_libvirtd: bool,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// That of the machine that this program runs on.
pub struct Machine;

#[async_trait]
impl Net for Machine {
    async fn connect(&self, to: &Endpoint, carries: Carries) -> io::Result<ByteStream> {
        Ok(match to {
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                tune(&stream, carries)?;
                read_at_once(stream, carries)
            }
        })
    }

    fn listen(&self, at: &Endpoint, carries: Carries) -> io::Result<Box<dyn Listener>> {
        Ok(match at {
            Endpoint::Unix(path) => {
                // Of an earlier life: the state directory's lock says that there is no other.
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                Box::new(UnixListener::bind(path)?)
            }
            Endpoint::Tcp(address) => Box::new(Tcp(bind(*address, carries)?, carries)),
        })
    }
}

struct Tcp(TcpListener, Carries);

#[async_trait]
impl Listener for Tcp {
    async fn accept(&self) -> io::Result<(ByteStream, Peer)> {
        loop {
            let (stream, peer) = self.0.accept().await?;
            // One that is gone again cannot be tuned.
            if tune(&stream, self.1).is_ok() {
                let is_own_libvirtd = self.1 == Carries::Calls
                    && stream.local_addr().is_ok_and(|own| owner::is_libvirtd(peer, own));
                let peer = Peer { name: peer.to_string(), is_own_libvirtd };
                return Ok((read_at_once(stream, self.1), peer));
            }
        }
    }
}

#[async_trait]
impl Listener for UnixListener {
    async fn accept(&self) -> io::Result<(ByteStream, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        // An SSH server hands on what comes from elsewhere.
        let peer = Peer { name: "on this machine".to_owned(), is_own_libvirtd: false };
        Ok((Box::new(stream), peer))
    }
}

/// What a hypervisor sends on while the line is busy, in bytes: it is to feel the line's pace.
const RECEIVE_BUFFER: usize = 512 << 10;
/// multifd connects all at once.
const BACKLOG: u32 = 256;

fn bind(address: SocketAddr, carries: Carries) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of an earlier migration, or life, linger; a port that is listened on stays taken.
    socket.set_reuseaddr(true)?;
    if carries == Carries::Data {
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What is read at once of what another agent sends: TLS by itself asks for 4 KiB at a time.
const WORDS_AT_ONCE: usize = 64 << 10;

fn read_at_once(stream: TcpStream, carries: Carries) -> ByteStream {
    match carries {
        Carries::Words => Box::new(BufReader::with_capacity(WORDS_AT_ONCE, stream)),
        Carries::Calls | Carries::Data => Box::new(stream),
    }
}

/// Small writes leave at once. Between agents, what is not acknowledged for so long has nobody there.
fn tune(stream: &TcpStream, carries: Carries) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if carries == Carries::Words {
        let dead_after = u32::try_from(DEAD_AFTER.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(stream, dead_after)?;
    }
    Ok(())
}
