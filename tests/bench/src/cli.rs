//! What is asked for.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Copies one disk with Causeway and with its peers, in turns, and compares what it cost
///
/// Every copy is compared with its source byte by byte; a difference, a tool that fails and a
/// missing tool are errors. Times are measured and never judged
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = EXAMPLES)]
pub struct Order {
    /// How often each contender copies the disk
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// One section instead of all
    #[arg(long, value_enum)]
    pub only: Option<Section>,

    /// A raw disk image to copy, which is only read; the lab's Debian root disk otherwise
    #[arg(long, value_name = "FILE")]
    pub source: Option<PathBuf>,

    /// One JSON object with every single run, instead of tables
    #[arg(long)]
    pub json: bool,

    /// The folder with `causeway-agent`
    #[arg(long, env = "CAUSEWAY_PROGRAMS", value_name = "DIR")]
    pub programs: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  bench                                   both sections, three rounds
  bench --rounds 1 --only loopback        a quick look
  bench --json > figures.json             every run, for other programs
  bench --source disk.raw --rounds 5      another disk

Exit status: 0 all copies equal their source, 1 not so or something is missing, 2 usage";

/// Over which line the disk is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// As fast as one machine can
    Loopback,
    /// Between two network namespaces, at 1 Gbit/s
    Gigabit,
}

impl Section {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Gigabit => "gigabit",
        }
    }
}

impl Order {
    pub fn sections(&self) -> Vec<Section> {
        self.only.map_or_else(|| vec![Section::Loopback, Section::Gigabit], |only| vec![only])
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Order::command().debug_assert();
    }
}
