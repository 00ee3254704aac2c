//! Live migrations between two mobility agents in one process: their real code, ledgers and lines, against
//! libvirts, hypervisors and sites that play by libvirt's rules. Time is virtual, and every place at which
//! an agent touches anything is one at which something may strike.
//!
//! ```text
//!  Client ── calls ──► agent E ══ wan ══► agent W ── calls ──► libvirtd W
//!  QEMU E ── data ───►    │                  │   ── data ───►  QEMU W
//!                       Sited              Sited
//!                         └──── Guest: which copy has which of the VM's writes
//! ```

#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

mod bombs;
mod client;
mod control;
mod fault;
mod guest;
mod hostile;
mod judge;
mod left;
mod liar;
mod libvirtd;
mod lost;
mod matrix;
mod nbd;
mod near;
mod net;
mod run;
mod seeds;
mod site;
mod stage;
mod waiting;
mod world;
