//! `causeway-agent`.

mod ask;
mod bench;
mod cli;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use causeway_agent::daemon::place::{Place, PlaceError};
use causeway_agent::daemon::{self, Parent, Serve, ServeError, pipe, remove};
use causeway_agent::inspect::{self, Tree};
use causeway_agent::log::Log;
use causeway_agent::quiesce::warden;
use causeway_agent::{carrier, init, runtime, selfcheck};
use clap::Parser;
use cli::{Cli, Command};
use units::chain;

fn main() -> ExitCode {
    // Both: a program of some other name is no helper, and a helper is nothing but init. It powers
    // its machine off.
    if std::process::id() == 1 && called(&["init", "helper"]) {
        init::run();
    }
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("causeway-agent: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Serve { dir, foreground, idle_max_s, parent_waits } => {
            let place = Place::new(&dir)?;
            let idle_max = Duration::from_secs(idle_max_s);
            let parent = if parent_waits { Parent::Waits } else { Parent::None };
            let served = if foreground {
                serve(Serve { place, idle_max, parent })
            } else {
                place.prepare().map_err(ServeError::from).and_then(|()| {
                    if place.running()?.is_some() {
                        return Err(PlaceError::Taken { dir: place.dir().to_owned() }.into());
                    }
                    daemon::start_detached(&place, idle_max)
                })
            };
            match served {
                // As asked for: it runs.
                Err(ServeError::Place(taken @ PlaceError::Taken { .. })) => eprintln!("{taken}"),
                other => other?,
            }
        }
        Command::Pipe { dir } => {
            if let Err(error) = pipe::run(&Place::new(&dir)?) {
                eprintln!("causeway-agent: {}", chain(&error));
                return Ok(ExitCode::from(error.exit_code()));
            }
        }
        Command::Remove { dir } => {
            for line in remove::run(&Place::new(&dir)?)? {
                writeln!(io::stdout(), "{line}")?;
            }
        }
        Command::Selfcheck => print(&selfcheck::check())?,
        Command::Inspect => {
            print(&inspect::look_around(&Tree::of_this_system(), selfcheck::tracker()))?;
        }
        Command::Ask { socket, migration } => runtime()?.block_on(ask::run(socket, migration))?,
        Command::BenchSend(order) => runtime()?.block_on(bench::send(order))?,
        Command::BenchRecv(order) => runtime()?.block_on(bench::receive(order))?,
        Command::Carrier => carrier::run().context("the carrier ends")?,
        Command::Receiver => init::receive().context("the receiver ends")?,
        Command::Warden => warden::run().context("the warden ends")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything that must be so before the first thread: log, and a panic that ends the process, so
/// that the warden puts the guest back.
fn serve(order: Serve) -> Result<(), ServeError> {
    order.place.prepare()?;
    let path = order.place.log();
    let log = Log::open(&path).map_err(|source| ServeError::Log { path, source })?;
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    daemon::end_on_panic();
    daemon::make_modest();
    runtime().map_err(ServeError::Detach)?.block_on(daemon::serve(order, log))
}

fn print(value: &impl serde::Serialize) -> Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value)?;
    writeln!(stdout)?;
    Ok(())
}

/// By the name under which it was started.
fn called(names: &[&str]) -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    let file = std::path::Path::new(&program).file_name();
    file.is_some_and(|file| names.iter().any(|name| file == *name))
}
