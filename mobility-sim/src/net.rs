//! How this agent reaches others, and is reached.

mod owner;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use async_trait::async_trait;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt,
};
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
                make_way(path)?;
                Box::new(UnixListener::bind(path)?)
            }
            Endpoint::Tcp(address) => Box::new(Tcp(bind(*address, carries)?, carries)),
        })
    }
}

/// Of an earlier life a socket is left, on which nobody answers. Whatever else is there is somebody's: it stays.
fn make_way(path: &Path) -> io::Result<()> {
    let taken = |what: &str| {
        let text = format!("{what}: give `listen.unix` a path of its own");
        io::Error::new(io::ErrorKind::AddrInUse, text)
    };
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {}
        Ok(_) => return Err(taken("what is there is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    // One that is busy would let a caller wait.
    let caller = socket_with(AddressFamily::UNIX, SocketType::STREAM, NONBLOCKING, None)?;
    match connect(&caller, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Ok(()) | Err(Errno::AGAIN) => Err(taken("another program listens there")),
        Err(error) => Err(taken(&format!("whose socket is there is not known ({error})"))),
    }
}

const NONBLOCKING: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

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

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(path: &Path) -> io::Result<Box<dyn Listener>> {
        Machine.listen(&Endpoint::Unix(path.to_owned()), Carries::Calls)
    }

    #[tokio::test]
    async fn a_socket_makes_way_only_where_nobody_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let libvirtd = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let refused = listen(&path).err().unwrap().to_string();
        assert!(refused.contains("another program listens"), "{refused}");
        // One that is too busy to take a second call, too.
        rustix::net::listen(&libvirtd, 0).unwrap();
        let refused = listen(&path).err().unwrap().to_string();
        assert!(refused.contains("another program listens"), "{refused}");
        assert!(path.exists());
        drop(libvirtd);
        listen(&path).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(&path).is_err(), "it was left again");
        listen(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "data").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        // Another kind of socket answers, but not so.
        let datagrams = dir.path().join("datagrams");
        let _open = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        for path in [&file, &link, &datagrams, &dir.path().to_owned()] {
            let refused = listen(path).err().unwrap().to_string();
            assert!(refused.contains("`listen.unix`"), "{refused}");
            assert!(fs::symlink_metadata(path).is_ok(), "{}", path.display());
        }
        assert_eq!(fs::read_to_string(file).unwrap(), "data");
    }
}
