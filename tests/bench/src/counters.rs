//! What a copy cost: processor time and bytes on the wire. And how busy the machine was.

use std::fs;
use std::ops::Sub;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::ground::Line;

/// Counters that only grow; a run costs their difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// User and system time of all processes that have ended and were waited for: our own
    /// children, with theirs, and the sessions of the site's SSH server.
    pub cpu: Duration,
    /// Both directions, headers included.
    pub wire_bytes: u64,
}

impl Counters {
    pub fn read(line: &Line<'_>) -> Result<Self> {
        let cpu = children_time("self")? + children_time(&line.sshd.to_string())?;
        Ok(Self { cpu, wire_bytes: wire_bytes(line)? })
    }
}

impl Sub for Counters {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { cpu: self.cpu - before.cpu, wire_bytes: self.wire_bytes - before.wire_bytes }
    }
}

/// The three averages of `/proc/loadavg`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load(pub [f64; 3]);

impl Load {
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
        let mut words = text.split(' ').map(|word| word.parse().unwrap_or(f64::NAN));
        Ok(Self([(); 3].map(|()| words.next().unwrap_or(f64::NAN))))
    }
}

/// What `getrusage` calls RUSAGE_CHILDREN, of any process; in steps of a clock tick, 10 ms.
fn children_time(process: &str) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = children_ticks(&stat).with_context(|| format!("{path} is odd: {stat}"))?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

fn children_ticks(stat: &str) -> Option<u64> {
    // The second field, the program's name, may have spaces; it ends at the last parenthesis.
    // What follows begins with field 3; cutime and cstime are 16 and 17.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(13);
    let cutime: u64 = fields.next()?.parse().ok()?;
    let cstime: u64 = fields.next()?.parse().ok()?;
    Some(cutime + cstime)
}

fn wire_bytes(line: &Line<'_>) -> Result<u64> {
    let table = line.operator.inside(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let (received, sent) = traffic(&table, line.interface)
        .with_context(|| format!("no counters of {} in\n{table}", line.interface))?;
    // On loopback what is sent is received by the same interface.
    Ok(if line.interface == "lo" { received } else { received + sent })
}

/// Bytes received and sent by `interface`.
pub fn traffic(table: &str, interface: &str) -> Option<(u64, u64)> {
    let row =
        table.lines().find_map(|row| row.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    let mut numbers = row.split_whitespace().map(|number| number.parse().ok());
    let received = numbers.next()??;
    let sent = numbers.nth(7)??;
    Some((received, sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_children_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 700 80 20 0 1 0 99 100 2";
        assert_eq!(children_ticks(stat), Some(780));
    }

    #[test]
    fn children_that_were_waited_for_cost_time() {
        let before = children_time("self").unwrap();
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        std::process::Command::new("sh").args(["-c", busy]).status().unwrap();
        assert!(children_time("self").unwrap() > before);
    }

    #[test]
    fn traffic_is_that_of_the_interface_asked_for() {
        let table = "Inter-|   Receive                |  Transmit\n\
             \x20face |bytes    packets errs drop\n\
             \x20   lo: 11 1 0 0 0 0 0 0 12 1 0 0 0 0 0 0\n\
             west2: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n\
             \x20west: 100 2 0 0 0 0 0 0 2000 3 0 0 0 0 0 0\n";
        assert_eq!(traffic(table, "west"), Some((100, 2000)));
        assert_eq!(traffic(table, "lo"), Some((11, 12)));
        assert_eq!(traffic(table, "east"), None);
    }
}
