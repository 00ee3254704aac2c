//! The QEMU that runs a VM, seen by the kernel that it runs on: where this program is on the same machine, and may see it.
//!
//! libvirt 9.0 ends a VM with a signal, looks every 200 ms whether it has gone (`virProcessKillPainfullyDelay`), and
//! answers no question about the VM meanwhile. The process itself has then been gone for most of that.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use async_trait::async_trait;
use model::VmId;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use site::VmProcess;
use tokio::io::unix::AsyncFd;
use tracing::debug;
use virt::connect::Connect;

use crate::LibvirtConfig;
use crate::fault::Fault;
use crate::look;

/// Where the system's libvirtd writes `NAME.pid`.
const PIDS: &str = "/run/libvirt/qemu";

/// A process that was found, and cannot be mistaken for a later one of its number.
pub(crate) struct Found {
    pidfd: OwnedFd,
    is_persistent: bool,
}

/// `None`: the VM is not loaded, its libvirtd is on another machine, or this program may not see its processes.
pub(crate) fn find(
    connection: &Connect,
    config: &LibvirtConfig,
    vm: VmId,
) -> Result<Option<Found>, Fault> {
    if !config.is_local() {
        return Ok(None);
    }
    let Some(domain) = look::find(connection, vm)? else { return Ok(None) };
    let pid_file = Path::new(PIDS).join(format!("{}.pid", domain.name()?));
    match open(&pid_file, vm) {
        Ok(pidfd) => Ok(Some(Found { pidfd, is_persistent: domain.is_persistent()? })),
        Err(error) => {
            debug!(file = %pid_file.display(), %error, "the VM's process is not seen");
            Ok(None)
        }
    }
}

/// The file may be an earlier life's, or be read in another namespace than the number is of: the process itself says
/// whose it is. That is read once the process is held.
fn open(pid_file: &Path, vm: VmId) -> io::Result<OwnedFd> {
    let number = fs::read_to_string(pid_file)?;
    let pid = number.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the file holds no number"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()))?;
    if !runs(&words, vm) {
        return Err(io::Error::other("the process is not this VM's"));
    }
    Ok(pidfd)
}

/// Whether these words, as `/proc` has them, start the VM.
fn runs(words: &[u8], vm: VmId) -> bool {
    let id = vm.to_string();
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    words.windows(2).any(|pair| pair[0] == b"-uuid" && pair[1] == id.as_bytes())
}

impl Found {
    /// # Errors
    /// The runtime has no room for it.
    #[expect(unsafe_code, reason = "the runtime takes a descriptor's word for what it is")]
    pub(crate) fn watched(self) -> io::Result<impl VmProcess> {
        // SAFETY: an owned descriptor is the same one, and open, until it is dropped with what it is registered by.
        let pidfd = unsafe { AsyncFd::register(self.pidfd) }?;
        Ok(Watched { pidfd, is_persistent: self.is_persistent })
    }
}

struct Watched {
    pidfd: AsyncFd<OwnedFd>,
    is_persistent: bool,
}

#[async_trait]
impl VmProcess for Watched {
    fn is_persistent(&self) -> bool {
        self.is_persistent
    }

    /// A pidfd is readable once every thread has ended, and they close what they have open before.
    async fn ended(&self) {
        if self.pidfd.readable().await.is_err() {
            // The runtime ends: nobody knows.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    const VM: VmId = VmId(Uuid::from_u128(0x1286_2f30_84d5_483d_b466_3fe4_fdd1_048f));

    #[test]
    fn a_process_says_whose_it_is() {
        let id = VM.to_string();
        let words = |words: &[&str]| words.join("\0").into_bytes();
        assert!(runs(&words(&["qemu", "-name", "web1", "-uuid", &id, "-smp", "1"]), VM));
        assert!(!runs(&words(&["qemu", "-name", &id, "-smp", "1"]), VM));
        assert!(!runs(&words(&["qemu", "-uuid", "x", &id]), VM));
        assert!(!runs(b"", VM));
    }

    #[tokio::test]
    async fn its_end_is_seen_and_not_before() {
        let mut child = Command::new("sh")
            // A shell's further words are its script's.
            .args(["-c", "read line", "-uuid", &VM.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("{}\n", child.id())).unwrap();
        let another = VmId(Uuid::nil());
        assert!(open(file.path(), another).is_err());
        // Its words are there a moment after it has begun.
        let pidfd = loop {
            match open(file.path(), VM) {
                Ok(pidfd) => break pidfd,
                Err(_) if child.try_wait().unwrap().is_none() => thread::yield_now(),
                Err(error) => panic!("it ended: {error}"),
            }
        };
        let found = Found { pidfd, is_persistent: true };
        let process = found.watched().unwrap();
        let soon = tokio::time::timeout(Duration::from_millis(50), process.ended());
        assert!(soon.await.is_err(), "it has not ended");
        // Its end is seen before anybody has waited for it.
        drop(child.stdin.take());
        process.ended().await;
        child.wait().unwrap();
        assert!(open(file.path(), VM).is_err(), "nobody has that number now");
        fs::write(file.path(), "web1\n").unwrap();
        assert!(open(file.path(), VM).is_err());
    }
}
