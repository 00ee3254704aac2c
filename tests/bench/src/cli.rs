//! What is asked for.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::live::Way;

/// Copies one disk with Causeway and with its peers, in turns, and compares what it cost
///
/// Every copy is compared with its source byte by byte; a difference, a tool that fails and a
/// missing tool are errors. Times are measured and never judged
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Order {
    #[command(subcommand)]
    pub other: Option<Other>,

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

#[derive(Debug, Subcommand)]
pub enum Other {
    Live(Live),
}

/// Moves one guest that works, with memory and disk, by libvirt itself and through two mobility agents,
/// in turns, and compares time, bytes and downtime
///
/// A guest that does not arrive as it left is an error. Figures are measured and held against the goals,
/// and no goal that is missed is an error
#[derive(Debug, Args)]
#[command(after_help = LIVE_EXAMPLES)]
pub struct Live {
    /// How often it is moved in each way
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// The guest's memory
    #[arg(long, value_name = "MIB", default_value_t = 768, value_parser = clap::value_parser!(u32).range(384..))]
    pub memory: u32,

    /// The limited line
    #[arg(long, value_name = "MBIT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub mbit: u32,

    /// One of both lines
    #[arg(long, value_enum)]
    pub line: Option<LineKind>,

    /// How much of its memory the guest changes: one of both
    #[arg(long, value_enum)]
    pub pace: Option<Pace>,

    /// Only so, as often as it is said
    #[arg(long, value_enum)]
    pub way: Vec<Way>,

    /// MiB a second that a guest changes which changes little
    #[arg(long, value_name = "MIB", default_value_t = 1.0)]
    pub low: f64,

    /// MiB a second that a guest changes which changes much, if its processor is fast enough
    #[arg(long, value_name = "MIB", default_value_t = 20.0)]
    pub hot: f64,

    /// One JSON object with every single run, instead of tables
    #[arg(long)]
    pub json: bool,

    /// The folder with `causeway-mobility`
    #[arg(long, env = "CAUSEWAY_PROGRAMS", value_name = "DIR")]
    pub programs: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LineKind {
    /// As fast as one machine can
    Unlimited,
    /// At `--mbit`
    Limited,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// At `--low`
    Low,
    /// At `--hot`
    Hot,
}

impl Pace {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Hot => "hot",
        }
    }
}

impl Live {
    /// Mbit/s of each line.
    pub fn lines(&self) -> Vec<Option<u32>> {
        match self.line {
            Some(LineKind::Limited) => vec![Some(self.mbit)],
            Some(LineKind::Unlimited) => vec![None],
            None => vec![Some(self.mbit), None],
        }
    }

    pub fn paces(&self) -> Vec<Pace> {
        self.pace.map_or_else(|| vec![Pace::Low, Pace::Hot], |pace| vec![pace])
    }

    pub const fn rate(&self, pace: Pace) -> f64 {
        match pace {
            Pace::Low => self.low,
            Pace::Hot => self.hot,
        }
    }
}

const LIVE_EXAMPLES: &str = "Examples:
  bench live                              both lines, both paces, three rounds
  bench live --rounds 1 --memory 512      a quick look
  bench live --line unlimited --pace low  one of four sections
  bench live --json > figures.json        every run, for other programs

Exit status: 0 it always arrived as it left, 1 not so or something is missing, 2 usage";

const EXAMPLES: &str = "Examples:
  bench                                   both sections, three rounds
  bench --rounds 1 --only loopback        a quick look
  bench --json > figures.json             every run, for other programs
  bench --source disk.raw --rounds 5      another disk
  bench live                              a guest that moves live instead; see bench live --help

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
