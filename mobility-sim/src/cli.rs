//! What can be typed, and what is done about it. Doc comments are the help.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use site_ledger::{operator, parse_why};
use tracing_subscriber::EnvFilter;
use units::{MigrationId, chain};

use crate::config::Config;
use crate::destination_host::word;
use crate::introduce::{self, IntroduceError};
use crate::{key, serve};

/// Lets VMs of one site move, live, to another: it plays the host next door.
///
/// One runs at each site. A source's libvirt migrates to it as to any neighbour; the other one
/// plays the source at the destination. Memory and disks go between the two, encrypted and
/// compressed.
#[derive(Parser)]
#[command(name = "causeway-mobility", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  causeway-mobility introduce --config /etc/causeway/mobility.toml
  causeway-mobility check --config /etc/causeway/mobility.toml
  causeway-mobility serve --config /etc/causeway/mobility.toml
  virsh migrate --live --p2p --copy-storage-all web1 qemu+tcp://AGENT/system";

#[derive(Subcommand)]
enum Verb {
    /// Play the hosts of the other site until told to end
    Serve {
        /// What this agent is and whom it knows
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the public key that the other agent has to be told; made if there is none
    Key {
        /// The agent's own directory: `state-dir` of its configuration
        #[arg(long, value_name = "DIR")]
        state_dir: PathBuf,
    },
    /// Print the `[neighbour]` section that the other agent's configuration is to have
    ///
    /// Of this one's configuration it reads `site.name`, `site.state-dir` and `listen.wan`; the key is made
    /// if there is none.
    Introduce {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Your word that a VM ended at its source when it was handed over, and never ran on there
    ///
    /// Needed only where the log of the source's agent asks for it: nobody saw how the VM ended. It is
    /// recorded with your name; if it is wrong, an old copy of the VM starts at the destination.
    Vouch {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// As the log has it: native-…
        id: MigrationId,
        /// What you base that on
        #[arg(long, value_name = "WHY", value_parser = parse_why)]
        reason: String,
    },
    /// Say everything that is wrong with a configuration
    Check {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Done; it was asked wrongly; it was refused.
const USAGE: u8 = 2;
const REFUSED: u8 = 3;

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("CAUSEWAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().log_internal_errors(false).with_ansi(false);
    log.with_env_filter(filter).with_writer(std::io::stderr).init();
    match cli.verb {
        Verb::Serve { config } => match Config::load(&config) {
            Ok(config) => done(serve::run(config)),
            Err(error) => failed(&error, USAGE),
        },
        Verb::Key { state_dir } => match key::identity(&state_dir) {
            Ok(identity) => {
                println!("{}", identity.public());
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error, REFUSED),
        },
        Verb::Introduce { config } => match introduce::section(&config) {
            Ok(section) => {
                print!("{section}");
                ExitCode::SUCCESS
            }
            Err(error @ IntroduceError::Config(_)) => failed(&error, USAGE),
            Err(error @ IntroduceError::Key(_)) => failed(&error, REFUSED),
        },
        Verb::Vouch { config, id, reason } => match Config::load(&config) {
            Ok(config) => match word::give(&config.site.state_dir, &id, &operator(), &reason) {
                Ok(()) => {
                    println!("noted; the agent takes it up within seconds, if it is needed");
                    ExitCode::SUCCESS
                }
                Err(error) => failed(&error, REFUSED),
            },
            Err(error) => failed(&error, USAGE),
        },
        Verb::Check { config } => match Config::check(&config) {
            Ok(config) => {
                for warning in config.warnings() {
                    eprintln!("warning: {warning}");
                }
                println!("ok; not looked at: libvirt, its pool and networks, the other agent");
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error, USAGE),
        },
    }
}

fn done(result: Result<(), serve::ServeError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, REFUSED),
    }
}

fn failed(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("error: {}", chain(error));
    ExitCode::from(code)
}
