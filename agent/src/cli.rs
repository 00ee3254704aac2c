//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use units::MigrationId;

use crate::bench;

/// The part of Causeway that works inside a guest
///
/// The coordinator installs it, runs it and removes it. Started as /init it is the helper that
/// receives disks at the destination.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the agent in the background and wait until it listens
    Serve {
        /// A folder of its own, best in memory: socket, pid file and log lie there
        #[arg(long)]
        dir: PathBuf,

        /// Stay in the foreground
        #[arg(long)]
        foreground: bool,

        /// Remove itself after so many seconds without a coordinator [default: seven days]
        #[arg(long, default_value_t = 7 * 24 * 3600, hide_default_value = true)]
        idle_max_s: u64,

        /// Tell the waiting parent when the socket is there
        #[arg(long, hide = true)]
        parent_waits: bool,
    },

    /// Join standard input and output with the running agent
    ///
    /// Exit codes: 0 the stream ended, 10 no agent runs there, 11 not allowed to connect, 12 the
    /// stream broke.
    Pipe {
        #[arg(long)]
        dir: PathBuf,
    },

    /// End the agent, put the guest back as it was, remove the agent's files
    Remove {
        #[arg(long)]
        dir: PathBuf,
    },

    /// Say as JSON what this machine allows
    Selfcheck,

    /// Print the report on this machine that the coordinator would get, as JSON
    Inspect,

    /// Ask a running agent: requests on standard input, what it says on standard output, as JSON
    #[command(hide = true)]
    Ask {
        /// The agent's unix socket
        socket: PathBuf,

        #[arg(long, default_value = "by-hand")]
        migration: MigrationId,
    },

    /// Send a disk over TCP, for measuring
    #[command(hide = true)]
    BenchSend(bench::Send),

    /// Receive it
    #[command(hide = true)]
    BenchRecv(bench::Receive),

    /// Thaw what another process of the agent leaves frozen
    #[command(hide = true)]
    Warden,

    /// Carry the disks for another process of the agent
    #[command(hide = true)]
    Carrier,

    /// Receive disks for the init of the helper
    #[command(hide = true)]
    Receiver,
}
