//! The process that carries the disks: it tracks and reads them, and speaks with the destination.
//!
//! All that comes from the destination, or from the network on the way there, is parsed here: TLS,
//! frames, and on direct connections the preamble. So it is a process of its own, which can do
//! nothing else. It opens disks and tracker, then gives up whatever it does not need any more
//! ([`crate::sandbox`]), and only then is given its first socket. What needs root (services, hooks,
//! swap, freezing) stays with the agent, which listens to its owner alone.
//!
//! ```text
//!  agent                                carrier
//!    Start(disks, key)                →   opens disks, loads the tracker, confines itself
//!                                     ←   Started
//!    sockets; Connect                 →   TLS, data streams        [`work`]
//!    Round, Rest, Seal ...            →
//!                                     ←   Answer, Event
//!    (end of stream)                  →   ends
//! ```
//!
//! It is told when the guest comes to rest and when it works again, in the order in which that
//! happens: between the two ends there is one stream. A carrier that ends unasked takes the agent
//! with it, as any bug in the agent does: the warden then puts the guest back.

mod descriptors;
mod handle;
mod order;
mod round;
mod streams;
mod tracked;
mod work;

pub use handle::Carrier;
pub use order::{Order, Way};
pub use tracked::tracker_report;
pub use work::{leave_memory, stay_in_memory};

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::CapabilitySet;
use serde::de::DeserializeOwned;
use transfer::SenderLimits;
use transfer::secure::Identity;
use wire::control::frame;

use crate::daemon;
use crate::inspect::Tree;
use crate::sandbox::{self, Needs};
use crate::source::{SourceError, to_failure};
use order::{Said, Start};
use tracked::{Opened, Tracked};
use work::Work;

/// The hidden subcommand that makes this binary a carrier. Its standard input is the stream of
/// orders, its standard output the channel of sockets, its standard error the agent's log.
pub const SUBCOMMAND: &str = "carrier";

/// The whole life of a carrier.
pub fn run() -> io::Result<()> {
    let mut orders = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let sockets = io::stdout().as_fd().try_clone_to_owned()?;
    settle_in();
    let start: Start = first(&mut orders)?;
    let tree = Tree::of_this_system();
    let opened = match Opened::open(&start.disks, start.wish, &tree) {
        Ok(opened) => opened,
        Err(error) => return refuse(&mut orders, error),
    };
    // While it may still be looked up how many cores it may use.
    let limits = SenderLimits::default();
    sandbox::confine(&Needs {
        // What the kernel says of the disks and counts of their writes.
        read: &[Path::new("/sys")],
        capabilities: CapabilitySet::IPC_LOCK,
        ..Needs::NONE
    });
    let identity = Identity::from_pkcs8(&start.key).map_err(io::Error::other)?;
    let tracked = Tracked::new(start.migration, start.disks, opened, limits);
    let tracked = match tracked {
        Ok(tracked) => tracked,
        Err(error) => return refuse(&mut orders, error),
    };
    orders.set_nonblocking(true)?;
    let runtime = crate::runtime()?;
    let served = runtime.block_on(async {
        let (orders, answers) = tokio::net::UnixStream::from_std(orders)?.into_split();
        let served = Work::serve(tracked, identity, sockets, orders, answers).await;
        served.map_err(io::Error::other)
    });
    // Threads that read disks or wait for a line are not waited for: the agent is gone.
    runtime.shutdown_background();
    served
}

fn refuse(agent: &mut UnixStream, error: SourceError) -> io::Result<()> {
    let said = Said::Answer { id: 0, result: Err(to_failure(error)) };
    agent.write_all(&frame::encode(&said).map_err(io::Error::other)?)
}

fn settle_in() {
    // A courtesy, for people who look at processes.
    let _name = rustix::thread::set_name(c"causeway-carrier");
    // Its memory holds the agent's key and pieces of disks: no core dump, and no other process of
    // the same user looks into it.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "memory not kept out of core dumps");
    }
    tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).init();
    daemon::end_on_panic();
}

/// The first message, byte by byte as it comes: nothing after it is taken.
fn first<T: DeserializeOwned>(orders: &mut UnixStream) -> io::Result<T> {
    let mut bytes = vec![0; 4];
    orders.read_exact(&mut bytes)?;
    loop {
        if let Some((message, _)) = frame::decode(&bytes).map_err(io::Error::other)? {
            return Ok(message);
        }
        // The length was found to be within its limit.
        let mut len = [0; 4];
        len.copy_from_slice(&bytes[..4]);
        let len = usize::try_from(u32::from_le_bytes(len)).map_err(io::Error::other)?;
        bytes.resize(4 + len, 0);
        orders.read_exact(&mut bytes[4..])?;
    }
}
