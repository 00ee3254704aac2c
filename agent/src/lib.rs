//! `causeway-agent`: the program inside the guest that is moved ([`source`]), and inside the
//! helper that receives its disks ([`destination`]).
//!
//! | to understand | read |
//! |---|---|
//! | who may talk to an agent, and how | [`session`] |
//! | a migration as the source sees it | [`source`] |
//! | which process reads what strangers send, and what it may do | [`carrier`], [`sandbox`] |
//! | how a guest is brought to rest, and never left so | [`quiesce`] |
//! | what is found out about a guest | [`inspect`] |
//! | how it lives in a guest, leaving nothing behind | [`daemon`] |
//! | how it is a machine's only program | [`init`] |

pub mod carrier;
pub mod daemon;
pub mod destination;
pub mod failure;
pub mod init;
pub mod inspect;
pub mod log;
pub mod quiesce;
pub mod sandbox;
pub mod selfcheck;
pub mod session;
pub mod source;
mod sys;

use std::io;

/// How processes of ours call themselves: they are started by way of `/proc/self/exe`.
pub const PROGRAM: &str = "causeway-agent";

/// Threads that may block: readers and writers of disks, one for inspecting, one for quiescing.
const BLOCKING_THREADS_MAX: usize = 24;

/// Most of a thread's stack is never touched, but while memory is locked all of it counts.
const STACK: usize = 512 << 10;

/// The runtime of an agent: small, because it is a guest in somebody's machine.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    sys::bound_heaps(2);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(4))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(STACK)
        .enable_all()
        .build()
}
