//! A cloud in RAM: every method of [`site::Site`], with a world that can be looked at, faults that
//! can be scripted, and the one invariant checked at every step.
//!
//! ```text
//!  World ── site("east") ── MemorySite: what the engine sees
//!    │  └── site("west") ── MemorySite
//!    ├── seed, guest_write, disk, loaded_at ..... the test's own hands and eyes
//!    ├── records, set_records ................... what sites keep, lost or brought back
//!    ├── fault_at, fault_on, set_unreachable .... what goes wrong, and when
//!    └── listen ................................. the far end of a helper's channel
//! ```
//!
//! A world panics the moment two copies of one VM are loaded with writable disks: no test has to
//! look for a split brain, every test would find it.

mod channel;
mod fault;
mod fence;
mod machine;
mod memory_site;
mod placeholder;
mod records;
mod seed;
mod world;

pub use channel::Listener;
pub use fault::{Call, Fault, Method};
pub use memory_site::MemorySite;
pub use seed::Seed;
pub use world::{SharedDisk, World};
