//! `causeway`: the coordinator's command line. See `cli/args.rs` for what can be typed and
//! `engine` for what happens then.

mod cli;
mod clouds;
mod config;
mod context;
mod facts;
mod failure;
mod guest;
mod interrupts;
mod keys;
mod operator;
mod papers;
mod receipt;
mod show;
mod visit;

use std::process::ExitCode;

use ::store;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::Cli;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.global.verbose {
        0 => "error",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("CAUSEWAY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // Its complaint that the terminal is gone would be a panic.
    let log = tracing_subscriber::fmt().log_internal_errors(false);
    log.with_env_filter(filter).with_writer(std::io::stderr).init();
    cli::run(cli).await
}

/// The wall clock, milliseconds since 1970. For people and receipts; no decision rests on it.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
