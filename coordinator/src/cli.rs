//! The command line: what can be typed, and what is done about it.

mod abort;
mod act;
mod appliance;
mod args;
mod find;
mod live;
mod method;
mod migrate;
mod native;
mod plan;
mod receipt;
mod recover;
mod site;
mod status;

use std::process::ExitCode;

pub use args::{Cli, Global};
use args::{ReceiptVerb, SiteVerb, Verb};
use clap::CommandFactory;

use crate::context::Context;
use crate::failure::{Failure, Kind};

/// Exit codes, the same for every verb.
pub mod exit {
    pub const DONE: u8 = 0;
    pub const USAGE: u8 = 2;
    pub const REFUSED: u8 = 3;
    pub const ROLLED_BACK: u8 = 4;
    pub const UNDECIDED: u8 = 5;
    pub const INTERRUPTED: u8 = 6;
}

/// Does what was asked.
pub async fn run(cli: Cli) -> ExitCode {
    let json = cli.global.json;
    match dispatch(cli).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.show(json);
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    match cli.verb {
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "causeway", &mut std::io::stdout());
            Ok(exit::DONE)
        }
        Verb::Man { dir } => {
            clap_mangen::generate_to(Cli::command(), &dir).map_err(|error| {
                Failure::new(Kind::Refused, format!("cannot write man pages to {}", dir.display()))
                    .caused_by(&error)
            })?;
            Ok(exit::DONE)
        }
        Verb::Receipt(ReceiptVerb::Verify { file, key }) => {
            receipt::verify(&file, key.as_deref(), cli.global.json)
        }
        verb => {
            let context = Context::open(cli.global)?;
            match verb {
                Verb::Site(SiteVerb::Add(add)) => site::add(&context, add),
                Verb::Site(SiteVerb::Remove { name }) => site::remove(&context, &name),
                Verb::Site(SiteVerb::List) => site::list(&context),
                Verb::Site(SiteVerb::Check { names }) => site::check(&context, &names).await,
                Verb::Plan(ask) => plan::plan(&context, ask).await,
                Verb::Migrate(ask) => migrate::migrate(&context, ask).await,
                Verb::Run(ask) => migrate::run_saved(&context, ask).await,
                Verb::Resume(ask) => act::resume(&context, ask).await,
                Verb::Abort(ask) => abort::abort(&context, ask).await,
                Verb::Discard(ask) => act::discard(&context, ask).await,
                Verb::Switchover { id } => act::switchover(&context, &id),
                Verb::Status { id, from } => {
                    status::status(&context, id.as_deref(), from.as_deref()).await
                }
                Verb::Recover(ask) => recover::recover(&context, ask).await,
                Verb::Verify { id } => act::verify(&context, &id).await,
                Verb::Appliance(ask) => appliance::appliance(&context, ask),
                Verb::Completions { .. } | Verb::Man { .. } | Verb::Receipt(_) => Ok(exit::DONE),
            }
        }
    }
}
