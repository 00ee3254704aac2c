//! `causeway-mobility`. See `cli.rs` for what can be typed, `serve.rs` for what it then is.

use std::process::ExitCode;

use causeway_mobility::cli;

fn main() -> ExitCode {
    cli::main()
}
