//! The network between the operator and the sites.
//!
//! A path joins two namespaces by a veth pair at each end, whose far sides lie in a namespace of
//! their own, "between":
//!
//! ```text
//!  operator          between                                    site
//!  ┌──────┐   ┌───────────────────────────────────────┐   ┌──────┐
//!  │ east ├───┤ p0a ─ bridge ─ [tap, shaper, tap] ─ p0b ├───┤ up0  │
//!  └──────┘   └───────────────────────────────────────┘   └──────┘
//! ```
//!
//! The rate is set by the kernel (tbf on `p0a` and `p0b`). Delay and loss, for which not every
//! kernel has netem, come from a [shaper](shaper::Shaper) that is put between two bridges when it
//! is asked for. A cut takes the ports out of their bridges: packets vanish without a word, and
//! neither end sees its carrier drop.

pub(crate) mod path;
pub(crate) mod shaper;

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use shaper::Traffic;

/// What a path does to packets, in each direction. The default is a plain fast wire.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Wan {
    /// Mbit/s.
    pub rate: Option<u32>,
    /// One way; the round trip is twice this.
    pub delay: Duration,
    /// The share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// The same seed loses the same packets of the same sequence.
    pub seed: u64,
}

impl Wan {
    /// 100 Mbit/s, 50 ms there and back, one packet in a thousand lost.
    pub const COUNTRY: Self =
        Self { rate: Some(100), delay: Duration::from_millis(25), loss: 0.001, seed: 1 };

    fn needs_shaper(&self) -> bool {
        !self.delay.is_zero() || self.loss > 0.0
    }
}

/// Names a path of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between<'a> {
    /// From the operator to a site and its guests.
    Operator(&'a str),
    /// From site to site, if the lab has such a path.
    Sites(&'a str, &'a str),
}

/// Runs `work` on a thread in the network namespace at `net`. What it opens there stays there.
pub(crate) fn inside<T: Send>(net: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let namespace = File::open(net).with_context(|| format!("cannot open {}", net.display()))?;
    thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter a network namespace")?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
