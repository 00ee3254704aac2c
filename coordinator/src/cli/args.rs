//! What can be typed. Its doc comments are the help and the man pages.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use site_ledger::parse_why;

/// Moves virtual machines between two clouds.
///
/// The guest keeps working while its disks are copied, is down for seconds, and comes up at the
/// destination with nothing lost. At no time do two copies of a VM run; whatever breaks, `status`
/// says where the VM lives and what to do next.
#[derive(Parser)]
#[command(name = "causeway", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  causeway site add east --uri qemu+ssh://root@host-a/system
  causeway site add west --uri qemu+ssh://root@host-b/system
  causeway site check
  causeway migrate web1 --from east --to west --guest root@web1 --network br0=br-lan
  causeway status

Exit codes:
  0 done   2 usage   3 refused, nothing touched   4 rolled back, the source runs (0 by `abort`)
  5 undecided, or the VM runs nowhere: what to do is printed   6 interrupted, resumable

What --json prints is described in JSON.md, beside the README.";

#[derive(Args)]
pub struct Global {
    /// Where journals, ledgers and keys are kept
    #[arg(long, global = true, env = "CAUSEWAY_STATE", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Settings that one does not want to type
    #[arg(long, global = true, env = "CAUSEWAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Results and events as JSON, one value a line
    #[arg(long, global = true)]
    pub json: bool,
    /// More about what happens inside; twice for all
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Register the clouds and look at them
    #[command(subcommand)]
    Site(SiteVerb),
    /// Show what a migration would do, or everything that stands against it
    #[command(after_help = "\
Examples:
  causeway plan web1 --from east --to west --guest root@10.0.0.5 --network br0=br-lan
  causeway plan web1 --from east --to west --guest root@10.0.0.5 -o web1.toml")]
    Plan(PlanArgs),
    /// Plan, show, ask, run
    #[command(after_help = "\
Examples:
  causeway migrate web1 --from east --to west --guest root@10.0.0.5
  causeway migrate web1 --from east --to west --guest ops@web1 --yes --max-downtime 10s --limit-rate 20M
  causeway migrate web1 --from east --to west --method native --max-downtime 1s")]
    Migrate(MigrateArgs),
    /// Run a plan that `plan -o` saved
    Run(RunArgs),
    /// Go on with a migration that was interrupted, wherever it stopped
    Resume(ResumeArgs),
    /// Call a migration off: the source runs as before, what was made at the destination is removed
    /// (the helper's kernel stays for the next)
    Abort(AbortArgs),
    /// Delete the source that a finished migration keeps: its definition and its disks, for good
    ///
    /// Before that the destination is asked: a source whose VM is not shown to live at the
    /// destination is not deleted.
    Discard(DiscardArgs),
    /// Release a migration that holds before its switchover
    Switchover {
        /// A migration as `status` lists it, or its VM's name
        id: String,
    },
    /// Where each VM lives, how sure that is, on what evidence, and the next command
    Status {
        /// One migration, or the last one of a VM; all without it
        id: Option<String>,
        /// Ask only this site and its ledger, as if the other one were gone
        #[arg(long, value_name = "SITE")]
        from: Option<String>,
    },
    /// Ask the sites what they know of migrations, and take up those that this state directory has lost
    ///
    /// Each site keeps the ledger of its part in a migration, and with it the plan. So a coordinator whose
    /// machine is gone is made anew from the sites: register them under the same names, then recover. See that
    /// the lost coordinator does not come back: two of them do not run a VM twice, but they hold each other
    /// up, and may leave it off.
    #[command(after_help = "\
Examples:
  causeway recover
  causeway recover web1 --settle
  causeway recover web1 --settle --attest fenced=west --reason \"west burnt down, nothing runs there\"")]
    Recover(RecoverArgs),
    /// Read the targets of an interrupted migration again and compare them with what was sent
    Verify {
        /// A migration as `status` lists it, or its VM's name
        id: String,
    },
    /// Check a migration's signed receipt
    #[command(subcommand)]
    Receipt(ReceiptVerb),
    /// Build the helper that boots at the destination while disks are copied
    Appliance(ApplianceArgs),
    /// Print a completion script for a shell
    Completions { shell: Shell },
    /// Write the man pages
    Man {
        /// An existing folder
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum SiteVerb {
    /// Register a site, or change what is registered
    Add(SiteAdd),
    /// Forget a site
    Remove { name: String },
    /// List registered sites
    List,
    /// Connect, and show what each site can do
    Check {
        /// All registered ones without it
        names: Vec<String>,
    },
}

#[derive(Args)]
pub struct SiteAdd {
    /// 1 to 32 of a-z, 0-9 and '-'
    pub name: String,
    /// A libvirt URI, such as qemu+ssh://root@host/system
    #[arg(long)]
    pub uri: String,
    /// SSH login of the hypervisor's host; allows the strongest fence
    #[arg(long, value_name = "USER@HOST[:PORT]")]
    pub host: Option<String>,
    /// Private key for --host
    #[arg(long, value_name = "FILE", requires = "host")]
    pub host_identity: Option<PathBuf>,
    /// File with the key of --host, in the format of known_hosts
    #[arg(long, value_name = "FILE", requires = "host")]
    pub host_known_hosts: Option<PathBuf>,
    /// The site's mobility agent, as its *hypervisors* reach it: qemu+tcp://AGENT/system. Lets VMs move live
    #[arg(long, value_name = "URI")]
    pub mobility: Option<String>,
}

#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub ask: Ask,
    /// Save the plan for `causeway run`
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub ask: Ask,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args)]
pub struct RunArgs {
    /// From `plan -o`
    pub plan: PathBuf,
    #[command(flatten)]
    pub login: LoginArgs,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args)]
pub struct RecoverArgs {
    /// A VM's name or a migration; all without it
    pub which: Option<String>,
    /// Bring what stopped in its switchover to its end: forward if it is decided or can be, back if it
    /// was being taken back or cannot be told any more. What is still being copied is left to `resume`
    /// and `abort`
    #[arg(long)]
    pub settle: bool,
    /// Your word that nothing of the VM runs, or ever will, at a destination that cannot be asked:
    /// fenced=SITE. Migrations to it that are not known to be decided are taken back
    #[arg(long, value_name = "fenced=SITE", requires_all = ["settle", "reason"])]
    pub attest: Option<String>,
    /// What you base that on; it is recorded with your name
    #[arg(long, value_name = "WHY", requires = "attest", value_parser = parse_why)]
    pub reason: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args)]
pub struct ResumeArgs {
    /// A migration as `status` lists it, or its VM's name
    pub id: String,
    #[command(flatten)]
    pub login: LoginArgs,
    /// A new budget, for a copy that did not converge
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    pub max_downtime: Option<u64>,
    /// A new limit; 0 takes it away
    #[arg(long, value_name = "BYTES/S", value_parser = parse_bytes)]
    pub limit_rate: Option<u64>,
    /// A new limit of reading; 0 takes it away
    #[arg(long, value_name = "BYTES/S", value_parser = parse_bytes)]
    pub limit_read: Option<u64>,
    /// Your word that the VM does not run at its source and never will, and why you know: needed only
    /// where it is decided for its destination, somebody began to call it off all the same, and the
    /// source cannot be asked. It is recorded; if it is wrong, two copies may run
    #[arg(long, value_name = "WHY", value_parser = parse_why)]
    pub attest: Option<String>,
    /// Do not ask: whether to go on with a plan that `recover` had from the sites, and for your word
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args)]
pub struct AbortArgs {
    /// A migration as `status` lists it, or its VM's name
    pub id: String,
    /// Your word that the copy at the destination never ran and never will, since no other causeway
    /// reaches it, and why you know: needed only where its placeholder is gone or cannot be asked. It is
    /// recorded; if it is wrong, two copies may run
    #[arg(long, value_name = "WHY", value_parser = parse_why)]
    pub attest: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args)]
pub struct DiscardArgs {
    /// As `status` lists it
    pub id: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Subcommand)]
pub enum ReceiptVerb {
    /// Check a receipt offline
    Verify {
        /// As `migrate` wrote it
        file: PathBuf,
        /// The public key that must have signed it, as the summary printed it
        #[arg(long, value_name = "HEX")]
        key: Option<String>,
    },
}

#[derive(Args)]
pub struct ApplianceArgs {
    #[command(subcommand)]
    pub verb: ApplianceVerb,
}

#[derive(Subcommand)]
pub enum ApplianceVerb {
    /// Make kernel and initramfs from a distribution's kernel and our agent
    Build {
        /// Folder with `vmlinuz*` and `lib/modules`; without it the Debian cloud kernel is fetched
        #[arg(long, value_name = "DIR")]
        kernel: Option<PathBuf>,
        /// The static causeway-agent; looked for beside causeway without it
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
        /// Where to put it; into the state directory without it
        #[arg(short, long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
}

/// How to log in to the guest.
#[derive(Args, Clone, Default)]
pub struct LoginArgs {
    /// SSH login inside the VM: root, or a user with sudo without a password
    #[arg(long, value_name = "USER@HOST[:PORT]")]
    pub guest: Option<String>,
    /// Private key for --guest; the SSH agent and ~/.ssh without it
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// The guest's host key: `ssh-ed25519 AAAA…` or `SHA256:…`
    #[arg(long, value_name = "KEY")]
    pub host_key: Option<String>,
    /// File to look the guest's host key up in
    #[arg(long, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
}

/// What is asked of a migration.
#[derive(Args, Clone)]
pub struct Ask {
    /// Name or UUID at the source
    pub vm: String,
    /// Source site
    #[arg(long, value_name = "SITE")]
    pub from: String,
    /// Destination site
    #[arg(long, value_name = "SITE")]
    pub to: String,
    /// How it moves: copied by an agent inside the guest, which boots at the destination; or live, memory
    /// and disks, by the sites' own migration, through mobility agents. Live where both sites have an
    /// agent and no option of the other way is given, else guest, and why is said
    #[arg(long, value_enum)]
    pub method: Option<MethodArg>,
    #[command(flatten)]
    pub login: LoginArgs,
    /// Destination pool: NAME for all disks, vdb=NAME for one
    #[arg(long, value_name = "[DISK=]POOL")]
    pub pool: Vec<String>,
    /// Where a source network or bridge is at the destination
    #[arg(long, value_name = "FROM=TO")]
    pub network: Vec<String>,
    /// Format of the volumes at the destination
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// From the freeze until the destination answers; what counts as an answer says --probe. Live: that the
    /// VM may stand still [default: 30s; live: what the hypervisor has by itself]
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    pub max_downtime: Option<u64>,
    /// Most bytes per second on the wire: 20M, 1G. Live: of each disk, and then of memory, in whole MiB
    #[arg(long, value_name = "BYTES/S", value_parser = parse_bytes)]
    pub limit_rate: Option<u64>,
    /// Most bytes per second read from the guest's disks while it works: 50M; not in the switchover
    #[arg(long, value_name = "BYTES/S", value_parser = parse_bytes)]
    pub limit_read: Option<u64>,
    /// How writes in the guest are noticed
    #[arg(long, value_enum, default_value_t)]
    pub tracker: TrackerArg,
    /// Connect the guest straight to the helper, on this destination bridge with this address
    /// (10.0.0.9/24 or dhcp); relayed through this machine without it
    #[arg(long, value_name = "BRIDGE=ADDRESS")]
    pub direct: Option<String>,
    /// Parallel data streams [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub streams: Option<u16>,
    /// Highest zstd level; 0 sends as is [default: 3]
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..=9))]
    pub compress: Option<i32>,
    /// systemd service to stop before the freeze
    #[arg(long, value_name = "NAME")]
    pub stop_unit: Vec<String>,
    /// Command to run in the guest before the freeze
    #[arg(long, value_name = "COMMAND")]
    pub hook_before: Vec<String>,
    /// Command to run in the guest if the switchover is called off
    #[arg(long, value_name = "COMMAND")]
    pub hook_undo: Vec<String>,
    /// Command to run on this machine once the source is off and the copy complete; the destination
    /// starts only if it succeeds, otherwise all is taken back. Its time counts as downtime; `resume`
    /// asks it again where its answer got lost
    #[arg(long, value_name = "COMMAND")]
    pub gate: Option<String>,
    /// Copy on until `causeway switchover` releases it
    #[arg(long)]
    pub hold: bool,
    /// No switchover before this time: 2026-11-21T02:00 (local) or with an offset
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// Give up after this many rounds [default: 30]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds_max: Option<u32>,
    /// How long the guest takes to boot, if you know better than its last boot
    #[arg(long, value_name = "TIME", value_parser = parse_ms)]
    pub boot_time: Option<u64>,
    /// What must answer at the destination: tcp:HOST:PORT or ssh:HOST:PORT; without it the platform's
    /// word that it runs is enough
    #[arg(long, value_name = "PROBE")]
    pub probe: Option<String>,
    /// Read all targets again before the decision
    #[arg(long)]
    pub reread: bool,
    /// Speed of the line, for the forecast: 12M
    #[arg(long, value_name = "BYTES/S", value_parser = parse_bytes)]
    pub line: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum MethodArg {
    /// Live if that can be, else guest
    Auto,
    /// By an agent inside the guest; from and to any cloud
    Guest,
    /// By the sites' own live migration; libvirt to libvirt
    Native,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Format {
    /// As at the source
    #[default]
    Same,
    Raw,
    Qcow2,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum TrackerArg {
    /// The best that the guest's kernel allows
    #[default]
    Auto,
    /// Changed blocks by BPF; needs Linux 5.12 with BTF
    Bpf,
    /// Every round reads and compares everything
    Rescan,
}

/// `500ms`, `10s`, `2m`; a bare number is seconds.
fn parse_ms(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text {
        t if t.ends_with("ms") => (&t[..t.len() - 2], 1),
        t if t.ends_with('s') => (&t[..t.len() - 1], 1_000),
        t if t.ends_with('m') => (&t[..t.len() - 1], 60_000),
        t => (t, 1_000),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("not a time: {text} (try 30s, 500ms, 2m)"))?;
    number.checked_mul(factor).ok_or_else(|| format!("too long: {text}"))
}

/// `1500`, `20M`, `1G`: bytes in powers of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 10),
        Some('m' | 'M') => (&text[..text.len() - 1], 20),
        Some('g' | 'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("not a size: {text} (try 20M, 1G)"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("too large: {text}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_and_sizes_read_as_people_type_them() {
        assert_eq!(parse_ms("500ms"), Ok(500));
        assert_eq!(parse_ms("30"), Ok(30_000));
        assert_eq!(parse_ms("2m"), Ok(120_000));
        assert!(parse_ms("soon").is_err() && parse_ms("s").is_err() && parse_ms("-1s").is_err());
        assert_eq!(parse_bytes("20M"), Ok(20 << 20));
        assert!(parse_bytes("").is_err() && parse_bytes("99999999999G").is_err());
    }
}
