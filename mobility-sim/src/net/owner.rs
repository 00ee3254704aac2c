//! Whose a connection is that comes from this machine, as the kernel has it.

use std::net::SocketAddr;
use std::path::Path;

use procfs::process::{FDTarget, Process};
use tracing::debug;

/// Where libvirt's daemons that run QEMUs say what their number is.
const DAEMONS: [&str; 2] = ["/run/libvirtd.pid", "/run/virtqemud.pid"];

/// Whether the other end of a connection is held by the libvirtd of this machine. What cannot be looked at is not.
pub(super) fn is_libvirtd(peer: SocketAddr, own: SocketAddr) -> bool {
    // Nobody but a machine itself has its address.
    peer.ip() == own.ip() && DAEMONS.iter().any(|pid_file| holds(Path::new(pid_file), peer, own))
}

fn holds(pid_file: &Path, from: SocketAddr, to: SocketAddr) -> bool {
    let number = std::fs::read_to_string(pid_file).ok();
    let Some(pid) = number.and_then(|number| number.trim().parse().ok()) else { return false };
    match socket_of(pid, from, to) {
        Ok(found) => found,
        Err(error) => {
            debug!(pid, %error, "whose a connection is is not seen");
            false
        }
    }
}

/// Whether a process holds the socket of the connection.
fn socket_of(pid: i32, from: SocketAddr, to: SocketAddr) -> procfs::ProcResult<bool> {
    let process = Process::new(pid)?;
    let sockets = if from.is_ipv4() { process.tcp() } else { process.tcp6() }?;
    let socket = sockets.iter().find(|it| (it.local_address, it.remote_address) == (from, to));
    let Some(socket) = socket else { return Ok(false) };
    let is_it =
        |target: FDTarget| matches!(target, FDTarget::Socket(inode) if inode == socket.inode);
    Ok(process.fd()?.flatten().any(|file| is_it(file.target)))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn who_holds_the_other_end_is_found_and_nobody_else() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_served, peer) = listener.accept().unwrap();
        let own = listener.local_addr().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let says = |pid: u32| std::fs::write(file.path(), format!("{pid}\n")).unwrap();
        says(std::process::id());
        assert!(holds(file.path(), peer, own));
        let another = SocketAddr::new(peer.ip(), peer.port() ^ 1);
        assert!(!holds(file.path(), another, own));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        says(child.id());
        // What it was born with it closes as it begins.
        let until = Instant::now() + Duration::from_secs(10);
        while holds(file.path(), peer, own) {
            assert!(Instant::now() < until, "it does not hold it");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!holds(file.path(), peer, own), "it is gone");
        says(std::process::id());
        drop(client);
        assert!(!holds(file.path(), peer, own), "it is closed");
        assert!(!is_libvirtd(SocketAddr::from(([192, 0, 2, 1], 1)), own), "another machine's");
    }
}
