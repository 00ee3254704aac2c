//! One path: its two ends, what it does to packets, whether it is cut.

use std::fmt::Write as _;
use std::path::Path as FsPath;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

use super::shaper::{Shaper, Traffic};
use super::{Between, Wan};
use crate::process::in_net;
use crate::run::run_with_input;

/// Room for packets that wait for their turn when there is a rate: what 50 ms let through, as a
/// small router has.
const QUEUE_MS: u32 = 50;

/// One end of a path.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// A site's name; `None` is the operator.
    pub site: Option<String>,
    pub interface: String,
    pub address: String,
    /// What is reached over the path from here, and our address for it.
    pub routes: Vec<(String, String)>,
}

#[derive(Debug)]
pub(crate) struct Path {
    number: usize,
    ends: [End; 2],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    wan: Wan,
    cut: bool,
    shaper: Option<Shaper>,
}

impl Path {
    /// Makes the bridges; [`plug`](Self::plug) then makes each end.
    pub fn lay(number: usize, ends: [End; 2], wan: Wan, between: &FsPath) -> Result<Self> {
        let mut batch = String::new();
        for bridge in [bridge(number, 0), bridge(number, 1)] {
            let _ = writeln!(
                batch,
                "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
                 link set {bridge} up"
            );
        }
        ip(between, &batch)?;
        let path = Self {
            number,
            ends,
            state: Mutex::new(State { wan: Wan::default(), cut: false, shaper: None }),
        };
        path.set_wan(wan, between)?;
        Ok(path)
    }

    pub fn joins(&self, between: Between<'_>) -> bool {
        let named = |end: &End, site: &str| end.site.as_deref() == Some(site);
        let [a, b] = &self.ends;
        match between {
            Between::Operator(site) => a.site.is_none() && named(b, site),
            Between::Sites(one, other) => {
                named(a, one) && named(b, other) || named(a, other) && named(b, one)
            }
        }
    }

    /// The ends at `site`, to be plugged in when it starts.
    pub fn ends_at(&self, site: Option<&str>) -> impl Iterator<Item = usize> {
        let at = [0, 1].map(|end| self.ends[end].site.as_deref() == site);
        [0, 1].into_iter().filter(move |&end| at[end])
    }

    /// Makes the veth pair of one end: the far side in the namespace of process `pid`.
    pub fn plug(&self, end: usize, pid: u32, net: &FsPath, between: &FsPath) -> Result<()> {
        let End { interface, address, routes, .. } = &self.ends[end];
        let port = port(self.number, end);
        ip(
            between,
            &format!(
                "link add {port} type veth peer name {interface} address {} netns {pid}\n\
                 link set {port} up\n",
                mac(self.number, end)
            ),
        )?;
        let peer = 1 - end;
        let gateway = &self.ends[peer].address;
        // Known for good: over a path that is cut, packets vanish; they are not "unreachable".
        let mut batch = format!(
            "address add {address}/30 dev {interface}\n\
             link set {interface} up\n\
             neighbour add {gateway} lladdr {} nud permanent dev {interface}\n",
            mac(self.number, peer)
        );
        for (network, source) in routes {
            let _ = writeln!(batch, "route add {network} via {gateway} src {source}");
        }
        ip(net, &batch)?;
        let state = self.lock();
        ip(between, &self.master(end, &state))?;
        tc(between, &self.rate(end, None, state.wan.rate))
    }

    /// Removes one end at once; the kernel alone takes its time after the last process is gone.
    pub fn unplug(&self, end: usize, between: &FsPath) -> Result<()> {
        ip(between, &format!("link delete {}\n", port(self.number, end)))
    }

    pub fn set_cut(&self, cut: bool, between: &FsPath) -> Result<()> {
        let mut state = self.lock();
        state.cut = cut;
        ip(between, &format!("{}{}", self.master(0, &state), self.master(1, &state)))
    }

    pub fn set_wan(&self, wan: Wan, between: &FsPath) -> Result<()> {
        let mut state = self.lock();
        let before = state.wan.rate;
        state.wan = wan;
        state.shaper = None;
        if wan.needs_shaper() {
            let taps = [tap(self.number, 0), tap(self.number, 1)];
            let shaper = super::inside(between, || Shaper::start([&taps[0], &taps[1]], wan))??;
            let mut batch = String::new();
            for end in [0, 1] {
                let _ = writeln!(
                    batch,
                    "link set {} master {} up",
                    taps[end],
                    bridge(self.number, end)
                );
            }
            ip(between, &batch)?;
            state.shaper = Some(shaper);
        }
        // At first there are no ports yet.
        if before.is_some() || self.is_plugged(between)? {
            ip(between, &format!("{}{}", self.master(0, &state), self.master(1, &state)))?;
            for end in [0, 1] {
                tc(between, &self.rate(end, before, wan.rate))?;
            }
        }
        Ok(())
    }

    /// What the shaper saw, if there is one: from the first end to the second, and back.
    pub fn traffic(&self) -> Option<[Traffic; 2]> {
        self.lock().shaper.as_ref().map(Shaper::traffic)
    }

    fn is_plugged(&self, between: &FsPath) -> Result<bool> {
        let links = crate::run::run(in_net(between, "ip").args(["-oneline", "link"]))?;
        Ok(links.contains(&format!(": {}@", port(self.number, 0))))
    }

    /// Puts an end's port into the bridge it belongs to now.
    fn master(&self, end: usize, state: &State) -> String {
        let port = port(self.number, end);
        if state.cut {
            return format!("link set {port} nomaster\n");
        }
        let side = if state.shaper.is_some() { end } else { 0 };
        format!("link set {port} master {}\n", bridge(self.number, side))
    }

    /// Packets leave towards an end at `rate` Mbit/s.
    fn rate(&self, end: usize, before: Option<u32>, rate: Option<u32>) -> String {
        let port = port(self.number, end);
        match (before, rate) {
            (None, None) => String::new(),
            (Some(_), None) => format!("qdisc del dev {port} root\n"),
            (_, Some(mbit)) => {
                // 4 ms at full rate, and never less than the largest packet before segmentation.
                let burst = (mbit * 125 * 4).max(65_536);
                format!(
                    "qdisc replace dev {port} root tbf rate {mbit}mbit burst {burst} \
                     latency {QUEUE_MS}ms\n"
                )
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bridge(path: usize, side: usize) -> String {
    format!("p{path}{}", ["x", "y"][side])
}

fn port(path: usize, end: usize) -> String {
    format!("p{path}{}", ["a", "b"][end])
}

fn tap(path: usize, end: usize) -> String {
    format!("p{path}t{end}")
}

/// Locally administered.
fn mac(path: usize, end: usize) -> String {
    format!("02:ca:05:00:{path:02x}:{end:02x}")
}

fn ip(net: &FsPath, batch: &str) -> Result<()> {
    run_with_input(in_net(net, "ip").args(["-batch", "-"]), batch)
        .with_context(|| format!("of these:\n{batch}"))?;
    Ok(())
}

fn tc(net: &FsPath, batch: &str) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    run_with_input(in_net(net, "tc").args(["-batch", "-"]), batch)
        .with_context(|| format!("of these:\n{batch}"))?;
    Ok(())
}
