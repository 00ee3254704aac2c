//! `lab`: sites to try things on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use lab::{HostAccess, Lab, OPERATOR, QemuUser, Scenario, Site, SiteSpec, check, state};
use serde_json::{Value, json};

/// Starts real libvirt sites on this machine, for tests and for trying.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start two sites, `east` and `west`, say how to reach them, and end them at Ctrl-C
    ///
    /// With COMMAND: run it on the operator's machine, then end the sites and exit as it did. It
    /// finds in its environment LAB_DIR, LAB_OPERATOR, LAB_SSH_KEY, LAB_KNOWN_HOSTS and for each
    /// site LAB_EAST_URI, LAB_EAST_ADDRESS, LAB_EAST_POOL.
    Up(Up),
    /// End and remove what labs left behind whose owner is dead
    Reap {
        /// Where those labs made their directories
        #[arg(long, value_name = "DIR", default_value_os_t = state::default_root())]
        dir: PathBuf,
    },
    /// List what this machine lacks; exit code 3 if anything
    Check,
}

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    lab up\n  \
    lab up --scenario wan --json\n  \
    lab up -- sh -c 'virsh -c $LAB_EAST_URI list --all'")]
struct Up {
    /// What lies between the operator and the sites
    #[arg(long, value_enum, default_value = "relay")]
    scenario: Which,
    /// Let the operator log in to the hypervisors by SSH
    #[arg(long)]
    ssh: bool,
    /// Run QEMU as a user of its own, as Debian does, not as root
    #[arg(long)]
    qemu_user: bool,
    /// Describe the lab in JSON
    #[arg(long)]
    json: bool,
    /// Stay up until Ctrl-C also after COMMAND
    #[arg(long)]
    hold: bool,
    /// Where the lab makes its directory
    #[arg(long, value_name = "DIR", default_value_os_t = state::default_root())]
    dir: PathBuf,
    /// What to run on the operator's machine
    #[arg(last = true, value_name = "COMMAND")]
    program: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    /// Only the operator reaches the sites
    Relay,
    /// The sites reach each other too
    Direct,
    /// As relay, with 100 Mbit/s, 50 ms and 0.1 % loss between operator and west
    Wan,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Up(args) => up(&args),
        Command::Reap { dir } => reap(&dir),
        Command::Check => Ok(report_missing()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn up(args: &Up) -> Result<ExitCode> {
    let interrupt = interrupts()?;
    let access = if args.ssh { HostAccess::Ssh } else { HostAccess::ApiOnly };
    let user = if args.qemu_user { QemuUser::LibvirtQemu } else { QemuUser::Root };
    let scenario = match args.scenario {
        Which::Relay => Scenario::Relay,
        Which::Direct => Scenario::Direct,
        Which::Wan => Scenario::Wan,
    };
    let site = |name: &str| SiteSpec::named(name).host_access(access).qemu_user(user);
    let lab = scenario.builder_with(site).dir(&args.dir).start()?;

    if args.json {
        println!("{}", serde_json::to_string_pretty(&describe(&lab))?);
    } else if args.program.is_empty() {
        print_lab(&lab);
    }
    let Some((program, arguments)) = args.program.split_first() else {
        interrupt.recv().context("cannot wait for Ctrl-C")?;
        return Ok(ExitCode::SUCCESS);
    };
    let program = program.to_str().context("a program's name is not UTF-8")?;
    let mut command = lab.operator().command(program);
    command.args(arguments).envs(variables(&lab));
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if args.hold {
        interrupt.recv().context("cannot wait for Ctrl-C")?;
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Ctrl-C and SIGTERM end the lab in order, from the start on.
fn interrupts() -> Result<Receiver<()>> {
    let (sender, receiver) = channel();
    ctrlc::set_handler(move || {
        // The receiver is gone only when the lab is going down already.
        let _ = sender.send(());
    })
    .context("cannot handle Ctrl-C")?;
    Ok(receiver)
}

fn variables(lab: &Lab) -> Vec<(String, OsString)> {
    let operator = lab.operator();
    let mut variables = vec![
        ("LAB_DIR".to_owned(), lab.dir().into()),
        ("LAB_OPERATOR".to_owned(), OPERATOR.to_string().into()),
        ("LAB_SSH_KEY".to_owned(), operator.ssh_key().into()),
        ("LAB_KNOWN_HOSTS".to_owned(), operator.known_hosts().into()),
    ];
    for site in lab.sites() {
        let name = site.name().to_uppercase();
        variables.push((format!("LAB_{name}_URI"), operator.uri(site).into()));
        variables.push((format!("LAB_{name}_ADDRESS"), site.address().to_string().into()));
        variables.push((format!("LAB_{name}_POOL"), site.pool_dir().into()));
    }
    variables
}

fn describe(lab: &Lab) -> Value {
    let operator = lab.operator();
    let site = |site: &Site| {
        json!({
            "name": site.name(),
            "uri": operator.uri(site),
            "address": site.address(),
            "host_uuid": site.host_uuid(),
            "ssh": site.host_access() == HostAccess::Ssh,
            "pool": "default",
            "pool_dir": site.pool_dir(),
            "log_dir": site.log_dir(),
        })
    };
    json!({
        "dir": lab.dir(),
        "operator": {
            "address": OPERATOR,
            "namespace": operator.net(),
            "ssh_key": operator.ssh_key(),
            "known_hosts": operator.known_hosts(),
        },
        "sites": lab.sites().iter().map(site).collect::<Vec<_>>(),
    })
}

fn print_lab(lab: &Lab) {
    let operator = lab.operator();
    println!("operator: {OPERATOR}, nsenter --net={}", operator.net().display());
    for site in lab.sites() {
        println!("{}: {}", site.name(), operator.uri(site));
        if site.host_access() == HostAccess::Ssh {
            println!(
                "  ssh -i {} -o UserKnownHostsFile={} root@{}",
                operator.ssh_key().display(),
                operator.known_hosts().display(),
                site.address()
            );
        }
        println!("  pool default: {}", site.pool_dir().display());
        println!("  logs: {}", site.log_dir().display());
    }
    println!("Ctrl-C ends it");
}

fn reap(root: &Path) -> Result<ExitCode> {
    for lab in state::reap(root)? {
        println!("{}: removed, {} processes ended", lab.dir.display(), lab.processes);
    }
    Ok(ExitCode::SUCCESS)
}

fn report_missing() -> ExitCode {
    let missing = check::missing();
    for thing in &missing {
        println!("missing: {}\n  hint: {}", thing.what, thing.remedy);
    }
    if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) }
}
