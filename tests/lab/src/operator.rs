//! The operator's place: a network namespace that reaches every site, and is reached by their
//! guests at one address.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::net;
use crate::process::in_net;
use crate::site::Site;
use crate::state::MARK;

/// Where the operator's machine is, seen from everywhere in the lab.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

#[derive(Debug, Clone)]
pub struct Operator {
    pub(crate) dir: PathBuf,
    pub(crate) lab: PathBuf,
    pub(crate) pid: u32,
}

impl Operator {
    /// `program`, to be run on the operator's machine: the child's pid is the program's own. It
    /// ends with the lab at the latest, however the lab ends.
    pub fn command(&self, program: &str) -> Command {
        let mut command = in_net(&self.net(), program);
        command.env(MARK, &self.lab);
        command
    }

    /// Runs `work` on a thread on the operator's machine. Sockets made there stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        net::inside(&self.net(), work)
    }

    /// Listens where guests of all sites can connect. Port 0 takes any free one.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        Ok(self.inside(|| TcpListener::bind(SocketAddrV4::new(ADDRESS, port)))??)
    }

    pub fn connect(&self, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        self.inside(|| TcpStream::connect_timeout(&to, patience)).map_err(io::Error::other)?
    }

    /// libvirt's address of a site as the operator has to write it.
    pub fn uri(&self, site: &Site) -> String {
        format!("qemu+tcp://{}/system", site.address())
    }

    /// The private key that opens every site with [`HostAccess::Ssh`](crate::HostAccess::Ssh).
    pub fn ssh_key(&self) -> PathBuf {
        self.dir.join("id_ed25519")
    }

    /// The host keys of those sites, as `ssh` wants them.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    /// The namespace, for `nsenter --net=`.
    pub fn net(&self) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join("ns/net")
    }

    /// A directory of the operator's own, removed with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
